"""The store of a single process: dictionaries, changed only in code that does not await."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING

from relay.limits import buckets
from relay.stores.base import Lease, Refusal

if TYPE_CHECKING:
    from relay.messages import KeyLimits
    from relay.stores.base import Ask

STREAM_RETRY_S = 1.0
"""What a caller refused for want of a stream is told to wait: when one of the others will end nobody knows."""

_SLACK = 64
"""Keys out of use that are left alone, so that a small store is not swept on every call."""


class _Used:
    """What one key has used."""

    __slots__ = ("requests_full_at", "streams", "tokens_full_at")

    def __init__(self) -> None:
        self.requests_full_at = buckets.FULL
        self.tokens_full_at = buckets.FULL
        self.streams = 0

    def is_idle(self, now: float) -> bool:
        """Whether forgetting it would change no answer."""
        return not self.streams and self.requests_full_at <= now and self.tokens_full_at <= now


class MemoryStore:
    """Implements `relay.stores.base.Store`. No verb ever suspends, so each is atomic.

    Memory: one lease per request in flight, one entry per key in use within about the last minute, and at most as
    many stale ones again.
    """

    def __init__(self) -> None:
        self._used: dict[str, _Used] = {}
        self._sweep_at = _SLACK
        self._leases: dict[str, tuple[Lease, float]] = {}  # by id, each with the time at which it is void
        self._expiry = inf  # no lease is void before
        self._ids = count(1)

    async def reserve(self, ask: Ask, now: float) -> Lease | Refusal:
        """As in `Store.reserve`."""
        if now >= self._expiry:
            self._expire(now)
        limits = ask.limits
        used = self._used.get(ask.key) or self._enter(ask.key, now)
        requests, tokens, requests_wait_s, tokens_wait_s = used.requests_full_at, used.tokens_full_at, 0.0, 0.0
        if limits.requests_per_min is not None:
            requests, requests_wait_s = buckets.take(requests, now, 1, per_min=limits.requests_per_min)
        if limits.tokens_per_min is not None:
            tokens, tokens_wait_s = buckets.take(tokens, now, ask.tokens, per_min=limits.tokens_per_min)
        busy = limits.streams is not None and used.streams >= limits.streams
        if requests_wait_s or tokens_wait_s or busy:
            return _refusal(limits, requests_wait_s, tokens_wait_s, STREAM_RETRY_S if busy else 0.0)
        used.requests_full_at, used.tokens_full_at = requests, tokens
        used.streams += 1
        lease, expiry = Lease(str(next(self._ids)), ask), now + ask.ttl_s
        self._leases[lease.id] = lease, expiry
        self._expiry = min(self._expiry, expiry)
        return lease

    async def settle(self, lease: Lease, tokens: int, now: float) -> None:
        """As in `Store.settle`."""
        if now >= self._expiry:
            self._expire(now)
        if self._leases.pop(lease.id, None) is None:
            return
        ask = lease.ask
        used = self._used[ask.key]
        used.streams -= 1
        per_min = ask.limits.tokens_per_min
        if per_min is not None:
            used.tokens_full_at = buckets.correct(used.tokens_full_at, now, ask.tokens, tokens, per_min=per_min)

    async def ready(self) -> bool:
        """Always: there is nothing to reach."""
        return True

    async def close(self) -> None:
        """Nothing is held outside of memory."""

    def _expire(self, now: float) -> None:
        """Take back the streams of leases that nobody settled. Their tokens stay spent: nobody knows better.

        Looks at every lease, but seldom: requests end some time before their leases do, so this is how long it takes
        from one look to the next unless requests are lost without an end.
        """
        for lease, expiry in tuple(self._leases.values()):
            if expiry <= now:
                del self._leases[lease.id]
                self._used[lease.ask.key].streams -= 1
        self._expiry = min((expiry for _, expiry in self._leases.values()), default=inf)

    def _enter(self, key: str, now: float) -> _Used:
        if len(self._used) >= self._sweep_at:
            self._used = {name: used for name, used in self._used.items() if not used.is_idle(now)}
            self._sweep_at = 2 * len(self._used) + _SLACK
        used = self._used[key] = _Used()
        return used


def _refusal(limits: KeyLimits, requests_wait_s: float, tokens_wait_s: float, streams_wait_s: float) -> Refusal:
    """Tell of the limit that makes the caller wait longest."""
    waits = (
        (requests_wait_s, "requests_per_min", limits.requests_per_min),
        (tokens_wait_s, "tokens_per_min", limits.tokens_per_min),
        (streams_wait_s, "streams", limits.streams),
    )
    wait_s, limit, allowed = max((wait_s, name, most) for wait_s, name, most in waits if most is not None)
    return Refusal(limit, allowed, wait_s)
