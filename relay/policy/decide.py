"""Which models to try, in which order. Pure: facts and a source of randomness come in, a plan goes out.

A route that says nothing but its candidates has them tried as written. On any other, each request is decided for
itself (`Chooser`): first what cannot serve it is left out, each candidate with its reason; then what is left is put in
order by what it is expected to take and to cost.

The score is a weighted product, told as its logarithm: latency^w1 · cost^w2, lower is better. So weights mean what
they say without any scale: with equal ones, half the time is worth twice the money. It needs no normalisation, and
whether a is better than b does not depend on who else stands for choice.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, log
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

import msgspec

from relay.messages import Attempt, Decision, Wants, Weighed

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from relay.policy.compiled import Model, Retries, Route

PREFERENCES = {"ttft": (1.0, 0.0, 0.0), "latency": (0.0, 1.0, 0.0), "cost": (0.0, 0.0, 1.0)}
"""What a client may ask for instead of the route's objective: weights of TTFT, latency and cost."""

_NO_WEIGHTS = (0.0, 0.0, 0.0)

LEAST_USD = 1e-7
"""What an answer costs at least, USD: a local model is not free of cost either, and a product wants no zero."""

EXPLORE_EVERY_S = 3.0
"""A model of which too little is known is asked at most this often for that reason alone."""


_UNIFORM = 12.0**0.5
"""Width of a uniform distribution with the standard deviation one. Candidates that cannot be told apart are drawn from
it to share the requests; so do several relays that all see the same."""


class Outlook(msgspec.Struct, frozen=True, gc=False):
    """What to expect of a model if it is asked now.

    Attributes:
        ttft_s: seconds to the first output, failures on the way included.
        ttft_p95_s: likewise, what 95 of 100 do not exceed, without failures.
        token_s: seconds for each token behind it.
        doubt: standard error of log latency.
        hope: by how much log latency may well be lower than it looks: it once was, or nobody knows.
        young: it was hardly ever seen.
    """

    ttft_s: float
    ttft_p95_s: float
    token_s: float
    doubt: float
    hope: float
    young: bool = False


class Standing(Protocol):
    """A model's live state.

    Attributes:
        asked_at: when an attempt last began, seconds on the clock of `now`.
        outlook: what was last expected of it.
    """

    asked_at: float
    outlook: Outlook

    def expect(self, tokens: float, now: float) -> Outlook | str:
        """What to expect of it if it is sent such a request, which becomes its `outlook`; or why it `refuses`."""

    def cached_tokens(self, prefixes: Sequence[tuple[bytes, int]], now: float) -> int:
        """Tokens of the longest of these prompt beginnings that it is likely to have in its cache."""


@lru_cache(maxsize=1024)
def schedule(order: tuple[str, ...], attempts: int, retries: Retries) -> tuple[Attempt, ...]:
    """Candidates in their order, then round again.

    A candidate's first attempt starts at once; each further one waits up to twice as long as the last. The wait itself
    is drawn between zero and that when it comes to it (full jitter: Brooker, "Exponential Backoff and Jitter", AWS
    Architecture Blog, 2015).

    Args:
        order: names of the candidates; there may be none.
        attempts: how many there may be.
        retries: bounds of the waits.
    """
    planned = [Attempt(name) for name in order[:attempts]]
    wait_s = retries.base_s
    while planned and len(planned) < attempts:
        planned += [Attempt(name, min(retries.max_s, wait_s)) for name in order[: attempts - len(planned)]]
        wait_s *= 2
    return tuple(planned)


_over, _score = attrgetter("over"), attrgetter("score")


class Chooser:
    """Decides for the requests of one route. Made once for a policy; holds what is the same for each of them.

    All that changes in it is how many explorations the route is owed: one for so many requests.

    Args:
        route: whose candidates.
        standings: live state by model name.
    """

    def __init__(self, route: Route, standings: Mapping[str, Standing]) -> None:
        self.route = route
        objective = route.objective
        self._weights = (objective.ttft, objective.latency, objective.cost) if objective else None
        self._explore = objective.explore if objective else 0.0
        self._owed = 0.0  # explorations; counted instead of drawn, so that none is long in coming
        self._ceiling_s = inf if route.ttft_ceiling_s is None else route.ttft_ceiling_s
        self._barred = route.barred
        self._models = {model.name: model for model in route.candidates}
        self._shared = frozenset(name for name, _ in route.shares)
        self._standings = {name: standings[name] for name in self._models}
        self._rows = tuple(
            (place, model.name, self._standings[model.name], price.input, price.cached_input, price.output)
            for place, (model, price) in enumerate(zip(route.candidates, route.prices(), strict=True))
        )
        self._least_room = min((min(m.context or inf, m.max_output or inf) for m in route.candidates), default=inf)
        self._least_tier = min(model.tier for model in route.candidates)

    def decide(self, wants: Wants, now: float, rng: random.Random) -> Decision:
        """Whom to ask, in which order.

        Args:
            wants: what the request asks for.
            now: seconds on the clock of the standings.
            rng: breaks ties, draws shares.
        """
        weights = PREFERENCES.get(wants.prefer, self._weights)
        if self._owed < 1.0:
            self._owed += self._explore
        candidates = self._weigh(wants, weights or _NO_WEIGHTS, now, rng)
        usable = [weighed for weighed in candidates if not weighed.left_out]
        if not usable:
            candidates, usable = self._too_small(candidates)
        usable.sort(key=_score)
        if self._ceiling_s < inf:
            usable.sort(key=_over)
        order = [weighed.model for weighed in usable]
        first_by = ("written" if weights is None else "score") if order else ""
        if len(order) > 1:
            if self._shared:
                order.sort(key=self._shared.__contains__)  # beyond its share a model is asked only if no other is left
            if instead := self._instead(wants.prefer, order, usable, now, rng):
                first, first_by = instead
                order.remove(first)
                order.insert(0, first)
        return Decision(self.route.name, tuple(order), first_by, tuple(candidates))

    def _weigh(
        self, wants: Wants, weights: tuple[float, float, float], now: float, rng: random.Random
    ) -> list[Weighed]:
        """Each candidate: why it is left out, or what is expected of it."""
        prompt_tokens, output_tokens, prefixes = wants.prompt_tokens, wants.output_tokens, wants.prefixes
        w_ttft, w_latency, w_cost = weights
        w_doubt = (w_ttft + w_latency) * _UNIFORM
        ceiling_s, random_, tokens = self._ceiling_s, rng.random, prompt_tokens + output_tokens
        unfit = self._barred
        if wants.features or prompt_tokens + wants.limit_tokens > self._least_room or wants.min_tier > self._least_tier:
            unfit = self._unfit(wants)
        candidates = []
        for place, name, standing, usd_input, usd_cached, usd_output in self._rows:
            outlook = unfit[name] if name in unfit else standing.expect(tokens, now)
            if isinstance(outlook, str):
                candidates.append(Weighed(name, place, outlook))
                continue
            ttft_s = outlook.ttft_s
            latency_s = ttft_s + output_tokens * outlook.token_s
            usd = prompt_tokens * usd_input + output_tokens * usd_output
            cached = 0
            if prefixes and (cached := min(standing.cached_tokens(prefixes, now), prompt_tokens)):
                usd -= cached * (usd_input - usd_cached)
            score = w_doubt * outlook.doubt * (random_() - 0.5)
            if w_ttft:
                score += w_ttft * log(ttft_s)
            if w_latency:
                score += w_latency * log(latency_s)
            if w_cost:
                score += w_cost * log(usd if usd > LEAST_USD else LEAST_USD)  # noqa: FURB136 - a call costs thrice that
            over = outlook.ttft_p95_s > ceiling_s
            candidates.append(Weighed(name, place, "", over, score, ttft_s, latency_s, usd, cached))
        return candidates

    def _unfit(self, wants: Wants) -> Mapping[str, str]:
        """Candidates that cannot serve such a request whatever their state, and why."""
        reasons = {name: _unfit(model, wants) for name, model in self._models.items()}
        return {**{name: reason for name, reason in reasons.items() if reason}, **self._barred}

    def _too_small(self, candidates: list[Weighed]) -> tuple[list[Weighed], list[Weighed]]:
        """All are left out: sizes are estimates, and who alone knows them is asked, the largest first."""
        small = [weighed for weighed in candidates if weighed.left_out == "context"]
        small.sort(key=lambda weighed: -(self._models[weighed.model].context or 0))
        admitted = [Weighed(weighed.model, weighed.place, score=float(rank)) for rank, weighed in enumerate(small)]
        by_place = {weighed.place: weighed for weighed in admitted}
        return [by_place.get(weighed.place, weighed) for weighed in candidates], admitted

    def _instead(
        self, prefer: str, order: list[str], usable: list[Weighed], now: float, rng: random.Random
    ) -> tuple[str, str] | None:
        """Who goes first instead of who stands there, and by what; None if nobody does."""
        if prefer and prefer in order:
            return prefer, "prefer"
        first = usable[0]
        if self._shared:
            draw = rng.random()
            for name, share in self.route.shares:
                draw -= share
                if draw < 0.0 and name in order:
                    return name, "share"
            first = next((weighed for weighed in usable if weighed.model not in self._shared), first)
        if self._explore and (explored := self._doubtful(first, usable, now)):
            self._owed = max(self._owed - 1.0, 0.0)
            return explored, "explore"
        return None

    def _doubtful(self, first: Weighed, usable: list[Weighed], now: float) -> str | None:
        """Who may well be better than the first, and was not asked for longest; the young need not wait their turn."""
        w_ttft, w_latency, _ = self._weights or _NO_WEIGHTS
        w_hope, standings = w_ttft + w_latency, self._standings
        found, found_at = None, now - EXPLORE_EVERY_S
        for weighed in usable:
            standing = standings[weighed.model]
            if (
                standing.asked_at < found_at
                and weighed.score - w_hope * standing.outlook.hope < first.score
                and weighed is not first
                and (self._owed >= 1.0 or standing.outlook.young)
                and weighed.model not in self._shared
            ):
                found, found_at = weighed.model, standing.asked_at
        return found


def _unfit(model: Model, wants: Wants) -> str | None:
    """Why a model cannot serve such a request whatever its state; None if it can."""
    if model.features is not None and not wants.features <= model.features:
        return "features: " + ", ".join(sorted(wants.features - model.features))
    if model.tier < wants.min_tier:
        return "tier"
    if model.max_output is not None and wants.limit_tokens > model.max_output:
        return "max_output"
    if model.context is not None and wants.prompt_tokens + wants.limit_tokens > model.context:
        return "context"
    return None
