"""The seam to shared state: what keys have used. Each verb is atomic in every store."""

from __future__ import annotations

from typing import Protocol

import msgspec

from relay.messages import KeyLimits


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a request wants to take.

    Attributes:
        key: name of the policy's key.
        limits: what that key may use.
        tokens: prompt estimate plus the answer's limit, tokens.
        ttl_s: seconds after which an unsettled lease is void (a crash must not hold a stream slot for ever).
    """

    key: str
    limits: KeyLimits
    tokens: int
    ttl_s: float


class Lease(msgspec.Struct, frozen=True, gc=False):
    """What was taken. Give it back with `Store.settle`.

    Attributes:
        id: unique within the store.
        ask: what it was granted for.
    """

    id: str
    ask: Ask


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why nothing was taken.

    Attributes:
        limit: the field of KeyLimits that is used up.
        allowed: how large that limit is.
        retry_after_s: seconds until the same ask would pass, if nothing else is taken meanwhile; for `streams`,
            which end when they end, a moment after which asking again is worth while.
    """

    limit: str
    allowed: int
    retry_after_s: float


class Store(Protocol):
    """Keeps what keys have used.

    Verbs may be awaited outside of any task (`relay.exchange.Exchange.start`): one whose driver needs a task makes it.
    `now` is seconds on one clock for all who share the store; within a process it does not run backwards. Limits,
    where they are set, are at least 1.
    """

    async def reserve(self, ask: Ask, now: float) -> Lease | Refusal:
        """Take one request, `ask.tokens` tokens and one stream from the key, or nothing at all.

        An ask for more tokens than the bucket can ever hold takes a full bucket, so that it passes sometimes.
        """

    async def settle(self, lease: Lease, tokens: int, now: float) -> None:
        """Give the stream back and correct the tokens to what was really used.

        A second call does nothing, nor does one after the lease has expired.
        """

    async def ready(self) -> bool:
        """Whether the store can be reached."""

    async def close(self) -> None:
        """Let go of connections and files."""
