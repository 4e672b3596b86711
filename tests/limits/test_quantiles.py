"""The decaying quantile sketch."""

from __future__ import annotations

import random
from math import ceil, log
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits.quantiles import HIGHEST, LOWEST, Sketch, Snapshot, merge, mix, of_buckets

VALUES = st.lists(st.floats(LOWEST, HIGHEST), min_size=1, max_size=300)


def filled(values: list[float], *, now: float = 0.0, half_life_s: float | None = None) -> Sketch:
    sketch = Sketch(half_life_s=half_life_s)
    for value in values:
        sketch.add(value, now)
    return sketch


@given(values=VALUES, q=st.floats(0, 1))
def test_every_quantile_keeps_the_relative_error(values: list[float], q: float) -> None:
    """The estimate is within 2 % of the exact order statistic."""
    exact = sorted(values)[max(ceil(q * len(values)) - 1, 0)]
    assert filled(values).quantile(q) == pytest.approx(exact, rel=0.02 + 1e-9)


@given(values=VALUES, half_life_s=st.sampled_from([None, 5.0]))
def test_adding_says_what_share_is_new(values: list[float], half_life_s: float | None) -> None:
    """The first observation is all that is known; each is the share of its weight, however far the old ones faded."""
    sketch = Sketch(half_life_s=half_life_s)
    for second, value in enumerate(values):
        assert sketch.add(value, float(second), 2.0) == pytest.approx(2.0 / sketch.weight(float(second)))


@given(values=VALUES)
def test_a_mixture_has_the_mean_of_its_parts(values: list[float]) -> None:
    """Weighed by their shares, whatever they weigh themselves; from buckets alone it is right within their error."""
    first, second = filled(values), filled([value + 1.0 for value in values[:3]])
    mixture = mix([(first, 0.25), (Sketch(), 0.5), (second, 0.75)])
    assert mixture.mean == pytest.approx(0.25 * (first.mean() or 0.0) + 0.75 * (second.mean() or 0.0))
    again = of_buckets(first.snapshot(0.0).weights, 0.02)
    assert again.mean() == pytest.approx(first.mean(), rel=0.02 + 1e-9)


@given(values=VALUES)
def test_mean_and_weight_are_exact(values: list[float]) -> None:
    """What is not binned is not rounded."""
    sketch = filled(values)
    assert sketch.weight(0.0) == len(values)
    assert sketch.mean() == pytest.approx(sum(values) / len(values))


def test_nothing_observed_is_none() -> None:
    """An empty sketch does not make a number up."""
    sketch = Sketch()
    assert (sketch.quantile(0.5), sketch.mean(), sketch.weight(9.0)) == (None, None, 0.0)


@given(st.lists(st.floats(0, 1e300), min_size=1), st.sampled_from([0.01, 0.02, 0.1]))
def test_memory_is_bounded_whatever_comes(values: list[float], relative_error: float) -> None:
    """Values beyond both ends share the outermost buckets."""
    sketch = Sketch(relative_error=relative_error)
    for value in values:
        sketch.add(value, 0.0)
    buckets = sketch.snapshot(0.0).weights
    assert max(buckets) - min(buckets) <= log(HIGHEST / LOWEST) / (2 * relative_error) + 1


@given(now=st.floats(0, 2e9), halves=st.integers(0, 40))
def test_weight_halves_with_each_half_life(now: float, halves: int) -> None:
    """One observation is worth 2^-n after n half-lives."""
    sketch = filled([7.0], now=now, half_life_s=600.0)
    assert sketch.weight(now + halves * 600.0) == pytest.approx(0.5**halves, rel=1e-4)


@pytest.mark.parametrize("half_lives", [1.0, 70.0, 100.0, 5000.0])
def test_the_old_regime_is_forgotten(half_lives: float) -> None:
    """After a pause new values outweigh old ones as much as they should, across resets of the scale."""
    sketch = filled([1.0] * 1000, half_life_s=10.0)
    now = 10.0 * half_lives
    for _ in range(1000):
        sketch.add(100.0, now)
    assert sketch.quantile(0.5) == pytest.approx(100.0, rel=0.02)
    assert sketch.weight(now) == pytest.approx(1000.0 + 1000.0 * 0.5**half_lives)
    assert sketch.mean() == pytest.approx((1e5 + 1e3 * 0.5**half_lives) / (1e3 + 1e3 * 0.5**half_lives))


def test_a_long_life_stays_right() -> None:
    """Thousands of resets later the sketch says what the last half-lives held."""
    rng = random.Random(4)
    sketch = Sketch(half_life_s=1.0)
    for step in range(20_000):
        sketch.add(rng.lognormvariate(5.0, 1.0), step * 0.1)
    assert sketch.weight(2000.0) == pytest.approx(1 / (1 - 0.5**0.1), rel=0.1)
    assert len(sketch.snapshot(2000.0).weights) < 576


def test_a_clock_that_steps_back_neither_fails_nor_freezes_learning() -> None:
    """After a reading from far in the future new observations still count."""
    sketch = filled([1.0], now=1e9, half_life_s=60.0)
    sketch.add(50.0, 5.0)
    sketch.add(50.0, 6.0)
    assert sketch.weight(6.0) == pytest.approx(3.0)
    assert sketch.quantile(0.9) == pytest.approx(50.0, rel=0.02)
    assert sketch.snapshot(6.0).at == 6.0


def parts(half_life_s: float | None) -> st.SearchStrategy[Snapshot]:
    return st.builds(
        lambda values, now: filled(values, now=now, half_life_s=half_life_s).snapshot(now),
        st.lists(st.floats(0.1, 1e4), max_size=20),
        st.floats(0, 1000),
    )


def assert_same(a: Snapshot, b: Snapshot) -> None:
    assert a.at == b.at
    assert a.total == pytest.approx(b.total)
    assert a.weights == pytest.approx(b.weights)


@given(parts(100.0), parts(100.0), parts(100.0))
def test_merging_is_commutative_and_associative(a: Snapshot, b: Snapshot, c: Snapshot) -> None:
    """Shared stores may merge in any order."""
    assert_same(merge(a, b), merge(b, a))
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0, 1000)), min_size=2), st.data())
def test_merged_halves_equal_the_whole(seen: list[tuple[float, float]], data: st.DataObject) -> None:
    """Two observers that split the traffic know together what one would have known."""
    seen.sort(key=lambda pair: pair[1])
    cut = data.draw(st.integers(0, len(seen)))
    whole, left, right = (Sketch(half_life_s=50.0) for _ in range(3))
    for index, (value, now) in enumerate(seen):
        whole.add(value, now)
        (left if index < cut else right).add(value, now)
    end = seen[-1][1]
    assert_same(merge(left.snapshot(end), right.snapshot(end)), whole.snapshot(end))


def test_merging_unlike_sketches_is_refused() -> None:
    """Buckets of different widths, or weights of different half-lives, are not added."""
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(Sketch(relative_error=0.01).snapshot(0), Sketch().snapshot(0))
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(Sketch(half_life_s=1.0).snapshot(0), Sketch().snapshot(0))


@given(VALUES, st.sampled_from([msgspec.json, msgspec.msgpack]))
def test_snapshots_travel_and_go_on(values: list[float], codec: Any) -> None:
    """Written, read and restored, a sketch answers as before and keeps learning."""
    sketch = filled(values, now=3.0, half_life_s=100.0)
    snapshot = codec.decode(codec.encode(sketch.snapshot(3.0)), type=Snapshot)
    restored = Sketch.restore(snapshot)
    assert_same(restored.snapshot(3.0), sketch.snapshot(3.0))
    restored.add(5.0, 4.0)
    sketch.add(5.0, 4.0)
    assert restored.weight(4.0) == pytest.approx(sketch.weight(4.0))
    assert restored.mean() == pytest.approx(sketch.mean())
    assert snapshot == sketch_at_rest(values)


def sketch_at_rest(values: list[float]) -> Snapshot:
    return filled(values, now=3.0, half_life_s=100.0).snapshot(3.0)
