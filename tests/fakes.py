"""Stand-ins for what a test must control: time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE_TURNS = 8
"""Turns of the event loop after which what one callback set in motion over loopback has usually arrived.

Only a courtesy between two callbacks: a test still waits for what it expects, never for a number of turns.
"""


async def settle() -> None:
    """Let the event loop run what is ready, sockets included."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


@dataclass(order=True)
class Timer:
    """A callback that is due at a time; comparing two says which runs first."""

    due: float
    number: int
    callback: Callable[[], object] | None

    def cancel(self) -> None:
        """It will not run. Harmless if it did already."""
        self.callback = None


class FakeClock:
    """A clock that stands still until a test moves it.

    Args:
        now: monotonic seconds to begin with.
        wall: seconds since the Unix epoch at that time.
        early_s: how much too early timers run: uvloop's may, by up to a millisecond.
    """

    def __init__(self, now: float = 1_000.0, wall: float = 1_800_000_000.0, early_s: float = 0.0) -> None:
        self._early_s = early_s
        self._now = now
        self._wall_at_zero = wall - now
        self._timers: list[Timer] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """Monotonic seconds."""
        return self._now

    def wall(self) -> float:
        """Seconds since the Unix epoch; moves with `now`."""
        return self._wall_at_zero + self._now

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Run `callback` when the clock has moved by `delay_s`, earlier timers first."""
        timer = Timer(self._now + delay_s - self._early_s, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    async def advance(self, seconds: float) -> None:
        """Move on, run what falls due in order (also what that schedules), and let the loop settle between."""
        until = self._now + seconds
        while self._timers and self._timers[0].due <= until:
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now = max(self._now, timer.due)
                timer.callback()
                await settle()
        self._now = until
        await settle()
