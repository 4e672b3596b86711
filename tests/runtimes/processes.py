"""`relay serve` as a process of its own, seen from outside: its log, its port, its signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.client import ask, get
from tests.servers.policies import ENVIRON
from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from tests.servers.client import Answer


class RelayProcess:
    """A relay that was started.

    Attributes:
        port: where it listens.
        lines: what it has logged so far, read as JSON.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0
        self.lines: list[dict[str, Any]] = []
        self._more = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))
            self._more.set()

    async def logged(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Wait until that many such lines were logged, and return them."""
        wanted = {"event": event, **fields}
        async with self._patience(f"{count} lines with {wanted}"):
            while len(found := [line for line in self.lines if _has(line, wanted)]) < count:
                self._more.clear()
                await self._more.wait()
        return found

    @contextlib.asynccontextmanager
    async def _patience(self, hope: str) -> AsyncIterator[None]:
        """What is awaited comes in time, or the test fails with the log."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield
        except TimeoutError:
            pytest.fail(f"waited in vain for {hope}; logged: {self.lines}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, not to its workers."""
        self.process.send_signal(number)

    def workers(self) -> list[int]:
        """The processes that it has started."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def exit_code(self) -> int:
        """Wait for its end; its log is complete then."""
        async with self._patience("the end of the process"):
            code = await self.process.wait()
            await self._reader
        return code

    async def get(self, path: str, *headers: tuple[str, str]) -> Answer:
        """One GET on a connection of its own."""
        return await ask(self.port, get(path, *headers))

    async def metrics(self) -> dict[str, float]:
        """A scrape: sample with its labels, as written -> value."""
        text = (await self.get("/metrics")).body.decode()
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {sample: float(value) for sample, value in samples}

    async def until_metric(self, sample: str, value: float) -> None:
        """Scrape until a sample has that value."""
        async with self._patience(f"{sample} to be {value}"):
            while True:
                samples = await self.metrics()
                if samples.get(sample) == value:
                    return
                await asyncio.sleep(0.05)


def _has(line: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(line.get(name) == value for name, value in wanted.items())


@contextlib.asynccontextmanager
async def relay(folder: Path, *flags: str, **environ: str) -> AsyncIterator[RelayProcess]:
    """Start `relay serve` on a free port of loopback; whatever is left of it when the block ends is killed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve", "--policy", str(folder), "--port", "0", *flags),
        stdout=asyncio.subprocess.PIPE,
        env={**own, **ENVIRON, **environ},
        start_new_session=True,
    )
    running = RelayProcess(process)
    try:
        (started,) = await running.logged("started")
        running.port = int(started["address"].rsplit(":", 1)[1])
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await running._reader
