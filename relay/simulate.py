"""A world of paced upstreams on a virtual clock, and requests through the decision code that serves real ones.

Everything follows from a seed: arrivals, sizes, and for each request what each model would do with it. So several
routers can be sent through the same day, and differ only by what they decide. A day takes seconds.

TTFT is drawn from a quantile curve through the measured p50, p95 and p99 (straight in log seconds over normal
deviates, continued at both ends), since real tails are heavier than a log-normal's.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from math import exp, inf, log, sin, tau
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec

from relay.errors import ConnectFailed, RelayError, Superseded, UpstreamRefused
from relay.limits.hedging import Ledger
from relay.messages import AttemptRecord, Wants
from relay.policy.compiled import Breaker, Price
from relay.policy.decide import Chooser
from relay.upstreams import Upstream, duplicate_usd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from relay.policy.compiled import Route


LOAD_OVER_S = 5.0
"""Time over which the load of a place is taken."""


_MOST = 1e9  # of seconds, tokens and dollars: a world has an end
_Positive = Annotated[float, msgspec.Meta(gt=0, le=_MOST)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as it is served somewhere.

    Attributes:
        name: as routes call it.
        ttft_ms: p50, p95 and p99, none below the one before.
        tokens_per_s: behind the first output.
        price: USD per million tokens: input, output.
        errors: share of requests that fail at once.
        from_s: when it begins to exist.
    """

    name: str
    ttft_ms: tuple[_Positive, _Positive, _Positive]
    tokens_per_s: _Positive
    price: tuple[_NotNegative, _NotNegative]
    errors: _Share = 0.0
    from_s: _NotNegative = 0.0

    def __post_init__(self) -> None:
        """Quantiles rise."""
        if sorted(self.ttft_ms) != list(self.ttft_ms):
            raise ValueError(f"ttft_ms of {self.name!r} is p50, p95, p99: {list(self.ttft_ms)} falls")


class Weather(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to a place for a while.

    Attributes:
        place: its name.
        kind: `slow` multiplies TTFT and time per token by `factor`; `outage` fails everything after `factor` seconds;
            `limit` refuses what is over `factor` requests a minute; `crowd` serves `factor` requests a second at full
            speed, and is slower by the cube of what is over that.
        from_s: when it begins.
        until_s: when it is over.
        factor: see above.
    """

    place: str
    kind: Literal["slow", "outage", "limit", "crowd"]
    from_s: _NotNegative
    until_s: _Positive
    factor: _NotNegative

    def __post_init__(self) -> None:
        """It begins before it is over, and there is some of it."""
        if self.from_s >= self.until_s:
            raise ValueError(f"weather at {self.place!r} begins at {self.from_s:g} s and is over at {self.until_s:g} s")
        if self.factor == 0 and self.kind in ("slow", "crowd"):
            raise ValueError(f"factor of {self.kind!r} at {self.place!r} is 0; it is above that")


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run happens in.

    Attributes:
        seconds: how long it lasts.
        per_s: requests per second on average; they come in a daily wave of a third round it.
        prompt_tokens: median; sizes scatter by a factor of 2.5.
        output_tokens: likewise.
        places: who can be asked.
        weather: what happens to them.
    """

    seconds: _Positive
    per_s: _Positive
    places: Annotated[tuple[Place, ...], msgspec.Meta(min_length=1)]
    weather: tuple[Weather, ...] = ()
    prompt_tokens: _Positive = 600.0
    output_tokens: _Positive = 220.0


class Arrival(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        number: from 0.
        at: seconds.
        prompt_tokens: that it has.
        output_tokens: that its answer will have.
        luck: by place: a normal deviate for TTFT, and a uniform draw for errors.
    """

    number: int
    at: float
    prompt_tokens: int
    output_tokens: int
    luck: dict[str, tuple[float, float]]


class Fate(msgspec.Struct, frozen=True):
    """What comes of an attempt.

    Attributes:
        after_s: seconds to the first output, or to the failure.
        status: 0 for an answer, else 429, or 503 for whatever else fails.
        token_s: seconds for each token behind the first.
    """

    after_s: float
    status: int
    token_s: float


class Result(msgspec.Struct):
    """How one request went.

    Attributes:
        at: when it arrived.
        first: who was asked first; "" if nobody was.
        place: who served it; "" if nobody did.
        ttft_s: from arrival to the first output; infinite if nobody served it.
        latency_s: to the last.
        usd: what the answer cost.
        twice_usd: what attempts cost that were cancelled.
        attempts: how many there were.
        tried: each of them, in the order in which they ended, as an exchange records it.
    """

    at: float
    first: str = ""
    place: str = ""
    ttft_s: float = inf
    latency_s: float = inf
    usd: float = 0.0
    twice_usd: float = 0.0
    attempts: int = 0
    tried: list[AttemptRecord] = []


def arrivals(world: World, seed: int) -> Iterator[Arrival]:
    """All requests of a run, in order."""
    rng, at = random.Random(seed), 0.0  # noqa: S311 - a simulation
    for number in itertools.count():
        rate = world.per_s * (1.0 + sin(tau * at / 86_400.0) / 3.0)
        at += rng.expovariate(rate)
        if at >= world.seconds:
            return
        sizes = [max(1, round(rng.lognormvariate(log(m), 0.9))) for m in (world.prompt_tokens, world.output_tokens)]
        luck = {place.name: (rng.gauss(0.0, 1.0), rng.random()) for place in world.places}
        yield Arrival(number, at, sizes[0], sizes[1], luck)


def ttft_s(place: Place, deviate: float) -> float:
    """The TTFT at a normal deviate: p50 at 0, p95 at 1.645, p99 at 2.326."""
    p50, p95, p99 = (log(ms / 1000.0) for ms in place.ttft_ms)
    body, tail = (p95 - p50) / 1.645, (p99 - p95) / 0.681
    if deviate <= 0.0:
        return exp(p50 + max(deviate, -3.0) * body / 2.0)  # the fast side is half as wide
    return exp(p50 + deviate * body if deviate <= 1.645 else p95 + (deviate - 1.645) * tail)  # noqa: PLR2004


class Upstreams:
    """All places of a world, and what they are asked.

    Args:
        world: whose.
    """

    def __init__(self, world: World) -> None:
        self.places = {place.name: place for place in world.places}
        self.prices = {
            place.name: Price(place.price[0] / 1e6, place.price[0] / 1e6, place.price[1] / 1e6)
            for place in world.places
        }
        self._weather = world.weather
        self._minutes: dict[tuple[str, int], int] = {}
        self._lately: dict[str, deque[float]] = {weather.place: deque() for weather in world.weather}

    def present(self, now: float) -> list[str]:
        """Names of those that exist."""
        return [name for name, place in self.places.items() if place.from_s <= now]

    def slowness(self, name: str, now: float) -> float:
        """By which factor one is slower than usual; infinite for one that is out."""
        factor = 1.0
        for weather in self._weather:
            if weather.place == name and weather.from_s <= now < weather.until_s:
                factor *= {"slow": weather.factor, "outage": inf}.get(weather.kind, 1.0)
        return factor

    def ask(self, name: str, arrival: Arrival, now: float) -> Fate:
        """An attempt begins."""
        place = self.places[name]
        deviate, chance = arrival.luck[name]
        slow = 1.0
        for weather in self._weather:
            if weather.place != name or not weather.from_s <= now < weather.until_s:
                continue
            if weather.kind == "outage":
                return Fate(weather.factor, 503, 0.0)
            if weather.kind == "limit":
                minute = (name, int(now // 60.0))
                self._minutes[minute] = self._minutes.get(minute, 0) + 1
                if self._minutes[minute] > weather.factor:
                    return Fate(0.05, 429, 0.0)
            elif weather.kind == "crowd":
                slow *= max(1.0, self._load_per_s(name, now) / weather.factor) ** 3
            else:
                slow *= weather.factor
        if chance < place.errors:
            return Fate(0.3, 503, 0.0)
        return Fate(ttft_s(place, deviate) * slow, 0, slow / place.tokens_per_s)

    def _load_per_s(self, name: str, now: float) -> float:
        lately = self._lately[name]
        lately.append(now)
        while lately[0] < now - LOAD_OVER_S:
            lately.popleft()
        return len(lately) / LOAD_OVER_S


class Router(Protocol):
    """Who decides, in a run."""

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:
        """Whom to ask, in order, as far as that is known at once; asked again after each failure."""

    def hedge(self, arrival: Arrival, first: str, now: float) -> tuple[float, str] | None:
        """After how many silent seconds a second one may be asked, and whom; None is never."""

    def may_hedge(self, arrival: Arrival, first: str, second: str, now: float) -> bool:
        """Whether it may be asked now that it comes to it."""

    def started(self, name: str, now: float) -> None:
        """An attempt begins."""

    def begun(self, name: str, started: float, now: float) -> None:
        """An attempt has its first output."""

    def ended(self, name: str, arrival: Arrival, started: float, begun: float, now: float) -> None:
        """An answer is complete."""

    def failed(self, name: str, status: int, started: float, now: float) -> None:
        """An attempt failed."""

    def cancelled(self, name: str, started: float, now: float) -> None:
        """An attempt is cancelled, because another one had output first."""

    def spent(self, usd: float, now: float, *, twice: bool) -> None:
        """What an attempt cost."""


class Silent:
    """A router that learns nothing and never hedges; the others say what they do otherwise."""

    def hedge(self, arrival: Arrival, first: str, now: float) -> tuple[float, str] | None:  # noqa: ARG002
        """Never."""
        return None

    def may_hedge(self, arrival: Arrival, first: str, second: str, now: float) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def started(self, name: str, now: float) -> None:
        """Nothing to learn."""

    def begun(self, name: str, started: float, now: float) -> None:
        """Nothing to learn."""

    def ended(self, name: str, arrival: Arrival, started: float, begun: float, now: float) -> None:
        """Nothing to learn."""

    def failed(self, name: str, status: int, started: float, now: float) -> None:
        """Nothing to learn."""

    def cancelled(self, name: str, started: float, now: float) -> None:
        """Nothing to learn."""

    def spent(self, usd: float, now: float, *, twice: bool) -> None:
        """Nothing to learn."""


class Relay(Silent):
    """Relay's own decisions, statistics, breaker and ledger.

    Args:
        route: with its objective and hedging; its candidates have the names of places.
        upstreams: says which of them exist.
        seed: of what is left to chance.
    """

    def __init__(self, route: Route, upstreams: Upstreams, seed: int) -> None:
        self._route = route
        self._world = upstreams
        self._standings = {model.name: Upstream(model.expected, watched=True) for model in route.candidates}
        self._chooser = Chooser(route, self._standings)
        self._rng = random.Random(seed)  # noqa: S311 - a simulation
        self._ledger = Ledger()
        self._breaker = Breaker()
        self._first_by = ""
        self._order: tuple[str, ...] = ()

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:
        """As decided; what does not exist yet is not a candidate yet."""
        absent = {name: "absent" for name, place in self._world.places.items() if place.from_s > now}
        if absent.keys() != self._route.barred.keys():
            self._route = msgspec.structs.replace(self._route, barred=absent)
            self._chooser = Chooser(self._route, self._standings)
        wants = Wants(prompt_tokens=arrival.prompt_tokens, output_tokens=220.0)
        decision = self._chooser.decide(wants, now, self._rng)
        self._first_by, self._order = decision.first_by, decision.order
        return self._order

    def hedge(self, arrival: Arrival, first: str, now: float) -> tuple[float, str] | None:  # noqa: ARG002
        """As the exchange does it."""
        if self._route.hedge is None or len(self._order) < 2:  # noqa: PLR2004
            return None
        second = self._order[1]
        measured = second if self._first_by == "explore" else first
        speed = self._standings[measured].speed
        return None if speed is None else (speed.tail(self._route.hedge.after, now), second)

    def may_hedge(self, arrival: Arrival, first: str, second: str, now: float) -> bool:
        """As the exchange does it."""
        self._ledger.waited(too_long=True)
        hedge, prices = self._route.hedge, self._world.prices
        wants = Wants(prompt_tokens=arrival.prompt_tokens, output_tokens=arrival.output_tokens)
        return duplicate_usd(hedge, self._ledger, self._standings, prices, first, second, wants, now) is not None

    def started(self, name: str, now: float) -> None:
        """Breaker, rate limits, waits."""
        self._standings[name].start(now)
        self._standings[name].asked(now)

    def begun(self, name: str, started: float, now: float) -> None:
        """Statistics and breaker."""
        self._ledger.waited(too_long=False)
        self._standings[name].begun(started, now)
        self._standings[name].succeed(probe=self._standings[name].state.probing)

    def ended(self, name: str, arrival: Arrival, started: float, begun: float, now: float) -> None:  # noqa: ARG002
        """Time per token."""
        self._standings[name].ended(tokens=arrival.output_tokens, output_s=now - begun, truncated=False, now=now)

    def failed(self, name: str, status: int, started: float, now: float) -> None:
        """Statistics and breaker."""
        standing = self._standings[name]
        error: RelayError = ConnectFailed("out")
        if status == 429:  # noqa: PLR2004
            error = UpstreamRefused("busy", upstream_status=429, retry_after_s=5.0)
        standing.fail(error, now, self._breaker, probe=standing.state.probing)
        standing.wasted(started, now)

    def cancelled(self, name: str, started: float, now: float) -> None:
        """It was slower than another one, and a probe's place is free again."""
        self._standings[name].left(started, now)
        self._standings[name].give_up(probe=self._standings[name].state.probing)

    def spent(self, usd: float, now: float, *, twice: bool) -> None:
        """For the bound on duplicates."""
        self._ledger.spend(usd, now, twice=twice)


class _Request:
    """One request under way."""

    def __init__(self, run: _Run, arrival: Arrival) -> None:
        self.run = run
        self.arrival = arrival
        self.result = Result(arrival.at)
        self.under_way: dict[str, float] = {}  # place -> when its attempt began
        self.tried: list[str] = []
        self.second = ""  # who was asked beside the first
        self.is_begun = False

    def go(self, now: float) -> None:
        """The next attempt, if one is left."""
        order = self.run.router.plan(self.arrival, now)
        name = next((name for name in order if name not in self.tried), None) or next(iter(order), None)
        if name is None or len(self.tried) >= self.run.attempts:
            return
        self.start(name, now)
        if len(self.tried) == 1 and (hedge := self.run.router.hedge(self.arrival, name, now)):
            after_s, second = hedge
            self.run.later(now + after_s, lambda at: self.start_second(name, second, at))

    def start(self, name: str, now: float) -> None:
        """An attempt."""
        run = self.run
        self.tried.append(name)
        self.result.attempts += 1
        self.result.first = self.result.first or name
        self.under_way[name] = now
        run.router.started(name, now)
        fate = run.upstreams.ask(name, self.arrival, now)
        if fate.status:
            run.later(now + fate.after_s, lambda at: self.fail(name, fate, at))
            return
        run.later(now + fate.after_s, lambda at: self.begin(name, fate, at))

    def start_second(self, first: str, second: str, now: float) -> None:
        """The hedge's time has come."""
        waits = not self.is_begun and list(self.under_way) == [first] and second not in self.tried
        if waits and self.run.router.may_hedge(self.arrival, first, second, now):
            self.second = second
            self.start(second, now)

    def fail(self, name: str, fate: Fate, now: float) -> None:
        """An attempt failed; if none is left under way, the next one begins."""
        started = self.under_way.pop(name, None)
        if started is None:
            return
        code = UpstreamRefused.code if fate.status == 429 else ConnectFailed.code  # noqa: PLR2004
        self.note(name, code, fate.status, None, fate.after_s)
        self.run.router.failed(name, fate.status, started, now)
        if not self.under_way and not self.is_begun:
            self.go(now)

    def begin(self, name: str, fate: Fate, now: float) -> None:
        """The first output: whoever else is under way is cancelled."""
        started = self.under_way.pop(name, None)
        if started is None:
            return
        self.is_begun = True
        router, arrival, prices = self.run.router, self.arrival, self.run.upstreams.prices
        for loser, since in self.under_way.items():
            router.cancelled(loser, since, now)
            self.note(loser, Superseded.code, None, None, now - since)
            usd = prices[loser].of(arrival.prompt_tokens, 0)
            self.result.twice_usd += usd
            router.spent(usd, now, twice=True)
        self.under_way.clear()
        router.begun(name, started, now)
        result = self.result
        result.place = name
        result.ttft_s = now - arrival.at
        ends = now + arrival.output_tokens * fate.token_s
        result.latency_s = ends - arrival.at
        result.usd = prices[name].of(arrival.prompt_tokens, arrival.output_tokens)

        def end(at: float) -> None:
            self.note(name, None, 200, now - started, at - started)
            router.spent(result.usd, at, twice=False)
            router.ended(name, arrival, started, now, at)

        self.run.later(ends, end)

    def note(self, name: str, error: str | None, status: int | None, ttft_s: float | None, duration_s: float) -> None:
        """An attempt is over."""
        hedge = name == self.second
        self.result.tried.append(AttemptRecord(name, "", error, status, ttft_s, duration_s, hedge))


class _Run:
    """One router's way through a world."""

    def __init__(self, upstreams: Upstreams, router: Router, attempts: int) -> None:
        self.upstreams = upstreams
        self.router = router
        self.attempts = attempts
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()

    def later(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), event))

    def until(self, at: float) -> None:
        """Everything that happens before a time."""
        while self._events and self._events[0][0] <= at:
            now, _, event = heapq.heappop(self._events)
            event(now)


def simulate(world: World, seed: int, router_for: Callable[[Upstreams], Router], *, attempts: int = 3) -> list[Result]:
    """Send one router through a world.

    Args:
        world: what happens.
        seed: of the requests; the same for all routers that are to be compared.
        router_for: makes the router.
        attempts: for each request at most, hedges included.

    Returns:
        How each request went, in the order of their arrivals.
    """
    upstreams = Upstreams(world)
    run = _Run(upstreams, router_for(upstreams), attempts)
    results = []
    for arrival in arrivals(world, seed):
        run.until(arrival.at)
        request = _Request(run, arrival)
        results.append(request.result)
        request.go(arrival.at)
    run.until(inf)
    return results


def figures(results: Sequence[Result]) -> dict[str, float]:
    """What is told of one run: TTFT of what was served in ms, USD per thousand requests, and shares of the spend.

    Raises:
        ValueError: nothing was served.
    """
    ttft = sorted(result.ttft_s for result in results if result.place)
    if not ttft:
        raise ValueError("no request was served")
    spent = sum(result.usd + result.twice_usd for result in results)
    return {
        "requests": len(results),
        "failures": len(results) - len(ttft),
        "ttft_p50_ms": 1000.0 * ttft[len(ttft) // 2],
        "ttft_p95_ms": 1000.0 * ttft[int(len(ttft) * 0.95)],
        "ttft_p99_ms": 1000.0 * ttft[int(len(ttft) * 0.99)],
        "usd_per_1000": 1000.0 * spent / len(results),
        "duplicate_spend": sum(result.twice_usd for result in results) / spent if spent else 0.0,
    }
