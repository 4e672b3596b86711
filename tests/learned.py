"""Pipelines that have learned something, for the tests of what becomes of it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

from relay.limits.budgets import Request
from relay.limits.experience import Lesson
from relay.limits.lengths import Place
from relay.messages import BudgetRules
from relay.pipeline import Pipeline
from relay.policy.decide import Outlook
from relay.policy.load import load
from relay.stores.memory import MemoryStore
from tests.fakes import FakeClock
from tests.servers.policies import ENVIRON, policy

if TYPE_CHECKING:
    from relay.policy.compiled import Policy
    from relay.transports.base import Transport

RULES = BudgetRules()
HOME = Place("factual_qa", "first", "team-a", "f00d")
NO_TRANSPORT = cast("Transport", None)
"""Nothing is ever sent."""

AUTO: dict[str, Any] = {"name": "auto", "candidates": ("first", "second"), "objective": {"ttft": 1}}


def pipeline(clock: FakeClock | None = None, **tables: Any) -> Pipeline:
    """A pipeline over two models whose speed matters."""
    return Pipeline(
        set_of(**tables),
        transport=NO_TRANSPORT,
        store=MemoryStore(),
        observers=[],
        clock=clock or FakeClock(),
        rng=random.Random(0),
    )


def set_of(**tables: Any) -> Policy:
    """Its policy."""
    text = policy("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1", **{"routes": [AUTO], **tables})
    return load({"test.toml": text}, ENVIRON)


def teach(
    pupil: Pipeline,
    *,
    answers: int = 20,
    ttft_s: float = 2.0,
    tokens: int = 300,
    model: str = "first",
    key: str = HOME.key,
) -> None:
    """Let a pipeline see that many answers of a model, all alike, and count their prompts."""
    clock, place = pupil.clock, HOME._replace(model=model, key=key)
    for _ in range(answers):
        pupil.upstreams[model].begun(clock.now() - ttft_s, clock.now())
        budget = pupil.experience.budget(RULES, Request(100), place)
        pupil.experience.observe(Lesson(RULES, Request(100), place, budget, clock.wall(), visible=tokens))
        pupil.experience.prompts.observe(model, estimated=1000.0, actual=1300)


def outlook(pupil: Pipeline, model: str = "first") -> Outlook:
    """What it expects of a model."""
    expected = pupil.upstreams[model].expect(0.0, pupil.clock.now())
    assert isinstance(expected, Outlook)
    return expected


def counted(pupil: Pipeline, model: str = "first") -> float:
    """How many answers its cell of `HOME` stands for, in that process."""
    name = tuple(HOME._replace(model=model))
    cells = {cell.cell: cell for cell in pupil.experience.answers.snapshot(pupil.clock.wall())}
    return sum(cells[name].lengths.weights.values()) if name in cells else 0.0
