"""What learned budgets save: real prompts and the answers really given to them, replayed as traffic.

    python -m bench.budgets --prompts ../shared/data/prompts.jsonl.gz --output bench/results/budgets.json

Each traffic is a seeded order of recorded (prompt, answer length) pairs; a figure is the mean over several seeds. A
strategy sets a limit knowing only what came before. Where it extends, an answer that meets its limit is continued
with further grants; reserved is all that it was granted. Strategies are compared at one extension rate, found by
bisection of the quantile, because reserving less is easy for who extends more.

How it avoids fooling itself: the best constant is chosen in hindsight and its steps are the best of four; the intent
signal is held against the same labels shuffled; lengths of people's and data sets' answers, which are far shorter
than any model's, can be left out (`models`); nothing is tuned on one seed and measured on the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from relay.intent import classify
from relay.limits.budgets import Request
from relay.limits.experience import Experience, Lesson
from relay.limits.lengths import Place
from relay.messages import BudgetRules, Intent
from relay.policy import schema
from relay.policy.compiled import Intents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

EXTENDED = 0.08
"""The extension rate at which strategies are compared."""

SEEDS = (1, 2, 3)

CEILING = BudgetRules().ceiling

MAX_OUTPUT = 16_384
"""What a model writes of a loop that nothing stops."""

RUNAWAYS = 0.01

NOT_MODELS = {"human", "dataset-target", "reference", "unknown"}

PER_APPLICATION = 300
"""Requests of each application, so that none outweighs the others."""


class Asked(NamedTuple):
    """One request of a traffic and the answer it will get. `label` is the data's, `intent` what Relay takes it for."""

    label: str
    intent: str
    model: str
    application: str
    prompt_tokens: int
    answer_tokens: int


Traffic = list[Asked]


class Figures(msgspec.Struct, frozen=True):
    """What a strategy did with a traffic.

    Attributes:
        truncated: share of answers cut.
        extended: share of answers continued.
        reserved: output tokens reserved per request, mean.
        reserved_p95: and 95th percentile.
        continuations: per continued answer.
        extra_prompt: prompt tokens per request that continuations read again.
        quantile: that reached the extension rate; None if the strategy has none.
    """

    truncated: float
    extended: float
    reserved: float
    reserved_p95: float
    continuations: float = 0.0
    extra_prompt: float = 0.0
    quantile: float | None = None


# --- traffics -----------------------------------------------------------------------------------------------


_USUAL = schema.Classifier()
_INTENTS = Intents({}, _USUAL.default, _USUAL.min_confidence)


def labelled(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """For each row its label, and the intent that a request with that prompt is treated as by default."""
    return {
        row["id"]: (row["intent"] or row.get("intent_silver") or "", _INTENTS.settled(_intent(row))) for row in rows
    }


def _intent(row: dict[str, Any]) -> Intent:
    return classify({"messages": row.get("messages") or [{"role": "user", "content": row["prompt"]}]})


def shared_prompts(rows: list[dict[str, Any]], seed: int, *, models_only: bool = False) -> Traffic:
    """Each prompt once, with one of its answers: one application, many models."""
    rng = random.Random(seed)
    intents = labelled(rows)
    traffic = []
    for row in rows:
        answers = [answer for answer in row["responses"] if not models_only or answer["model"] not in NOT_MODELS]
        if answers:
            answer = rng.choice(answers)
            traffic.append(Asked(*intents[row["id"]], answer["model"], "", row["prompt_tokens"], answer["tokens"]))
    rng.shuffle(traffic)
    return traffic


def applications(rows: list[dict[str, Any]], seed: int) -> Traffic:
    """Each source is an application: its own system prompt, one model it has pinned, and as many requests as others."""
    rng = random.Random(seed)
    intents = labelled(rows)
    sources = defaultdict(list)
    for row in rows:
        if row["responses"]:
            sources[row["source"]].append(row)
    traffic = []
    for source, members in sorted(sources.items()):
        models = Counter(answer["model"] for row in members for answer in row["responses"])
        model = rng.choice([name for name, count in sorted(models.items()) if count >= models.most_common(1)[0][1] / 2])
        own = [
            Asked(*intents[row["id"]], model, source, row["prompt_tokens"], answer["tokens"])
            for row in members
            for answer in row["responses"]
            if answer["model"] == model
        ]
        traffic += rng.sample(own, min(len(own), PER_APPLICATION))
    rng.shuffle(traffic)
    return traffic


def shuffled(traffic: Traffic) -> Traffic:
    """The control: the same intents, handed out at random."""
    intents = [asked.intent for asked in traffic]
    random.Random(0).shuffle(intents)
    return [asked._replace(intent=intent) for asked, intent in zip(traffic, intents, strict=True)]


# --- strategies ---------------------------------------------------------------------------------------------


def fixed(traffic: Traffic, limits: Sequence[float]) -> Figures:
    """A limit for each and no extension."""
    cut = sum(asked.answer_tokens > most for asked, most in zip(traffic, limits, strict=True))
    return Figures(cut / len(traffic), 0.0, statistics.fmean(limits), quantile_of(limits, 0.95))


def constant(traffic: Traffic, rate: float = EXTENDED) -> Figures:
    """The constant that extends at that rate, and continues in the best of four steps; known in hindsight."""
    limit = quantile_of([asked.answer_tokens for asked in traffic], 1.0 - rate)
    found = []
    for step in (0.25, 0.5, 1.0, 2.0):
        grants = [stepwise(asked.answer_tokens, limit, step * limit) for asked in traffic]
        found.append(summary(traffic, grants))
    return min(found, key=lambda figures: figures.reserved)


def stepwise(tokens: int, limit: float, step: float) -> list[float]:
    """What a constant grants an answer; the last continuation gets all up to the ceiling, as learned ones do."""
    grants = [limit]
    while tokens > sum(grants):
        last = len(grants) == BudgetRules().max_extensions
        grants.append(CEILING - sum(grants) if last else step)
    return grants


class Replay:
    """Learned budgets over a traffic."""

    def __init__(self, quantile: float, place: Callable[[Asked], Place]) -> None:
        self.experience = Experience()
        self.rules = BudgetRules(quantile=quantile)
        self.place = place
        self.now = 1_800_000_000.0

    def serve(self, asked: Asked) -> list[float]:
        """What one request is granted; its length is learned."""
        place, request = self.place(asked), Request(asked.prompt_tokens)
        budget = self.experience.budget(self.rules, request, place)
        grants = [float(budget.visible)]
        while asked.answer_tokens > (granted := round(sum(grants))):
            more = self.experience.extension(self.rules, request, place, budget, written=granted, number=len(grants))
            if not more:
                break
            grants.append(more)
        granted = round(sum(grants))
        self.now += 1.0
        visible, cut = min(asked.answer_tokens, granted), asked.answer_tokens > granted
        self.experience.observe(Lesson(self.rules, request, place, budget, self.now, visible, cut=cut))
        return grants


def learned(traffic: Traffic, place: Callable[[Asked], Place], quantile: float) -> Figures:
    """Learned budgets at a policy's quantile."""
    replay = Replay(quantile, place)
    figures = summary(traffic, [replay.serve(asked) for asked in traffic])
    return msgspec.structs.replace(figures, quantile=quantile)


def learned_at(traffic: Traffic, place: Callable[[Asked], Place], rate: float = EXTENDED) -> Figures:
    """Learned budgets at the quantile that extends at most at that rate."""
    low, high = 0.7, 0.995
    best = learned(traffic, place, high)
    for _ in range(8):
        middle = (low + high) / 2
        figures = learned(traffic, place, middle)
        if figures.extended > rate:
            low = middle
        else:
            high, best = middle, figures
    return best


def summary(traffic: Traffic, grants: Sequence[list[float]]) -> Figures:
    """Figures of what each request was granted."""
    totals = [sum(each) for each in grants]
    continued = [(asked, each) for asked, each in zip(traffic, grants, strict=True) if len(each) > 1]
    read_again = sum(
        asked.prompt_tokens + sum(each[:number]) for asked, each in continued for number in range(1, len(each))
    )
    return Figures(
        truncated=sum(asked.answer_tokens > most for asked, most in zip(traffic, totals, strict=True)) / len(traffic),
        extended=len(continued) / len(traffic),
        reserved=statistics.fmean(totals),
        reserved_p95=quantile_of(totals, 0.95),
        continuations=sum(len(each) - 1 for _, each in continued) / max(len(continued), 1),
        extra_prompt=read_again / len(traffic),
    )


def quantile_of(values: Sequence[float], q: float) -> float:
    """The order statistic."""
    return sorted(values)[min(int(q * len(values)), len(values) - 1)]


SIGNALS: dict[str, Callable[[Asked], Place]] = {
    "nothing": lambda _: Place("", "", "", ""),
    "intent": lambda asked: Place(asked.intent, "", "", ""),
    "model": lambda asked: Place("", asked.model, "", ""),
    "application, model": lambda asked: Place("", asked.model, "", asked.application),
    "all": lambda asked: Place(asked.intent, asked.model, "", asked.application),
    "all, by true labels": lambda asked: Place(asked.label, asked.model, "", asked.application),
}
"""What a place is made of."""

# --- what is reported ---------------------------------------------------------------------------------------


class Report(msgspec.Struct):
    """One traffic.

    Attributes:
        name: of the traffic.
        requests: in it, mean over the seeds.
        mean_answer: tokens.
        baseline: the fixed limit that truncates 1 %, tokens; shares of reserved tokens are of this.
        figures: by strategy, means over the seeds.
        frontier: (extended, reserved share) points by strategy, for the plot.
    """

    name: str
    requests: float
    mean_answer: float
    baseline: float
    figures: dict[str, Figures]
    frontier: dict[str, list[tuple[float, float]]]


def report(name: str, traffics: Sequence[Traffic]) -> Report:
    """All strategies on all seeds of a traffic."""
    figures: dict[str, list[Figures]] = defaultdict(list)
    for traffic in traffics:
        lengths = [asked.answer_tokens for asked in traffic]
        for limit in (1024, 2048, 4096):
            figures[f"fixed {limit}"].append(fixed(traffic, [limit] * len(traffic)))
        figures["fixed, truncates 1 %"].append(fixed(traffic, [quantile_of(lengths, 0.99)] * len(traffic)))
        by_intent = defaultdict(list)
        for asked in traffic:
            by_intent[asked.intent].append(asked.answer_tokens)
        p99 = {intent: quantile_of(found, 0.99) for intent, found in by_intent.items()}
        figures["fixed per intent, its p99"].append(fixed(traffic, [p99[asked.intent] for asked in traffic]))
        figures["best constant, extended"].append(constant(traffic))
        for signals, place in SIGNALS.items():
            figures[f"learned from {signals}"].append(learned_at(traffic, place))
            if signals in {"intent", "all"}:
                control = learned_at(shuffled(traffic), place)
                figures[f"learned from {signals}, intents shuffled"].append(control)
        figures["learned from all, policy's default"].append(learned(traffic, SIGNALS["all"], BudgetRules().quantile))
    baseline = statistics.fmean(each.reserved for each in figures["fixed, truncates 1 %"])
    return Report(
        name,
        statistics.fmean(len(traffic) for traffic in traffics),
        statistics.fmean(asked.answer_tokens for traffic in traffics for asked in traffic),
        baseline,
        {strategy: mean_of(each) for strategy, each in figures.items()},
        frontier(traffics[0]),
    )


def mean_of(figures: Sequence[Figures]) -> Figures:
    """Field by field; a field that one has not, the mean has not."""
    means = {}
    for field in Figures.__struct_fields__:
        values = [getattr(each, field) for each in figures]
        means[field] = None if None in values else statistics.fmean(values)
    return msgspec.convert(means, Figures)


def frontier(traffic: Traffic) -> dict[str, list[tuple[float, float]]]:
    """How much is reserved at each extension rate."""
    baseline = quantile_of([asked.answer_tokens for asked in traffic], 0.99)
    rates = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16)
    points = {"best constant": [constant(traffic, rate) for rate in rates]}
    for name, place in (("learned from all", SIGNALS["all"]), ("learned from nothing", SIGNALS["nothing"])):
        points[name] = [learned(traffic, place, 1.0 - rate) for rate in rates]
    return {name: [(each.extended, each.reserved / baseline) for each in found] for name, found in points.items()}


def convergence(traffics: Sequence[Traffic], quantile: float) -> list[tuple[int, float, float]]:
    """(number of the request within its application, extended, reserved share): how fast an application is learned."""
    borders = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, PER_APPLICATION + 1]
    grants: dict[int, list[list[float]]] = defaultdict(list)
    for traffic in traffics:
        baseline = quantile_of([asked.answer_tokens for asked in traffic], 0.99)
        replay, seen = Replay(quantile, SIGNALS["all"]), Counter[str]()
        for asked in traffic:
            seen[asked.application] += 1
            start = max(border for border in borders if border <= seen[asked.application])
            grants[start].append([grant / baseline for grant in replay.serve(asked)])
    return [
        (start, statistics.fmean(len(each) > 1 for each in found), statistics.fmean(sum(each) for each in found))
        for start, found in sorted(grants.items())
    ]


def runaways(traffics: Sequence[Traffic]) -> dict[str, float]:
    """Answers that loop, one in a hundred, put in among the others: what each costs, and what it does to the others."""
    before: list[float] = []
    after: list[float] = []
    loops: list[float] = []
    for seed, traffic in enumerate(traffics):
        rng = random.Random(seed)
        calm, troubled = (Replay(BudgetRules().quantile, SIGNALS["all"]) for _ in range(2))
        for asked in traffic:
            before.append(sum(calm.serve(asked)))
            after.append(sum(troubled.serve(asked)))
            if rng.random() < RUNAWAYS:
                loops.append(sum(troubled.serve(asked._replace(answer_tokens=MAX_OUTPUT))))
    return {
        "tokens per loop": statistics.fmean(loops),
        "reserved per other request without loops": statistics.fmean(before),
        "reserved per other request with loops": statistics.fmean(after),
    }


class Results(msgspec.Struct):
    """All that a run found.

    Attributes:
        reports: by traffic.
        convergence: see `convergence`.
        runaways: see `runaways`.
    """

    reports: list[Report]
    convergence: list[tuple[int, float, float]]
    runaways: dict[str, float]


def table(report: Report) -> Iterator[str]:
    """A traffic's figures as Markdown."""
    yield f"### {report.name}\n"
    yield f"{report.requests:,.0f} requests, {report.mean_answer:,.0f} tokens per answer; 100 % is a fixed limit of"
    yield f"{report.baseline:,.0f} tokens, which truncates 1 %.\n"
    yield "| limit | truncated | extended | reserved | p95 | continuations | prompt read again |"
    yield "|---|---|---|---|---|---|---|"
    for name, each in report.figures.items():
        share = (
            f"**{each.reserved / report.baseline:.1%}**" if each.extended else f"{each.reserved / report.baseline:.1%}"
        )
        yield (
            f"| {name} | {each.truncated:.2%} | {each.extended:.1%} | {share} | "
            f"{each.reserved_p95:,.0f} | {each.continuations:.2f} | {each.extra_prompt:,.0f} |"
        )
    yield ""


def main() -> None:
    """Replay, print tables, write the results."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prompts", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    paths = arguments.parse_args()
    with gzip.open(paths.prompts, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    several = [applications(rows, seed) for seed in SEEDS]
    reports = [
        report("Shared prompts", [shared_prompts(rows, seed) for seed in SEEDS]),
        report(
            "Shared prompts, models' answers only", [shared_prompts(rows, seed, models_only=True) for seed in SEEDS]
        ),
        report("Several applications", several),
    ]
    quantile = reports[-1].figures["learned from all"].quantile or BudgetRules().quantile
    results = Results(reports, convergence(several, quantile), runaways(several))
    for each in reports:
        print("\n".join(table(each)))
    print("\n".join(f"{name}: {value:,.0f}" for name, value in results.runaways.items()))
    paths.output.parent.mkdir(parents=True, exist_ok=True)
    paths.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


if __name__ == "__main__":
    main()
