"""Recorded answers under the budgets of another policy."""

from __future__ import annotations

import random

import pytest

from relay.budget_replay import replay_budgets
from relay.messages import Budget, Outcome, RequestRecord, Usage
from relay.policy.load import load
from tests.telemetry.records import record

POLICY = """\
version = 1
access.open = true
providers.p = { dialect = "openai", base_url = "http://127.0.0.1:1/v1" }
models.small = { provider = "p", features = [] }
"""
FIXED = Budget(400, 400, 0, 400, "ceiling", cell=("code", "small", "team-a", "app"))


def answers(count: int = 1000) -> list[RequestRecord]:
    """Of some hundred tokens each, under a fixed budget that cut the longest ones."""
    rng = random.Random(3)
    found = []
    for number in range(count):
        tokens = round(150 * rng.lognormvariate(0.0, 0.5))
        outcome = Outcome.BUDGET if tokens >= 400 else Outcome.COMPLETED
        usage = Usage(50, min(tokens, 400))
        found.append(record(at=1e9 + number, usage=usage, outcome=outcome, intent="code", budget=FIXED))
    return found


def test_budgets_learn_from_the_log() -> None:
    """The policy's quantile is about kept, with fewer tokens reserved than the fixed limit that was recorded."""
    report = replay_budgets(answers(), load({"p": POLICY + "budgets = { quantile = 0.9, extend = false }"}, {}))
    assert report is not None
    assert report.answers == 1000
    assert report.recorded.met == pytest.approx(0.025, abs=0.01)
    assert report.recorded.granted == 400
    assert (
        0.04 <= report.expected.met <= 0.11
    )  # a budget holds all of its bucket, so it is met less often rather than more
    assert report.expected.granted < 350
    assert report.expected.used == report.recorded.used


def test_without_budgets_there_is_nothing_to_tell() -> None:
    """Neither under a policy that sets none, nor of answers that had none, of unknown length or of unknown models."""
    budgets = load({"p": POLICY + "budgets = {}"}, {})
    assert replay_budgets(answers(3), load({"p": POLICY}, {})) is None
    nothing = [record(budget=None), record(budget=FIXED, usage=None), record(budget=FIXED, model="gone")]
    assert replay_budgets(nothing, budgets) is None


@pytest.mark.parametrize(
    "three", [Budget(400, 400, 0, 1200, "ceiling"), Budget(10**12, 400, 0, 1200, "client")], ids=["own", "client"]
)
def test_each_of_several_answers_counts(three: Budget) -> None:
    """Of three answers in one, each is as long as a third, and gets a budget of its own."""
    log = [record(usage=Usage(50, 300), intent="code", budget=three) for _ in range(200)]
    policy = load({"p": POLICY + "budgets = { quantile = 0.9, extend = false, floor = 200 }"}, {})
    report = replay_budgets(log, policy)
    assert report is not None
    assert 600 <= report.expected.granted < 900
