"""Many slow streams at once through one worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, WORLD, framed
from tests.servers.client import RawClient, ask, get, post
from tests.servers.policies import ENVIRON, policy
from tests.servers.upstream import Upstream, always, send, until, unused_port
from tests.servers.waiting import PATIENCE_S, Arrivals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STREAMS = 1000
ROUNDS = 10
FILES = 2 * STREAMS + 200
"""Sockets that this process holds (clients and upstream connections), and as many again in the relay."""


@pytest.fixture
def enough_files():
    """Allow this process and its children that many open files, if the machine does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"the machine allows {hard} open files; {FILES} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def relay_process(policy_text: str, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """`relay serve` with one worker, as a process: its port and its id. It must end by itself when asked to."""
    (folder / "test.toml").write_text(policy_text)
    port = unused_port()
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("relay"),
        "serve",
        env={
            **os.environ,
            **ENVIRON,
            "RELAY_POLICY": str(folder),
            "RELAY_PORT": str(port),
            "RELAY_LOG_LEVEL": "warning",
        },
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await ready(port):
                assert process.returncode is None, "relay serve has ended"
                await asyncio.sleep(0.02)
        yield port, process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(PATIENCE_S):
            code = await process.wait()
    assert code == 0


async def ready(port: int) -> bool:
    """Whether the relay takes requests."""
    try:
        return (await ask(port, get("/readyz"))).status == 200
    except ConnectionRefusedError:
        return False


def resident_mb(pid: int, field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (at most so far) of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


@pytest.mark.usefixtures("enough_files")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of a process is read from /proc")
async def test_a_thousand_slow_streams_complete(tmp_path, record_property, capsys):
    """While all are open each gets its chunks round by round, as they are sent; all complete."""
    rounds = [asyncio.Event() for _ in range(ROUNDS)]
    paced = [step for event in rounds for step in (until(event), send(framed(WORLD)))]
    script = (send(chat.stream_head(), framed(ROLE), framed(HELLO)), *paced, send(framed(STOP + DONE), LAST_CHUNK))
    in_step: Arrivals[None] = Arrivals()

    async def consume(port: int) -> bytes:
        async with await RawClient.connect(port) as client:
            await client.send(post(chat.request_body(stream=True)))
            await client.until_count(HELLO, 1)
            in_step.add(None)
            for count in range(1, ROUNDS + 1):
                await client.until_count(WORLD, count)
                in_step.add(None)
            answer = await client.whole()
        assert answer.complete
        return bytes(answer.body)

    async with Upstream(always(*script)) as upstream, relay_process(policy(upstream.base_url), tmp_path) as (port, pid):
        before = resident_mb(pid, "VmRSS")
        consumers = [asyncio.create_task(consume(port)) for _ in range(STREAMS)]
        for number, event in enumerate(rounds, 1):
            await in_step.at(number * STREAMS - 1)
            event.set()
        bodies = await asyncio.gather(*consumers)
        most = resident_mb(pid, "VmHWM")
        assert upstream.connections == STREAMS
    assert set(bodies) == {ROLE + HELLO + WORLD * ROUNDS + STOP + DONE}
    record_property("resident_mb_before", before)
    record_property("resident_mb_with_streams", most)
    with capsys.disabled():
        print(f"\n{STREAMS} streams: {before:.0f} MB before, {most:.0f} MB at most")  # noqa: T201
