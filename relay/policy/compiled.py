"""A policy set as the request path sees it: immutable, resolved, no pydantic.

`load.py` makes these from files. Durations are seconds, sizes bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import msgspec

from relay.messages import BudgetRules, Continuing, Intent, KeyLimits

KEY_PREFIX = 8
"""Bytes of a key's digest by which it is looked up, before the whole digest is compared in constant time."""


class Timeouts(msgspec.Struct, frozen=True, gc=False):
    """How long to wait for an upstream, seconds.

    Attributes:
        connect_s: for a new connection, TLS included.
        first_token_s: from the attempt's start to the first real output.
        answer_s: from the attempt's start to the end of an answer that is no stream.
        silence_s: between any two bytes once the stream is committed.
        total_s: for the whole request, all attempts together.
    """

    connect_s: float = 3.0
    first_token_s: float = 15.0
    answer_s: float = 600.0
    silence_s: float = 20.0
    total_s: float = 600.0


class Breaker(msgspec.Struct, frozen=True, gc=False):
    """When to leave an upstream alone.

    Attributes:
        failures: failures in a row that open the breaker.
        open_s: seconds it stays open before one probe may pass.
    """

    failures: int = 5
    open_s: float = 10.0


class Probe(msgspec.Struct, frozen=True, gc=False):
    """How a provider is asked whether it lives.

    Attributes:
        path: below its base URL, asked with GET.
        every_s: seconds between questions, give or take a fifth.
        timeout_s: seconds that an answer's head may take, connecting included.
    """

    path: str = "/models"
    every_s: float = 30.0
    timeout_s: float = 5.0


class Secret(str):
    """A string that does not show itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Never the value."""
        return "Secret(…)"


class Provider(msgspec.Struct, frozen=True, eq=False):
    """Where a model is served.

    Attributes:
        name: as in the policy.
        dialect: name of the wire dialect it speaks.
        base_url: without a trailing slash.
        api_key: resolved; None if the provider wants none.
        headers: fixed extra request headers, names in lower case.
        forward_headers: names of client headers passed on, lower case.
        timeouts: defaults for its models.
        breaker: when to leave one of its models alone.
        max_connections: open connections to the origin.
        proxy: HTTP proxy URL, or None.
        http2: speak HTTP/2.
        ask_usage: ask streams for their usage with `stream_options`; False for servers that refuse that field.
        probe: how it is asked whether it lives; None if it is not.
    """

    name: str
    dialect: str
    base_url: str
    api_key: Secret | None
    headers: tuple[tuple[str, str], ...]
    forward_headers: frozenset[str]
    timeouts: Timeouts
    breaker: Breaker
    max_connections: int
    proxy: str | None
    http2: bool
    ask_usage: bool = True
    probe: Probe | None = None


class Price(msgspec.Struct, frozen=True, gc=False):
    """What tokens cost, USD per token.

    Attributes:
        input: read.
        cached_input: read from the provider's prompt cache.
        output: written, reasoning included.
    """

    input: float
    cached_input: float
    output: float

    def of(self, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
        """USD for one answer; `cached_tokens` are a part of `prompt_tokens`."""
        return (
            (prompt_tokens - cached_tokens) * self.input
            + cached_tokens * self.cached_input
            + output_tokens * self.output
        )


class Expectation(msgspec.Struct, frozen=True, gc=False):
    """How fast a model is taken to be before it was seen.

    Attributes:
        ttft_s: time to the first output, seconds, at the median.
        tokens_per_s: behind it.
    """

    ttft_s: float = 0.8
    tokens_per_s: float = 60.0


class Model(msgspec.Struct, frozen=True, eq=False):
    """A model that routes refer to.

    Attributes:
        name: as in the policy.
        provider: who serves it.
        upstream: what the provider calls it.
        max_tokens_field: the name under which the provider takes the answer's limit.
        timeouts: its own, the provider's filled in.
        price: None if it is not known.
        context: tokens of prompt and answer together; None if it is not known.
        max_output: tokens of one answer; None if it is not known.
        features: what it can do beyond text; None if nothing is said of it, then all is tried.
        tier: the operator's rank, higher is better.
        regions: where it may process a request; empty if nothing is said of it.
        expected: how fast it is taken to be before it was seen.
        effort: how it takes a reasoning effort: `reasoning_effort`, `thinking`, `thinking_config`, or `off` if not.
        verbosity: it takes the field `verbosity`.
        continuation: how it is asked to go on with an answer that was broken off.
    """

    name: str
    provider: Provider
    upstream: str
    max_tokens_field: str | None
    timeouts: Timeouts
    price: Price | None = None
    context: int | None = None
    max_output: int | None = None
    features: frozenset[str] | None = None
    tier: int = 0
    regions: frozenset[str] = frozenset()
    expected: Expectation = Expectation()
    effort: str = "reasoning_effort"
    verbosity: bool = False
    continuation: Continuing = "instruction"

    @property
    def reasons(self) -> bool | None:
        """Whether it reasons; None if nobody says."""
        return None if self.features is None else "reasoning" in self.features

    @property
    def takes_effort(self) -> bool:
        """It is sure to reason, and to take an effort."""
        return self.effort != "off" and self.reasons is True


class Match(msgspec.Struct, frozen=True, eq=False):
    """When a route applies: every pattern given must match; globs are compiled to anchored patterns.

    Attributes:
        model: of the `model` field.
        key: of the key's name.
        path: of the request path.
        headers: (name in lower case, pattern) pairs.
    """

    model: re.Pattern[str]
    key: re.Pattern[str] | None = None
    path: re.Pattern[str] | None = None
    headers: tuple[tuple[bytes, re.Pattern[str]], ...] = ()

    def takes_key(self, key: str) -> bool:
        """Whether requests under the key of that name may match."""
        return self.key is None or self.key.match(key) is not None

    def takes(self, key: str, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether all patterns but the model's match."""
        if not self.takes_key(key) or (self.path is not None and self.path.match(path) is None):
            return False
        for name, pattern in self.headers:
            if name not in headers or pattern.match(headers[name].decode("latin-1")) is None:
                return False
        return True

    @property
    def only_model(self) -> bool:
        """Whether the model alone decides."""
        return self.key is None and self.path is None and not self.headers


class Objective(msgspec.Struct, frozen=True, gc=False):
    """What a route wants, as weights that add up to one.

    Attributes:
        ttft: of the time to the first output.
        latency: of the time to the last.
        cost: of the money.
        explore: share of requests that may go to a model of which too little is known.
    """

    ttft: float = 0.0
    latency: float = 0.0
    cost: float = 0.0
    explore: float = 0.02


class Hedge(msgspec.Struct, frozen=True, gc=False):
    """When a second attempt may start beside the first.

    Attributes:
        after: quantile of the first one's TTFT that passes without output.
        max_extra_cost: share of the route's spend that may go into answers nobody reads.
    """

    after: float
    max_extra_cost: float = 0.05


UNKNOWN_PRICE = Price(1e-6, 1e-6, 1e-6)
"""For a route of whose candidates no price is known: all cost the same, whatever it is."""


class Route(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Candidates for the requests that match.

    Attributes:
        name: as in the policy; a model's own route has the model's name.
        match: when it applies.
        candidates: in the order they are tried, unless there is an objective.
        attempts: tries at most, all candidates together.
        objective: what decides the order; None is the order as written.
        ttft_ceiling_s: a candidate whose p95 is above it is asked only behind all that are not; None is no ceiling.
        shares: (model, share of requests that it gets first) for some of the candidates.
        barred: candidates that no request may go to, and why.
        hedge: when a second attempt may start beside the first; None is never.
    """

    name: str
    match: Match
    candidates: tuple[Model, ...]
    attempts: int
    objective: Objective | None = None
    ttft_ceiling_s: float | None = None
    shares: tuple[tuple[str, float], ...] = ()
    barred: Mapping[str, str] = {}
    hedge: Hedge | None = None

    @property
    def judged(self) -> bool:
        """Whether requests differ in which candidates they get, or in which order."""
        return len(self.candidates) > 1 and bool(
            self.objective
            or self.ttft_ceiling_s
            or self.shares
            or self.barred
            or self.wants_sizes
            or self.wants_features
            or self.hedge
        )

    @cached_property
    def longest_s(self) -> float:
        """The most that a request may take, seconds."""
        return max(model.timeouts.total_s for model in self.candidates)

    @cached_property
    def best_tier(self) -> int:
        """The highest tier among its candidates."""
        return max(model.tier for model in self.candidates)

    @cached_property
    def wants_features(self) -> bool:
        """Whether it matters what a request uses."""
        return any(model.features is not None for model in self.candidates)

    @cached_property
    def wants_sizes(self) -> bool:
        """Whether it matters how large a request is."""
        return any(model.context or model.max_output for model in self.candidates)

    @cached_property
    def wants_prefixes(self) -> bool:
        """Whether it matters that a provider has read a prompt's beginning before."""
        return bool(self.objective and self.objective.cost) and any(
            model.price and model.price.cached_input < model.price.input for model in self.candidates
        )

    def prices(self) -> tuple[Price, ...]:
        """Of each candidate; an unknown one counts as the dearest known of the route."""
        known = [model.price for model in self.candidates if model.price]
        dearest = max(known, key=lambda price: (price.output, price.input), default=UNKNOWN_PRICE)
        return tuple(model.price or dearest for model in self.candidates)


class IntentRules(msgspec.Struct, frozen=True, gc=False):
    """What holds for requests of one intent.

    Attributes:
        budget: how long answers may become.
        min_tier: the lowest tier that should serve them; the best of a route if all are below it.
        effort: reasoning effort, if the client left it open; None leaves it to the model.
        verbosity: how wordy, likewise.
        steering: a text put at the end of the system prompt; None puts none.
    """

    budget: BudgetRules
    min_tier: int = 0
    effort: str | None = None
    verbosity: str | None = None
    steering: str | None = None

    @property
    def idle(self) -> bool:
        """Requests of this intent go through as they come."""
        said = self.min_tier or self.effort or self.verbosity or self.steering
        return self.budget.mode == "off" and not said


class Intents(msgspec.Struct, frozen=True, eq=False):
    """Rules by intent.

    Attributes:
        rules: of every label.
        default: whose rules hold for requests of which it is not sure what they are after.
        min_confidence: below this it is not.
    """

    rules: Mapping[str, IntentRules]
    default: str
    min_confidence: float

    def judges(self, route: Route) -> bool:
        """Whether intents make a difference to which candidates of a route are asked first."""
        tiers = {model.tier for model in route.candidates}
        return len(tiers) > 1 and any(rule.min_tier > min(tiers) for rule in self.rules.values())

    def settled(self, intent: Intent) -> str:
        """The label by which a request is treated."""
        return intent.label if intent.confidence >= self.min_confidence else self.default


class Retries(msgspec.Struct, frozen=True, gc=False):
    """Waiting between attempts on the same upstream: exponential with full jitter.

    Attributes:
        base_s: upper bound of the first wait.
        max_s: upper bound of any wait, also of an upstream's Retry-After: a longer one leaves that upstream out.
    """

    base_s: float = 0.25
    max_s: float = 5.0


class RequestLimits(msgspec.Struct, frozen=True, gc=False):
    """What a request may look like.

    Attributes:
        max_body_bytes: of the whole body.
        max_header_bytes: of all names and values together.
        max_json_depth: of nested arrays and objects.
        max_messages: of the conversation.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_header_bytes: int = 32 * 1024
    max_json_depth: int = 64
    max_messages: int = 4096


class Streams(msgspec.Struct, frozen=True, gc=False):
    """How streams behave towards the client.

    Attributes:
        keep_alive_s: silence after which a comment goes out; None sends none.
        on_disconnect: `cancel` the upstream, or `drain` it to learn the true usage.
        drain_max_bytes: what is read at most after the client has gone.
        drain_max_s: how long it is read at most.
        recover: go on with a stream that broke off, on the next candidate.
    """

    keep_alive_s: float | None = None
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    drain_max_bytes: int = 1024 * 1024
    drain_max_s: float = 30.0
    recover: bool = False


class Key(msgspec.Struct, frozen=True, eq=False):
    """Who may call.

    Attributes:
        name: as in the policy; what logs and metrics say.
        digest: SHA-256 of the key, 32 bytes.
        routes: names of routes and models it may use; None is all.
        limits: what it may use of them.
        prefer: it may say with each request what matters most to it.
    """

    name: str
    digest: bytes
    routes: frozenset[str] | None
    limits: KeyLimits
    prefer: bool = False

    def may_use(self, route: str) -> bool:
        """Whether this key may use the route of that name."""
        return self.routes is None or route in self.routes


class Policy(msgspec.Struct, frozen=True, eq=False):
    """A whole set.

    Attributes:
        version: first 12 hex digits of the SHA-256 over the files' names and contents.
        open: True if requests without a key are served.
        providers: by name, only those that can be used.
        models: by name, only those that can be used.
        routes: in order, the models' own ones last.
        by_model: for each model name that a route spells out, the routes that can match it, in order.
        keys: by the first `KEY_PREFIX` bytes of their digest (all keys with that prefix).
        requests: limits on requests.
        streams: behaviour of streams.
        retries: waits between attempts.
        skipped: (provider, reason) of providers left out because a secret they call optional is not set.
        intents: rules by intent; None if requests of any intent go through as they come.
    """

    version: str
    open: bool
    providers: Mapping[str, Provider]
    models: Mapping[str, Model]
    routes: tuple[Route, ...]
    by_model: Mapping[str, tuple[Route, ...]]
    keys: Mapping[bytes, tuple[Key, ...]]
    requests: RequestLimits
    streams: Streams
    retries: Retries
    skipped: tuple[tuple[str, str], ...] = ()
    intents: Intents | None = None

    def route_for(self, model: str, key: str, path: str, headers: Mapping[bytes, bytes]) -> Route | None:
        """The first route that matches.

        Args:
            model: what the client asked for.
            key: name of its key; "" if it sent none.
            path: of the request, without a query.
            headers: of the request, names in lower case.
        """
        spelled_out = self.by_model.get(model)
        for route in self.routes if spelled_out is None else spelled_out:
            is_match = spelled_out is not None or route.match.model.match(model) is not None
            if is_match and route.match.takes(key, path, headers):
                return route
        return None

    def key_for(self, presented: bytes) -> Key | None:
        """The key that was presented, or None if the set does not know it.

        Time tells at most how many leading bytes of the digest are in the set, never anything of a key.
        """
        digest = hashlib.sha256(presented).digest()
        for key in self.keys.get(digest[:KEY_PREFIX], ()):
            if hmac.compare_digest(key.digest, digest):
                return key
        return None

    def visible_models(self, key: Key | None) -> list[str]:
        """Model names a client may ask for, in the set's order; what only a glob matches cannot be listed.

        Args:
            key: the client's; None for a client without one in an open set.
        """
        return [model for model, routes in self.by_model.items() if _can_use(key, routes)]


def _can_use(key: Key | None, routes: tuple[Route, ...]) -> bool:
    """Whether a request with this key can end up, by some path and headers, in a route that it may use."""
    for route in routes:
        if route.match.takes_key("" if key is None else key.name):
            if key is None or key.may_use(route.name):
                return True
            if route.match.path is None and not route.match.headers:
                return False
    return False
