import random
import re
from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.messages import Wants
from relay.policy.compiled import Match, Model, Objective, Retries, Route, Timeouts
from relay.policy.decide import Chooser, Outlook, schedule
from tests.policy.routes import PROVIDER, usd

WANTS = Wants(prompt_tokens=1000, output_tokens=300)


def test_candidates_in_their_order_then_round_again():
    """The first lap starts at once; later laps wait at most base, twice base, and so on."""
    planned = schedule(("a", "b"), 5, Retries(1.0, 100.0))
    assert [attempt.model for attempt in planned] == ["a", "b", "a", "b", "a"]
    assert [attempt.backoff_s for attempt in planned] == [0.0, 0.0, 1.0, 1.0, 2.0]


def test_nobody_left_is_an_empty_plan():
    """With no candidate to ask there is nothing to try."""
    assert schedule((), 3, Retries()) == ()


@given(st.integers(1, 10), st.floats(0.01, 2), st.floats(2, 10))
def test_waits_stay_within_bounds(attempts, base_s, max_s):
    """Never more than the maximum, never less than the wait before."""
    planned = schedule(("a",), attempts, Retries(base_s, max_s))
    waits = [attempt.backoff_s for attempt in planned]
    assert waits == sorted(waits)
    assert waits[-1] <= max_s


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_no_more_attempts_than_the_route_allows(attempts):
    """A route with a single candidate retries that one; of many, no more are asked than there may be attempts."""
    assert [attempt.model for attempt in schedule(("a",), attempts, Retries())] == ["a"] * attempts
    assert len(schedule(("a", "b", "c"), attempts, Retries())) == attempts


class Stand:
    """A model's live state, as a test wants it."""

    def __init__(self, ttft_s=1.0, *, token_s=0.01, refused=None, cached=0, doubt=0.0, hope=0.0, asked_at=-inf):
        self.outlook = Outlook(ttft_s, ttft_s * 2, token_s, doubt, hope)
        self.asked_at = asked_at
        self._refused, self._cached = refused, cached

    def expect(self, _tokens, _now):
        return self._refused or self.outlook

    def cached_tokens(self, _prefixes, _now):
        return self._cached


def model(name, **said) -> Model:
    return Model(name, PROVIDER, name, None, Timeouts(), **said)


def choose(models, stands, wants=WANTS, *, seed=0, now=100.0, **of_route):
    """One decision of a route."""
    made = Route("r", Match(model=re.compile("r")), tuple(models), attempts=3, **of_route)
    return Chooser(made, stands).decide(wants, now, random.Random(seed))


FAST, CHEAP = Objective(latency=1.0, explore=0.0), Objective(cost=1.0, explore=0.0)
NAMES = ("a", "b", "c")
MODELS = tuple(map(model, NAMES))


def test_the_fastest_first():
    """By latency alone the candidates are tried in the order of their expected times, answer included."""
    stands = {"a": Stand(2.0), "b": Stand(0.5, token_s=0.1), "c": Stand(1.0)}
    assert choose(MODELS, stands, objective=FAST).order == ("c", "a", "b")
    assert choose(MODELS, stands, objective=Objective(ttft=1.0, explore=0.0)).order == ("b", "c", "a")


def test_the_cheapest_first():
    """By cost alone: what prompt and answer are expected to cost."""
    models = (model("a", price=usd(1, 10)), model("b", price=usd(4, 4)), model("c", price=usd(2, 2)))
    stands = {name: Stand() for name in NAMES}
    chosen = choose(models, stands, Wants(prompt_tokens=1000, output_tokens=1000), objective=CHEAP)
    assert chosen.order == ("c", "b", "a")
    assert [weighed.usd for weighed in chosen.candidates] == [pytest.approx(c) for c in (0.011, 0.008, 0.004)]
    assert choose(models, stands, Wants(prompt_tokens=9000, output_tokens=100), objective=CHEAP).order[0] == "a"


@pytest.mark.parametrize(("latency", "cost", "first"), [(0.5, 0.5, "a"), (0.4, 0.6, "b")])
def test_weights_trade_time_for_money(latency, cost, first):
    """With equal weights half the time is worth a bit less than twice the money, not more."""
    models = (model("a", price=usd(1.9)), model("b", price=usd(1)))
    stands = {"a": Stand(1.0, token_s=0.0), "b": Stand(2.0, token_s=0.0)}
    assert choose(models, stands, objective=Objective(0.0, latency, cost, 0.0)).order[0] == first


def test_an_unknown_price_counts_as_the_dearest():
    """A model whose price nobody knows is not taken for free."""
    models = (model("a"), model("b", price=usd(5)), model("c", price=usd(1)))
    chosen = choose(models, {name: Stand() for name in NAMES}, objective=CHEAP)
    assert chosen.order == ("c", "a", "b")
    assert chosen.candidates[0].usd == chosen.candidates[1].usd


@pytest.mark.parametrize(
    ("said", "wants", "reason"),
    [
        ({"features": frozenset({"tools"})}, Wants(frozenset({"tools", "vision"})), "features: vision"),
        ({"tier": 1}, Wants(min_tier=2), "tier"),
        ({"max_output": 100}, Wants(limit_tokens=101), "max_output"),
        ({"context": 1000}, Wants(prompt_tokens=900, limit_tokens=101), "context"),
    ],
)
def test_what_cannot_serve_a_request_is_left_out(said, wants, reason):
    """Features, tier, length of the answer and of the context, each with its reason."""
    stands = {"a": Stand(0.1), "b": Stand()}
    able = model("b", tier=2)
    chosen = choose((model("a", **said), able), stands, wants, objective=FAST)
    assert chosen.order == ("b",)
    assert chosen.left_out == (("a", reason),)


def test_state_and_region_leave_out_too():
    """A model that cannot be asked now, and one that the route's regions bar."""
    stands = {"a": Stand(refused="breaker_open"), "b": Stand(), "c": Stand()}
    chosen = choose(MODELS, stands, barred={"b": "region"})
    assert chosen.order == ("c",)
    assert chosen.left_out == (("a", "breaker_open"), ("b", "region"))
    assert chosen.first_by == "written"


def test_estimates_alone_refuse_nobody():
    """If a prompt seems too long for all, the one with the largest context is asked: sizes are estimates."""
    models = (model("a", context=10), model("b", context=100), model("c", features=frozenset()))
    stands = {name: Stand() for name in NAMES}
    chosen = choose(models, stands, Wants(frozenset({"tools"}), prompt_tokens=1000), objective=FAST)
    assert chosen.order == ("b", "a")
    assert chosen.left_out == (("c", "features: tools"),)


def test_nobody_to_ask():
    """No order, and each candidate's reason."""
    chosen = choose(MODELS, {name: Stand(refused="retry_after") for name in NAMES}, objective=FAST)
    assert (chosen.order, chosen.first_by) == ((), "")
    assert len(chosen.left_out) == 3


def test_a_ceiling_puts_the_slow_behind_the_fast():
    """Who is over the ceiling comes last however cheap, and is asked if nobody is under it."""
    models = (model("a", price=usd(1)), model("b", price=usd(9)))
    slow = {"a": Stand(1.0), "b": Stand(0.5)}
    assert choose(models, slow, objective=CHEAP, ttft_ceiling_s=1.5).order == ("b", "a")
    assert choose(models, slow, objective=CHEAP, ttft_ceiling_s=0.5).order == ("a", "b")


def test_a_cached_prompt_keeps_a_conversation_where_it_is():
    """What a provider has in its cache is read at its lower price, so the model that is dearer by list can win."""
    models = (model("a", price=usd(2, 2, cached=0.2)), model("b", price=usd(1, 1)))
    wants = Wants(prompt_tokens=10_000, output_tokens=100, prefixes=((b"f", 8000),))
    assert choose(models, {"a": Stand(), "b": Stand()}, wants, objective=CHEAP).order[0] == "b"
    chosen = choose(models, {"a": Stand(cached=8000), "b": Stand()}, wants, objective=CHEAP)
    assert chosen.order[0] == "a"
    assert chosen.candidates[0].cached_tokens == 8000


def test_shares_are_kept():
    """A canary goes first as often as its share says, and else behind all others, also when it is the best."""
    stands = {"a": Stand(1.0), "b": Stand(0.1), "c": Stand(2.0)}
    orders = Counter(
        choose(MODELS, stands, objective=FAST, shares=(("b", 0.05),), seed=seed).order for seed in range(4000)
    )
    assert orders["b", "a", "c"] == pytest.approx(200, rel=0.25)
    assert orders["a", "c", "b"] == 4000 - orders["b", "a", "c"]


def test_models_that_may_be_better_are_explored():
    """One request in ten goes to who was slow when last asked but need not be any more, unless that was just now."""
    explore = Objective(latency=1.0, explore=0.1)

    def explored(**of_b: float) -> float:
        stands = {"a": Stand(1.0, token_s=0.0), "b": Stand(5.0, token_s=0.0, **of_b)}
        made = Route("r", Match(model=re.compile("r")), MODELS[:2], attempts=3, objective=explore)
        chooser, rng = Chooser(made, stands), random.Random(0)
        decisions = [chooser.decide(WANTS, 100.0, rng) for _ in range(200)]
        assert {decision.first_by for decision in decisions if decision.order[0] == "b"} <= {"explore"}
        return [decision.order[0] for decision in decisions].count("b") / 200

    assert explored(hope=2.0) == pytest.approx(0.1, abs=0.01)
    assert explored(hope=1.0) == 0
    assert explored(hope=2.0, asked_at=99.0) == 0


def test_what_cannot_be_told_apart_shares_the_requests():
    """In doubt, two alike get about half each; a clear difference is not blurred."""
    alike = {"a": Stand(1.0, doubt=0.2), "b": Stand(1.0, doubt=0.2)}
    firsts = Counter(choose(MODELS[:2], alike, objective=FAST, seed=seed).order[0] for seed in range(1000))
    assert 400 < firsts["a"] < 600
    apart = {"a": Stand(1.0, doubt=0.1, token_s=0.0), "b": Stand(3.0, doubt=0.1, token_s=0.0)}
    assert all(choose(MODELS[:2], apart, objective=FAST, seed=seed).order[0] == "a" for seed in range(300))


def test_a_client_may_say_what_matters_to_it():
    """One weight alone instead of the route's, or a candidate by its name, if that can be asked."""
    models = (model("a", price=usd(9)), model("b", price=usd(1)))
    stands = {"a": Stand(0.1), "b": Stand(5.0)}
    assert choose(models, stands, Wants(prompt_tokens=9, prefer="cost"), objective=FAST).order[0] == "b"
    assert choose(models, stands, Wants(prompt_tokens=9, prefer="latency"), objective=CHEAP).order[0] == "a"
    named = choose(models, stands, Wants(prefer="b"), objective=FAST)
    assert (named.order[0], named.first_by) == ("b", "prefer")
    stands["b"] = Stand(refused="breaker_open")
    assert choose(models, stands, Wants(prefer="b"), objective=FAST).order == ("a",)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans()), min_size=1, max_size=10),
    st.integers(0, 99),
)
def test_every_candidate_is_accounted_for(rows, seed):
    """Each candidate is in the order or has a reason, the order is by score, and a seed gives one decision."""
    names = [f"m{n}" for n in range(len(rows))]
    models = [model(name, price=usd(price)) for name, (_, price, _) in zip(names, rows, strict=True)]
    stands = {
        name: Stand(ttft, refused="retry_after" if out else None, doubt=0.1)
        for name, (ttft, _, out) in zip(names, rows, strict=True)
    }
    wants = Wants(prompt_tokens=100, output_tokens=100)
    objective = Objective(0.2, 0.4, 0.4, 0.0)
    chosen, again = (choose(models, stands, wants, objective=objective, seed=seed) for _ in range(2))
    assert chosen == again
    assert sorted((*chosen.order, *(name for name, _ in chosen.left_out))) == sorted(names)
    scores = {weighed.model: weighed.score for weighed in chosen.candidates}
    assert [scores[name] for name in chosen.order] == sorted(scores[name] for name in chosen.order)
