"""The event loops that what speaks to sockets is tried on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop  # noqa: PLC0415 absent where the portable tests run

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": _uvloop}
