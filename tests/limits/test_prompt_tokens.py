"""The prompt-token estimate: right on the shared prompts, robust on anything, calibrated by what upstreams count."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits.prompt_tokens import (
    SAMPLE_BYTES,
    TOKENS_PER_IMAGE,
    Calibration,
    estimate,
    estimate_escaped,
    estimate_prompt,
    features,
    unescaped,
)
from relay.limits.shipped import PROMPT_TOKENS

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts.jsonl.gz"

SAMPLES = {
    "English": ("Please summarise the following article in three short sentences.", 11),
    "German": ("Bitte fasse den folgenden Artikel in drei kurzen Sätzen zusammen.", 12),
    "Russian": ("Пожалуйста, кратко изложи следующую статью в трёх предложениях.", 19),
    "Greek": ("Παρακαλώ συνόψισε το παρακάτω άρθρο σε τρεις σύντομες προτάσεις.", 25),
    "Arabic": ("من فضلك لخص المقال التالي في ثلاث جمل قصيرة.", 13),
    "Hindi": ("कृपया निम्नलिखित लेख का तीन छोटे वाक्यों में सारांश दें।", 21),
    "Thai": ("กรุณาสรุปบทความต่อไปนี้เป็นสามประโยคสั้น ๆ", 18),
    "Japanese": ("次の記事を三つの短い文で要約してください。", 14),
    "Korean": ("다음 기사를 세 문장으로 짧게 요약해 주세요.", 16),
    "Chinese": ("请用三句简短的话概括下面的文章。", 13),
    "Vietnamese": ("Hãy tóm tắt bài viết sau trong ba câu ngắn gọn.", 17),
}
"""One request in several scripts, with the tokens that o200k makes of it."""


@pytest.mark.skipif(not PROMPTS.exists(), reason="the shared prompts are not beside this checkout")
def test_error_on_the_shared_prompts() -> None:
    """Against real o200k counts the mean absolute error is below 7 %, and below 20 % in every source."""
    errors = defaultdict(list)
    with gzip.open(PROMPTS, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row.get("prompt") and row["prompt_tokens"]:
                error = abs(estimate(row["prompt"].encode()) / row["prompt_tokens"] - 1.0)
                errors[row["source"]].append(error)
    everything = [error for of_source in errors.values() for error in of_source]
    assert sum(everything) / len(everything) < 0.07
    assert max(sum(of_source) / len(of_source) for of_source in errors.values()) < 0.2


@pytest.mark.parametrize(("text", "tokens"), SAMPLES.values(), ids=SAMPLES.keys())
def test_every_script_is_near(text: str, tokens: int) -> None:
    """A sentence is within three tenths; single sentences scatter more than the prompts that the mean is over."""
    assert estimate(text.encode()) == pytest.approx(tokens, rel=0.3)


@given(st.binary(max_size=3 * SAMPLE_BYTES))
def test_any_bytes_have_a_finite_estimate(data: bytes) -> None:
    """Broken UTF-8 neither fails nor goes far astray: at most three tokens per byte."""
    assert abs(estimate(data)) <= 3 * len(data)


@given(st.text(st.characters(codec="utf-8") | st.sampled_from('\\"\n\tnt/u')), st.booleans())
def test_the_inside_of_a_json_string_is_read_back(text: str, ascii_only: bool) -> None:  # noqa: FBT001 - as below
    """Whichever escapes are used, and also where a backslash is the text's own."""
    inside = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
    assert unescaped(inside) == text.encode()


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.booleans())
def test_json_makes_no_difference(text: str, ascii_only: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
    """A text counts the same as it stands in JSON, whether or not its characters are escaped there."""
    inside = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
    assert estimate(inside, escaped=True) == pytest.approx(estimate(text.encode()))
    prompt = estimate_escaped([inside, inside], messages=2, images=1)
    assert prompt == pytest.approx(estimate_prompt([text, text], messages=2, images=1))


def test_long_json_is_sampled() -> None:
    """Of a long text in JSON a sample is read, in which a character cut in two does little harm."""
    text = "Der Fluß fließt nach Süden.\n" * 2000
    inside = json.dumps(text)[1:-1].encode()
    assert estimate(inside, escaped=True) == pytest.approx(estimate(text.encode()), rel=0.15)


@given(st.text(max_size=300))
def test_every_feature_has_a_weight(text: str) -> None:
    """Nothing is counted that the shipped weights do not know."""
    assert features(text.encode(errors="replace")).keys() <= PROMPT_TOKENS.keys()


def test_scripts_that_share_a_lead_byte_are_told_apart() -> None:
    """Devanagari and Thai both begin with E0, and a character of the one costs twice as much as of the other."""
    assert features("मानव".encode())["devanagari"] == 4
    assert features("สวัสดี".encode())["thai"] == 6
    assert features("Việt Nam là".encode())["l_vietnamese"] == 1


def test_long_texts_are_sampled_evenly() -> None:
    """A text half English, half Chinese is judged by both halves, in bounded time."""
    text = ("The quick brown fox jumps over the lazy dog. " * 2000 + "请用三句简短的话概括下面的文章。" * 2000).encode()
    halves = estimate(text[:90_000]) + estimate(text[90_000:])
    assert estimate(text) == pytest.approx(halves, rel=0.1)


def test_a_prompt_is_its_texts_and_what_is_around_them() -> None:
    """Each message, the reply's start and each image cost besides the text."""
    bare = estimate(b"Hi\nthere")
    assert estimate_prompt(["Hi", "there"], messages=2) == bare + 2 * 4 + 3
    assert estimate_prompt(["Hi", "there"], messages=2, images=3) == bare + 2 * 4 + 3 + 3 * TOKENS_PER_IMAGE


# --- calibration --------------------------------------------------------------------------------------------


def test_an_unknown_model_is_taken_as_estimated() -> None:
    """Nothing learned is a factor of one."""
    assert Calibration().factor("new") == 1.0


def test_a_tokenizer_that_needs_more_is_learned() -> None:
    """A model that counts 40 % more is met within 2 % after a hundred prompts, and others are not touched."""
    calibration = Calibration()
    for _ in range(100):
        calibration.observe("model", estimated=500, actual=700)
    assert calibration.factor("model") == pytest.approx(1.4, rel=0.02)
    assert calibration.factor("other") == 1.0


def test_a_prompt_counted_absurdly_hardly_matters() -> None:
    """An image billed as a hundred thousand tokens moves the factor by a few percent."""
    calibration = Calibration()
    for _ in range(100):
        calibration.observe("model", estimated=500, actual=500)
    calibration.observe("model", estimated=500, actual=100_000)
    assert 1.0 < calibration.factor("model") < 1.05


def test_a_new_tokenizer_is_learned_anew() -> None:
    """After the model behind a name changes, a few hundred prompts later the old factor is gone."""
    calibration = Calibration()
    for actual in [1000] * 500 + [500] * 500:
        calibration.observe("model", estimated=500, actual=actual)
    assert calibration.factor("model") == pytest.approx(1.0, rel=0.02)


def test_calibrations_come_back() -> None:
    """What `sums` gave makes the same factors."""
    calibration = Calibration()
    calibration.observe("model", estimated=900, actual=1200)
    assert Calibration(calibration.sums()).factor("model") == calibration.factor("model")
