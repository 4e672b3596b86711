"""When a folder that changes becomes the live policy."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from relay.clock import LoopClock
from relay.pipeline import Pipeline
from relay.policy.load import load
from relay.runtimes.policy_files import read_folder
from relay.runtimes.policy_reload import PolicyReload
from relay.stores.memory import MemoryStore
from relay.telemetry.metrics import Metrics
from relay.transports.sockets import SocketsTransport
from tests.servers.policies import ENVIRON, policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PolicyReload]:
    """Of the set in `tmp_path`, not running by itself."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    write(tmp_path, 1)
    files = read_folder(tmp_path)
    pipeline = Pipeline(
        load(files, ENVIRON),
        transport=SocketsTransport(),
        store=MemoryStore(),
        observers=[],
        clock=LoopClock(),
        rng=random.Random(0),
    )
    yield PolicyReload(tmp_path, pipeline, Metrics(), seen=files, admit=lambda _: None, keep=lambda _: None)
    await pipeline.close()


def write(folder: Path, port: int) -> None:
    """Write a set that can be told by its upstream's port."""
    (folder / "a.toml").write_text(policy(f"http://127.0.0.1:{port}/v1"))


async def port(reload: PolicyReload) -> int:
    """Look once; whose set is live then?"""
    await reload.look()
    (provider, *_) = reload._pipeline.policy.providers.values()
    return int(provider.base_url.removesuffix("/v1").rpartition(":")[2])


async def test_a_set_that_still_changes_is_waited_for(tmp_path: Path, live: PolicyReload) -> None:
    """Only what two looks have found alike is taken: the files of a set are not all written at once."""
    assert await port(live) == 1
    write(tmp_path, 2)
    assert await port(live) == 1
    write(tmp_path, 3)
    assert await port(live) == 1
    assert await port(live) == 3


async def test_who_asks_need_not_wait(tmp_path: Path, live: PolicyReload) -> None:
    """A reload that is asked for takes what it finds."""
    write(tmp_path, 2)
    live.ask()
    assert await port(live) == 2


async def test_a_change_that_is_taken_back_is_none(tmp_path: Path, live: PolicyReload) -> None:
    """A set that is again as it was when it is looked at is not loaded anew."""
    write(tmp_path, 2)
    assert await port(live) == 1
    write(tmp_path, 1)
    assert await port(live) == 1
    assert await port(live) == 1
