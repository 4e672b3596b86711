"""The simulated world, and what Relay's decisions make of it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from math import inf
from pathlib import Path

import msgspec
import pytest

from relay.policy.compiled import Hedge, Route
from relay.simulate import Place, Relay, Silent, Upstreams, Weather, World, arrivals, figures, simulate, ttft_s
from tests.policy.routes import route_over
from tests.vectors.routing import KEPT, decided

FAST = Place("fast", (400, 900, 2500), 80, (1, 1))
SLOW = Place("slow", (800, 1600, 4000), 80, (1, 1))
DOCS = Path(__file__).parents[1] / "docs" / "routing.md"


def world(*weather: Weather, seconds: float = 600.0, places: tuple[Place, ...] = (FAST, SLOW)) -> World:
    return World(seconds, 2.0, places, weather)


def run(of: World, made: Route | None = None, seed: int = 1):
    made = made or route_over(of.places)
    return simulate(of, seed, lambda upstreams: Relay(made, upstreams, seed))


class Always(Silent):
    """Asks them in one order."""

    def __init__(self, *order: str) -> None:
        self.order = order

    def plan(self, _arrival, _now):
        return self.order


def test_ttft_goes_through_what_was_measured():
    """The curve meets p50, p95 and p99, and rises."""
    assert [ttft_s(FAST, z) for z in (0.0, 1.645, 2.326)] == pytest.approx([0.4, 0.9, 2.5], rel=0.01)
    curve = [ttft_s(FAST, z / 10) for z in range(-40, 40)]
    assert all(a <= b for a, b in pairwise(curve))


def test_the_same_seed_is_the_same_day():
    """Arrivals, and so results, follow the seed alone; routers that differ meet the same requests."""
    assert list(arrivals(world(), 1)) == list(arrivals(world(), 1)) != list(arrivals(world(), 2))
    assert run(world()) == run(world())
    assert [result.at for result in run(world())] == [
        result.at for result in simulate(world(), 1, lambda _: Always("slow"))
    ]


def test_places_behave_as_measured():
    """One that is always asked shows its own quantiles, and costs its price."""
    found = figures(simulate(world(seconds=6000.0), 1, lambda _: Always("fast")))
    assert found["ttft_p50_ms"] == pytest.approx(400, rel=0.03)
    assert found["ttft_p95_ms"] == pytest.approx(900, rel=0.1)
    assert found["failures"] == 0


def test_weather():
    """Slow is slower, out fails over to the next, over the limit is refused; before and after nothing is different."""
    slow = simulate(world(Weather("fast", "slow", 100, 200, 10.0)), 1, lambda _: Always("fast"))
    fair = simulate(world(), 1, lambda _: Always("fast"))
    for bad, good in zip(slow, fair, strict=True):
        factor = 10.0 if 100 <= bad.at < 200 else 1.0
        assert bad.ttft_s == pytest.approx(good.ttft_s * factor)
    out = simulate(world(Weather("fast", "outage", 100, 200, 0.5)), 1, lambda _: Always("fast", "slow"))
    assert {result.place for result in out if 100 <= result.at < 200} == {"slow"}
    assert all(result.attempts == 2 and result.ttft_s > 0.5 for result in out if 100 <= result.at < 200)
    limited = simulate(world(Weather("fast", "limit", 120, 180, 30.0)), 1, lambda _: Always("fast", "slow"))
    assert sum(result.place == "fast" for result in limited if 120 <= result.at < 180) == 30


def test_a_crowd_makes_a_place_slow():
    """Up to its factor a place is as fast as ever; at twice as many requests a second it takes eight times as long."""
    fair = simulate(world(), 1, lambda _: Always("fast"))
    roomy = simulate(world(Weather("fast", "crowd", 0, inf, 10.0)), 1, lambda _: Always("fast"))
    crowded = simulate(world(Weather("fast", "crowd", 0, inf, 1.0)), 1, lambda _: Always("fast"))
    assert [result.ttft_s for result in roomy] == [result.ttft_s for result in fair]
    slower = [bad.ttft_s / good.ttft_s for bad, good in zip(crowded, fair, strict=True)]
    assert 6.0 < sum(slower) / len(slower) < 14.0


def test_nobody_left_is_a_failure():
    """A request that no attempt served counts as failed, and its TTFT is none."""
    out = simulate(world(Weather("fast", "outage", 0, inf, 0.5)), 1, lambda _: Always("fast"))
    assert not any(result.place for result in out)
    with pytest.raises(ValueError, match="no request was served"):
        figures(out)


def test_relay_takes_the_fast_one_and_leaves_it_while_it_is_slow():
    """Most go to the faster model; while that is slow hardly any; no client sees an outage."""
    bad = Weather("fast", "slow", 200, 400, 10.0)
    results = run(world(bad, Weather("fast", "outage", 450, 500, 0.1)))
    before = [result.place for result in results if 20 <= result.at < 200]
    during = [result.place for result in results if 220 <= result.at < 400]
    assert before.count("fast") > 0.7 * len(before)
    assert during.count("fast") < 0.1 * len(during)
    assert all(result.place for result in results)


def test_a_new_model_is_found():
    """One that appears later and is better serves most requests a minute on."""
    new = msgspec.structs.replace(FAST, from_s=300.0, ttft_ms=(200.0, 400.0, 900.0))
    results = run(world(places=(SLOW, new)))
    assert {result.place for result in results if result.at < 300} == {"slow"}
    after = [result.place for result in results if result.at > 360]
    assert after.count("fast") > 0.8 * len(after)


def test_hedging_cuts_the_tail_within_its_share():
    """The p99 falls by a third at least, duplicates stay within their share, and all are answered once."""
    of = world(seconds=3000.0)
    plain, hedged = figures(run(of)), figures(run(of, route_over((FAST, SLOW), hedge=Hedge(0.95, 0.05))))
    assert hedged["ttft_p99_ms"] < 0.67 * plain["ttft_p99_ms"]
    assert 0.0 < hedged["duplicate_spend"] <= 0.05
    assert hedged["failures"] == 0


def test_hedging_stops_when_everything_is_slow():
    """In an hour in which all are slow, duplicates stay as few as they were."""
    storm = [Weather(place.name, "slow", 600, 1200, 8.0) for place in (FAST, SLOW)]
    results = run(world(*storm, seconds=1200.0), route_over((FAST, SLOW), hedge=Hedge(0.95, 0.5)))
    calm = sum(result.twice_usd > 0 for result in results if result.at < 600)
    bad = sum(result.twice_usd > 0 for result in results if result.at >= 600)
    assert bad < 2 * calm + 60


def test_costs_follow_the_weights():
    """With cost alone the cheap one is taken, however slow."""
    cheap = msgspec.structs.replace(SLOW, price=(0.1, 0.1))
    results = run(world(places=(FAST, cheap)), route_over((FAST, cheap), cost=1.0))
    assert [result.first for result in results].count("slow") > 0.9 * len(results)


def test_present_and_slowness():
    """What an oracle may know."""
    of = world(Weather("fast", "outage", 5, 9, 0.1), places=(FAST, msgspec.structs.replace(SLOW, from_s=7.0)))
    upstreams = Upstreams(of)
    assert (upstreams.present(6), upstreams.present(7)) == (["fast"], ["fast", "slow"])
    assert (upstreams.slowness("fast", 6), upstreams.slowness("fast", 9)) == (inf, 1.0)


def test_documented_world():
    """The world in the documentation is one."""
    (text,) = re.findall(r"^```toml\n(seconds.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert [place.name for place in msgspec.toml.decode(text, type=World).places] == ["small", "large"]


def test_every_python_decides_alike():
    """The same seeds lead to the same decisions as when they were kept, wherever this runs."""
    assert decided() == json.loads(KEPT.read_text())
