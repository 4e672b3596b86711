"""The circuit breaker's transitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits import breaker
from relay.limits.breaker import CLOSED, State

THRESHOLD, OPEN_S = 3, 10.0


def fail(state: State, now: float, *, probe: bool = False, retry_after_s: float | None = None) -> State:
    return breaker.on_failure(state, now, threshold=THRESHOLD, open_s=OPEN_S, probe=probe, retry_after_s=retry_after_s)


def opened(now: float = 0.0) -> State:
    state = CLOSED
    for _ in range(THRESHOLD):
        state = fail(state, now)
    return state


def test_opens_at_the_threshold_and_not_before() -> None:
    """Failures in a row open it; one fewer does not."""
    state = fail(fail(CLOSED, 0), 0)
    assert breaker.allows(state, 0)
    assert not breaker.allows(fail(state, 0), 0)


def test_success_between_failures_starts_the_count_again() -> None:
    """Only failures in a row count."""
    state = breaker.on_success(fail(fail(CLOSED, 0), 0))
    assert state == CLOSED
    assert breaker.allows(fail(fail(state, 0), 0), 0)


def test_a_healthy_closed_breaker_never_changes_its_value() -> None:
    """The hot path makes no new object."""
    assert breaker.on_start(CLOSED) is CLOSED
    assert breaker.on_success(CLOSED) is CLOSED
    assert breaker.on_cancel(CLOSED) is CLOSED


def test_half_open_lets_exactly_one_probe_through() -> None:
    """After `open_s` the first request passes and the next does not, until the probe is back."""
    state = opened()
    assert not breaker.allows(state, OPEN_S - 0.001)
    assert breaker.allows(state, OPEN_S)
    state = breaker.on_start(state)
    assert state.probing
    assert not breaker.allows(state, OPEN_S)
    assert not breaker.allows(state, OPEN_S * 100)


def test_probe_success_closes() -> None:
    """A probe that is answered closes the breaker and forgets the failures."""
    assert breaker.on_success(breaker.on_start(opened()), probe=True) == CLOSED


def test_probe_failure_opens_again_from_then_on() -> None:
    """A failed probe keeps the upstream alone for another `open_s`, counted from the failure."""
    state = fail(breaker.on_start(opened()), 12.0, probe=True)
    assert not breaker.allows(state, 12.0 + OPEN_S - 0.001)
    assert breaker.allows(state, 12.0 + OPEN_S)


def test_cancelled_probe_gives_its_slot_back() -> None:
    """A probe whose client left proves nothing: the next request may probe at once."""
    state = breaker.on_cancel(breaker.on_start(opened()), probe=True)
    assert breaker.allows(state, OPEN_S)


@pytest.mark.parametrize("state", [opened(), breaker.on_start(opened())], ids=["open", "probe out"])
def test_requests_from_before_it_opened_change_nothing(state: State) -> None:
    """Whatever becomes of a request that is not the probe, open and half-open stay as they are."""
    assert breaker.on_success(state) is state
    assert fail(state, 5.0) is state
    assert breaker.on_cancel(state) is state


@pytest.mark.parametrize(
    ("retry_after_s", "open_s"),
    [(None, OPEN_S), (3.0, OPEN_S), (45.0, 45.0), (1e9, breaker.MAX_OPEN_S)],
)
def test_retry_after_prolongs_within_bounds(retry_after_s: float | None, open_s: float) -> None:
    """The upstream's wish counts where it is longer than the policy's, up to a bound."""
    state = fail(fail(fail(CLOSED, 0), 0), 0, retry_after_s=retry_after_s)
    assert not breaker.allows(state, open_s - 0.001)
    assert breaker.allows(state, open_s)


def test_retry_after_alone_does_not_open() -> None:
    """One overloaded answer below the threshold leaves the breaker closed."""
    assert breaker.allows(fail(CLOSED, 0, retry_after_s=30.0), 0)


def test_phase_names() -> None:
    """Reports call the three phases by their names."""
    assert CLOSED.phase(0) == "closed"
    assert opened().phase(OPEN_S - 1) == "open"
    assert opened().phase(OPEN_S) == "half_open"


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "cancel"]), st.floats(0, 20), st.integers(0, 3))))
def test_never_two_probes_and_never_stuck(events: list[tuple[str, float, int]]) -> None:
    """Under any interleaving at most one probe is out, and once all requests are back, waiting opens the way."""
    state, now, flying = CLOSED, 0.0, []
    for outcome, pause, starts in events:
        now += pause
        for _ in range(starts):
            if breaker.allows(state, now):
                state = breaker.on_start(state)
                flying.append(state.probing)
        assert sum(flying) == state.probing
        if flying:
            state = finish(state, now, outcome, probe=flying.pop(0))
    for probe in flying:
        state = finish(state, now, "fail", probe=probe)
    assert breaker.allows(state, now + OPEN_S)


def finish(state: State, now: float, outcome: str, *, probe: bool) -> State:
    match outcome:
        case "ok":
            return breaker.on_success(state, probe=probe)
        case "fail":
            return fail(state, now, probe=probe)
        case _:
            return breaker.on_cancel(state, probe=probe)


def test_a_sign_of_life_lets_a_probe_through_at_once() -> None:
    """It ends the waiting of an open breaker and does not close it; on any other it has no effect."""
    state = breaker.on_life(opened(), 1.0)
    assert breaker.allows(state, 1.0)
    assert state.phase(1.0) == "half_open"
    probing = breaker.on_start(state)
    for other in (CLOSED, fail(CLOSED, 0), probing, opened()):
        assert breaker.on_life(other, OPEN_S) is other
    assert breaker.on_success(probing, probe=True) == CLOSED


def test_a_sign_of_death_keeps_it_open() -> None:
    """It opens a breaker, and prolongs its time, but never shortens it; a probe that is out may still do well."""
    state = breaker.on_death(CLOSED, 7.0)
    assert not breaker.allows(state, 6.9)
    assert breaker.allows(state, 7.0)
    assert breaker.on_death(state, 9.0).retry_at == 9.0
    assert breaker.on_death(state, 3.0).retry_at == 7.0
    probing = breaker.on_start(state)
    assert breaker.on_death(probing, 20.0) is probing
