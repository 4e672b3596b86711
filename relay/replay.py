"""Recorded requests decided anew under another policy, and what would probably have come of it.

Decisions are real: the same chooser and statistics as in service, fed with the recorded attempts as they ended. What a
choice leads to is known only if that model was really asked. So each attempt takes as its course

1. the request's own attempt on that model, if there was one;
2. else that of one of the attempts on it next in time, drawn at random: models are as fast as the hour, not as the
   request;
3. else that of any attempt on it;
4. else, for a model that was never asked, a TTFT drawn round the policy's `expected`.

`Trust` tells how many went which way. The answer is taken to be as long as the recorded one, whoever writes it.

Intervals are block bootstraps (Künsch, 1989): of requests side by side many meet the same weather, so whole stretches
of the log are drawn again, not single requests. They take the drawn courses as they are: where few observations stand
in for many requests, the truth may well lie outside, and `Trust.effective` is there to say so.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Literal

import msgspec

from relay.budget_replay import BudgetReplay, replay_budgets
from relay.errors import ClientGone, ConnectFailed, DeadlineExceeded, InternalError, ShuttingDown, Superseded
from relay.errors import UpstreamRefused as Refused
from relay.limits.hedging import Ledger
from relay.messages import Outcome, Wants
from relay.policy.decide import Chooser
from relay.upstreams import Upstream, duplicate_usd
from relay.wants import USUAL_ANSWER_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from relay.messages import Decision, RequestRecord
    from relay.policy.compiled import Model, Policy, Route

NEAR_S = 300.0
"""An attempt that began this long before or after tells how fast a model was then."""

NEIGHBOURS = 20
"""Attempts on either side that one is drawn from."""

BLOCKS = 50
"""Stretches that a log is cut into for the bootstrap."""

RESAMPLES = 400
"""Logs drawn anew; their 2.5th and 97.5th percentiles bound an interval."""

FIRM_SHARE = 0.95
FIRM_SIZE = 200.0
"""An estimate is firm if so many of the choices were observed near that time, and it rests on so many observations."""

LOOSE_SHARE = 0.8
"""With fewer of them it is a guess."""

_NOT_ITS_FAULT = frozenset(
    kind.code for kind in (ClientGone, DeadlineExceeded, InternalError, ShuttingDown, Superseded)
)
"""Codes of attempts that end without showing anything of the upstream."""

_FAILED = frozenset(
    {
        Outcome.UPSTREAM_ERROR,
        Outcome.UPSTREAM_TRUNCATED,
        Outcome.STALLED,
        Outcome.TTFT_TIMEOUT,
        Outcome.DEADLINE,
    }
)

Basis = Literal["own", "near", "far", "never"]
"""Where the course of an attempt comes from, as listed above."""


class Figure(msgspec.Struct, frozen=True):
    """A number and its 95 % interval.

    Attributes:
        value: of all requests.
        low: lower bound.
        high: upper bound.
    """

    value: float
    low: float
    high: float


class Side(msgspec.Struct, frozen=True):
    """What is told of one policy.

    Attributes:
        ttft_p50_ms: of streams that had output; None if there were none.
        ttft_p95_ms: likewise.
        ttft_p99_ms: likewise.
        usd_per_1000: what a thousand requests cost, duplicates included.
        truncated: share of requests whose answer broke off behind its first output.
        fell_back: share that needed another attempt after a failure.
        hedged: share that were asked twice at a time.
        failed: share that got no output.
    """

    ttft_p50_ms: Figure | None
    ttft_p95_ms: Figure | None
    ttft_p99_ms: Figure | None
    usd_per_1000: Figure
    truncated: Figure
    fell_back: Figure
    hedged: Figure
    failed: Figure


class Stranded(msgspec.Struct, frozen=True):
    """A request that nobody could be asked for.

    Attributes:
        id: of the request.
        at: when it arrived, seconds since the Unix epoch.
        route: that it takes; its recorded one if the policy has none of that name.
        reasons: by model, why it is left out; empty if there is no such route.
        recorded_too: nobody served it then either.
    """

    id: str
    at: float
    route: str
    reasons: dict[str, str]
    recorded_too: bool


class Trust(msgspec.Struct, frozen=True):
    """How far the estimate can be trusted. Shares are of the requests' first choices.

    Attributes:
        verdict: `firm`, `loose`, or `guess`.
        same: the request itself was sent there.
        near: others were, within `NEAR_S`.
        far: others were, at other times only.
        never: nobody ever was.
        effective: observations that the estimate is worth: fewer if some stand for many (Kish's effective size).
        never_observed: models that are chosen and were never asked.
        cut_short: attempts in the estimate that lost a race, so that their TTFT is longer than is known.
    """

    verdict: Literal["firm", "loose", "guess"]
    same: float
    near: float
    far: float
    never: float
    effective: float
    never_observed: list[str]
    cut_short: int


class Report(msgspec.Struct, frozen=True):
    """What a replay found.

    Attributes:
        requests: that were decided anew.
        compared: those whose course the policy has a say in; both sides are over them.
        sizes_guessed: those whose log does not say what was decided about; their usage stands for it.
        recorded: how it was.
        expected: how it would have been.
        first: by model, how often it was asked first, and how often it would be.
        stranded: those that nobody could be asked for.
        trust: in the estimate.
        unpriced: models whose recorded cost is not known.
        budgets: what the policy's budgets make of the recorded answers; None without budgets on either side.
    """

    requests: int
    compared: int
    sizes_guessed: int
    recorded: Side | None
    expected: Side | None
    first: dict[str, tuple[int, int]]
    stranded: list[Stranded]
    trust: Trust
    unpriced: list[str]
    budgets: BudgetReplay | None


class _Course(msgspec.Struct):
    """How a request goes."""

    ttft_s: float = inf
    usd: float = 0.0
    truncated: bool = False
    fell_back: bool = False
    hedged: bool = False

    @property
    def failed(self) -> bool:
        return self.ttft_s == inf


class _Seen(msgspec.Struct, frozen=True, eq=False):
    """One observed attempt: when it began, and what came of it so many seconds later."""

    model: str
    at: float
    output_s: float  # to the first output; infinite if there was none
    over_s: float  # to its end
    error: str | None
    status: int | None
    tokens: int

    @property
    def cut_short(self) -> bool:
        return self.error == Superseded.code

    @property
    def shows_failure(self) -> bool:
        return self.error is not None and self.error not in _NOT_ITS_FAULT

    @property
    def broke_off(self) -> bool:
        """Also if it was Relay's own deadline that ended it."""
        return self.shows_failure or self.error == DeadlineExceeded.code

    @property
    def clients_fault(self) -> bool:
        return self.status is not None and Refused("", upstream_status=self.status).clients_fault


def replay(records: Sequence[RequestRecord], policy: Policy, *, route: str | None = None, seed: int = 0) -> Report:
    """Decide recorded requests anew, in the order of their arrivals.

    Args:
        records: of one or several logs.
        policy: to decide under.
        route: that all of them take; None is the one that has the name of theirs.
        seed: of what is left to chance.
    """
    return _Replay(sorted(records, key=lambda record: record.at), policy, route, seed).run()


class _Replay:
    """One way through a log."""

    def __init__(self, records: Sequence[RequestRecord], policy: Policy, route: str | None, seed: int) -> None:
        self._records = [record for record in records if record.decision is not None or record.attempts]
        self._policy = policy
        self._rng = random.Random(seed)  # noqa: S311 - an estimate
        self._routes = {found.name: found for found in policy.routes}
        self._forced = route
        self._standings = {name: Upstream(model.expected, watched=True) for name, model in policy.models.items()}
        self._choosers = {name: Chooser(found, self._standings) for name, found in self._routes.items()}
        self._ledgers = {name: Ledger() for name in self._routes}
        self._prices = {
            found.name: dict(zip((model.name for model in found.candidates), found.prices(), strict=True))
            for found in policy.routes
        }
        self._seen = [list(_attempts(record)) for record in self._records]
        self._pools = _pools(zip(self._records, self._seen, strict=True))
        self._pending: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._uses: Counter[int] = Counter()
        self._bases: Counter[Basis] = Counter()
        self._never: set[str] = set()
        self._unpriced: set[str] = set()
        self._cut_short = 0

    def run(self) -> Report:
        recorded, expected, stranded = [], [], []
        first: Counter[str] = Counter()
        then_first: Counter[str] = Counter()
        guessed = 0
        for record, own in zip(self._records, self._seen, strict=True):
            self._learn_until(record.at)
            self._await_observations(record, own)
            route = self._routes.get(self._forced or record.route)
            wants = record.wants or _guessed(record)
            guessed += record.wants is None
            decision = self._choosers[route.name].decide(wants, record.at, self._rng) if route else None
            if route is None or decision is None or not decision.order:
                reasons = dict(decision.left_out) if decision else {}
                stranded.append(
                    Stranded(record.id, record.at, self._forced or record.route, reasons, not record.attempts)
                )
                continue
            self._standings[decision.order[0]].asked_at = record.at
            self._standings[decision.order[0]].remember(wants.prefixes, record.at)
            if not _comparable(record, own):
                continue
            then_first[next(attempt.model for attempt in record.attempts if not attempt.hedge)] += 1
            first[decision.order[0]] += 1
            recorded.append((record.stream, self._recorded(record, own, route, wants)))
            expected.append((record.stream, self._expected(record, own, route, wants, decision)))
        return Report(
            requests=len(self._records),
            compared=len(recorded),
            sizes_guessed=guessed,
            recorded=_side(recorded, self._rng),
            expected=_side(expected, self._rng),
            first={name: (then_first[name], first[name]) for name in sorted({*first, *then_first})},
            stranded=stranded,
            trust=self._trust(),
            unpriced=sorted(self._unpriced),
            budgets=replay_budgets(self._records, self._policy),
        )

    # --- what was observed, as the statistics get to know it ---

    def _learn_until(self, at: float) -> None:
        while self._pending and self._pending[0][0] <= at:
            now, _, event = heapq.heappop(self._pending)
            event(now)

    def _later(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._pending, (at, next(self._numbers), event))

    def _await_observations(self, record: RequestRecord, own: Iterable[_Seen]) -> None:
        """What a request's attempts will show, at the time when they do."""
        for seen in own:
            model = self._policy.models.get(seen.model)
            if model is not None:
                self._await(record.stream, seen, model, self._standings[seen.model])

    def _await(self, stream: bool, seen: _Seen, model: Model, standing: Upstream) -> None:  # noqa: FBT001
        def begun(now: float) -> None:
            standing.begun(seen.at, now)

        def ended(now: float) -> None:
            probe = standing.state.retry_at is not None and now >= standing.state.retry_at
            if seen.shows_failure:
                refusal = Refused("", upstream_status=seen.status) if (seen.status or 0) >= 400 else None  # noqa: PLR2004
                standing.fail(refusal or ConnectFailed(""), now, model.provider.breaker, probe=probe)
            elif seen.output_s < inf and not seen.cut_short:
                standing.succeed(probe=probe)
            _learn(standing, seen, stream, now)

        if stream:
            self._later(seen.at, standing.asked)
            if seen.output_s < inf and not seen.cut_short:
                self._later(seen.at + seen.output_s, begun)
        self._later(seen.at + seen.over_s, ended)

    # --- how it was, and how it would have been ---

    def _recorded(self, record: RequestRecord, own: Sequence[_Seen], route: Route, wants: Wants) -> _Course:
        hedges = sum(attempt.hedge for attempt in record.attempts)
        course = _Course(hedged=hedges > 0, fell_back=len(own) - hedges > 1)
        prompt_tokens, output_tokens = _sizes(record, wants)
        course.usd = sum(
            self._usd(route, seen.model, prompt_tokens, 0.0, 0.0, record) for seen in own if seen.cut_short
        )
        if record.model and record.ttft_s is not None:
            course.ttft_s = record.ttft_s
            course.truncated = record.outcome in _FAILED
            cached = record.usage.cached_tokens if record.usage else 0
            course.usd += self._usd(route, record.model, prompt_tokens, output_tokens, cached, record)
        return course

    def _expected(
        self, record: RequestRecord, own: Sequence[_Seen], route: Route, wants: Wants, decision: Decision
    ) -> _Course:
        """As the exchange goes through a plan, without its waits before a model is asked again."""
        course, left, ledger = _Course(), list(own), self._ledgers[route.name]
        prompt_tokens, _ = _sizes(record, wants)
        queue = list(itertools.islice(itertools.cycle(decision.order), route.attempts))
        waited_s, asked = 0.0, 0
        while queue:
            name = queue.pop(0)
            racing = [(0.0, self._course_of(record, left, name, count=asked == 0))]
            course.fell_back = asked > 0
            asked += 1
            after_s = self._hedge_after_s(record, route, decision, name, queue)
            if racing[0][1].output_s > after_s and racing[0][1].over_s > after_s:
                ledger.waited(too_long=True)
                usd = duplicate_usd(
                    route.hedge, ledger, self._standings, self._prices[route.name], name, queue[0], wants, record.at
                )
                if usd is not None:
                    course.hedged = True
                    racing.append((after_s, self._course_of(record, left, queue.pop(0))))
            elif route.hedge is not None:
                ledger.waited(too_long=False)
            start_s, winner = min(racing, key=lambda raced: raced[0] + raced[1].output_s)
            for _, loser in racing:
                if loser is not winner and (loser.output_s < inf or winner.output_s < inf):
                    self._spend(course, route, loser.model, prompt_tokens, record)
            if winner.output_s < inf:
                course.ttft_s = waited_s + start_s + winner.output_s
                course.truncated = winner.broke_off
                self._spend_answer(course, route, winner.model, wants, decision, record)
                return course
            waited_s += max(start + seen.over_s for start, seen in racing)
        return course

    def _course_of(self, record: RequestRecord, left: list[_Seen], name: str, *, count: bool = False) -> _Seen:
        """What an attempt on a model comes to; `count` for the first, which trust is about."""
        seen = next((seen for seen in left if seen.model == name), None)
        basis: Basis = "own"
        if seen is not None:
            left.remove(seen)
        else:
            seen, basis = self._drawn(record, name)
        if count:
            self._bases[basis] += 1
        if basis == "never":
            self._never.add(name)
        else:
            self._uses[id(seen)] += 1
            self._cut_short += seen.cut_short
        return seen

    def _drawn(self, record: RequestRecord, name: str) -> tuple[_Seen, Basis]:
        pool = self._pools.get((name, record.stream), [])
        if not pool:
            speed = self._standings[name].speed
            ttft_s = speed.ttft.quantile(self._rng.gauss(0.0, 1.0)) if speed else 0.0
            return _Seen(name, record.at, ttft_s, ttft_s, None, None, 0), "never"
        here = bisect_left(pool, record.at, key=lambda seen: seen.at)
        around = pool[max(0, here - NEIGHBOURS) : here + NEIGHBOURS]
        near = [seen for seen in around if abs(seen.at - record.at) <= NEAR_S]
        return self._rng.choice(near or pool), "near" if near else "far"

    def _hedge_after_s(
        self, record: RequestRecord, route: Route, decision: Decision, name: str, queue: Sequence[str]
    ) -> float:
        if route.hedge is None or not record.stream or not queue or queue[0] == name:
            return inf
        measured = queue[0] if decision.first_by == "explore" and name == decision.order[0] else name
        speed = self._standings[measured].speed
        return speed.tail(route.hedge.after, record.at) if speed else inf

    # --- money ---

    def _spend(self, course: _Course, route: Route, name: str, prompt_tokens: float, record: RequestRecord) -> None:
        """A duplicate that was read and not needed."""
        usd = self._prices[route.name][name].of(prompt_tokens, 0.0)
        course.usd += usd
        self._ledgers[route.name].spend(usd, record.at, twice=True)

    def _spend_answer(
        self, course: _Course, route: Route, name: str, wants: Wants, decision: Decision, record: RequestRecord
    ) -> None:
        prompt_tokens, output_tokens = _sizes(record, wants)
        if name == record.model and record.usage is not None:
            cached = record.usage.cached_tokens
        else:
            cached = next(weighed.cached_tokens for weighed in decision.candidates if weighed.model == name)
        usd = self._prices[route.name][name].of(prompt_tokens, output_tokens, min(cached, prompt_tokens))
        course.usd += usd
        self._ledgers[route.name].spend(usd, record.at, twice=False)

    def _usd(
        self, route: Route, name: str, prompt_tokens: float, output_tokens: float, cached: float, record: RequestRecord
    ) -> float:
        """What a recorded attempt cost: at the policy's price, or, for a model it does not have, as was expected."""
        model = self._policy.models.get(name)
        price = self._prices[route.name].get(name) or (model.price if model else None)
        if price is not None:
            return price.of(prompt_tokens, output_tokens, min(cached, prompt_tokens))
        weighed = record.decision.candidates if record.decision else ()
        usd = next((candidate.usd for candidate in weighed if candidate.model == name), 0.0)
        if not usd:
            self._unpriced.add(name)
        return usd if output_tokens else 0.0

    # --- what it is worth ---

    def _trust(self) -> Trust:
        counted = sum(self._bases.values()) or 1
        share = {basis: self._bases[basis] / counted for basis in self._bases}
        squares = sum(uses * uses for uses in self._uses.values())
        effective = sum(self._uses.values()) ** 2 / squares if squares else 0.0
        observed = share.get("own", 0.0) + share.get("near", 0.0)
        verdict: Literal["firm", "loose", "guess"] = "loose"
        if observed >= FIRM_SHARE and effective >= FIRM_SIZE:
            verdict = "firm"
        elif observed < LOOSE_SHARE:
            verdict = "guess"
        return Trust(
            verdict=verdict,
            same=share.get("own", 0.0),
            near=share.get("near", 0.0),
            far=share.get("far", 0.0),
            never=share.get("never", 0.0),
            effective=effective,
            never_observed=sorted(self._never),
            cut_short=self._cut_short,
        )


def _learn(standing: Upstream, seen: _Seen, stream: bool, now: float) -> None:  # noqa: FBT001
    """What an attempt that is over shows of its model's speed, as `relay.lessons.learn` has it."""
    if seen.output_s < inf and not seen.cut_short:
        if stream:
            output_s, truncated = seen.over_s - seen.output_s, seen.shows_failure
            standing.ended(tokens=seen.tokens, output_s=output_s, truncated=truncated, now=now)
        else:
            standing.whole(seen.over_s, tokens=seen.tokens, now=now)
    elif seen.clients_fault:
        standing.refused(seen.at)
    elif seen.shows_failure:
        standing.wasted(seen.at, now)
    elif stream:
        standing.left(seen.at, now)


def _attempts(record: RequestRecord) -> Iterator[_Seen]:
    """A request's attempts with the times at which they began, as far as its record tells.

    The one that served it ended with it; one that lost a race ended at the first output; of those that failed one
    began when the other had ended. Those that went on with an answer are left out: they were no choice of the route's.
    """
    ended_s = 0.0
    for attempt in record.attempts:
        if attempt.segment > 1:
            continue
        if attempt.error == Superseded.code and record.ttft_s is not None:
            start_s = max(0.0, record.ttft_s - attempt.duration_s)
        elif attempt.ttft_s is not None and record.ttft_s is not None:
            start_s = max(0.0, record.ttft_s - attempt.ttft_s)
        else:
            start_s = ended_s
            ended_s += attempt.duration_s
        output_s = inf if attempt.ttft_s is None else attempt.ttft_s
        if attempt.error == Superseded.code:
            output_s = attempt.duration_s  # at least
        served = attempt.ttft_s is not None and record.usage is not None and record.segments <= 1
        tokens = record.usage.completion_tokens if served and record.usage else 0
        yield _Seen(
            attempt.model,
            record.at + start_s,
            output_s,
            attempt.duration_s,
            attempt.error,
            attempt.upstream_status,
            tokens,
        )


def _pools(told: Iterable[tuple[RequestRecord, Sequence[_Seen]]]) -> dict[tuple[str, bool], list[_Seen]]:
    """Attempts that show how a model does, by model and whether they were streams, in order."""
    pools: dict[tuple[str, bool], list[_Seen]] = {}
    for record, own in told:
        for seen in own:
            if seen.output_s < inf or (seen.shows_failure and not seen.clients_fault):
                pools.setdefault((seen.model, record.stream), []).append(seen)
    for pool in pools.values():
        pool.sort(key=lambda seen: seen.at)
    return pools


def _comparable(record: RequestRecord, own: Sequence[_Seen]) -> bool:
    """Whether another choice could have made a difference, and how it went is known."""
    if not own or own[-1].clients_fault:
        return False
    return record.ttft_s is not None or record.outcome in _FAILED


def _guessed(record: RequestRecord) -> Wants:
    """What a request asks for, from what it used: nothing was decided about it."""
    usage = record.usage
    return Wants(
        prompt_tokens=usage.prompt_tokens if usage else 0,
        output_tokens=float(usage.completion_tokens if usage else USUAL_ANSWER_TOKENS),
    )


def _sizes(record: RequestRecord, wants: Wants) -> tuple[float, float]:
    """Tokens read and written: as counted, else as estimated."""
    usage = record.usage
    return (usage.prompt_tokens, usage.completion_tokens) if usage else (wants.prompt_tokens, wants.output_tokens)


# --- figures ---


def _side(courses: Sequence[tuple[bool, _Course]], rng: random.Random) -> Side | None:
    """What is told of many courses, with intervals; None if there are none."""
    if not courses:
        return None
    size = -(-len(courses) // BLOCKS)
    blocks = [_Block(courses[start : start + size]) for start in range(0, len(courses), size)]
    whole = _figures(blocks)
    drawn = [_figures(rng.choices(blocks, k=len(blocks))) for _ in range(RESAMPLES)]
    return Side(*(_figure(whole[place], [figures[place] for figures in drawn]) for place in range(len(whole))))  # type: ignore[arg-type]  # only quantiles can be None


class _Block:
    """A stretch of the log, summed up."""

    def __init__(self, courses: Sequence[tuple[bool, _Course]]) -> None:
        self.ttft_s = sorted(course.ttft_s for stream, course in courses if stream and not course.failed)
        self.sums = (
            1000.0 * sum(course.usd for _, course in courses),
            sum(course.truncated for _, course in courses),
            sum(course.fell_back for _, course in courses),
            sum(course.hedged for _, course in courses),
            sum(course.failed for _, course in courses),
        )
        self.count = len(courses)


def _figures(blocks: Sequence[_Block]) -> list[float | None]:
    """In the order of `Side`."""
    ttft_s = sorted(itertools.chain.from_iterable(block.ttft_s for block in blocks))
    quantiles = [1000.0 * ttft_s[int(len(ttft_s) * q)] if ttft_s else None for q in (0.5, 0.95, 0.99)]
    count = sum(block.count for block in blocks)
    return [*quantiles, *(sum(column) / count for column in zip(*(block.sums for block in blocks), strict=True))]


def _figure(value: float | None, drawn: Sequence[float | None]) -> Figure | None:
    if value is None:
        return None
    known = sorted(number for number in drawn if number is not None)
    return Figure(value, known[int(0.025 * len(known))], known[int(0.975 * len(known))])
