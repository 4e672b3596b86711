"""Coroutines that go together from stage to stage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.stages import TOGETHER, Stages, next_stage


class Party:
    """Stories that write down where they are."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []  # stage, story

    async def story(self, name: int, stages: int = 3) -> None:
        for stage in range(stages):
            if stage:
                await next_stage
            self.seen.append((stage, name))


async def turn() -> None:
    """Let the event loop take one turn."""
    await asyncio.sleep(0)


async def crowded() -> Stages:
    """Stages to which several came in the last turn."""
    party, stages = Party(), Stages()
    stages.start(party.story(0))
    stages.start(party.story(1))
    await turn()
    return stages


async def test_alone() -> None:
    """Where they come one by one, each is run at once."""
    party, stages = Party(), Stages()
    for name in range(3):
        stages.start(party.story(name))
        assert party.seen == [(stage, name) for stage in range(3)]
        party.seen.clear()
        await turn()


async def test_stage_by_stage() -> None:
    """What starts in one turn goes through each stage in a row, in the order of arrival, all within the next turn."""
    party, stages = Party(), await crowded()
    for name in range(4):
        stages.start(party.story(name))
    assert not party.seen
    await turn()
    assert party.seen == [(stage, name) for stage in range(3) for name in range(4)]


async def test_first_of_a_crowd() -> None:
    """The first of several cannot know that others come, unless the last turn brought several too."""
    party, stages = Party(), Stages()
    for name in range(3):
        stages.start(party.story(name))
    await turn()
    assert party.seen == [
        *((stage, 0) for stage in range(3)),
        *((stage, name) for stage in range(3) for name in (1, 2)),
    ]


async def test_crowd_is_over() -> None:
    """After a turn that brought a single one, those that come alone are run at once again."""
    party, stages = Party(), await crowded()
    stages.start(party.story(0))
    assert not party.seen
    await turn()
    party.seen.clear()
    stages.start(party.story(1))
    assert len(party.seen) == 3


async def test_ends_early() -> None:
    """One that is over leaves the others to go on."""
    party, stages = Party(), await crowded()
    for name, count in enumerate((1, 3, 2)):
        stages.start(party.story(name, count))
    await turn()
    assert party.seen == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]


async def test_bounded() -> None:
    """Of many that come at once the first are not held up by all the others."""
    party, stages = Party(), await crowded()
    for name in range(2 * TOGETHER + 1):
        stages.start(party.story(name, 2))
    await turn()
    first, second = range(TOGETHER), range(TOGETHER, 2 * TOGETHER)
    groups = (first, second, (2 * TOGETHER,))
    assert party.seen == [(stage, name) for group in groups for stage in range(2) for name in group]


async def test_waits() -> None:
    """One that waits for a future holds up nobody, goes on when it is there, and then keeps to the stages again."""
    party, stages = Party(), await crowded()
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


async def test_single_steps() -> None:
    """Single steps, of what goes on, are taken before what starts."""
    party, stages = Party(), await crowded()
    stages.start(party.story(0))
    stages.soon(lambda: party.seen.append((9, 9)))
    await turn()
    assert party.seen == [(9, 9), *((stage, 0) for stage in range(3))]


async def test_single_steps_before_what_goes_on() -> None:
    """Single steps, and those that they bring, are taken before what has waited goes on."""
    seen: list[str] = []
    stages = Stages()
    door = asyncio.get_running_loop().create_future()

    async def waiting() -> None:
        await door
        seen.append("story")

    def step() -> None:
        seen.append("step")
        stages.soon(lambda: seen.append("step of a step"))

    stages.start(waiting())
    stages.start(waiting())
    await turn()
    door.set_result(None)
    asyncio.get_running_loop().call_soon(stages.soon, step)  # behind the stories, which it overtakes
    for _ in range(2):
        await turn()
    assert seen == ["step", "step of a step", "story", "story"]


async def test_single_step_alone() -> None:
    """Where nothing else happens, a single step is taken at once."""
    party, stages = Party(), Stages()
    stages.soon(lambda: party.seen.append((9, 9)))
    assert party.seen == [(9, 9)]


@pytest.mark.parametrize("waits", [False, True])
async def test_defect(waits: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """What one raises is told to the event loop, and the others go on."""
    party, stages = Party(), await crowded()
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    door = loop.create_future()
    door.set_result(None)

    async def broken() -> None:
        if waits:
            await asyncio.shield(door)
            await next_stage
        raise ZeroDivisionError

    def broken_step() -> None:
        raise ZeroDivisionError

    for story in (party.story(0), broken(), party.story(1)):
        stages.start(story)
    stages.soon(broken_step)
    for _ in range(4):
        await turn()
    assert party.seen == [(stage, name) for stage in range(3) for name in range(2)]
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError] * 2


async def test_given_up() -> None:
    """One whose awaited future is cancelled is over; those that go together with it are not."""
    stages = Stages()
    arrived: list[int] = []
    doors = [asyncio.get_running_loop().create_future() for _ in range(4)]

    async def waiting(name: int) -> None:
        await doors[name]
        await next_stage
        arrived.append(name)

    for name in range(4):
        stages.start(waiting(name))
    await turn()
    doors[1].cancel()
    for name in (0, 2, 3):
        doors[name].set_result(None)
    for _ in range(4):
        await turn()
    assert arrived == [0, 2, 3]
