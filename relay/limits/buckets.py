"""Token bucket as one number: the moment at which it would be full again.

The generic cell rate algorithm (ITU-T I.371) in the words of a bucket that holds one minute's worth and refills
evenly. Costs are kept as the seconds that their refill takes, so a bucket keeps its relative fill when a reload
of the policy changes the limit. A moment in the past is a full bucket: state of that kind may be forgotten.
"""

from __future__ import annotations

PERIOD_S = 60.0
"""What a full bucket holds, as seconds of refill: limits are per minute."""

FULL = 0.0
"""A bucket nothing was taken from, on any clock that does not run below zero."""

_TOLERANCE_S = 1e-6
"""Rounding that a clock reading near 2e9 s may bring: waiting exactly `retry_after_s` has to be enough."""


def take(full_at: float, now: float, cost: float, *, per_min: int) -> tuple[float, float]:
    """Take `cost` from the bucket, or nothing.

    A cost above what the bucket can ever hold takes a full bucket, so that it passes sometimes.

    Args:
        full_at: the bucket's state.
        now: seconds on the clock that `full_at` is on.
        cost: in the limit's unit, at least 0.
        per_min: the limit, at least 1.

    Returns:
        The bucket's new state and 0.0 if it was taken; else the old state and the seconds until the same cost
        would pass.
    """
    after = max(full_at, now) + min(cost * PERIOD_S / per_min, PERIOD_S)
    wait_s = after - now - PERIOD_S
    return (full_at, wait_s) if wait_s > _TOLERANCE_S else (after, 0.0)


def correct(full_at: float, now: float, taken: float, used: float, *, per_min: int) -> float:
    """Replace what an earlier `take` took by what was really used, in either direction.

    What was used beyond the bucket's contents is a debt that later takes wait for. What comes back counts only
    as far as the bucket is not full by now.

    Args:
        full_at: the bucket's state.
        now: seconds on the same clock.
        taken: the cost that `take` was called with.
        used: the true cost.
        per_min: the limit that `take` was called with.

    Returns:
        The bucket's new state.
    """
    taken_s = min(taken * PERIOD_S / per_min, PERIOD_S)
    return max(full_at, now) + used * PERIOD_S / per_min - taken_s
