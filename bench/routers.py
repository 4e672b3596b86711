"""Routers that Relay's is compared with, all on the same virtual clock; LiteLLM's own code is in `litellm_routers`."""

from __future__ import annotations

import random
from math import exp, log
from typing import TYPE_CHECKING

from relay.simulate import Arrival, Silent, Upstreams, ttft_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.policy.compiled import Objective


class RoundRobin(Silent):
    """One after the other."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._next = 0

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:  # noqa: ARG002
        """Whom to ask."""
        names = self._upstreams.present(now)
        self._next += 1
        turn = self._next % len(names)
        return names[turn:] + names[:turn]


class Random(Silent):
    """Any."""

    def __init__(self, upstreams: Upstreams, seed: int) -> None:
        self._upstreams = upstreams
        self._rng = random.Random(seed)

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:  # noqa: ARG002
        """Whom to ask."""
        names = self._upstreams.present(now)
        self._rng.shuffle(names)
        return names


class LeastBusy(Silent):
    """Whoever has the fewest requests under way; ties at random."""

    def __init__(self, upstreams: Upstreams, seed: int) -> None:
        self._upstreams = upstreams
        self._rng = random.Random(seed)
        self.busy = dict.fromkeys(upstreams.places, 0)

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:  # noqa: ARG002
        """Whom to ask."""
        return sorted(self._upstreams.present(now), key=lambda name: (self.busy[name], self._rng.random()))

    def started(self, name: str, now: float) -> None:  # noqa: ARG002
        """An attempt begins."""
        self.busy[name] += 1

    def ended(self, name: str, arrival: Arrival, started: float, begun: float, now: float) -> None:  # noqa: ARG002
        """An answer is complete."""
        self.busy[name] -= 1

    def failed(self, name: str, status: int, started: float, now: float) -> None:  # noqa: ARG002
        """An attempt failed."""
        self.busy[name] -= 1


class PeakEwma(LeastBusy):
    """Two at random, of which the one with the lower peak-EWMA of TTFT times requests under way (Finagle's)."""

    DECAY_S = 10.0

    def __init__(self, upstreams: Upstreams, seed: int) -> None:
        super().__init__(upstreams, seed)
        self._cost = dict.fromkeys(upstreams.places, 0.0)
        self._at = dict.fromkeys(upstreams.places, 0.0)

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:  # noqa: ARG002
        """Whom to ask."""
        names = self._upstreams.present(now)
        two = self._rng.sample(names, min(2, len(names)))
        two.sort(key=lambda name: self._cost[name] * (self.busy[name] + 1))
        return two + [name for name in names if name not in two]

    def begun(self, name: str, started: float, now: float) -> None:
        """The first output."""
        self._learn(name, now - started, now)

    def failed(self, name: str, status: int, started: float, now: float) -> None:
        """An attempt failed."""
        super().failed(name, status, started, now)
        self._learn(name, 10.0, now)

    def _learn(self, name: str, seconds: float, now: float) -> None:
        weight = exp((self._at[name] - now) / self.DECAY_S)
        self._at[name] = now
        before = self._cost[name]
        self._cost[name] = seconds if seconds > before else before * weight + seconds * (1.0 - weight)


class Oracle(Silent):
    """Knows at each moment how fast everyone is, who is out and who is limited, but not what chance will bring."""

    def __init__(self, upstreams: Upstreams, objective: Objective) -> None:
        self._upstreams = upstreams
        self._objective = objective
        self._limited: dict[str, float] = {}

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:
        """Whom to ask."""
        names = self._upstreams.present(now)
        return sorted(names, key=lambda name: self._score(name, arrival, now))

    def _score(self, name: str, arrival: Arrival, now: float) -> float:
        slow = self._upstreams.slowness(name, now)
        if self._limited.get(name, 0.0) > now:
            return float("inf")
        place, wants = self._upstreams.places[name], self._objective
        first_s = ttft_s(place, 0.5) * slow
        last_s = first_s + arrival.output_tokens * slow / place.tokens_per_s
        usd = self._upstreams.prices[name].of(arrival.prompt_tokens, arrival.output_tokens)
        return wants.ttft * log(first_s) + wants.latency * log(last_s) + wants.cost * log(usd)

    def failed(self, name: str, status: int, started: float, now: float) -> None:  # noqa: ARG002
        """An attempt failed."""
        if status == 429:  # noqa: PLR2004
            self._limited[name] = (now // 60.0 + 1.0) * 60.0
