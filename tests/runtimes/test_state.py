"""What was learned outlives `relay serve`: real traffic, real restarts."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from relay.learned import Memory
from relay.runtimes.state_folder import StateFolder, read
from tests.fakes import FakeClock
from tests.learned import HOME, pipeline, teach
from tests.runtimes.processes import RelayProcess, relay
from tests.servers.chat import completion, request_body, whole
from tests.servers.client import ask, post
from tests.servers.model import model
from tests.servers.policies import policy
from tests.servers.upstream import Upstream, always, send

if TYPE_CHECKING:
    from pathlib import Path

    from relay.learned import Learned

NAMES = ("first", "second")
EXPECTED_S = 30.0
"""What the policy expects of each model, far from what it is."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty policy folder."""
    path = tmp_path / "policy"
    path.mkdir()
    return path


def write(folder: Path, *base_urls: str) -> None:
    """A policy set whose route goes by latency."""
    expected = {"expected": {"ttft_ms": EXPECTED_S * 1000}}
    text = policy(
        *base_urls,
        models={name: {"provider": name, **expected} for name in NAMES},
        routes=[{"name": "auto", "candidates": NAMES, "objective": {"ttft": 1, "explore": 0}}],
    )
    (folder / "policy.toml").write_text(text)


async def expected_s(running: RelayProcess) -> dict[str, float]:
    """How long each model would take to its first token, as the relay now sees it."""
    answer = await ask(running.port, post(request_body(), path="/relay/explain"))
    return {row["model"]: row["ttft_s"] for row in answer.json()["candidates"]}


async def ended(running: RelayProcess) -> int:
    """Stop it gracefully."""
    running.signal(signal.SIGTERM)
    return await running.exit_code()


def known(learned: Learned) -> float:
    """Answers of the cell `HOME`."""
    return sum(sum(c.lengths.weights.values()) for c in learned.experience.answers if c.cell == tuple(HOME))


async def test_routing_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """A restarted relay knows the model that it asked before; in another region, or without state, it does not."""
    async with Upstream(always(send(whole(completion())))) as upstream:
        write(folder, upstream.base_url, upstream.base_url)
        flags = ("--state", str(tmp_path / "state"))
        async with relay(folder, *flags, RELAY_REGION="eu") as running:
            asked = [await ask(running.port, post(request_body())) for _ in range(5)]
            before = await expected_s(running)
            assert await ended(running) == 0
        (served_by,) = {answer.header(b"x-relay-model") for answer in asked}
        known_one = (served_by or b"").decode()
        assert before[known_one] < EXPECTED_S / 2
        async with relay(folder, *flags, RELAY_REGION="eu") as running:
            assert (await expected_s(running)) == pytest.approx(before, rel=1e-3)
            (line,) = await running.logged("state_read")
            assert line["models"] == 1
        for other in ((*flags, "--region", "us"), ()):
            async with relay(folder, *other) as running:
                assert (await expected_s(running))[known_one] > EXPECTED_S / 2


async def test_budgets_go_on_where_they_were(folder: Path, tmp_path: Path) -> None:
    """A restarted relay gives an answer what it would have given it before; without state it begins anew."""
    state = ("--state", str(tmp_path / "state"))
    async with Upstream(model(words=100)) as upstream:
        models = {"first": {"provider": "first", "features": ["tools"]}}  # it does not reason
        text = policy(upstream.base_url, models=models, budgets={"extend": False})
        (folder / "policy.toml").write_text(text)
        async with relay(folder, *state) as running:
            first = await budget(running)
            for _ in range(60):
                last = await budget(running)
            assert await ended(running) == 0
        async with relay(folder, *state) as running:
            after = await budget(running)
            assert await ended(running) == 0
        async with relay(folder) as running:
            anew = await budget(running)
    assert (first, first[1]) == (anew, "prior")
    assert (after[1], after[0]) == ("cell", pytest.approx(last[0], rel=0.11))  # a bucket
    assert after[0] < first[0] / 2


async def budget(running: RelayProcess) -> tuple[int, str]:
    """What an answer is given, and where that comes from."""
    answer = await ask(running.port, post(request_body()))
    tokens, _, source = (answer.header(b"x-relay-budget") or b"").decode().partition("; source=")
    return int(tokens), source


async def test_nothing_is_lost_or_doubled(folder: Path, tmp_path: Path) -> None:
    """Over restarts with two workers, one of them killed, and with one, what was learned stays what it was."""
    state, teacher = StateFolder(tmp_path / "state", 1), pipeline(FakeClock(wall=time.time()))
    teach(teacher)
    state.begin(NAMES, teacher.clock.wall())
    state.leave(0, Memory(teacher, "").learned())
    before = known(read(tmp_path / "state"))
    write(folder, "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    for workers in (2, 1):
        async with relay(folder, "--state", str(tmp_path / "state"), "--workers", str(workers)) as running:
            await running.until_metric("relay_workers", workers)
            if workers > 1:
                os.kill(running.workers()[0], signal.SIGKILL)
                await running.logged("worker_died")
                await running.until_metric("relay_workers", workers)
            assert await ended(running) == 0
        assert [path.name for path in (tmp_path / "state").iterdir()] == ["learned"]
        assert known(read(tmp_path / "state")) == pytest.approx(before, rel=1e-3)


async def test_a_damaged_file_does_not_keep_the_relay_from_starting(folder: Path, tmp_path: Path) -> None:
    """It says which one it put aside and why, and serves."""
    (tmp_path / "learned").write_bytes(b"\x00" * 100)
    write(folder, "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    async with relay(folder, RELAY_STATE=str(tmp_path)) as running:
        (line,) = await running.logged("state_unreadable", level="warning")
        assert str(tmp_path / "learned") in line["message"]
        assert (await running.get("/readyz")).status == 200
        assert await ended(running) == 0
    assert (tmp_path / "aside" / "learned").read_bytes() == b"\x00" * 100
