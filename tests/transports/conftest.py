"""Every transport runs on both event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.transports.loops import LOOPS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS
