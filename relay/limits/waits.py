"""Attempts that wait for their first output, and how soon they show that their model has become slower.

A wait is news before it ends, and several at a time are more news than each of them. Had the model stayed as it was,
an attempt that has waited `a` seconds would have had a cumulated hazard H(a) = -ln S(a) of being answered by now, where
S is the share of attempts that take longer. Had its hazard fallen to a share r of that, what is seen of the attempt
would be more likely by the factor exp((1 - r) H(a)), times r if it was answered. The logarithms of these, summed over
attempts in the order in which they began and never below zero, are Page's CUSUM ("Continuous Inspection Schemes",
1954): how much speaks for a change that some attempt was the first to meet. An answer that came as fast as ever takes
evidence away; a wait adds to it long before it is a straggler.
"""

from __future__ import annotations

from collections import deque
from math import inf, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.limits.speed import Level

ENOUGH = 5.0
"""Evidence that is believed. In the bench's world it is wrong about once in 1,500 requests, and soon taken back."""

SLOWER = 0.2
"""Share of its hazard that a model is taken to have left when it has become slower."""

MOST = 32
"""Waits that are looked at together: of a busy model a sample, which is plenty for a decision."""

LONGEST_LINE = 2 * MOST
"""Those waits, and what began later and is over already. A straggler at the head of so many has said what it can."""

LOOK_EVERY_S = 0.01
"""One look at all of them takes some microseconds; a model that is asked more often than this is looked at less."""

_AN_ANSWER = log(SLOWER)


class _Wait:
    """One attempt: when it began, and what it has shown; None while it waits."""

    __slots__ = ("began_at", "shown")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.shown: float | None = None


class Waits:
    """The attempts of one model, in the order in which they began; not to be shared by threads.

    Attributes:
        waiting: how many of those that are looked at wait.
    """

    __slots__ = ("_line", "_look_at", "_shown", "waiting")

    def __init__(self) -> None:
        self._line: deque[_Wait] = deque()  # the first of them still waits
        self._shown = 0.0  # by those before the line
        self.waiting = 0
        self._look_at = 0.0

    def begin(self, level: Level, now: float) -> None:
        """One more waits."""
        line = self._line
        if self.waiting >= MOST:
            return
        if len(line) >= LONGEST_LINE:
            self.end(line[0].began_at, level, now, answered=False)
        line.append(_Wait(now))
        self.waiting += 1

    def end(self, began_at: float, level: Level, now: float, *, answered: bool) -> None:
        """One waits no longer: it was answered, or given up.

        Args:
            began_at: when it was told to `begin`.
            level: of the model's waits, without this one.
            now: seconds on the same clock.
            answered: whether its first output came.
        """
        shown = (1.0 - SLOWER) * level.hazard(now - began_at)
        self._end(began_at, shown + _AN_ANSWER if answered else shown)

    def forget(self, began_at: float) -> None:
        """One failed: how long it waited says nothing of how long an answer takes."""
        self._end(began_at, 0.0)

    def _end(self, began_at: float, shown: float) -> None:
        line = self._line
        for wait in line:
            if wait.began_at == began_at and wait.shown is None:
                wait.shown = shown
                self.waiting -= 1
                break
        while line and line[0].shown is not None:
            self._shown = max(0.0, self._shown + line.popleft().shown)  # type: ignore[operator]  # just looked at

    def quiet_until(self, level: Level) -> float:
        """When it may be `too_long` at the soonest, as long as neither the waits nor the level change."""
        return max(self._look_at, self._line[0].began_at + level.quantile(0.0)) if self.waiting else inf

    def too_long(self, level: Level, now: float) -> float | None:
        """The longest wait under way, seconds, if there is evidence enough that the model is slower than its level.

        It is meant to be raised then: what still waits is held against the new one.
        """
        line = self._line
        if not line or now < self._look_at or (longest_s := now - line[0].began_at) < level.quantile(0.0):
            return None
        self._look_at = now + LOOK_EVERY_S
        evidence = self._shown
        for wait in line:
            shown = (1.0 - SLOWER) * level.hazard(now - wait.began_at) if wait.shown is None else wait.shown
            evidence = max(0.0, evidence + shown)
        if evidence < ENOUGH:
            return None
        self._shown = 0.0
        return longest_s
