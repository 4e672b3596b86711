"""Runs under Pyodide: pytest with the arguments given, on an event loop that has no sockets."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest


class SocketlessLoop(asyncio.BaseEventLoop):
    """asyncio's own loop, with timers and callbacks but nothing to wait for outside.

    Pyodide's loop belongs to the JavaScript host and cannot run until a coroutine is done; the ones that can, need
    a socket pair to be woken by.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = self

    def select(self, timeout: float | None) -> list[object]:
        """Sleep until the next timer is due."""
        if timeout is None:
            msg = "a test waits for something that nothing inside the process will bring"
            raise RuntimeError(msg)
        time.sleep(timeout)
        return []

    def _process_events(self, events: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps while another thread could call: there is one thread."""


class SlowMachine:
    """WebAssembly is several times slower than the machine: Hypothesis takes fewer examples and more time."""

    def pytest_configure(self) -> None:
        from hypothesis import HealthCheck, settings  # noqa: PLC0415  (its pytest plugin wants to be first)

        slow = [HealthCheck.too_slow]
        settings.register_profile("pyodide", deadline=None, max_examples=25, database=None, suppress_health_check=slow)
        settings.load_profile("pyodide")


asyncio._set_running_loop(None)  # the host's loop counts as running for as long as the program does
asyncio.new_event_loop = asyncio.events.new_event_loop = SocketlessLoop
os.chdir(Path(__file__).parents[2])
sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"], plugins=[SlowMachine()]))
