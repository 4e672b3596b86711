"""Requests that arrive together go together from stage to stage.

What one stage needs of code and data fits the CPU's innermost caches; what a whole request needs does not. So the
requests that one turn of the event loop brings are not served one after the other: all are read, then all are sized,
and so on. Packet routers gain by the same (VPP's vectors of packets). Where requests come one by one, each is served at
once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Story = Coroutine[Any, None, None]

TOGETHER: Final = 16
"""Requests that go together. At each stage the first of them waits for the others."""


GIVEN_UP: Final = (asyncio.CancelledError, GeneratorExit)
"""How a coroutine learns that nobody runs it any more: by what it awaits, or by its own end."""


class _Stage(tuple[None]):
    """Awaited, it yields what is in it: None, which is nothing to wait for. No frame is made for that."""

    __slots__ = ()
    __await__ = tuple.__iter__


next_stage: Final = cast("Awaitable[None]", _Stage((None,)))
"""Await it between two stages: the others come first. In a task, too: there they are whatever else is ready."""


class Stages:
    """Runs coroutines without a task for each: stage by stage, then whenever what they wait for is there.

    What they raise goes to the loop's exception handler.
    """

    def __init__(self) -> None:
        self._arrived: list[Story] = []
        self._steps: list[Callable[[], None]] = []
        self._going_on: list[Story] = []
        self._in_this_turn = 0
        self._crowded = False  # the last turn brought more than one

    def start(self, story: Story) -> None:
        """Run a coroutine: with others that start in this turn of the event loop, or at once if few did lately.

        Args:
            story: awaits futures and `next_stage`.
        """
        self._enter(story, self._arrived)

    def soon(self, step: Callable[[], None]) -> None:
        """Take a single step, likewise; before those that start or go on."""
        if self._goes_alone():
            step()
        else:
            self._steps.append(step)

    def _enter(self, story: Story, line: list[Story], _: asyncio.Future[Any] | None = None) -> None:
        """Go on with it, which may have waited for a future."""
        if self._goes_alone():
            self._run([story])
        else:
            line.append(story)

    def _goes_alone(self) -> bool:
        """Whether one more need not wait for the others of this turn."""
        self._in_this_turn += 1
        if self._in_this_turn > 1:
            return False
        asyncio.get_running_loop().call_soon(self._end_turn)
        return not self._crowded

    def _end_turn(self) -> None:
        self._crowded, self._in_this_turn = self._in_this_turn > 1, 0
        for step in self._steps:  # those that come meanwhile, too
            try:
                step()
            except Exception as error:  # noqa: BLE001 - as in `_run`
                _failed(step, error)
        self._steps.clear()
        for line in (self._going_on, self._arrived):
            while line:
                together = line[:TOGETHER]
                del line[:TOGETHER]
                self._run(together)

    def _run(self, together: list[Story]) -> None:
        """Go on with them, stage by stage, until each has to wait or is over."""
        while together:
            going_on = []
            for story in together:
                try:
                    awaited = story.send(None)
                except (StopIteration, asyncio.CancelledError):  # the latter where what it waited for was given up
                    continue
                except Exception as error:  # noqa: BLE001 - it must not end those that go together with this one
                    _failed(story, error)
                    continue
                if awaited is None:
                    going_on.append(story)
                else:
                    awaited._asyncio_future_blocking = False  # noqa: SLF001 - what a task says: it was awaited rightly
                    awaited.add_done_callback(partial(self._enter, story, self._going_on))
            together = going_on


def _failed(what: Story | Callable[[], None], error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": f"{what!r} failed", "exception": error})
