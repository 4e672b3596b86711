"""Recorded answers given the budgets of another policy: how many would have met theirs, and what they would reserve.

Budgets depend on nothing but the past, so this is no estimate of a world: the same arithmetic learns from the recorded
answers in their order, beginning with nothing learned. The answers are taken to be as long as they were, whoever is
asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from relay.limits.budgets import Request
from relay.limits.experience import Experience, Lesson
from relay.limits.lengths import Place
from relay.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.messages import Budget, RequestRecord, Usage
    from relay.policy.compiled import Policy

_COMPLETE = 4
"""Parts of a cell's name that has all of a place in it."""


class BudgetFigures(msgspec.Struct, frozen=True):
    """What budgets did to some answers.

    Attributes:
        met: share of answers that met a budget of the relay's own, whether they were continued or cut.
        granted: tokens reserved for each, mean; continuations not counted.
        used: tokens that each had, mean.
    """

    met: float
    granted: float
    used: float


class BudgetReplay(msgspec.Struct, frozen=True):
    """Budgets then and now.

    Attributes:
        answers: recorded with a budget, a usage, and a model that the policy still has.
        recorded: how it was.
        expected: how it would have been.
    """

    answers: int
    recorded: BudgetFigures
    expected: BudgetFigures


def replay_budgets(records: Iterable[RequestRecord], policy: Policy) -> BudgetReplay | None:
    """Set budgets for recorded answers.

    Args:
        records: in the order of their arrivals.
        policy: whose rules hold.

    Returns:
        None if the policy sets no budgets or no answer was recorded with one.
    """
    intents = policy.intents
    if intents is None:
        return None
    experience = Experience()
    then, now = [], []
    for record in records:
        usage, old, model = record.usage, record.budget, policy.models.get(record.model)
        if usage is None or old is None or model is None or usage.estimated:
            continue
        rules = intents.rules[record.intent or intents.default].budget
        place = Place(record.intent, record.model, record.key, old.cell[-1] if len(old.cell) == _COMPLETE else "")
        each = old.visible if old.source == "client" else old.limit  # who asks for more than there is reserves less
        choices = max(old.reserve // each, 1) if each else 1
        request = Request(
            prompt_tokens=usage.prompt_tokens,
            choices=choices,
            client_limit=(record.wants.limit_tokens or None) if record.wants else None,
            reasons=model.reasons,
            context=model.context,
            max_output=model.max_output,
        )
        budget = experience.budget(rules, request, place)
        written, hidden = usage.completion_tokens // choices, usage.reasoning_tokens // choices
        cut = record.outcome is not Outcome.COMPLETED
        experience.observe(Lesson(rules, request, place, budget, record.at, written - hidden, hidden, cut))
        then.append((record.outcome is Outcome.BUDGET, old, usage))
        now.append((budget.own and written > (budget.limit or 0), budget, usage))
    return BudgetReplay(len(now), _figures(then), _figures(now)) if now else None


def _figures(answers: list[tuple[bool, Budget, Usage]]) -> BudgetFigures:
    return BudgetFigures(
        met=sum(met for met, _, _ in answers) / len(answers),
        granted=sum(budget.reserve for _, budget, _ in answers) / len(answers),
        used=sum(usage.completion_tokens for _, _, usage in answers) / len(answers),
    )
