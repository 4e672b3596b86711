"""What budgets have learned, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from relay.budget_report import reported
from relay.limits.budgets import Request
from relay.limits.experience import Experience, ExperienceSnapshot, Lesson
from tests.learned import HOME, RULES, pipeline, teach

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_800_000_000.0
DAY_S = 86_400.0


def rows(report: list[dict[str, Any]], **wanted: Any) -> Iterator[dict[str, Any]]:
    """Those with these values."""
    return (row for row in report if row.items() >= wanted.items())


def test_cells_are_told_by_what_they_tell_apart() -> None:
    """Each cell says of which intent, model, key and application it is, how many answers it knows and how long."""
    pupil = pipeline()
    teach(pupil, answers=100, tokens=300)
    teach(pupil, answers=5, tokens=5000, model="second")
    report = reported(pupil.experience.snapshot(NOW), NOW)["answers"]
    assert len(report) == 8
    assert [row["answers"] for row in report] == sorted((row["answers"] for row in report), reverse=True)
    (everything,) = rows(report, intent=None, model=None)
    assert (everything["answers"], everything["application"]) == (105, None)
    (home,) = rows(report, intent=HOME.kind, model="first", key="team-a", application="f00d")
    assert home["answers"] == 100
    assert [home[name] for name in ("p50", "p90", "p95", "p99")] == pytest.approx([300] * 4, rel=0.05)
    (application,) = rows(report, intent=None, model="second", key="team-a", application="f00d")
    assert (application["answers"], application["over_budget"], application["widening"]) == (5, None, None)


def test_answers_are_counted_by_what_they_weigh() -> None:
    """After three days half of them are left; quantiles stay."""
    pupil = pipeline()
    teach(pupil, answers=100)
    now, later = (reported(pupil.experience.snapshot(NOW), NOW + days * DAY_S)["answers"][0] for days in (0, 3))
    assert (now["answers"], later["answers"]) == (100, 50)
    assert now["p99"] == later["p99"]


def test_budgets_that_are_too_small_show() -> None:
    """A cell whose answers become longer and longer says how many were over budget, and that it widens."""
    pupil = pipeline()
    teach(pupil, answers=50, tokens=100)
    for number in range(10):
        teach(pupil, answers=1, tokens=round(200 * 1.5**number))
    report = reported(pupil.experience.snapshot(NOW), NOW)["answers"]
    (home,) = rows(report, intent=HOME.kind, model="first", key="team-a")
    assert 0.1 < home["over_budget"] < 0.25
    assert home["widening"] < 1


def test_reasoning_and_prompts_show() -> None:
    """Hidden reasoning by effort, and what a model counts as a multiple of what is estimated."""
    experience = Experience()
    request = Request(100, reasons=True, effort="high")
    for _ in range(200):
        budget = experience.budget(RULES, request, HOME)
        experience.observe(Lesson(RULES, request, HOME, budget, NOW, visible=100, hidden=1500))
        experience.prompts.observe("first", estimated=1000.0, actual=1300)
    report = reported(experience.snapshot(NOW), NOW)
    (thinking,) = rows(report["reasoning"], effort="high", model="first", key="team-a")
    assert thinking["p95"] == pytest.approx(1500, rel=0.05)
    (prompts,) = report["prompts"]
    assert (prompts["model"], prompts["factor"]) == ("first", pytest.approx(1.3, rel=0.05))


def test_nothing_learned_is_nothing_to_tell() -> None:
    """An empty state has no rows."""
    assert reported(ExperienceSnapshot([], [], {}), NOW) == {"answers": [], "reasoning": [], "prompts": []}
