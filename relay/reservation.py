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

    def __init__(self, key: Key, store: Store, clock: Clock, *, longest_s: float) -> None:
        self._key = key
        self._store = store
        self._clock = clock
        self._ttl_s = longest_s + LEASE_MARGIN_S
        self._leases: tuple[Lease, ...] = ()

    async def take(self, tokens: int) -> None:
        """Take the request, its stream and these tokens.

        Raises:
            LimitExceeded: one of the limits does not allow it; nothing is taken.
        """
        key = self._key
        refusal = await self._reserve(key.limits, tokens)
        if refusal is not None:
            raise LimitExceeded(
                f"The key {key.name!r} has used up its {refusal.limit} ({refusal.allowed}).",
                retry_after_s=refusal.retry_after_s,
            )

    async def take_more(self, tokens: int) -> bool:
        """Take more tokens for the same request. False if the key's limits do not allow it."""
        per_min = self._key.limits.tokens_per_min
        return per_min is None or await self._reserve(KeyLimits(tokens_per_min=per_min), tokens) is None

    async def _reserve(self, limits: KeyLimits, tokens: int) -> Refusal | None:
        verdict = await self._store.reserve(Ask(self._key.name, limits, tokens, self._ttl_s), self._clock.now())
        if isinstance(verdict, Refusal):
            return verdict
        self._leases += (verdict,)
        return None

    async def settle(self, tokens: int) -> None:
        """Give back what was not used.

        Args:
            tokens: used by the whole request.
        """
        for lease in self._leases:
            await self._store.settle(lease, tokens, self._clock.now())
            tokens = 0  # the first lease bears them all
