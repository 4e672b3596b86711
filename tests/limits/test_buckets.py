"""Token buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits import buckets

CLOCKS = st.sampled_from([0.0, 1000.25, 1.9e9])
LIMITS = st.integers(1, 10_000_000)


def drained(now: float, per_min: int) -> float:
    state, wait_s = buckets.take(buckets.FULL, now, per_min, per_min=per_min)
    assert wait_s == 0.0
    return state


def test_a_full_bucket_gives_one_minutes_worth_and_no_more() -> None:
    """Sixty a minute: sixty at once, then one a second."""
    state = buckets.FULL
    for _ in range(60):
        state, wait_s = buckets.take(state, 100.0, 1, per_min=60)
        assert wait_s == 0.0
    same, wait_s = buckets.take(state, 100.0, 1, per_min=60)
    assert (same, wait_s) == (state, pytest.approx(1.0))


@given(now=CLOCKS, per_min=LIMITS, cost=st.floats(0, 2e7), spent=st.floats(0, 1))
def test_retry_after_is_exact(now: float, per_min: int, cost: float, spent: float) -> None:
    """A refused cost passes after exactly the wait named, and not noticeably sooner."""
    state, _ = buckets.take(buckets.FULL, now, spent * per_min, per_min=per_min)
    after, wait_s = buckets.take(state, now, cost, per_min=per_min)
    if wait_s == 0.0:
        assert after >= state
        return
    assert after == state
    assert buckets.take(state, now + wait_s, cost, per_min=per_min)[1] == 0.0
    if wait_s > 0.001:
        assert buckets.take(state, now + wait_s - 0.001, cost, per_min=per_min)[1] > 0.0


@given(per_min=LIMITS, factor=st.floats(1, 1000))
def test_a_cost_above_the_bucket_takes_all_of_it(per_min: int, factor: float) -> None:
    """It passes when the bucket is full, and waits at most a minute otherwise."""
    state, wait_s = buckets.take(buckets.FULL, 50.0, per_min * factor, per_min=per_min)
    assert wait_s == 0.0
    assert buckets.take(state, 50.0, per_min * factor, per_min=per_min)[1] == pytest.approx(buckets.PERIOD_S)


@given(now=CLOCKS, per_min=LIMITS, costs=st.lists(st.floats(0, 1e6), max_size=40), pause=st.floats(0, 10))
def test_never_grants_more_than_the_limit_allows(now: float, per_min: int, costs: list[float], pause: float) -> None:
    """Over any run of takes the sum granted is at most the bucket plus what refilled."""
    state, start, granted = buckets.FULL, now, 0.0
    for cost in costs:
        capped = min(cost, per_min)
        state, wait_s = buckets.take(state, now, cost, per_min=per_min)
        granted += 0.0 if wait_s else capped
        refilled = per_min * (now - start) / buckets.PERIOD_S
        assert granted <= (per_min + refilled) * (1 + 1e-6) + 1e-3
        now += pause


@given(now=CLOCKS, per_min=LIMITS, taken=st.integers(0, 100_000), used=st.integers(0, 100_000))
def test_correcting_is_as_if_the_true_cost_had_been_taken(now: float, per_min: int, taken: int, used: int) -> None:
    """Right after the take, a corrected bucket stands where the true cost puts it, into debt if need be."""
    state, _ = buckets.take(buckets.FULL, now, taken, per_min=per_min)
    corrected = buckets.correct(state, now, taken, used, per_min=per_min)
    assert corrected - now == pytest.approx(used * buckets.PERIOD_S / per_min, abs=1e-5)


def test_debt_is_waited_for() -> None:
    """Using three times the bucket keeps the key out for the two extra minutes."""
    state = buckets.correct(drained(0.0, 100), 0.0, 100, 300, per_min=100)
    assert buckets.take(state, 119.0, 1, per_min=100)[1] > 0.0
    assert buckets.take(state, 121.0, 1, per_min=100)[1] == 0.0


def test_a_refund_never_overfills() -> None:
    """Tokens that come back to a bucket that has refilled meanwhile are worth nothing extra."""
    state = buckets.correct(drained(0.0, 100), 500.0, 100, 0, per_min=100)
    full = drained(500.0, 100)
    assert buckets.take(state, 500.0, 100, per_min=100) == (full, 0.0)
    assert buckets.take(full, 500.0, 1, per_min=100)[1] > 0.0


def test_a_changed_limit_keeps_the_relative_fill() -> None:
    """Half a bucket is half a bucket after the policy made it ten times as large."""
    state, _ = buckets.take(buckets.FULL, 0.0, 50, per_min=100)
    assert buckets.take(state, 0.0, 500, per_min=1000)[1] == 0.0
    assert buckets.take(state, 0.0, 501, per_min=1000)[1] > 0.0
