"""Waiting for what a test expects, with a limit that only a broken test or a broken relay ever meets."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

PATIENCE_S = 30.0
"""Seconds after which a wait gives up. A guard against hanging, not a claim about speed."""

T = TypeVar("T")


class Arrivals(Generic[T]):
    """What came, in order; one can wait for the next."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._came = asyncio.Event()

    def __len__(self) -> int:
        """How many came."""
        return len(self.items)

    def add(self, item: T) -> None:
        """One more came."""
        self.items.append(item)
        self._came.set()

    async def at(self, index: int) -> T:
        """The one at `index`, as soon as it has come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.items) <= index:
                self._came.clear()
                await self._came.wait()
        return self.items[index]


async def happens(event: asyncio.Event) -> None:
    """Wait for an event."""
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()
