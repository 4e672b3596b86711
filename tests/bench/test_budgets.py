"""What learned budgets are for, on made traffic: fewer reserved tokens than any constant, and no answer cut."""

from __future__ import annotations

import random

import pytest

from bench.budgets import SIGNALS, Asked, Figures, Traffic, constant, learned_at, shuffled

APPLICATIONS = {"labels": (4, 0.3), "chat": (120, 0.6), "reports": (1500, 0.4), "code": (400, 1.0)}
"""Median and spread (of the logarithm) of the answers."""


def made_traffic(count: int = 2400) -> Traffic:
    rng = random.Random(5)
    traffic = []
    for _ in range(count):
        name = rng.choice(sorted(APPLICATIONS))
        median, sigma = APPLICATIONS[name]
        tokens = min(max(1, round(median * rng.lognormvariate(0.0, sigma))), 8000)
        traffic.append(Asked("code", rng.choice(["code", "summarize"]), "model", name, 200, tokens))
    return traffic


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return made_traffic()


@pytest.fixture(scope="module")
def learned(traffic: Traffic) -> Figures:
    return learned_at(traffic, SIGNALS["application, model"])


def test_no_answer_is_cut_and_few_are_continued(learned: Figures) -> None:
    """With extension on, a budget never costs an answer."""
    assert learned.truncated == 0
    assert learned.extended <= 0.08
    assert learned.continuations < 1.5


def test_applications_told_apart_reserve_far_less(traffic: Traffic, learned: Figures) -> None:
    """At the same extension rate, three quarters of what the best constant reserves is enough."""
    assert learned.reserved < 0.75 * constant(traffic).reserved


def test_an_intent_that_means_nothing_costs_little(traffic: Traffic, learned: Figures) -> None:
    """Splitting the cells by noise loses less than a tenth."""
    assert learned_at(shuffled(traffic), SIGNALS["all"]).reserved < 1.1 * learned.reserved
