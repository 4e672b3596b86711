"""What it takes to decide one request: intent, budget and plan over three models; no network, one core.

    python -m bench.decisions [--json]

Each figure is the least of many short runs, because anything else on the machine only adds. *Cold* is a prompt that was
not seen before, in turn with hundreds of others, *again* the same one once more. Prompts are words drawn from a page of
English.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
import timeit
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from relay.dialects import DIALECTS
from relay.intent import classify
from relay.limits.experience import Experience
from relay.messages import Usage
from relay.policy.decide import Chooser
from relay.policy.load import load
from relay.runtimes.policy_files import read_folder
from relay.sizing import Sizer
from relay.upstreams import Upstream
from relay.wants import wants_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.messages import ChatRequest

POLICY = Path(__file__).parent / "policy"
"""What Relay runs with in the other benches too."""

LENGTHS = (300, 3000)
"""Of prompts, tokens."""

PROMPTS = 400

ROUNDS = 20

WORDS = Path(__file__).parents[1] / "docs" / "intent.md"


def prompts(tokens: int) -> list[ChatRequest]:
    """Different requests of that length, as a client of one application would send them."""
    words = WORDS.read_text().split()
    rng = random.Random(tokens)
    requests = []
    for _ in range(PROMPTS):
        text = " ".join(rng.choices(words, k=int(tokens / 1.6)))
        messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": text}]
        body = {"model": "auto", "stream": True, "temperature": 0.7, "messages": messages}
        requests.append(DIALECTS["openai"].parse_request(json.dumps(body).encode()))
    return requests


class World:
    """A relay's parts that decide, with something learned."""

    def __init__(self) -> None:
        self.policy = load(read_folder(POLICY), {"BENCH_UPSTREAM_KEY": "-"})
        self.dialect = DIALECTS["openai"]
        self.route = self.policy.routes[0]
        self.experience = Experience()
        self.rng = random.Random(0)
        self.sizer = self.new_sizer()
        self.chooser = Chooser(
            self.route, {model.name: Upstream(model.expected, watched=True) for model in self.route.candidates}
        )
        for number, request in enumerate(prompts(300)):
            for model in self.route.candidates:
                sizing = self.sizer.size(request, self.dialect, "bench")
                usage = Usage(300, self.rng.randint(50, 900))
                sizing.observe(model, sizing.budget(model), usage, 1_800_000_000.0 + number, cut=False)
        self.experience.catch_up()

    def new_sizer(self) -> Sizer:
        """One that remembers nothing."""
        if self.policy.intents is None:
            raise AssertionError("the bench's policy has budgets")
        return Sizer(self.policy.intents, self.experience)

    def decide(self, request: ChatRequest) -> None:
        """All that is decided of a request before it is sent."""
        sizing = self.sizer.size(request, self.dialect, "bench")
        wants = wants_of(request, self.route, self.dialect, {}, None, sizing)
        decision = self.chooser.decide(wants, 1.0, self.rng)
        sizing.shape(self.policy.models[decision.order[0]])


def least_us(run: Callable[[], object], *, number: int = 20, repeat: int = 400) -> float:
    """Microseconds for one run, the least that was seen."""
    return min(timeit.repeat(run, number=number, repeat=repeat)) / number * 1e6


def cold_us(world: World, requests: list[ChatRequest]) -> float:
    """Microseconds for a prompt that is new: of each the least of some rounds, and of these the mean."""
    least = [inf] * len(requests)
    for _ in range(ROUNDS):
        world.sizer = world.new_sizer()
        for index, request in enumerate(requests):
            start = time.perf_counter()
            world.decide(request)
            least[index] = min(least[index], time.perf_counter() - start)
    return statistics.fmean(least) * 1e6


def measure(tokens: int, world: World) -> dict[str, float]:
    """Microseconds by what was done, for prompts of that length."""
    requests = prompts(tokens)
    one = requests[0]
    cold = cold_us(world, requests)
    gist = world.dialect.gist(one).body
    sizing = world.sizer.size(one, world.dialect, "bench")
    wants = wants_of(one, world.route, world.dialect, {}, None, sizing)
    model, usage = world.route.candidates[0], Usage(300, 200)
    budget = sizing.budget(model)

    def learn() -> None:
        sizing.observe(model, budget, usage, 1.9e9, cut=False)

    return {
        "whole decision, cold": cold,
        "whole decision, again": least_us(lambda: world.decide(one)),
        "classify": least_us(lambda: classify(gist)),
        "plan": least_us(lambda: world.chooser.decide(wants, 1.0, world.rng)),
        "learn from an answer": least_us(learn, number=2000, repeat=20),  # most answers teach little, some much
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    world = World()
    figures = {f"{tokens} tokens": measure(tokens, world) for tokens in LENGTHS}
    if arguments.json:
        print(json.dumps({"python": platform.python_version(), "us": figures}, indent=1))
        return
    print(f"CPython {platform.python_version()}, microseconds")
    for tokens, by_part in figures.items():
        for part, value in by_part.items():
            print(f"{tokens:>12}  {part:<24}{value:>8.1f}")


if __name__ == "__main__":
    main()
