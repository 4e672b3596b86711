"""Relay's routing against LiteLLM's Router and others, in one seeded world on a virtual clock.

    python -m bench.routing --output bench/results/routing.json     # all of it, some minutes
    python -m bench.routing --seeds 1 --no-litellm                  # what needs no other environment

How it avoids fooling itself: every router sees the same requests, and for each request each model would do the same
whoever asks; the weather is the same; nobody is told of it but the oracle. LiteLLM is its own code from PyPI
(`litellm_routers`), with its defaults. Costs count duplicates. A retry does not wait, which favours those that need it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import msgspec

from bench.environments import NotInstalled, python_environment
from bench.programs import CACHE
from bench.routers import LeastBusy, Oracle, PeakEwma, Random, RoundRobin
from relay.policy.compiled import Breaker, Hedge, Match, Model, Objective, Price, Provider, Route, Timeouts
from relay.simulate import Arrival, Place, Relay, Result, Weather, World, figures, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.simulate import Router, Upstreams

HOUR = 3600.0
ROOT = Path(__file__).parent.parent
LITELLM = "1.106.2"
STRATEGIES = ("latency-based-routing", "cost-based-routing", "simple-shuffle", "usage-based-routing-v2", "least-busy")

WORLD = World(
    seconds=4 * HOUR,
    per_s=1.5,
    places=(  # TTFT as measured: p50, p95, p99 in ms; USD per million tokens read and written
        Place("mini", (536, 844, 4461), 80, (0.15, 0.60)),
        Place("mini-eu", (520, 900, 3000), 75, (0.165, 0.66), errors=0.01),
        Place("haiku", (541, 1591, 4117), 110, (1.0, 5.0)),
        Place("sonnet", (941, 2939, 4787), 70, (3.0, 15.0)),
        Place("new", (250, 500, 1500), 200, (0.30, 1.20), from_s=3.2 * HOUR),
    ),
    weather=(
        Weather("mini", "slow", 0.6 * HOUR, 1.6 * HOUR, 6.0),
        Weather("mini-eu", "outage", 2.0 * HOUR, 2.2 * HOUR, 0.1),
        Weather("mini", "limit", 2.6 * HOUR, 2.9 * HOUR, 20.0),
    ),
)
"""Four hours: one degraded, an outage, a 429 storm, a price gap of 25, and a new fast model near the end."""

TURN = World(
    seconds=1500.0,
    per_s=5.0,
    places=(
        Place("best", (400, 900, 2500), 80, (0.15, 0.60)),
        Place("spare", (800, 1600, 4000), 80, (0.15, 0.60)),
    ),
    weather=(Weather("best", "slow", 300.0, 900.0, 10.0),),
)
"""The better of two is slow for ten minutes: how many requests until it is left, how long until it is back?"""

CROWD = World(
    seconds=600.0,
    per_s=6.0,
    places=(
        Place("mini", (536, 844, 4461), 80, (0.15, 0.60)),
        Place("mini-eu", (520, 900, 3000), 75, (0.15, 0.60)),
    ),
    weather=(Weather("mini", "crowd", 300.0, 600.0, 2.8), Weather("mini-eu", "crowd", 300.0, 600.0, 2.8)),
)
"""Five minutes in which all that there is can serve 5.6 requests a second of the 6 that come: whoever asks twice makes
everything slower."""

CROWDS = 20
"""Seeds of that."""

TURNS = 40
"""Seeds of `TURN`."""

OBJECTIVE = Objective(latency=0.6, cost=0.4)
HEDGE = Hedge(0.95, 0.05)


def route(world: World, objective: Objective, hedge: Hedge | None) -> Route:
    """All places of a world as one route."""
    provider = Provider(
        "p", "openai", "http://p.invalid/v1", None, (), frozenset(), Timeouts(), Breaker(), 1, None, http2=False
    )
    models = tuple(
        Model(place.name, provider, place.name, None, Timeouts(), price=Price(usd_in, usd_in, usd_out))
        for place in world.places
        for usd_in, usd_out in [(place.price[0] / 1e6, place.price[1] / 1e6)]
    )
    return Route("auto", Match(re.compile("auto")), models, 3, objective=objective, hedge=hedge)


def contenders(world: World, seed: int) -> dict[str, Callable[[Upstreams], Router]]:
    """Those that run in this process."""
    plain, hedged = route(world, OBJECTIVE, None), route(world, OBJECTIVE, HEDGE)
    return {
        "oracle": lambda upstreams: Oracle(upstreams, OBJECTIVE),
        "relay": lambda upstreams: Relay(plain, upstreams, seed),
        "relay, hedged": lambda upstreams: Relay(hedged, upstreams, seed),
        "round robin": RoundRobin,
        "random": lambda upstreams: Random(upstreams, seed),
        "least busy": lambda upstreams: LeastBusy(upstreams, seed),
        "P2C + peak-EWMA": lambda upstreams: PeakEwma(upstreams, seed),
    }


def litellm(world: World, strategy: str, seed: int, python: Path) -> list[Result]:
    """One run of LiteLLM's Router, in its own environment; kept, because it takes minutes and Relay is not in it."""
    asked = msgspec.json.encode(world)
    kept = CACHE / f"litellm-{hashlib.sha256(asked + LITELLM.encode()).hexdigest()[:12]}-{strategy}-{seed}.msgpack"
    if not kept.exists():
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(asked)
            file.flush()
            finished = subprocess.run(
                [python, "-m", "bench.litellm_routers", file.name, strategy, str(seed)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                check=True,
                stdout=subprocess.PIPE,
            )
        kept.write_bytes(finished.stdout)
    return msgspec.msgpack.decode(kept.read_bytes(), type=list[Result])


def scored(results: Sequence[Result]) -> dict[str, float]:
    """The figures of one run, and the mean log score of what was served."""
    score = fmean(
        OBJECTIVE.ttft * log(result.ttft_s)
        + OBJECTIVE.latency * log(result.latency_s)
        + OBJECTIVE.cost * log(result.usd)
        for result in results
        if result.place
    )
    return {**figures(results), "log_score": score}


class Eager(Relay):
    """Hedges as Relay does, but without its bounds."""

    def may_hedge(self, arrival: Arrival, first: str, second: str, now: float) -> bool:  # noqa: ARG002
        """Always."""
        return True


def crowded(seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """By way of hedging: TTFT in ms, and the share of requests asked twice, while everything is crowded; medians."""
    found = {}
    for name, kind, hedge in (("none", Relay, None), ("relay's", Relay, HEDGE), ("without bounds", Eager, HEDGE)):
        told = []
        for seed in seeds:
            made = route(CROWD, Objective(ttft=1.0), hedge)
            results = simulate(CROWD, seed, partial(kind, made, seed=seed))
            bad = [result for result in results if result.at >= CROWD.weather[0].from_s]
            told.append({**figures(bad), "twice": fmean(result.twice_usd > 0.0 for result in bad)})
        found[name] = {key: median(run[key] for run in told) for key in told[0]}
    return found


def turning(seed: int) -> tuple[int, float]:
    """Requests that a degraded model still gets, and seconds until a recovered one is served from again.

    Left is it when three requests in a row went elsewhere first; counted are those that went to it before that, from
    the moment on at which it became slow. Back is it when it served three of four.
    """
    turn = TURN.weather[0]
    results = simulate(TURN, seed, lambda upstreams: Relay(route(TURN, Objective(ttft=1.0), None), upstreams, seed))
    after = [result for result in results if result.at >= turn.from_s]
    left = next(n for n in range(len(after)) if all(result.first != turn.place for result in after[n : n + 3]))
    later = [result for result in results if result.at >= turn.until_s]
    back = next(
        later[n].at
        for n in range(len(later))
        if [result.place for result in later[n : n + 4]].count(turn.place) > 2  # noqa: PLR2004
    )
    return sum(result.first == turn.place for result in after[:left]), back - turn.until_s


Runs = dict[str, list[dict[str, float]]]
"""By router, the figures of each seed."""


def with_regret(runs: Runs) -> Runs:
    """The same, each with its regret against the oracle on the same seed."""
    oracle = [run["log_score"] for run in runs["oracle"]]
    return {
        name: [
            {**run, "regret": exp(run["log_score"] - best) - 1.0} for run, best in zip(of_seeds, oracle, strict=True)
        ]
        for name, of_seeds in runs.items()
    }


def medians(runs: Runs) -> dict[str, dict[str, float]]:
    """Each router's figures in the middle of its seeds."""
    return {name: {key: median(run[key] for run in of_seeds) for key in of_seeds[0]} for name, of_seeds in runs.items()}


def spread(values: Sequence[float], shape: str, unit: str = "") -> str:
    """A median, and the range if there is one."""
    low, middle, high = (format(value, shape) + unit for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def bars(runs: Runs, turns: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """What was to be reached, and what was: medians over the seeds, and ranges."""
    relay, hedged = runs["relay"], runs["relay, hedged"]

    def times(key: str, of: Sequence[dict[str, float]], over: Sequence[dict[str, float]]) -> str:
        return spread([a[key] / b[key] for a, b in zip(of, over, strict=True)], ".2f", "x")

    rows = []
    others = {name: of_seeds for name, of_seeds in runs.items() if name.startswith("LiteLLM")}
    if others:
        best = min(others, key=lambda name: median(run["ttft_p95_ms"] for run in others[name]))
        latency = others["LiteLLM latency-based-routing"]
        rows += [
            {
                "figure": f"TTFT p95 against LiteLLM's best ({best.removeprefix('LiteLLM ')}), at "
                f"{times('usd_per_1000', hedged, others[best])} its cost",
                "bar": "<= 0.6x",
                "value": times("ttft_p95_ms", hedged, others[best]),
            },
            {
                "figure": "cost against LiteLLM's latency-based-routing, at "
                f"{times('ttft_p95_ms', hedged, latency)} its TTFT p95",
                "bar": "<= 0.7x",
                "value": times("usd_per_1000", hedged, latency),
            },
        ]
    lefts, backs = zip(*turns, strict=True)
    return [
        *rows,
        {
            "figure": "TTFT p99 with hedging, at "
            f"{spread([run['duplicate_spend'] for run in hedged], '.1%')} duplicate spend",
            "bar": "<= 0.5x",
            "value": times("ttft_p99_ms", hedged, relay),
        },
        {
            "figure": "failures seen by clients, outage and 429 storm included",
            "bar": "0",
            "value": spread([run["failures"] for run in (*relay, *hedged)], ".0f"),
        },
        {
            "figure": f"requests until a degraded model is left, 5 a second ({len(turns)} seeds)",
            "bar": "<= 10",
            "value": spread(lefts, ".0f"),
        },
        {
            "figure": f"seconds until a recovered one is back ({len(turns)} seeds)",
            "bar": "<= 60",
            "value": spread(backs, ".0f"),
        },
        {
            "figure": "regret against the oracle (weighted score), unhedged",
            "bar": "<= 15 %",
            "value": spread([run["regret"] for run in relay], ".1%"),
        },
        {
            "figure": "the same, hedged",
            "bar": "<= 15 %",
            "value": spread([run["regret"] for run in hedged], ".1%"),
        },
    ]


def table(means: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| router | TTFT p50 ms | p95 | p99 | USD per 1,000 | failed | duplicate spend | regret |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, f in means.items():
        lines.append(
            f"| {name} | {f['ttft_p50_ms']:.0f} | {f['ttft_p95_ms']:.0f} | {f['ttft_p99_ms']:.0f} "
            f"| {f['usd_per_1000']:.3f} | {f['failures']:.0f} | {f['duplicate_spend']:.1%} | {f['regret']:.1%} |"
        )
    return "\n".join(lines)


LABEL_WIDTH, LINE_HEIGHT, LEADER = 190, 14, 18
"""Of a name in the picture, and of the line that leads to it: none is written over another, nor over a point."""


def picture(means: dict[str, dict[str, float]]) -> str:
    """SVG: TTFT p95 (circle) to p99 (end of the line) over cost, both on logarithmic scales; lower left is better."""
    width, height, left, top = 760, 400, 60, 20
    costs = [figure["usd_per_1000"] for figure in means.values()]
    times = [figure[key] for figure in means.values() for key in ("ttft_p95_ms", "ttft_p99_ms")]

    def x(usd: float) -> float:
        return left + (width - left - 235) * log(usd / min(costs)) / log(max(costs) / min(costs))

    def y(ms: float) -> float:
        return top + (height - top - 50) * log(max(times) / ms) / log(max(times) / min(times))

    parts = [
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-size='12' "
            "font-family='system-ui, sans-serif' fill='#7d8590'>"
        ),
        f"<text x='{left}' y='{height - 8}'>USD per 1,000 requests: {min(costs):.2f} … {max(costs):.2f}</text>",
        (
            f"<text x='14' y='{height - 50}' transform='rotate(-90 14 {height - 50})'>TTFT p95 to p99, ms: "
            f"{min(times):.0f} … {max(times):.0f}</text>"
        ),
    ]
    points = [x(usd) for usd in costs]
    labels: list[tuple[float, float]] = []
    for name, figure in sorted(means.items(), key=lambda item: y(item[1]["ttft_p95_ms"])):
        colour = "#e0672d" if name.startswith("relay") else "#3f7fbf" if name.startswith("LiteLLM") else "#8fa3bf"
        at, p95, p99 = x(figure["usd_per_1000"]), y(figure["ttft_p95_ms"]), y(figure["ttft_p99_ms"])
        below = p95 + 4
        while any(abs(at - x_of) < LABEL_WIDTH and abs(below - y_of) < LINE_HEIGHT for x_of, y_of in labels):
            below += 1
        labels.append((at, below))
        beside = max(x_of for x_of in points if 0 <= x_of - at < LABEL_WIDTH) + LEADER
        parts += [
            f"<line x1='{at:.0f}' x2='{at:.0f}' y1='{p95:.0f}' y2='{p99:.0f}' stroke='{colour}'/>",
            f"<path d='M{at:.0f} {p95:.0f}L{beside:.0f} {below - 4:.0f}' stroke='{colour}' opacity='.5'/>",
            f"<circle cx='{at:.0f}' cy='{p95:.0f}' r='5' fill='{colour}'/>",
            f"<text x='{beside + 4:.0f}' y='{below:.0f}' fill='{colour}'>{name}</text>",
        ]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Run, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--plot", type=Path, help="where the picture goes, as SVG")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-litellm", action="store_true")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    served: Runs = {}
    for seed in seeds:
        for name, router in contenders(WORLD, seed).items():
            served.setdefault(name, []).append(scored(simulate(WORLD, seed, router)))
    if not arguments.no_litellm:
        try:
            packages = [f"litellm=={LITELLM}", "msgspec", "time-machine"]
            python = python_environment("litellm-router", packages, python=Path(sys.executable)) / "python"
            for strategy in STRATEGIES:
                served[f"LiteLLM {strategy}"] = [scored(litellm(WORLD, strategy, seed, python)) for seed in seeds]
        except NotInstalled as error:
            print(f"LiteLLM is left out: {error}", file=sys.stderr)
    runs = with_regret(served)
    reached = bars(runs, [turning(seed) for seed in range(1, TURNS + 1)])
    crowd = crowded(range(1, CROWDS + 1))
    print(table(medians(runs)), "\n")
    print("| hedging | TTFT p50 ms | p95 | p99 | asked twice |\n|---|---:|---:|---:|---:|")
    for name, f in crowd.items():
        times = " | ".join(f"{f[key]:.0f}" for key in ("ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms"))
        print(f"| {name} | {times} | {f['twice']:.0%} |")
    print("\n| figure | bar | reached |\n|---|---|---|")
    for row in reached:
        print(f"| {row['figure']} | {row['bar']} | {row['value']} |")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(picture(medians(runs)))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        world = msgspec.to_builtins(WORLD)
        shown = {"world": world, "seeds": list(seeds), "routers": runs, "bars": reached, "crowded": crowd}
        arguments.output.write_text(json.dumps(shown, indent=2) + "\n")


if __name__ == "__main__":
    main()
