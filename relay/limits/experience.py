"""All that budgets learn from, in one place: lengths of answers, hidden reasoning, how models count prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from relay.limits import budgets, lengths
from relay.limits.budgets import Request
from relay.limits.lengths import CellSnapshot, Lengths, Place, place_of
from relay.limits.prompt_tokens import Calibration
from relay.limits.shipped import ANSWER_LENGTHS
from relay.messages import Budget, BudgetRules

if TYPE_CHECKING:
    from collections.abc import Container

_NO_REASONING = {"": {0: 1.0}}
"""Prior of hidden reasoning: bucket 0, one token. The policy's headroom is what holds until more is known."""

TRIAL = 50
"""Answers without hidden reasoning after which a model of which the policy says nothing is taken not to reason."""

_NO_ROOM = frozenset({"max_output", "context"})
"""Clamps that make a budget say nothing of what was learned."""


MANY = 32
"""Answers learned from at once, at most: alone each takes twice as long, for what it touches has left the caches."""


class Lesson(msgspec.Struct, frozen=True, gc=False):
    """An answer that has ended.

    Attributes:
        rules: as they were when the budget was set.
        request: likewise.
        place: likewise.
        budget: what the first segment was given.
        now: seconds since the Unix epoch.
        visible: tokens that the client saw, all segments together, per choice.
        hidden: reasoning tokens of the first segment, per choice.
        cut: the answer would have gone on: a limit, the client or a failure ended it.
    """

    rules: BudgetRules
    request: Request
    place: Place
    budget: Budget
    now: float
    visible: int
    hidden: int = 0
    cut: bool = False


class ExperienceSnapshot(msgspec.Struct, frozen=True, gc=False):
    """What was learned, at rest: to persist, send and merge.

    Attributes:
        answers: cells of visible answers.
        reasoning: cells of hidden reasoning.
        prompts: by model, decayed prompt tokens as counted upstream and as estimated.
    """

    answers: list[CellSnapshot]
    reasoning: list[CellSnapshot]
    prompts: dict[str, tuple[float, float]]


class Experience:
    """The running form. Changed only in await-free code; not to be shared by threads."""

    def __init__(self) -> None:
        self.answers = Lengths(ANSWER_LENGTHS)
        self.reasoning = Lengths(_NO_REASONING)
        self.prompts = Calibration()
        self._waiting: list[Lesson] = []

    def budget(self, rules: BudgetRules, request: Request, place: Place) -> Budget:
        """Set the limit of an answer; see `budgets.budget`."""
        extendable = rules.extend and request.extendable
        expected = self.answers.expect(place, rules.quantile, extendable=extendable)
        hidden, trusted = 0.0, False
        if not self.reasoning.empty:
            silent = self.reasoning.count_within((request.effort or "", place.model), budgets.NOISE)
            if not silent:
                thought = self.reasoning.expect(_thinking(place, request), budgets.HEADROOM_QUANTILE)
                if len(thought.cell) > 1:  # what other models need says nothing of this one
                    hidden = thought.tokens
            trusted = silent >= TRIAL
        return budgets.budget(rules, request, expected, hidden=hidden, trusted=trusted)

    def extension(
        self, rules: BudgetRules, request: Request, place: Place, budget: Budget, *, written: int, number: int
    ) -> int:
        """Set the limit of an answer's continuation; see `budgets.extension`. A client's own limit is the end."""
        if budget.source == "client":
            return 0
        more = self.answers.expect_more(place, budgets.EXTENSION_QUANTILE, written)
        return budgets.extension(
            rules,
            more,
            written=written,
            number=number,
            headroom=budget.headroom,
            client_limit=request.client_limit,
        )

    def observe(self, lesson: Lesson) -> None:
        """Count an answer that has ended."""
        place, budget, now = lesson.place, lesson.budget, lesson.now
        visible, hidden, cut = lesson.visible, lesson.hidden, lesson.cut
        # Reasoning comes first. If nothing followed it, it is the reasoning that was cut, and of the answer
        # nothing is known.
        silent = cut and not visible
        if hidden or lesson.request.reasons is not False:
            self.reasoning.observe(_thinking(place, lesson.request), hidden, now, cut=silent)
        if silent:
            return
        if budget.source in {"cell", "prior"} and _NO_ROOM.isdisjoint(budget.clamps):
            over = visible > budget.visible or (cut and visible == budget.visible)
            self.answers.judge(place, over=over, allowed=budget.allowed)
        # What ran into the ceiling is most likely a loop. One in a young cell would set its budgets to the ceiling
        # for dozens of answers; if they are that long indeed, they are continued, and the cell widens.
        if not (cut and visible >= lesson.rules.ceiling):
            self.answers.observe(place, visible, now, cut=cut)

    def soon(self, lesson: Lesson) -> None:
        """As `observe`, together with other answers: with the next call of `catch_up`, or when there are `MANY`."""
        self._waiting.append(lesson)
        if len(self._waiting) >= MANY:
            self.catch_up()

    def catch_up(self) -> None:
        """Learn what waits."""
        waiting, self._waiting = self._waiting, []
        for lesson in waiting:
            self.observe(lesson)

    def snapshot(self, now: float) -> ExperienceSnapshot:
        """What is known at `now`."""
        self.catch_up()
        return ExperienceSnapshot(self.answers.snapshot(now), self.reasoning.snapshot(now), self.prompts.sums())

    def restore(self, snapshot: ExperienceSnapshot, now: float) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: it is of a version that counted otherwise.
        """
        self.answers.restore(snapshot.answers, now)
        self.reasoning.restore(snapshot.reasoning, now)
        self.prompts = Calibration(snapshot.prompts)


def merge(a: ExperienceSnapshot, b: ExperienceSnapshot) -> ExperienceSnapshot:
    """What both learned together.

    Raises:
        ValueError: they are of versions that counted otherwise.
    """
    prompts = dict(a.prompts)
    for model, (actual, estimated) in b.prompts.items():
        before = prompts.get(model, (0.0, 0.0))
        prompts[model] = (before[0] + actual, before[1] + estimated)
    return ExperienceSnapshot(lengths.merge(a.answers, b.answers), lengths.merge(a.reasoning, b.reasoning), prompts)


def portion(snapshot: ExperienceSnapshot, share: float) -> ExperienceSnapshot:
    """A share of all that was counted, see `quantiles.portion`."""
    return ExperienceSnapshot(
        lengths.portion(snapshot.answers, share),
        lengths.portion(snapshot.reasoning, share),
        {model: (actual * share, estimated * share) for model, (actual, estimated) in snapshot.prompts.items()},
    )


def living(snapshot: ExperienceSnapshot, now: float, models: Container[str]) -> ExperienceSnapshot:
    """What has not been forgotten by `now`. How a model counts prompts is known as long as anything else of it is.

    Args:
        snapshot: what was learned.
        now: seconds since the Unix epoch.
        models: those that requests may still come for.
    """
    answers, reasoning = lengths.living(snapshot.answers, now), lengths.living(snapshot.reasoning, now)
    known = lengths.models(answers)
    prompts = {model: sums for model, sums in snapshot.prompts.items() if model in models or model in known}
    return ExperienceSnapshot(answers, reasoning, prompts)


def _thinking(place: Place, request: Request) -> Place:
    """How much a model reasons goes by effort rather than intent."""
    return place_of(request.effort or "", place.model, place.key, place.application)
