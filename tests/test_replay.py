"""Recorded requests decided anew, and what is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from relay.messages import AttemptRecord, Decision, Outcome, Usage, Wants
from relay.policy.compiled import Hedge, Policy, RequestLimits, Retries, Streams
from relay.replay import NEAR_S, Report, replay
from relay.simulate import Place, Relay, Upstreams, Weather, World, arrivals, simulate
from tests.policy.routes import route_over
from tests.telemetry.records import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.policy.compiled import Route

FAST = Place("fast", (400, 900, 2500), 80, (1, 1))
SLOW = Place("slow", (800, 1600, 4000), 80, (1, 1))
NEW = Place("new", (800, 1600, 4000), 80, (1, 1))
EPOCH = 1_800_000_000.0


class Remembering(Relay):
    """Keeps the first decision of each request."""

    def __init__(self, route: Route, upstreams: Upstreams) -> None:
        super().__init__(route, upstreams, 1)
        self.decisions: dict[int, Decision] = {}

    def plan(self, arrival, now):
        order = super().plan(arrival, now)
        self.decisions.setdefault(arrival.number, Decision("auto", self._order, self._first_by, ()))
        return order


def log_of(route: Route, *weather: Weather, places: Sequence[Place] = (FAST, SLOW), seconds: float = 1200.0):
    """What the decision log of such a day would have."""
    world = World(seconds, 2.0, tuple(places), weather)
    routers: list[Remembering] = []

    def router(upstreams):
        routers.append(Remembering(route, upstreams))
        return routers[0]

    results = simulate(world, 1, router)
    return [
        record(
            id=f"req_{arrival.number}",
            at=EPOCH + arrival.at,
            model=result.place,
            outcome=Outcome.COMPLETED if result.place else Outcome.UPSTREAM_ERROR,
            attempts=tuple(result.tried),
            usage=Usage(arrival.prompt_tokens, arrival.output_tokens) if result.place else None,
            ttft_s=result.ttft_s if result.place else None,
            duration_s=result.latency_s if result.place else 1.0,
            decision=routers[0].decisions[arrival.number],
            wants=Wants(prompt_tokens=arrival.prompt_tokens, output_tokens=220.0),
        )
        for arrival, result in zip(arrivals(world, 1), results, strict=True)
    ]


def policy_of(*routes: Route) -> Policy:
    models = {model.name: model for route in routes for model in route.candidates}
    return Policy(
        version="1",
        open=True,
        providers={},
        models=models,
        routes=routes,
        by_model={},
        keys={},
        requests=RequestLimits(),
        streams=Streams(),
        retries=Retries(),
    )


def told(report: Report, name: str) -> tuple[float, float]:
    """A figure: as recorded, as expected."""
    assert report.recorded is not None
    assert report.expected is not None
    return getattr(report.recorded, name).value, getattr(report.expected, name).value


def within(report: Report, name: str) -> bool:
    """Whether the recorded value lies in the estimate's interval."""
    assert report.recorded is not None
    figure = getattr(report.expected, name)
    return bool(figure.low <= getattr(report.recorded, name).value <= figure.high)


@pytest.mark.parametrize("hedge", [None, Hedge(0.95, 0.05)])
def test_the_same_policy_agrees_with_what_happened(hedge):
    """Nearly all requests would be sent where they were; what is expected is what was, within the intervals."""
    route = route_over((FAST, SLOW), hedge=hedge)
    report = replay(log_of(route, Weather("fast", "slow", 400, 600, 6.0)), policy_of(route))
    assert not report.stranded
    assert report.trust.same > 0.8
    assert report.trust.verdict == "firm"
    assert report.compared == report.requests
    for name in ("ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "usd_per_1000"):
        assert within(report, name), name
    assert told(report, "hedged") == pytest.approx(told(report, "hedged")[::-1], abs=0.02)


def test_the_same_seed_is_the_same_report():
    """Everything left to chance follows the seed."""
    route = route_over((FAST, SLOW))
    log = log_of(route, seconds=200.0)
    assert replay(log, policy_of(route), seed=3) == replay(log[::-1], policy_of(route), seed=3)
    assert replay(log, policy_of(route), seed=3) != replay(log, policy_of(route), seed=4)


def test_another_policy_is_told_apart():
    """By cost instead of TTFT the cheaper model is chosen: the bill falls, the wait grows, nearly as they would."""
    cheap = msgspec.structs.replace(SLOW, price=(0.1, 0.1))
    places = (FAST, cheap)
    even = msgspec.structs.replace(route_over(places), shares=(("fast", 0.5), ("slow", 0.5)))
    log = log_of(even, places=places)
    by_cost = route_over(places, cost=1.0)
    report, really = replay(log, policy_of(by_cost)), replay(log_of(by_cost, places=places), policy_of(by_cost))
    for name in ("ttft_p50_ms", "usd_per_1000"):
        assert told(report, name)[1] == pytest.approx(told(really, name)[0], rel=0.1), name
    assert report.first["slow"][1] > 0.9 * report.compared
    assert report.trust.near > 0.3
    assert report.trust.effective < report.compared


def test_models_never_asked_are_named():
    """What nobody was ever sent to is a guess round its `expected`, and says so."""
    report = replay(log_of(route_over((FAST, SLOW)), seconds=200.0), policy_of(route_over((NEW,))))
    assert report.trust.never_observed == ["new"]
    assert (report.trust.verdict, report.trust.never, report.trust.effective) == ("guess", 1.0, 0.0)
    assert told(report, "ttft_p50_ms")[1] == pytest.approx(800.0, rel=0.3)


def test_requests_that_nobody_can_serve_are_flagged():
    """Each with every model and its reason; the others are compared."""
    route = route_over((FAST, SLOW))
    small = tuple(msgspec.structs.replace(model, features=frozenset()) for model in route.candidates)
    log = log_of(route, seconds=100.0)
    log[3] = msgspec.structs.replace(log[3], wants=Wants(features=frozenset({"tools"})))
    report = replay(log, policy_of(msgspec.structs.replace(route, candidates=small)))
    (stranded,) = report.stranded
    assert (stranded.id, stranded.recorded_too) == ("req_3", False)
    assert stranded.reasons == {"fast": "features: tools", "slow": "features: tools"}
    assert report.compared == report.requests - 1


def test_requests_without_a_route_are_flagged():
    """A route that the policy lacks is a finding, unless all requests are told to take another."""
    log = [msgspec.structs.replace(one, route="old") for one in log_of(route_over((FAST,)), seconds=30.0)]
    policy = policy_of(route_over((FAST,)))
    flagged = replay(log, policy)
    assert {(one.route, *one.reasons) for one in flagged.stranded} == {("old",)}
    assert (flagged.recorded, flagged.expected) == (None, None)
    assert not replay(log, policy, route="auto").stranded


def one_after_another(count: int, *, apart_s: float = 1.0, start: float = EPOCH, **changes: Any):
    return [
        record(
            id=f"req_{number}",
            at=start + number * apart_s,
            **{
                "model": "fast",
                "attempts": (AttemptRecord("fast", "p", None, 200, 0.4, 2.0),),
                "ttft_s": 0.4,
                "wants": Wants(prompt_tokens=100, output_tokens=20.0),
                **changes,
            },
        )
        for number in range(count)
    ]


def test_segments_are_no_choices():
    """Attempts that went on with an answer are no fallbacks, and say nothing of how models are chosen."""
    begun, more = (AttemptRecord("fast", "p", None, 200, 0.4, 2.0, segment=number) for number in (1, 2))
    written = msgspec.structs.replace(route_over((FAST, SLOW)), objective=None)
    report = replay(one_after_another(4, attempts=(begun, more), segments=2), policy_of(written))
    assert told(report, "fell_back") == (0, 0)


def test_failures_truncations_and_hedges_are_counted():
    """Each as the record tells it, and again for the same attempts under the same route."""
    refused = AttemptRecord("fast", "p", "upstream_error", 503, None, 0.3)
    served = AttemptRecord("slow", "p", None, 200, 0.5, 2.0)
    torn = AttemptRecord("fast", "p", "upstream_truncated", 200, 0.4, 1.0)
    late = AttemptRecord("fast", "p", "deadline_exceeded", 200, 0.4, 600.0)
    raced = AttemptRecord("fast", "p", "superseded", None, None, 1.5)
    rival = AttemptRecord("slow", "p", None, 200, 0.5, 2.0, hedge=True)
    log = [
        *one_after_another(8),
        *one_after_another(1, start=EPOCH + 100, model="slow", ttft_s=0.8, attempts=(refused, served)),
        *one_after_another(1, start=EPOCH + 200, attempts=(torn,), outcome=Outcome.UPSTREAM_TRUNCATED),
        *one_after_another(1, start=EPOCH + 250, attempts=(late,), outcome=Outcome.DEADLINE),
        *one_after_another(1, start=EPOCH + 300, model="slow", ttft_s=1.5, attempts=(raced, rival)),
    ]
    written = msgspec.structs.replace(route_over((FAST, SLOW)), objective=None)
    report = replay(log, policy_of(written))
    assert told(report, "fell_back") == pytest.approx((1 / 12, 1 / 12))
    assert told(report, "truncated") == pytest.approx((2 / 12, 2 / 12))
    assert told(report, "hedged") == pytest.approx((1 / 12, 0.0))
    assert told(report, "failed") == (0.0, 0.0)
    assert report.trust.cut_short == 1


def test_what_served_nobody_counts_as_failed():
    """A model that was out then would have failed those requests too."""
    out = AttemptRecord("fast", "p", "upstream_unreachable", None, None, 0.3)
    nobody: dict[str, Any] = {"attempts": (out, out, out), "model": "", "ttft_s": None, "usage": None}
    log = one_after_another(4, outcome=Outcome.UPSTREAM_ERROR, **nobody)
    report = replay(log, policy_of(route_over((FAST,))))
    assert told(report, "failed") == (1.0, 1.0)
    assert report.expected is not None
    assert report.expected.ttft_p50_ms is None


def test_what_tells_nothing_of_a_choice_is_not_compared():
    """Clients that left before any output, and requests that were wrong in themselves, are on neither side."""
    gone = AttemptRecord("fast", "p", "client_gone", None, None, 0.1)
    wrong = AttemptRecord("fast", "p", "upstream_error", 400, None, 0.1)
    unserved: dict[str, Any] = {"model": "", "ttft_s": None, "usage": None}
    log = [
        *one_after_another(3),
        *one_after_another(1, attempts=(gone,), outcome=Outcome.CLIENT_GONE, **unserved),
        *one_after_another(1, attempts=(wrong,), outcome=Outcome.UPSTREAM_ERROR, **unserved),
        *one_after_another(1, attempts=(), outcome=Outcome.REJECTED, **unserved),
    ]
    report = replay(log, policy_of(route_over((FAST,))))
    assert (report.requests, report.compared) == (5, 3)


def test_far_observations_are_told_from_near_ones():
    """A model that was asked at another time only counts as observed far away."""
    slow: dict[str, Any] = {
        "model": "slow",
        "attempts": (AttemptRecord("slow", "p", None, 200, 0.8, 2.0),),
        "ttft_s": 0.8,
    }
    log = [*one_after_another(10, **slow), *one_after_another(10, start=EPOCH + 10 * NEAR_S)]
    report = replay(log, policy_of(route_over((SLOW,))))
    assert (report.trust.same, report.trust.near, report.trust.far) == (0.5, 0.0, 0.5)
    assert report.trust.verdict == "guess"


def test_models_of_unknown_price_are_named():
    """The policy has no price for what served then, and no decision says what it was expected to cost."""
    report = replay(one_after_another(3), policy_of(route_over((SLOW,))))
    assert report.unpriced == ["fast"]
    assert told(report, "usd_per_1000")[0] == 0.0


def test_requests_that_were_not_decided_stand_by_their_usage():
    """A log of a route that left nothing to decide can be replayed all the same."""
    report = replay(one_after_another(3, wants=None), policy_of(route_over((FAST,))))
    assert (report.sizes_guessed, report.compared) == (3, 3)


def test_ttft_is_of_streams_alone():
    """Answers that were no streams have a cost, but no time to a first output that anybody noticed."""
    report = replay(one_after_another(3, stream=False), policy_of(route_over((FAST,))))
    assert report.expected is not None
    assert report.expected.ttft_p50_ms is None
    assert told(report, "usd_per_1000")[1] > 0.0


def test_hedging_is_foreseen():
    """From a log without it: the p99 that the same day really has with it, and about as many duplicates."""
    hedged = route_over((FAST, SLOW), hedge=Hedge(0.95, 0.05))
    foreseen = replay(log_of(route_over((FAST, SLOW)), seconds=4000.0), policy_of(hedged))
    really = replay(log_of(hedged, seconds=4000.0), policy_of(hedged))
    plain, expected = told(foreseen, "ttft_p99_ms")
    assert expected == pytest.approx(told(really, "ttft_p99_ms")[0], rel=0.15)
    assert expected < 0.8 * plain
    assert told(foreseen, "hedged")[1] == pytest.approx(told(really, "hedged")[0], abs=0.03)
