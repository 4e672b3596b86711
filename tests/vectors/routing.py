"""Decisions that every Python has to make alike: who is asked first by each request of some simulated minutes.

python -m tests.vectors.routing    # write routing.json anew, after a change that is meant to decide otherwise
"""

from __future__ import annotations

import json
from pathlib import Path

from relay.policy.compiled import Hedge
from relay.simulate import Place, Relay, Weather, World, simulate
from tests.policy.routes import route_over

KEPT = Path(__file__).with_suffix(".json")
WORLD = World(
    seconds=600.0,
    per_s=1.0,
    places=(
        Place("a", (536.0, 844.0, 4461.0), 80, (0.15, 0.6), errors=0.02),
        Place("b", (520.0, 900.0, 3000.0), 75, (0.165, 0.66)),
        Place("c", (541.0, 1591.0, 4117.0), 110, (1.0, 5.0)),
        Place("d", (250.0, 500.0, 1500.0), 200, (0.3, 1.2), from_s=400.0),
    ),
    weather=(
        Weather("a", "slow", 120, 240, 6.0),
        Weather("b", "outage", 200, 260, 0.1),
        Weather("a", "limit", 300, 360, 20),
    ),
)


def decided() -> dict[str, str]:
    """By seed: the places asked first and those that answered, a letter each, `-` for nobody."""
    return {str(seed): _decided(seed) for seed in range(4)}


def _decided(seed: int) -> str:
    made = route_over(WORLD.places, hedge=Hedge(0.95, 0.05) if seed % 2 else None, latency=0.6, cost=0.4)
    results = simulate(WORLD, seed, lambda upstreams: Relay(made, upstreams, seed))
    return "".join((result.first or "-") + (result.place or "-") for result in results)


if __name__ == "__main__":
    KEPT.write_text(json.dumps(decided(), indent=1) + "\n")
