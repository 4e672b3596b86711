import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.compiled import Breaker, Match, Model, Provider, Retries, Route, Timeouts
from relay.policy.decide import plan

PROVIDER = Provider(
    name="p",
    dialect="openai",
    base_url="http://127.0.0.1/v1",
    api_key=None,
    headers=(),
    forward_headers=frozenset(),
    timeouts=Timeouts(),
    breaker=Breaker(),
    max_connections=10,
    proxy=None,
    http2=False,
)


def route(*names: str, attempts: int) -> Route:
    models = tuple(Model(name, PROVIDER, name, None, Timeouts()) for name in names)
    return Route("r", Match(model=re.compile("r")), models, attempts)


def tried(made) -> list[str]:
    return [attempt.model for attempt in made.attempts]


def test_candidates_in_their_order_then_round_again():
    """The first lap starts at once; later laps wait at most base, twice base, and so on."""
    made = plan(route("a", "b", attempts=5), unavailable={}, retries=Retries(1.0, 100.0))
    assert tried(made) == ["a", "b", "a", "b", "a"]
    assert [attempt.number for attempt in made.attempts] == [1, 2, 3, 4, 5]
    waits = [attempt.backoff_s for attempt in made.attempts]
    assert waits == [0.0, 0.0, 1.0, 1.0, 2.0]


def test_unavailable_candidates_are_left_out_with_their_reason():
    """Who cannot be asked now takes no attempt, and the plan says why."""
    made = plan(route("a", "b", "c", attempts=2), unavailable={"a": "breaker_open"}, retries=Retries())
    assert tried(made) == ["b", "c"]
    assert made.left_out == (("a", "breaker_open"),)


def test_nobody_left_is_an_empty_plan():
    """With no candidate to ask there is nothing to try."""
    assert tried(plan(route("a", attempts=3), unavailable={"a": "x"}, retries=Retries())) == []


@given(st.integers(1, 10), st.floats(0.01, 2), st.floats(2, 10))
def test_waits_stay_within_bounds(attempts, base_s, max_s):
    """Never more than the maximum, never less than the wait before."""
    made = plan(route("a", attempts=attempts), unavailable={}, retries=Retries(base_s, max_s))
    waits = [attempt.backoff_s for attempt in made.attempts]
    assert waits == sorted(waits)
    assert waits[-1] <= max_s


@pytest.mark.parametrize("attempts", [1, 3])
def test_one_candidate_is_asked_again(attempts):
    """A route with a single candidate retries that one."""
    made = plan(route("a", attempts=attempts), unavailable={}, retries=Retries())
    assert tried(made) == ["a"] * attempts
