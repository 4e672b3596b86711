"""What one request takes of its key's limits before anything is sent for it, and gives back at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import LimitExceeded
from relay.messages import KeyLimits
from relay.stores.base import Ask, Refusal

if TYPE_CHECKING:
    from relay.clock import Clock
    from relay.policy.compiled import Key
    from relay.stores.base import Lease, Store

LEASE_MARGIN_S = 60.0
"""A lease outlives the longest answer by this much."""


class Reservation:
    """One request's part of its key's limits.

    Args:
        key: whose limits they are.
        store: keeps what is used of them.
        clock: tells the time.
        longest_s: the most that the request may take, seconds.
    """

    __slots__ = ("_clock", "_key", "_leases", "_store", "_ttl_s")

    def __init__(self, key: Key, store: Store, clock: Clock, longest_s: float) -> None:
        self._key = key
        self._store = store
        self._clock = clock
        self._ttl_s = longest_s + LEASE_MARGIN_S
        self._leases: tuple[Lease, ...] = ()

    async def take(self, tokens: int, limits: KeyLimits | None = None) -> None:
        """Take the request, its stream and these tokens.

        Args:
            tokens: to take.
            limits: those that are looked at; None is all of the key's.

        Raises:
            LimitExceeded: one of the limits does not allow it; nothing is taken.
        """
        key = self._key
        ask = Ask(key.name, limits or key.limits, tokens, self._ttl_s)
        verdict = await self._store.reserve(ask, self._clock.now())
        if isinstance(verdict, Refusal):
            raise LimitExceeded(
                f"The key {key.name!r} has used up its {verdict.limit} ({verdict.allowed}).",
                retry_after_s=verdict.retry_after_s,
            )
        self._leases += (verdict,)

    async def take_more(self, tokens: int) -> bool:
        """Take more tokens for the same request. False if the key's limits do not allow it."""
        per_min = self._key.limits.tokens_per_min
        if per_min is not None:
            try:
                await self.take(tokens, KeyLimits(tokens_per_min=per_min))
            except LimitExceeded:
                return False
        return True

    async def settle(self, tokens: int) -> None:
        """Give back what was not used.

        Args:
            tokens: used by the whole request.
        """
        for lease in self._leases:
            await self._store.settle(lease, tokens, self._clock.now())
            tokens = 0  # the first lease bears them all
