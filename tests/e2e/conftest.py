"""Each front of the relay is proved on the event loop that it has in real life."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item):
    """The loops that a test's own mark names; without one, asyncio's own."""
    mark = item.get_closest_marker("asyncio")
    names = mark.kwargs.get("loop_factories", ["asyncio"]) if mark else ["asyncio"]
    return {name: LOOPS[name] for name in names}


@pytest.fixture
async def front() -> str:
    """How requests come in: below ASGI on uvloop, as in the container; through ASGI on asyncio, as anywhere else."""
    return "fast" if isinstance(asyncio.get_running_loop(), uvloop.Loop) else "asgi"
