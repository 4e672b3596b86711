"""Coroutines that go together from stage to stage."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from relay.stages import NEXT_STAGE, TOGETHER, Stages

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Party:
    """Stories that write down where they are."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []  # stage, story

    async def story(self, name: int, stages: int = 3) -> None:
        for stage in range(stages):
            if stage:
                await NEXT_STAGE
            self.seen.append((stage, name))


async def turn() -> None:
    """Let the event loop take one turn."""
    await asyncio.sleep(0)


async def test_stage_by_stage() -> None:
    """What starts in one turn goes through each stage in a row, in the order of arrival, all within the next turn."""
    party, stages = Party(), Stages()
    for name in range(4):
        stages.start(party.story(name))
    assert not party.seen
    await turn()
    assert party.seen == [(stage, name) for stage in range(3) for name in range(4)]


async def test_ends_early() -> None:
    """One that is over leaves the others to go on."""
    party, stages = Party(), Stages()
    for name, count in enumerate((1, 3, 2)):
        stages.start(party.story(name, count))
    await turn()
    assert party.seen == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]


async def test_bounded() -> None:
    """Of many that come at once the first are not held up by all the others."""
    party, stages = Party(), Stages()
    for name in range(2 * TOGETHER + 1):
        stages.start(party.story(name, 2))
    await turn()
    first, second = range(TOGETHER), range(TOGETHER, 2 * TOGETHER)
    assert party.seen == [
        *((stage, name) for group in (first, second, (2 * TOGETHER,)) for stage in range(2) for name in group)
    ]


async def test_waits() -> None:
    """One that waits for a future holds up nobody, goes on when it is there, and then keeps to the stages again."""
    party, stages = Party(), Stages()
    door = asyncio.get_running_loop().create_future()

    async def waiting(name: int) -> None:
        await door
        await party.story(name)

    stages.start(waiting(0))
    stages.start(waiting(1))
    stages.start(party.story(2))
    await turn()
    assert party.seen == [(0, 2), (1, 2), (2, 2)]
    party.seen.clear()
    door.set_result(None)
    await turn()
    await turn()
    assert party.seen == [(stage, name) for stage in range(3) for name in range(2)]


async def test_task() -> None:
    """A task runs such a story too."""
    party = Party()
    await asyncio.wait_for(party.story(0), 5)
    assert party.seen == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("waits", [False, True])
async def test_defect(waits: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """What one raises is told to the event loop, and the others go on."""
    party, stages = Party(), Stages()
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    door = loop.create_future()
    door.set_result(None)

    async def broken() -> None:
        if waits:
            await asyncio.shield(door)
            await NEXT_STAGE
        raise ZeroDivisionError

    start(stages, party.story(0), broken(), party.story(1))
    for _ in range(4):
        await turn()
    assert party.seen == [(stage, name) for stage in range(3) for name in range(2)]
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


def start(stages: Stages, *stories: Coroutine[Any, None, None]) -> None:
    """All at once."""
    for story in stories:
        stages.start(story)
