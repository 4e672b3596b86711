"""Circuit breaker: leaves an upstream alone after failures in a row, then lets one probe through.

A breaker is a value; each event takes one and returns the next. `probe` tells whether the event is about the
request that was let through while the breaker was half open (`State.probing` right after `on_start`). Other
requests may still be in flight from before it opened: what becomes of them says nothing new.

| event            | closed                            | open        | half open                              |
|------------------|-----------------------------------|-------------|----------------------------------------|
| `allows`         | yes                               | no          | yes, unless the probe is out           |
| `on_start`       | closed                            | (forbidden) | half open, probe out                   |
| `on_success`     | closed, no failures               | unchanged   | probe: closed; other: unchanged        |
| `on_failure`     | one failure more; at the threshold: open | unchanged | probe: open again; other: unchanged |
| `on_cancel`      | closed                            | unchanged   | probe: half open, probe back; other: unchanged |
| `on_life`        | unchanged                         | half open   | unchanged                              |
| `on_death`       | open                              | open for longer | open again, unless the probe is out |

Time turns open into half open: when `now` reaches `retry_at`. The last two are news of the upstream from elsewhere
than requests: that it is alive does not yet mean that it serves, so it is a request that closes the breaker.
"""

from __future__ import annotations

import msgspec

MAX_OPEN_S = 600.0
"""Longest time that an upstream's Retry-After keeps a breaker open: a mistaken header must not lose it for days."""


class State(msgspec.Struct, frozen=True, gc=False):
    """Where a breaker stands. `retry_at is None` is all that the hot path has to look at.

    Attributes:
        failures: failures in a row.
        retry_at: when one probe may pass, seconds on the caller's monotonic clock; None while closed.
        probing: that probe is out.
    """

    failures: int = 0
    retry_at: float | None = None
    probing: bool = False

    def phase(self, now: float) -> str:
        """`closed`, `open` or `half_open`, for metrics and reports."""
        if self.retry_at is None:
            return "closed"
        return "open" if now < self.retry_at else "half_open"


CLOSED = State()
"""Where every breaker starts."""


def allows(state: State, now: float) -> bool:
    """Whether a request may be sent at `now`. Takes nothing: call `on_start` when it is sent."""
    return state.retry_at is None or (now >= state.retry_at and not state.probing)


def on_start(state: State) -> State:
    """A request that `allows` let through is being sent. If it is a probe, the result has `probing` set."""
    return state if state.retry_at is None else msgspec.structs.replace(state, probing=True)


def on_success(state: State, *, probe: bool = False) -> State:
    """The upstream answered."""
    return CLOSED if state.retry_at is None or probe else state


def on_failure(
    state: State,
    now: float,
    *,
    threshold: int,
    open_s: float,
    probe: bool = False,
    retry_after_s: float | None = None,
) -> State:
    """The upstream failed.

    Args:
        state: before the failure.
        now: seconds on the caller's monotonic clock.
        threshold: failures in a row that open the breaker, at least 1.
        open_s: seconds it then stays open.
        probe: the failure is the probe's.
        retry_after_s: how long the upstream asked to be left alone. Prolongs `open_s`, up to `MAX_OPEN_S`;
            does not open a breaker by itself, because one overloaded answer is not an outage.
    """
    if state.retry_at is not None and not probe:
        return state
    failures = state.failures + 1
    if not probe and failures < threshold:
        return State(failures)
    return State(failures, now + max(open_s, min(retry_after_s or 0.0, MAX_OPEN_S)))


def on_cancel(state: State, *, probe: bool = False) -> State:
    """The request was given up before the upstream showed how it is: a probe's place is free again."""
    return msgspec.structs.replace(state, probing=False) if probe else state


def on_life(state: State, now: float) -> State:
    """The upstream is known to be alive: no need to wait longer before a probe may pass."""
    return state if state.retry_at is None or state.retry_at <= now else State(state.failures, now)


def on_death(state: State, until: float) -> State:
    """The upstream is known to be dead: no probe needs to pass before `until`, seconds on the caller's clock."""
    return state if state.probing else State(state.failures, max(state.retry_at or 0.0, until))
