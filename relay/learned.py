"""What a relay has learned, as a value: taken from a pipeline, given back to one, divided and put together again.

How fast models answer is known by region, since it is a matter of where one stands; how long answers become is not.
All of it is decayed sums and means that rest on counts. So several processes can inherit a share each, learn on, and be
merged: nothing is counted twice, however often that happens, and however many they are the next time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from relay.limits import experience, speed
from relay.limits.experience import ExperienceSnapshot
from relay.limits.speed import SpeedSnapshot
from relay.upstreams import Upstream

if TYPE_CHECKING:
    from collections.abc import Container

    from relay.pipeline import Pipeline

FORGET_S = 7 * 86_400.0
"""How long the speed of a model is known that the policy has no more. Its level is old after a minute; what is usual
for it is not."""


class Learned(msgspec.Struct, frozen=True):
    """What was learned, at rest. Times in it are seconds since the Unix epoch.

    Attributes:
        speeds: how fast models answer, by region and model name.
        experience: what budgets rest on.
    """

    speeds: dict[str, dict[str, SpeedSnapshot]]
    experience: ExperienceSnapshot


NOTHING = Learned({}, ExperienceSnapshot([], [], {}))


class Memory:
    """What one pipeline has learned, with what it was given that is not its own.

    Args:
        pipeline: that learns.
        region: where it stands, "" if that has no name.
    """

    def __init__(self, pipeline: Pipeline, region: str) -> None:
        self._pipeline = pipeline
        self._region = region
        self._elsewhere: dict[str, dict[str, SpeedSnapshot]] = {}

    def recall(self, learned: Learned) -> None:
        """Go on from what was learned before. To be called once, before the first request."""
        pipeline, clock = self._pipeline, self._pipeline.clock
        since_epoch = clock.wall() - clock.now()
        self._elsewhere = {region: seen for region, seen in learned.speeds.items() if region != self._region}
        for model, seen in learned.speeds.get(self._region, {}).items():
            upstream = pipeline.upstreams.get(model) or pipeline.retired.setdefault(model, Upstream())
            upstream.restore(seen.moved(-since_epoch))
        pipeline.experience.restore(learned.experience, clock.wall())

    def learned(self) -> Learned:
        """All that is known now."""
        pipeline, clock = self._pipeline, self._pipeline.clock
        now, wall = clock.now(), clock.wall()
        here = {
            model: seen.moved(wall - now)
            for model, upstream in (pipeline.retired | pipeline.upstreams).items()
            if (seen := upstream.snapshot(now)) is not None
        }
        return Learned({**self._elsewhere, self._region: here}, pipeline.experience.snapshot(wall))


def merge(a: Learned, b: Learned) -> Learned:
    """What both learned together."""
    speeds = {region: dict(seen) for region, seen in a.speeds.items()}
    for region, seen in b.speeds.items():
        here = speeds.setdefault(region, {})
        for model, snapshot in seen.items():
            here[model] = speed.merge(here[model], snapshot) if model in here else snapshot
    return Learned(speeds, experience.merge(a.experience, b.experience))


def portion(learned: Learned, share: float) -> Learned:
    """What one of several heirs goes on with: merged, shares that add up to 1 are the whole again."""
    speeds = {
        region: {model: speed.portion(snapshot, share) for model, snapshot in seen.items()}
        for region, seen in learned.speeds.items()
    }
    return Learned(speeds, experience.portion(learned.experience, share))


def living(learned: Learned, now: float, models: Container[str]) -> Learned:
    """What has not been forgotten.

    Args:
        learned: what was known.
        now: seconds since the Unix epoch.
        models: those of the policy. Others are forgotten in time, not at once.
    """
    speeds = {
        region: {
            model: snapshot
            for model, snapshot in seen.items()
            if model in models or snapshot.heard_at() > now - FORGET_S
        }
        for region, seen in learned.speeds.items()
    }
    kept = {region: seen for region, seen in speeds.items() if seen}
    return Learned(kept, experience.living(learned.experience, now, models))
