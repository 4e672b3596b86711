"""A policy ready to serve: the set, and what is worked out from it once instead of for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from relay import __version__
from relay.dialects import DIALECTS
from relay.messages import Endpoint, Origin
from relay.policy.decide import Chooser, schedule
from relay.sizing import Sizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay.limits.experience import Experience
    from relay.limits.hedging import Ledger
    from relay.messages import Attempt
    from relay.policy.compiled import Key, Policy, Provider, Route
    from relay.upstreams import Upstream


class Served:
    """A policy with what is derived from it once.

    Attributes:
        policy: the set.
        upstreams: live state by model name.
        ledgers: what routes that hedge have spent, by name.
        prices: of the candidates of routes that hedge, by route and model name.
        choosers: who decides, by name of those routes that leave something to decide.
        sizer: tells intents and sets budgets; None if the policy wants neither.
        endpoints: where each provider answers chat requests, by provider name.
        forwarded: names of the client's headers that each provider may see, by provider name.
    """

    __slots__ = (
        "_as_written",
        "_known_keys",
        "choosers",
        "endpoints",
        "forwarded",
        "ledgers",
        "policy",
        "prices",
        "sizer",
        "upstreams",
    )

    def __init__(
        self,
        policy: Policy,
        upstreams: Mapping[str, Upstream],
        ledgers: Mapping[str, Ledger],
        experience: Experience,
    ) -> None:
        self.policy = policy
        self.upstreams = upstreams
        self.ledgers = ledgers
        self.prices = {
            route.name: dict(zip((model.name for model in route.candidates), route.prices(), strict=True))
            for route in policy.routes
            if route.hedge is not None
        }
        intents = policy.intents
        self.sizer = None if intents is None else Sizer(intents, experience)
        self.choosers = {
            route.name: Chooser(route, upstreams)
            for route in policy.routes
            if route.judged or (intents is not None and intents.judges(route))
        }
        self.endpoints = {name: chat_endpoint(provider) for name, provider in policy.providers.items()}
        self.forwarded = {
            name: frozenset(header.encode("ascii") for header in provider.forward_headers)
            for name, provider in policy.providers.items()
        }
        self._as_written = {
            route: (
                schedule(tuple(model.name for model in route.candidates), route.attempts, policy.retries),
                [upstreams[model.name] for model in route.candidates],
            )
            for route in policy.routes
        }
        self._known_keys: dict[bytes, Key] = {}

    def key_for(self, presented: bytes) -> Key | None:
        """`Policy.key_for`, remembered for keys that it knows, so no more of them than the policy has.

        A lookup compares whole keys only after their hashes, which are seeded per process: its time tells nothing.
        """
        key = self._known_keys.get(presented)
        if key is None:
            key = self.policy.key_for(presented)
            if key is not None:
                self._known_keys[presented] = key
        return key

    def as_written(self, route: Route, now: float) -> tuple[tuple[Attempt, ...], Mapping[str, str]]:
        """The attempts for a request of a route whose candidates are tried as they are written, and who is left out.

        With each who is left out: why. If that were all of them, those worth waiting for are not.
        """
        planned, upstreams = self._as_written[route]
        for upstream in upstreams:
            if upstream.troubled:
                break
        else:
            return planned, {}
        names = [model.name for model in route.candidates]
        reasons = {name: reason for name in names if (reason := self.upstreams[name].unavailable(now))}
        order = tuple(name for name in names if name not in reasons) or self.worth_waiting_for(route, reasons, now)
        left_out = {name: reason for name, reason in reasons.items() if name not in order}
        return schedule(order, route.attempts, self.policy.retries), left_out

    def worth_waiting_for(self, route: Route, reasons: Mapping[str, str], now: float) -> tuple[str, ...]:
        """Of candidates that are not to be asked now: who may be soon enough, after its own Retry-After."""
        longest_s = self.policy.retries.max_s
        return tuple(
            model.name
            for model in route.candidates
            if reasons.get(model.name) == "retry_after" and self.upstreams[model.name].free_in_s(now) <= longest_s
        )


def chat_endpoint(provider: Provider) -> Endpoint:
    """Where a provider answers chat requests, with the headers that it always gets."""
    headers = ((b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream"))
    return _endpoint(provider, DIALECTS[provider.dialect].chat_path, headers)


def probe_endpoint(provider: Provider, path: str) -> Endpoint:
    """Where a provider is asked whether it lives, as itself: with its credentials, and nothing of any client."""
    return _endpoint(provider, path, ((b"accept", b"application/json"),), method="GET")


def _endpoint(
    provider: Provider, path: str, headers: Iterable[tuple[bytes, bytes]], *, method: Literal["POST", "GET"] = "POST"
) -> Endpoint:
    url = urlsplit(provider.base_url)
    return Endpoint(
        origin=Origin(url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)),
        target=url.path + path,
        headers=(
            *headers,
            (b"user-agent", b"relay/%b" % __version__.encode()),
            *DIALECTS[provider.dialect].auth_headers(provider.api_key),
            *((name.encode(), value.encode("latin-1")) for name, value in provider.headers),
        ),
        connect_timeout_s=provider.timeouts.connect_s,
        max_connections=provider.max_connections,
        proxy=provider.proxy,
        http2=provider.http2,
        method=method,
    )
