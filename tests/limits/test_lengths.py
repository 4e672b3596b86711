"""The length model: what is learned, how fast, and that cut answers do not mislead it."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.limits import lengths
from relay.limits.lengths import CellSnapshot, Lengths, Place, application, merge
from relay.limits.quantiles import Sketch
from relay.limits.shipped import ANSWER_LENGTHS

if TYPE_CHECKING:
    from types import ModuleType

NOW = 1_800_000_000.0
HOME = Place("code", "small", "team-a", application("You write Python."))


def taught(answers: list[int], place: Place = HOME, *, into: Lengths | None = None) -> Lengths:
    model = into or Lengths(ANSWER_LENGTHS)
    for second, tokens in enumerate(answers):
        model.observe(place, tokens, NOW + second)
    return model


def lognormal(count: int, *, median: float, sigma: float = 0.8, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [max(1, round(rng.lognormvariate(0.0, sigma) * median)) for _ in range(count)]


@pytest.mark.parametrize("kind", ["code", "summarize", "an intent of the policy's own"])
def test_before_any_answer_the_shipped_prior_speaks(kind: str) -> None:
    """An unknown intent gets the prior of any; the cell is empty, so the source is known."""
    expected = Lengths(ANSWER_LENGTHS).expect(HOME._replace(kind=kind), 0.95)
    assert expected.cell == ()
    assert 200 < expected.tokens < 2000
    assert expected.allowed == pytest.approx(0.05)


def test_priors_differ_by_intent() -> None:
    """Code runs longer than extraction."""
    model = Lengths(ANSWER_LENGTHS)
    code, extract = (model.expect(HOME._replace(kind=kind), 0.95).tokens for kind in ("code", "classify_extract"))
    assert code > 1.5 * extract


def test_a_cell_learns_its_own_quantile() -> None:
    """After two thousand answers the quantile is the true one within a bucket and chance."""
    answers = lognormal(2000, median=150)
    expected = taught(answers).expect(HOME, 0.9)
    assert expected.cell == HOME
    assert expected.tokens == pytest.approx(sorted(answers)[1800], rel=0.12)


def test_one_long_answer_widens_a_young_cell_at_once() -> None:
    """A single answer of 3,000 tokens is within the next budget at 95 %."""
    assert taught([3000]).expect(HOME, 0.95).tokens >= 2800


def test_short_answers_narrow_it_slowly() -> None:
    """Ten answers of ten tokens do not yet outvote the prior; two hundred do."""
    assert taught([10] * 10).expect(HOME, 0.95).tokens > 100
    assert taught([10] * 200).expect(HOME, 0.95).tokens < 20


@pytest.mark.parametrize(
    ("place", "cell"),
    [
        (HOME._replace(kind="creative"), HOME[1:]),
        (HOME._replace(key="team-b"), HOME[:2]),
        (HOME._replace(application="0123"), HOME[:2]),
        (HOME._replace(model="large"), HOME[:1]),
        (HOME._replace(model="large", kind="creative"), ()),
    ],
    ids=["another intent", "another key", "another application", "another model", "all new"],
)
def test_a_new_place_starts_from_the_nearest_known_cell(place: Place, cell: tuple[str, ...]) -> None:
    """What is shared with known requests is used, the most particular first."""
    model = taught([2000] * 100)
    expected = model.expect(place, 0.9)
    assert expected.cell == cell
    assert (expected.tokens > 1500) == bool(cell)


def test_cells_do_not_leak_into_each_other() -> None:
    """Two applications with the same model keep their own lengths."""
    model = taught([1000] * 300)
    taught([10] * 300, HOME._replace(application="labels"), into=model)
    assert 1000 <= model.expect(HOME, 0.9).tokens <= 1000 * 1.11
    assert model.expect(HOME._replace(application="labels"), 0.9).tokens < 15


@given(st.integers(1, 100_000))
def test_answers_that_are_all_alike_fit(tokens: int) -> None:
    """A cell that only knows one length gives no less than that: it would be too small for ever."""
    model = taught([tokens] * 40)
    assert tokens <= ceil(model.expect(HOME, 0.5).tokens) <= ceil(tokens * 1.11)


def test_old_answers_fade() -> None:
    """Three weeks after a change the old lengths do not count."""
    model = taught([2000] * 200)
    for second in range(100):
        model.observe(HOME, 50, NOW + 21 * 86_400 + second)
    assert model.expect(HOME, 0.9).tokens < 200


# --- cut answers --------------------------------------------------------------------------------------------


def test_cut_answers_are_lower_bounds() -> None:
    """With four in ten answers cut, the quantiles are those of the whole answers, not of the stumps."""
    answers = lognormal(4000, median=200)
    rng = random.Random(8)
    model, naive = Lengths(ANSWER_LENGTHS), Lengths(ANSWER_LENGTHS)
    cuts = 0
    for second, tokens in enumerate(answers):
        limit = rng.choice([100, 200, 400, 10_000])
        cuts += tokens > limit
        model.observe(HOME, min(tokens, limit), NOW + second, cut=tokens > limit)
        naive.observe(HOME, min(tokens, limit), NOW + second)
    truth = sorted(answers)[int(0.9 * len(answers))]
    assert cuts > 0.35 * len(answers)
    assert model.expect(HOME, 0.9).tokens == pytest.approx(truth, rel=0.2)
    assert naive.expect(HOME, 0.9).tokens < 0.8 * truth


def test_answers_cut_where_none_was_ever_longer_count_as_twice_as_long() -> None:
    """A limit that cuts every answer does not teach that answers are as long as the limit."""
    model = Lengths({"": {0: 1.0}})
    for second in range(50):
        model.observe(HOME, 4000, NOW + second, cut=True)
    assert model.expect(HOME, 0.9).tokens > 7000


# --- widening and slack -------------------------------------------------------------------------------------


def over_rate(model: Lengths, answers: list[int], *, extendable: bool = False) -> float:
    over = 0
    for second, tokens in enumerate(answers):
        expected = model.expect(HOME, 0.95, extendable=extendable)
        granted = round(expected.tokens)
        over += tokens > granted
        model.judge(HOME, over=tokens > granted, allowed=expected.allowed)
        model.observe(HOME, tokens, NOW + 10_000 + second)
    return over / len(answers)


def test_budgets_are_exceeded_about_as_often_as_asked() -> None:
    """At 95 %, three to six in a hundred answers are over, whatever the distribution."""
    assert 0.03 <= over_rate(taught(lognormal(200, median=300)), lognormal(3000, median=300, seed=9)) <= 0.06


def test_a_cell_that_is_over_too_often_widens_by_itself() -> None:
    """Lengths that keep growing outrun the memory of them; the widening makes up for most of it."""
    rng = random.Random(2)
    growing = [round(rng.lognormvariate(0.0, 0.5) * 100 * 1.002**step) for step in range(1000)]
    model = taught(lognormal(1000, median=100, sigma=0.5))
    assert over_rate(model, growing) < 0.1
    assert model.expect(HOME, 0.95).quantile > 0.97


def test_a_widened_cell_narrows_again() -> None:
    """When the answers fit again, the quantile comes back to the policy's."""
    model = taught(lognormal(1000, median=100))
    over_rate(model, [100_000] * 10)
    assert model.expect(HOME, 0.95).quantile > 0.99
    over_rate(model, [50] * 500)
    assert model.expect(HOME, 0.95).quantile == pytest.approx(0.95)


def test_slack_shares_continuations_out_by_length() -> None:
    """With extension, cells of long answers may be over up to twice as often, those of short ones half as often."""
    model = Lengths(ANSWER_LENGTHS)
    long, short = HOME, HOME._replace(application="short", model="other", kind="chat_roleplay")
    for _ in range(30):
        taught(lognormal(10, median=2000), long, into=model)
        taught(lognormal(20, median=20), short, into=model)
    assert model.expect(long, 0.95, extendable=True).allowed == pytest.approx(0.1)
    assert model.expect(short, 0.95, extendable=True).allowed == pytest.approx(0.025)
    assert model.expect(long, 0.95).allowed == model.expect(short, 0.95).allowed == pytest.approx(0.05)


@given(st.integers(1, 50_000), st.floats(0.01, 0.99))
def test_more_is_always_something(written: int, quantile: float) -> None:
    """However long an answer has become, a continuation is expected to need at least one token."""
    assert taught([100, 300, 900]).expect_more(HOME, quantile, written) >= 1.0


def test_more_where_nothing_was_longer_doubles() -> None:
    """Beyond all experience as many tokens again are expected."""
    assert taught([100] * 10).expect_more(HOME, 0.5, 90_000) == 90_000


# --- counting by sample -------------------------------------------------------------------------------------


def weights(model: Lengths, now: float = NOW) -> dict[tuple[str, ...], float]:
    return {cell.cell: sum(cell.lengths.weights.values()) for cell in model.snapshot(now)}


@given(
    seed=st.integers(0, 1000),
    period=st.integers(1, 40),
    answers=st.integers(1, 4000),
    sigma=st.sampled_from([0.0, 0.3, 1.5]),
)
@settings(max_examples=25)
def test_each_cell_stands_for_as_many_answers_as_came(seed: int, period: int, answers: int, sigma: float) -> None:
    """Whatever share of them is counted, and however many applications take turns, no cell knows more or fewer."""
    model, came = Lengths(ANSWER_LENGTHS), Counter[tuple[str, ...]]()
    for number, tokens in enumerate(lognormal(answers, median=200, sigma=sigma, seed=seed)):
        place = HOME._replace(application=str(number % period), kind="code" if number % 3 else "summarize")
        model.observe(place, tokens, NOW)
        came.update([*place.cells(), ()])
    known = weights(model)
    assert known.keys() == came.keys()
    for cell, count in came.items():
        assert known[cell] == pytest.approx(
            count, rel=0.08, abs=4 * lengths.MAX_STRIDE if count > lengths.CENSUS else 0
        )


@pytest.mark.parametrize("period", [2, 5, 12, 16, 29, 64])
def test_answers_that_come_in_turns_are_all_known(period: int) -> None:
    """Traffic with a period is no reason to count only some of its phases: each length has the share that it has."""
    model = Lengths(ANSWER_LENGTHS)
    for number in range(20_000):
        model.observe(HOME, 2 ** (number % period % 8), NOW)
    by_length = next(cell for cell in model.snapshot(NOW) if cell.cell == HOME).lengths.weights
    came = Counter(number % period % 8 for number in range(20_000))
    assert sorted(by_length.values()) == pytest.approx(sorted(came.values()), rel=0.1)


@given(seed=st.integers(0, 1000), q=st.sampled_from([0.3, 0.5, 0.8, 0.95, 0.99]))
@settings(max_examples=15)
def test_a_sample_says_what_all_would(seed: int, q: float) -> None:
    """Of six thousand answers a sixth is counted; mean and quantiles are those of all, the high ones most surely."""
    answers = lognormal(6000, median=150, seed=seed)
    model = taught(answers)
    error = 0.25 if q < lengths.USUAL else 0.12
    assert model.quantiles(HOME, [q])[0] == pytest.approx(sorted(answers)[int(q * 6000)], rel=error)
    assert model.mean(HOME) == pytest.approx(sum(answers) / 6000, rel=0.1)


def test_few_answers_of_a_place_that_is_well_known_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in sixteen that are usual, each that is not; what its wider cells count of a new place are as few."""
    added: list[float] = []
    add = Sketch.add

    def count(sketch: Sketch, value: float, now: float, weight: float) -> float:
        added.append(value)
        return add(sketch, value, now, weight)

    monkeypatch.setattr(Sketch, "add", count)
    model = taught([100] * 20_000)
    added.clear()
    taught([100] * 1600, into=model)
    assert len(added) == pytest.approx(5 * 100, rel=0.1)
    added.clear()
    taught([300] * 50, into=model)
    assert len(added) == 5 * 50
    added.clear()
    taught([100] * 100, HOME._replace(application="new"), into=model)
    assert len(added) == pytest.approx(2 * 100 + 3 * 6, abs=12)


@given(st.integers(0, 1000), st.sampled_from([(200, 50), (50, 200), (400, 300)]))
@settings(max_examples=10)
def test_a_change_is_followed_as_soon_as_if_all_were_counted(seed: int, medians: tuple[int, int]) -> None:
    """Where answers become longer or shorter, what is expected moves as it does where none is left out.

    Give or take two tenths of what it knows: at each it thinks anew.
    """
    before, after = (lognormal(2000, median=median, seed=seed + median) for median in medians)
    expected: dict[float, list[float]] = {}
    for stride in (lengths.MAX_STRIDE, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lengths, "MAX_STRIDE", stride)
            model = taught(before)
            expected[stride] = [model.expect(HOME, 0.95).tokens]
            for step in range(0, 2000, 200):
                taught(after[step : step + 200], into=model)
                expected[stride].append(model.expect(HOME, 0.95).tokens)
    every = expected[1.0]
    for step, tokens in enumerate(expected[lengths.MAX_STRIDE]):
        near = every[max(step - 2, 0) : step + 3]
        assert 0.85 * min(near) <= tokens <= 1.15 * max(near)


def test_a_place_that_is_rarely_counted_is_still_in_use() -> None:
    """The least recently used cells go by when an answer came, not by when one was counted."""
    model = Lengths(ANSWER_LENGTHS, max_cells=20)
    taught([700] * 10_000, into=model)
    for number in range(500):
        for other in range(3):
            model.observe(HOME._replace(application=f"{number} {other}", kind=str(other)), 5, NOW)
        model.observe(HOME, 700, NOW)
        assert model.expect(HOME, 0.9).cell == HOME


# --- memory, snapshots --------------------------------------------------------------------------------------


def test_memory_is_bounded_and_drops_the_least_recently_used() -> None:
    """A flood of one-off applications does not push out the one that keeps coming."""
    model = Lengths(ANSWER_LENGTHS, max_cells=50)
    for number in range(2000):
        model.observe(HOME._replace(application=str(number)), 5, NOW + number)
        model.observe(HOME, 700, NOW + number)
        assert len(model.snapshot(NOW + number)) <= 50
    assert model.expect(HOME, 0.9).tokens == pytest.approx(700, rel=0.06)


@pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack])
def test_snapshots_restore_what_was_learned(codec: ModuleType) -> None:
    """After a restart the same places get the same budgets, but for rounding and the young cells' parents."""
    model = taught(lognormal(500, median=300))
    over_rate(model, [90_000] * 3)
    written = codec.encode(model.snapshot(NOW + 20_000))
    restored = Lengths(ANSWER_LENGTHS)
    restored.restore(codec.decode(written, type=list[CellSnapshot]), NOW + 20_000)
    for place in (HOME, HOME._replace(kind="creative"), HOME._replace(key="team-b")):
        before, after = model.expect(place, 0.9), restored.expect(place, 0.9)
        assert after.cell == before.cell
        assert after.quantile == pytest.approx(before.quantile)
        assert after.tokens == pytest.approx(before.tokens, rel=0.11)


def test_two_workers_know_together_what_one_would() -> None:
    """Answers split over two processes and merged give the quantiles of all."""
    answers = lognormal(1000, median=300)
    a, b = taught(answers[::2]), taught(answers[1::2])
    both = Lengths(ANSWER_LENGTHS)
    both.restore(merge(a.snapshot(NOW + 2000), b.snapshot(NOW + 2000)), NOW + 2000)
    assert both.expect(HOME, 0.95).tokens == pytest.approx(taught(answers).expect(HOME, 0.95).tokens, rel=0.11)


def test_merging_keeps_the_wider_and_puts_the_heaviest_last() -> None:
    """A cell widened by one worker stays so; a store with less room keeps the cells that know most."""
    a, b = taught([100] * 50), taught([100] * 50)
    over_rate(a, [90_000] * 3)
    taught([7], HOME._replace(application="rare"), into=b)
    merged = merge(a.snapshot(NOW), b.snapshot(NOW))
    by_name = {cell.cell: cell for cell in merged}
    assert by_name[tuple(HOME)].widening < -0.4
    assert len(by_name) == 7
    weights = [sum(cell.lengths.weights.values()) for cell in merged]
    assert weights == sorted(weights)
    assert merged[0].cell[-1] == "rare"


def test_cells_of_another_resolution_are_refused() -> None:
    """Buckets of another width mean other lengths."""
    cell = taught([5]).snapshot(NOW)[0]
    odd = msgspec.structs.replace(cell, lengths=msgspec.structs.replace(cell.lengths, relative_error=0.01))
    with pytest.raises(ValueError, match="relative error"):
        Lengths(ANSWER_LENGTHS).restore([odd], NOW)


def test_the_same_answers_teach_the_same() -> None:
    """No clock, no randomness: two models that saw the same say the same."""
    answers = lognormal(300, median=80)
    a, b = (taught(answers) for _ in range(2))
    for model in (a, b):
        model.observe(HOME, 60, NOW + 400, cut=True)
    assert a.snapshot(NOW + 500) == b.snapshot(NOW + 500)


# --- fingerprints -------------------------------------------------------------------------------------------


def test_what_a_template_fills_in_is_the_same_application() -> None:
    """Dates, counters, spacing and case do not make another one; other words do."""
    assert application("You are Bo. Today is 2026-01-31.") == application("You are BO.\nToday is 2027-11-02!")
    assert application("You are Bo.") != application("You are Ada.")
    assert application("") == application(" 12 - 3 ") == ""


@given(st.text(max_size=600))
def test_any_system_prompt_has_a_short_fingerprint(text: str) -> None:
    """Sixteen hexadecimal digits or nothing, also for lone surrogates; never the text."""
    assert len(application(text)) in {0, 16}


def test_a_lone_surrogate_has_a_fingerprint() -> None:
    """JSON can carry what UTF-8 cannot."""
    assert len(application("\ud800 broken")) == 16


def test_shipped_lengths_are_shares() -> None:
    """Each intent's buckets weigh one together, up to what rounding left out."""
    assert set(ANSWER_LENGTHS) > {"", "code", "summarize", "longform"}
    for buckets in ANSWER_LENGTHS.values():
        assert sum(buckets.values()) == pytest.approx(1.0, abs=0.02)
    assert lengths.RELATIVE_ERROR == 0.05  # the buckets' meaning
