"""What the run over sockets says of itself."""

from __future__ import annotations

import pytest

from bench.routing_sockets import ROUTES, WORLD, Compared, compare, policy, verdicts
from relay.policy.load import load
from relay.simulate import Result

KEYS = ("ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "usd_per_1000")


def row(name: str, sockets: float, low: float, middle: float, high: float) -> Compared:
    return Compared(name, *(dict.fromkeys(KEYS, value) for value in (sockets, middle, low, high)))


@pytest.mark.parametrize("name", ROUTES)
def test_policies_hold(name):
    """Each of them has all places as candidates of `auto`, at a path of its own."""
    loaded = load({"policy.toml": policy(name, 1234)}, {})
    route = next(route for route in loaded.routes if route.name == "auto")
    assert {model.name for model in route.candidates} == {place.name for place in WORLD.places}
    assert all(provider.base_url.startswith("http://127.0.0.1:1234/") for provider in loaded.providers.values())


def test_what_cannot_be_told_apart_has_no_order():
    """Policies whose simulations overlap are no pair; of the others it is said whether their order came true."""
    apart = [row("a", 110, 90, 100, 105), row("b", 100, 190, 200, 210)]
    assert verdicts(apart)["ttft_p95_ms"] == "50.0% off at most; 0 of 1 pairs that differ are in the same order"
    overlapping = [row("a", 110, 90, 100, 195), row("b", 200, 190, 200, 210)]
    assert verdicts(overlapping)["ttft_p95_ms"] == "10.0% off at most; 0 of 0 pairs that differ are in the same order"


def test_simulations_are_summed_up():
    """Beside the sockets' figures stand the middle, the least and the largest of the simulations'."""
    runs = [[Result(0.0, place="a", ttft_s=ttft_s, latency_s=9.0, usd=1.0)] for ttft_s in (1.0, 2.0, 4.0)]
    found = compare("p", runs[2], runs)
    assert [side["ttft_p95_ms"] for side in (found.sockets, found.low, found.simulation, found.high)] == [
        4000.0,
        1000.0,
        2000.0,
        4000.0,
    ]
