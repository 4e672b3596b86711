"""Health probes over real sockets, in a fake clock's time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest

from relay.policy.load import load
from relay.probes import LOOK_S, MAX_BODY_BYTES, Probes
from tests.fakes import FakeClock, settle
from tests.servers.chat import completion, request_body, whole
from tests.servers.client import ask, post
from tests.servers.policies import ENVIRON, UPSTREAM_KEY, policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, send, stall
from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from relay.probes import Result
    from tests.servers.relay import Running
    from tests.servers.upstream import Received, Step

EVERY_S, OPEN_S, TIMEOUT_S, FAILURES = 30.0, 10.0, 5.0, 2
LIST = whole(b'{"data":[]}')
DOWN = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


class Provider:
    """An upstream whose health a test decides.

    Attributes:
        probe: how it answers probes.
        serve: how it answers requests.
        probes: those it got.
        requests: likewise.
    """

    def __init__(self) -> None:
        self.probe: Step = send(LIST)
        self.serve: Step = send(whole(completion()))
        self.probes: list[Received] = []
        self.requests: list[Received] = []

    def answer(self, received: Received) -> Iterable[Step]:
        """To whatever comes."""
        asked = received.line.startswith(b"GET ")
        (self.probes if asked else self.requests).append(received)
        return [self.probe if asked else self.serve]

    def dies(self, how: Step) -> None:
        """From now on it answers nothing well."""
        self.probe = self.serve = how

    def recovers(self) -> None:
        """From now on it answers everything."""
        self.probe, self.serve = send(LIST), send(whole(completion()))


class World:
    """A relay with probes in front of one provider."""

    def __init__(self, relay: Running, provider: Provider, clock: FakeClock) -> None:
        self.relay, self.provider, self.clock = relay, provider, clock
        self.probes = Probes(relay.pipeline)
        self.probes.start()

    async def ask(self) -> int:
        """A user's request; its status."""
        return (await ask(self.relay.port, post(request_body()))).status

    async def pass_time(self, seconds: float) -> None:
        """Look by look, each when the probe that the one before set off is over, or waits for its answer."""
        for _ in range(int(seconds / LOOK_S)):
            await self.clock.advance(LOOK_S)
            async with asyncio.timeout(PATIENCE_S):
                while not self._at_rest():
                    await settle()

    def _at_rest(self) -> bool:
        probes = [watch._probe for watch in self.probes._watches.values() if watch._probe is not None]
        waits = self.provider.probe is stall and len(self.provider.probes) > sum(self.probes.counts.values())
        return waits or all(probe.over for probe in probes)

    async def until_probed(self, result: Result, count: int, *, within_s: float = 300) -> None:
        """Let time pass until that many probes have ended so."""
        for _ in range(int(within_s / LOOK_S)):
            if self.counts(result) >= count:
                return
            await self.pass_time(LOOK_S)
        pytest.fail(f"{self.probes.counts} after {within_s} s")

    def counts(self, result: Result) -> int:
        """Probes that ended so."""
        return self.probes.counts.get(("first", result), 0)

    def phase(self, model: str = "first") -> str:
        """Where a model's breaker stands."""
        return self.relay.pipeline.upstreams[model].state.phase(self.clock.now())


def written(base_url: str, **of_provider: Any) -> str:
    """A policy with one provider that has two models."""
    return policy(
        base_url,
        attempts=1,
        provider={
            "breaker": {"failures": FAILURES, "open_s": OPEN_S},
            "headers": {"x-team": "search"},
            **of_provider,
        },
        models={"first": {"provider": "first"}, "second": {"provider": "first"}},
    )


@contextlib.asynccontextmanager
async def world(**probe: Any) -> AsyncIterator[World]:
    """A relay that probes its one provider."""
    provider, clock = Provider(), FakeClock()
    async with Upstream(provider.answer) as upstream:
        text = written(upstream.base_url, probe={"every_s": EVERY_S, "timeout_s": TIMEOUT_S, **probe})
        async with serve(text, clock=clock) as relay:
            made = World(relay, provider, clock)
            yield made
            made.probes.stop()


async def test_an_idle_provider_is_asked_as_itself() -> None:
    """Some every `every_s`, with its credentials and fixed headers, on one connection, and nothing else."""
    async with world(path="/models?limit=1") as w:
        await w.pass_time(10 * EVERY_S)
        assert 8 <= len(w.provider.probes) <= 13
        assert w.counts("ok") == len(w.provider.probes)
        assert {probe.connection for probe in w.provider.probes} == {1}
        probe = w.provider.probes[0]
        assert (probe.line, probe.body) == (b"GET /v1/models?limit=1 HTTP/1.1", b"")
        assert probe.header(b"authorization") == f"Bearer {UPSTREAM_KEY}".encode()
        assert probe.header(b"x-team") == b"search"
        assert not w.provider.requests


async def test_requests_tell_as_much_as_probes() -> None:
    """A provider that serves is not asked as well."""
    async with world() as w:
        for _ in range(20):
            assert await w.ask() == 200
            await w.pass_time(EVERY_S / 3)
        assert not w.provider.probes


@pytest.mark.parametrize("how", [send(DOWN), stall], ids=["503", "silence"])
async def test_an_idle_providers_death_is_known_before_a_request_meets_it(
    how: Step, caplog: pytest.LogCaptureFixture
) -> None:
    """After `breaker.failures` probes no model of it is asked any more; said once, and when it is back."""
    caplog.set_level(logging.INFO)
    async with world() as w:
        w.provider.dies(how)
        await w.until_probed("failed", 1)
        assert w.phase() == "closed"
        await w.until_probed("failed", FAILURES)
        assert (w.phase("first"), w.phase("second")) == ("open", "open")
        assert await w.ask() == 503
        assert not w.provider.requests
        await w.until_probed("failed", 5)
        w.provider.recovers()
        await w.until_probed("ok", 1)
        assert w.phase() == "half_open"
        assert await w.ask() == 200
        assert w.phase() == "closed"
    events = [line.event for line in caplog.records if line.name == "relay.probes"]  # type: ignore[attr-defined]
    assert events == ["provider_down", "provider_up"]


async def test_no_request_is_spent_on_a_dead_provider() -> None:
    """Requests open the breaker; from then on probes find out, and the first request behind a good one is served."""
    async with world() as w:
        w.provider.dies(send(DOWN))
        for _ in range(FAILURES):
            assert await w.ask() == 503
        spent = len(w.provider.requests)
        await w.until_probed("failed", 1, within_s=OPEN_S * 1.3)
        for _ in range(20):
            await w.pass_time(OPEN_S / 2)
            assert await w.ask() == 503
        assert len(w.provider.requests) == spent
        w.provider.recovers()
        await w.until_probed("ok", 1, within_s=OPEN_S * 1.3)
        assert await w.ask() == 200
        assert len(w.provider.requests) == spent + 1


async def test_a_model_that_fails_while_its_provider_lives() -> None:
    """A good probe lets one request try, no more: it takes a served one to close the breaker."""
    async with world() as w:
        w.provider.serve = send(DOWN)
        for _ in range(FAILURES):
            await w.ask()
        for tried in range(1, 4):
            await w.until_probed("ok", w.counts("ok") + 1)
            await w.ask()
            assert w.phase() == "open"
            assert len(w.provider.requests) == FAILURES + tried
        assert w.phase("second") == "closed"


async def test_a_model_that_serves_is_not_shut_by_probes() -> None:
    """One whose requests are answered stays in, however probes and its siblings fare."""
    async with world() as w:
        w.provider.probe = send(DOWN)
        w.relay.pipeline.upstreams["second"].dead(w.clock.now() + OPEN_S)  # so that probes go on beside requests
        for _ in range(10):
            assert await w.ask() == 200
            await w.pass_time(OPEN_S)
        assert w.counts("failed") > FAILURES
        assert (w.phase("first"), w.phase("second")) == ("closed", "open")


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "429 Too Many Requests", "302 Found"])
async def test_an_answer_that_tells_nothing_changes_nothing(status: str, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong path or a key that may not list models takes no provider out; it is said once."""
    async with world() as w:
        w.provider.probe = send(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        await w.until_probed("refused", 4)
        assert w.phase() == "closed"
        assert await w.ask() == 200
    (line,) = [line for line in caplog.records if line.name == "relay.probes"]
    assert f"status {status[:3]}" in line.getMessage()


async def test_an_endless_answer_is_given_up() -> None:
    """The head is enough; what is longer than any list of models is not read to its end."""
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + bytes(MAX_BODY_BYTES + 1)
    async with world() as w:
        w.provider.probe = send(endless)
        await w.until_probed("ok", 2)
        assert len({probe.connection for probe in w.provider.probes}) == len(w.provider.probes)


async def test_probes_follow_the_policy() -> None:
    """A reload ends and begins them; nobody is asked while the relay drains."""
    async with world() as w:
        await w.until_probed("ok", 1)
        probed = w.relay.pipeline.policy
        unprobed = written(probed.providers["first"].base_url)
        w.relay.pipeline.policy = load({"test.toml": unprobed}, ENVIRON)
        await w.pass_time(5 * EVERY_S)
        assert len(w.provider.probes) == 1
        w.relay.pipeline.policy = probed
        await w.until_probed("ok", 2)
        await w.relay.pipeline.drain(0.0)
        await w.pass_time(5 * EVERY_S)
        assert len(w.provider.probes) == 2
