"""What a pipeline has learned, taken and given back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from relay import learned
from relay.learned import FORGET_S, NOTHING, Learned, Memory
from relay.limits.budgets import Request
from tests.fakes import FakeClock
from tests.learned import AUTO, HOME, RULES, counted, outlook, pipeline, set_of, teach


def handed_on(value: Learned) -> Learned:
    """As it comes out of a file."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Learned)


def test_another_process_goes_on_where_the_first_was() -> None:
    """Speed, budgets and calibration are the same in a process whose monotonic clock stands elsewhere."""
    before, after = pipeline(), pipeline(FakeClock(now=5.0, wall=1_800_000_060.0))
    teach(before)
    Memory(after, "").recall(handed_on(Memory(before, "").learned()))
    assert outlook(after).ttft_s == pytest.approx(outlook(before).ttft_s)
    assert outlook(after, "second") == outlook(before, "second")
    budgets = [each.experience.budget(RULES, Request(100), HOME) for each in (before, after)]
    assert budgets[1].source == "cell"
    assert budgets[1].limit == pytest.approx(budgets[0].limit, rel=0.11)
    assert after.experience.prompts.factor("first") == before.experience.prompts.factor("first")


def test_time_between_two_processes_counts() -> None:
    """What was learned fades while no relay runs, as it does while one is idle: half is left after three days."""
    before, after = pipeline(), pipeline(FakeClock(now=3.0, wall=1_800_000_000.0 + 3 * 86_400.0))
    teach(before)
    Memory(after, "").recall(Memory(before, "").learned())
    assert counted(after) == pytest.approx(counted(before) / 2)


def test_speed_is_known_by_region() -> None:
    """A relay goes on with its own region's speeds, and hands those of the others on as they are."""
    eu, us, fresh = pipeline(), pipeline(), pipeline()
    teach(eu, ttft_s=0.3)
    teach(us, ttft_s=3.0)
    both = learned.merge(Memory(eu, "eu").learned(), Memory(us, "us").learned())
    memory = Memory(fresh, "us")
    memory.recall(both)
    assert outlook(fresh) == outlook(us)
    assert counted(fresh) == counted(eu) + counted(us)
    assert memory.learned().speeds["eu"] == both.speeds["eu"]
    stranger = pipeline()
    Memory(stranger, "").recall(both)
    assert outlook(stranger) == outlook(pipeline())


def test_a_slip_in_the_policy_loses_nothing() -> None:
    """A model that a reload drops, or that is missing at a start, is known again when the policy has it again."""
    before = pipeline()
    teach(before)
    known = outlook(before).ttft_s
    slip: dict[str, Any] = {"models": {"frist": {"provider": "first"}}, "routes": [{**AUTO, "candidates": ["frist"]}]}
    before.policy = set_of(**slip)
    assert "first" not in before.upstreams
    after = pipeline(**slip)
    Memory(after, "").recall(Memory(before, "").learned())
    for each in (before, after):
        each.policy = set_of()
        assert outlook(each).ttft_s == pytest.approx(known)


def test_a_dropped_model_is_forgotten_in_time() -> None:
    """Its speed outlives it by a week; a model that the policy has is known however long it was not asked."""
    pupil = pipeline()
    teach(pupil)
    value = Memory(pupil, "eu").learned()
    now = pupil.clock.wall()
    assert learned.living(value, now + FORGET_S - 1, ()).speeds == value.speeds
    assert learned.living(value, now + FORGET_S, ()).speeds == {}
    assert learned.living(value, now + 100 * FORGET_S, {"first"}).speeds == value.speeds


def test_nothing_is_counted_twice() -> None:
    """Four heirs that are merged, any number of times, know what the first one knew; what they learn is added once."""
    first = pipeline()
    teach(first)
    value = Memory(first, "").learned()
    for _ in range(3):
        heirs = [pipeline() for _ in range(4)]
        memories = [Memory(heir, "") for heir in heirs]
        for memory in memories:
            memory.recall(learned.portion(value, 0.25))
        teach(heirs[2], answers=1)
        value = NOTHING
        for memory in memories:
            value = learned.merge(value, memory.learned())
    whole = pipeline()
    Memory(whole, "").recall(value)
    assert counted(whole) == pytest.approx(counted(first) + 3)
    assert whole.upstreams["first"].speed is not None
    assert whole.upstreams["first"].speed.ttft.seen() == pytest.approx(23)
