"""Which event loops the contracts are tried on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.transports.loops import LOOPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS if item.path.name == "test_transports.py" else {"asyncio": asyncio.new_event_loop}
