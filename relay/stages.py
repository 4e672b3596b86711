"""Requests that arrive together go together from stage to stage.

What one stage needs of code and data fits the CPU's innermost caches; what a whole request needs does not. So the
requests that one turn of the event loop brings are not served one after the other: all are read, then all are sized,
and so on. Packet routers gain by the same (VPP's vectors of packets). A request that comes alone goes from stage to
stage without a wait.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    Story = Coroutine[Any, None, None]

TOGETHER: Final = 16
"""Requests that go together. At each stage the first of them waits for the others."""


class _NextStage:
    """Awaited between two stages: the others come first. In a task, too: there they are whatever else is ready."""

    def __await__(self) -> Generator[None, None, None]:
        yield


NEXT_STAGE: Final = _NextStage()


class Stages:
    """Runs coroutines without a task for each: stage by stage, then whenever what they wait for is there."""

    def __init__(self) -> None:
        self._arrived: list[Story] = []

    def start(self, story: Story) -> None:
        """Run a coroutine in the event loop's next turn, together with others that start in this one.

        Args:
            story: awaits futures and `NEXT_STAGE`. What it raises goes to the loop's exception handler.
        """
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._run)
        self._arrived.append(story)

    def _run(self) -> None:
        arrived, self._arrived = self._arrived, []
        for first in range(0, len(arrived), TOGETHER):
            together = arrived[first : first + TOGETHER]
            while together:
                together = [story for story in together if self._reaches_next_stage(story)]

    def _reaches_next_stage(self, story: Story) -> bool:
        """Go on. False if it has to wait first, or is over."""
        try:
            awaited = story.send(None)
        except StopIteration:
            return False
        except Exception as error:  # noqa: BLE001 - it must not end those that go together with this one
            asyncio.get_running_loop().call_exception_handler({"message": f"{story!r} failed", "exception": error})
            return False
        if awaited is not None:
            awaited._asyncio_future_blocking = False  # noqa: SLF001 - what a task says: it was awaited rightly
            awaited.add_done_callback(partial(self._resume, story))
        return awaited is None

    def _resume(self, story: Story, _: asyncio.Future[Any]) -> None:
        """What it waited for is there."""
        if self._reaches_next_stage(story):
            self.start(story)
