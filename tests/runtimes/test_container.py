from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from relay.config import Settings
from relay.errors import ConfigurationError
from relay.runtimes.container import serve
from relay.telemetry.decisions import decode
from tests.runtimes.processes import RelayProcess, relay
from tests.servers.chat import DONE, HELLO, ROLE, STOP, USAGE, completion, framed, request_body, stream_head, whole
from tests.servers.client import RawClient, ask, get, post
from tests.servers.policies import ENVIRON, UPSTREAM_KEY, policy
from tests.servers.upstream import Upstream, always, send, until
from tests.telemetry.logging_kept import logging_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers.upstream import Answerer

REQUESTS = 'relay_requests_total{endpoint="/v1/chat/completions",key="",model="first",outcome="completed",'
REQUESTS += 'provider="first",route="auto",stream="false"}'
LAST = framed(STOP) + framed(USAGE) + framed(DONE) + b"0\r\n\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty policy folder."""
    path = tmp_path / "policy"
    path.mkdir()
    return path


@pytest.fixture
def served_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The policy's secrets are in this process's environment, and it gets its logging back."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    with logging_kept():
        yield


def write(folder: Path, *base_urls: str, **tables: Any) -> None:
    """Put a policy set into the folder, as an editor that replaces files does."""
    fresh = folder / ".fresh"
    fresh.write_text(policy(*base_urls, **tables))
    fresh.replace(folder / "policy.toml")


def begun(go_on: asyncio.Event) -> Answerer:
    """A stream that says hello and then waits for the test."""
    return always(send(stream_head() + framed(ROLE) + framed(HELLO)), until(go_on), send(LAST))


async def test_a_request_is_served_counted_and_logged(folder: Path) -> None:
    """The parts fit together: an answer, its log line and its metrics, all of the same request."""
    async with Upstream(always(send(whole(completion())))) as upstream:
        write(folder, upstream.base_url)
        async with relay(folder) as running:
            answer = await ask(running.port, post(request_body()))
            said = answer.json()
            assert said == json.loads(completion())
            (line,) = await running.logged("request")
            assert line["id"].encode() == answer.header(b"x-request-id")
            assert (line["outcome"], line["model"]) == ("completed", "first")
            assert line["completion_tokens"] == said["usage"]["completion_tokens"]
            (started,) = await running.logged("started")
            assert line["policy"] == started["policy_version"]
            metrics = await running.metrics()
            assert metrics[REQUESTS] == 1
            assert metrics["relay_workers"] == 1
            assert metrics["process_resident_memory_bytes"] > 1e6
            assert metrics["process_open_fds"] > 3
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0
    assert running.lines[-1]["event"] == "stopped"


async def test_a_provider_is_asked_through_its_proxy(folder: Path) -> None:
    """What the fast transport does not speak goes by the other one."""
    async with Upstream(always(send(whole(completion())))) as proxy:
        write(folder, "http://127.0.0.1:9/v1", provider={"proxy": proxy.base_url.removesuffix("/v1")})
        async with relay(folder) as running:
            answer = await ask(running.port, post(request_body()))
    assert answer.json() == json.loads(completion())


@pytest.mark.parametrize(
    ("flags", "names"), [((), {"d.jsonl"}), (("--workers", "2"), {"d.0.jsonl", "d.1.jsonl"})], ids=["alone", "two"]
)
async def test_decisions_are_logged(folder: Path, tmp_path: Path, flags: tuple[str, ...], names: set[str]) -> None:
    """If asked for: what was decided and what came of it, without a word of the prompt, the answer or a key."""
    async with Upstream(always(send(whole(completion())))) as upstream:
        write(folder, upstream.base_url)
        async with relay(folder, *flags, RELAY_DECISION_LOG=str(tmp_path / "d.jsonl")) as running:
            prompt = "what nobody else may read"
            body = request_body(messages=[{"role": "user", "content": prompt}])
            answer = await ask(running.port, post(body))
            (line,) = await running.logged("request")
            await running.until_metric("relay_workers", len(names))
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0
    logs = written_to(tmp_path)
    assert set(logs) == names
    written = b"".join(logs.values())
    ((record,), unreadable) = decode(written.splitlines())
    assert (record.id, record.model, record.outcome, unreadable) == (line["id"], "first", "completed", 0)
    for text in (prompt, answer.json()["choices"][0]["message"]["content"], UPSTREAM_KEY):
        assert text.encode() not in written


def written_to(path: Path) -> dict[str, bytes]:
    """The decision logs in a folder, by name."""
    return {file.name: file.read_bytes() for file in path.glob("*.jsonl")}


async def test_providers_are_probed_if_asked_for(folder: Path) -> None:
    """Probes begin with the relay and are counted."""
    async with Upstream(always(send(whole(b'{"data":[]}')))) as upstream:
        write(folder, upstream.base_url, provider={"probe": {"every_s": 1}})
        async with relay(folder) as running:
            await running.until_metric('relay_upstream_probes_total{provider="first",result="ok"}', 1)
            assert (await upstream.received.at(0)).line == b"GET /v1/models HTTP/1.1"
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0


async def test_decisions_go_to_the_log_if_asked_for(folder: Path) -> None:
    """With a share of 1 each decision has a line, found by the request's id; by default none has."""
    async with Upstream(always(send(whole(completion())))) as upstream:
        routes = [{"name": "auto", "candidates": ["first", "second"], "objective": {"ttft": 1, "explore": 0}}]
        write(folder, upstream.base_url, upstream.base_url, routes=routes)
        for flags, lines in ((("--decision-sample", "1"), 1), ((), 0)):
            async with relay(folder, *flags) as running:
                await ask(running.port, post(request_body()))
                (served,) = await running.logged("request")
                running.signal(signal.SIGTERM)
                assert await running.exit_code() == 0
            decisions = [line for line in running.lines if line["event"] == "decision"]
            assert [(line["id"], line["order"][0]) for line in decisions] == [(served["id"], served["model"])] * lines


async def test_a_decision_log_that_cannot_be_written_keeps_it_from_starting(folder: Path) -> None:
    """Who asked for a record learns at once that there will be none."""
    write(folder, "http://127.0.0.1:9/v1")
    async with relay(folder, "--decision-log", str(folder / "absent" / "d.jsonl")) as running:
        assert await running.exit_code() != 0
    (failed,) = [line for line in running.lines if line["event"] == "worker_failed"]
    assert "cannot be opened: No such file" in failed["message"]


@pytest.mark.parametrize("flags", [(), ("--workers", "2")])
async def test_sighup_reloads(folder: Path, flags: tuple[str, ...]) -> None:
    """A set that holds takes effect for new requests; a stream under way finishes on the old one."""
    go_on = asyncio.Event()
    async with Upstream(begun(go_on)) as old, Upstream(always(send(whole(completion("new"))))) as new:
        write(folder, old.base_url)
        async with relay(folder, *flags) as running, await RawClient.connect(running.port) as stream:
            await stream.send(post(request_body(stream=True)))
            await stream.until_count(HELLO, 1)
            before = (await running.logged("started"))[0]["policy_version"]
            write(folder, new.base_url)
            running.signal(signal.SIGHUP)
            reloaded = await running.logged("policy_reloaded", 2 if flags else 1, before=before)
            assert reloaded[0]["version"] != before
            assert (await ask(running.port, post(request_body()))).json()["choices"][0]["message"]["content"] == "new"
            go_on.set()
            assert (await stream.whole()).body.endswith(DONE)
            (line,) = await running.logged("request", policy=before)
            assert line["outcome"] == "completed"


async def test_a_change_in_the_folder_reloads(folder: Path) -> None:
    """No signal is needed."""
    write(folder, "http://127.0.0.1:9/v1")
    async with relay(folder) as running:
        write(folder, "http://127.0.0.1:10/v1")
        (reloaded,) = await running.logged("policy_reloaded")
        assert (await running.get("/readyz")).json()["policy"] == reloaded["version"]
        await running.until_metric('relay_policy_reloads_total{result="loaded"}', 1)
        assert (await running.metrics())[f'relay_policy_info{{version="{reloaded["version"]}"}}'] == 1


async def test_a_broken_set_keeps_the_old_one(folder: Path) -> None:
    """Each finding is logged with its place, the refusal counted, and the live set stays."""
    write(folder, "http://127.0.0.1:9/v1")
    async with relay(folder) as running:
        (folder / "policy.toml").write_text("version = 1\n\n[providers.x]\ndialect = 'klingon'\n")
        (refused, *_) = await running.logged("policy_refused")
        (started,) = await running.logged("started")
        assert refused["version"] == started["policy_version"]
        findings = await running.logged("policy_finding", key="providers.x.dialect")
        assert findings[0]["line"] == 4
        assert (await running.get("/readyz")).json() == {"status": "ready", "policy": started["policy_version"]}
        await running.until_metric('relay_policy_reloads_total{result="refused"}', 1)


async def test_a_set_that_may_not_be_served_here_is_refused(folder: Path) -> None:
    """Opening the policy of a relay that others can reach needs the same force by reload as at the start."""
    keys = {"keys": {"a": {"sha256": "0" * 64}}}
    write(folder, "http://127.0.0.1:9/v1", access={"open": False}, **keys)
    async with relay(folder, "--host", "0.0.0.0") as running:  # noqa: S104 - what is tested is that this is guarded
        write(folder, "http://127.0.0.1:9/v1")
        (refused,) = await running.logged("policy_refused")
        assert "RELAY_FORCE_OPEN" in refused["message"]


async def test_sigterm_lets_streams_finish(folder: Path) -> None:
    """The port closes, `/readyz` turns 503 on open connections, the stream ends as if nothing had happened."""
    go_on = asyncio.Event()
    async with Upstream(begun(go_on)) as upstream:
        write(folder, upstream.base_url)
        async with (
            relay(folder) as running,
            await RawClient.connect(running.port) as stream,
            await RawClient.connect(running.port) as probe,
        ):
            await probe.send(get("/readyz"))
            assert (await probe.whole()).status == 200
            await stream.send(post(request_body(stream=True)))
            await stream.until_count(HELLO, 1)
            running.signal(signal.SIGTERM)
            await running.logged("stopping", active_requests=1)
            await probe.send(get("/readyz"))
            assert (await probe.whole()).status == 503
            await probe.send(post(request_body()))
            assert (await probe.whole()).status == 503
            with pytest.raises(ConnectionRefusedError):
                await RawClient.connect(running.port)
            go_on.set()
            assert (await stream.whole()).body.endswith(DONE)
            assert await running.exit_code() == 0


async def ended_in_band(folder: Path, flags: tuple[str, ...], end: Callable[[RelayProcess], Any]) -> int:
    """Start a stream that never ends, let `end` end it, check what the client saw; returns the exit code."""
    async with Upstream(begun(asyncio.Event())) as upstream:
        write(folder, upstream.base_url)
        async with relay(folder, *flags) as running, await RawClient.connect(running.port) as stream:
            await stream.send(post(request_body(stream=True)))
            await stream.until_count(HELLO, 1)
            running.signal(signal.SIGTERM)
            await running.logged("stopping")
            end(running)
            answer = await stream.whole()
            assert b"shutting down" in answer.body
            assert DONE not in answer.body
            code = await running.exit_code()
            assert [line["outcome"] for line in running.lines if line["event"] == "request"] != ["completed"]
            return code


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_streams_that_take_too_long_are_ended_in_band(folder: Path, workers: str) -> None:
    """When the time is up the client gets an error event and no `[DONE]`, and the relay exits with 0."""
    flags = ("--shutdown-s", "0.2", "--workers", workers)
    assert await ended_in_band(folder, flags, lambda _: None) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_ends_at_once(folder: Path, workers: str) -> None:
    """Whoever signals twice does not wait for streams; they are ended in band all the same."""
    flags = ("--shutdown-s", "3600", "--workers", workers)
    assert await ended_in_band(folder, flags, lambda running: running.signal(signal.SIGINT)) == 1


async def test_a_signal_to_the_whole_group_is_one_signal(folder: Path) -> None:
    """Ctrl-C and systemd reach parent and workers alike: that is one graceful stop, not a hurried one."""
    go_on = asyncio.Event()
    async with Upstream(begun(go_on)) as upstream:
        write(folder, upstream.base_url)
        async with relay(folder, "--workers", "2") as running, await RawClient.connect(running.port) as stream:
            await stream.send(post(request_body(stream=True)))
            await stream.until_count(HELLO, 1)
            await running.until_metric("relay_workers", 2)
            os.killpg(running.process.pid, signal.SIGTERM)
            await running.logged("stopping", 2)
            go_on.set()
            assert (await stream.whole()).body.endswith(DONE)
            assert await running.exit_code() == 0


async def test_workers_add_up(folder: Path) -> None:
    """Whichever worker is scraped tells of all of them, also of one that died and was replaced."""
    async with Upstream(always(send(whole(completion())))) as upstream:
        write(folder, upstream.base_url)
        async with relay(folder, "--workers", "2") as running:
            for _ in range(20):
                assert (await ask(running.port, post(request_body()))).status == 200
            served = {line["id"] for line in await running.logged("request", 20)}
            assert len(served) == 20
            await running.until_metric(REQUESTS, 20)
            await running.until_metric("relay_workers", 2)
            for victim in running.workers():
                os.kill(victim, signal.SIGTERM)  # not SIGKILL: that may lose what was counted in the last second
            await running.logged("worker_died", 2, exit_code=0)
            await running.until_metric("relay_workers", 2)
            await running.until_metric(REQUESTS, 20)
            assert (await ask(running.port, post(request_body()))).status == 200
            await running.until_metric(REQUESTS, 21)
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0


async def test_a_replaced_worker_serves_what_last_held(folder: Path) -> None:
    """A set that is broken on disk does not keep a dead worker's successor from serving."""
    write(folder, "http://127.0.0.1:9/v1")
    async with relay(folder, "--workers", "2") as running:
        await running.until_metric("relay_workers", 2)
        (folder / "policy.toml").write_text("nonsense")
        await running.logged("policy_refused", 2)
        for victim in running.workers():
            os.kill(victim, signal.SIGKILL)
        await running.logged("worker_died", 2, exit_code=-signal.SIGKILL)
        (started,) = await running.logged("started")
        assert (await running.get("/readyz")).json()["policy"] == started["policy_version"]


async def test_workers_do_not_outlive_their_parent(folder: Path) -> None:
    """When the parent is killed the workers stop by themselves, so that the port is free again."""
    write(folder, "http://127.0.0.1:9/v1")
    async with relay(folder, "--workers", "2") as running:
        await running.until_metric("relay_workers", 2)
        running.signal(signal.SIGKILL)
        await running.logged("orphaned", 2)
        await running.exit_code()


@pytest.mark.parametrize(("key", "status"), [((), 401), ((("authorization", "Bearer sixteen characters"),), 200)])
async def test_the_admin_key_guards_the_metrics(folder: Path, key: tuple[tuple[str, str], ...], status: int) -> None:
    """With an admin key `/metrics` answers those who have it."""
    write(folder, "http://127.0.0.1:9/v1")
    async with relay(folder, RELAY_ADMIN_KEY="sixteen characters") as running:
        assert (await running.get("/metrics", *key)).status == status


@pytest.mark.usefixtures("served_here")
def test_an_open_policy_stays_at_home(folder: Path) -> None:
    """An open policy on an address that others reach is refused with what to do about it."""
    write(folder, "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=r"is open .* 0\.0\.0\.0 is not a loopback .* RELAY_FORCE_OPEN"):
        serve(Settings(policy=folder, host="0.0.0.0", port=0))  # noqa: S104


@pytest.mark.usefixtures("served_here")
def test_state_that_cannot_be_kept_stops_the_start(folder: Path) -> None:
    """Who asked for it is told what is wrong with the folder."""
    write(folder, "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=r"cannot be kept in .*policy\.toml/state: Not a directory"):
        serve(Settings(policy=folder, port=0, state=folder / "policy.toml" / "state"))


@pytest.mark.usefixtures("served_here")
def test_a_port_in_use_is_named(folder: Path) -> None:
    """The message says which port, and the operating system's reason."""
    write(folder, "http://127.0.0.1:9/v1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Cannot listen on 127.0.0.1 port {port}: Address already in use"):
            serve(Settings(policy=folder, port=port))
