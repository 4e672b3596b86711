"""The seam to time, so that tests can turn the hands."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """A callback that waits."""

    def cancel(self) -> None:
        """Never call back. A second call, or one after the callback ran, does nothing."""


class Clock(Protocol):
    """What the pipeline may ask of time."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, for records alone."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once, in the event loop, when `delay_s` seconds have passed."""


class LoopClock:
    """The running event loop's own clock."""

    now = staticmethod(time.monotonic)  # what asyncio and uvloop use as well
    wall = staticmethod(time.time)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """`loop.call_later` of the loop that runs now."""
        return asyncio.get_running_loop().call_later(delay_s, callback)
