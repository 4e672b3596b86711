"""Requests whose head was seen before are not parsed again, and mean what they meant."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest

from relay.policy.load import load
from relay.runtimes import fast_lane
from relay.runtimes.http_server import BoundedProtocol
from relay.stores.memory import MemoryStore
from tests.fakes import settle
from tests.servers.chat import completion, request_body, whole
from tests.servers.client import RawClient, post
from tests.servers.policies import ENVIRON, policy
from tests.servers.relay import Running, serve
from tests.servers.upstream import Upstream, always, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from relay.stores.base import Ask, Lease, Refusal

ANSWER = whole(completion())
KEYS = {"one": {"sha256": hashlib.sha256(b"sk-one").hexdigest(), "limits": {"streams": 1}}}
AS_ONE = ("Authorization", "Bearer sk-one")


class Parsed:
    """Counts reads that went through the parser."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        original = BoundedProtocol.data_received

        def counting(protocol: BoundedProtocol, data: bytes) -> None:
            self.reads += 1
            original(protocol, data)

        monkeypatch.setattr(BoundedProtocol, "data_received", counting)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """How many reads were parsed."""
    return Parsed(monkeypatch)


@contextlib.asynccontextmanager
async def talking() -> AsyncIterator[tuple[Running, RawClient]]:
    """A relay in front of an upstream that always answers, and a client on one connection."""
    async with (
        Upstream(always(send(ANSWER))) as upstream,
        serve(policy(upstream.base_url, access={"open": False}, keys=KEYS)) as running,
        await RawClient.connect(running.port) as client,
    ):
        yield running, client


async def status(client: RawClient, *pieces: bytes) -> int:
    """Send a request, piece by piece, and see it answered."""
    for piece in pieces:
        await client.send(piece)
    return (await client.whole()).status


async def test_only_the_first_of_like_requests_is_parsed(parsed):
    """A head like one before, whatever the length of the body behind it, is not read again; the body is."""
    async with talking() as (running, client):
        for text in ("a", "bb", "c" * 5000):
            body = request_body(messages=[{"role": "user", "content": text}])
            assert await status(client, post(body, AS_ONE)) == 200
        assert await status(client, post(b"{", AS_ONE)) == 400
        assert [record.key for record in running.records.items] == ["one"] * 4
    assert parsed.reads == 1


async def test_another_key_is_another_head(parsed):
    """Who is asking is looked at again as soon as one byte of the head differs."""
    async with talking() as (_, client):
        assert await status(client, post(request_body(), AS_ONE)) == 200
        assert await status(client, post(request_body(), ("Authorization", "Bearer sk-two"))) == 401
        assert await status(client, post(request_body(), AS_ONE)) == 200
    assert parsed.reads == 2


async def test_a_request_in_pieces_is_parsed(parsed):
    """What does not arrive in one piece takes the long way, before and after requests that do."""
    async with talking() as (_, client):
        request = post(request_body(), AS_ONE)
        for cut in (1, len(request) // 2, len(request) - 1):
            assert await status(client, request) == 200
            await client.send(request[:cut])
            await settle()
            assert await status(client, request[cut:]) == 200
    assert parsed.reads > 3


async def test_pipelined_requests_are_answered_in_turn(parsed):
    """Two requests in one piece, or one behind another that is still being answered, are parsed."""
    async with talking() as (_, client):
        request = post(request_body(), AS_ONE)
        assert await status(client, request) == 200
        await client.send(request + request)
        assert (await client.whole()).status == 200
        assert (await client.whole()).status == 200
        assert await status(client, request) == 200
    assert parsed.reads == 2


async def test_a_new_policy_looks_at_heads_anew(parsed):
    """A key that a reload takes away is refused at once."""
    async with talking() as (running, client):
        request = post(request_body(), AS_ONE)
        assert await status(client, request) == 200
        others = {"two": {"sha256": hashlib.sha256(b"sk-two").hexdigest()}}
        text = policy("http://127.0.0.1:9/v1", access={"open": False}, keys=others)
        running.pipeline.policy = load({"test.toml": text}, ENVIRON)
        assert await status(client, request) == 401
    assert parsed.reads == 2


async def test_a_relay_that_stops_refuses_known_heads_too():
    """Shutting down is not a matter of the head."""
    async with talking() as (running, client):
        request = post(request_body(), AS_ONE)
        assert await status(client, request) == 200
        running.pipeline.draining = True
        assert await status(client, request) == 503


async def test_heads_that_rule_the_connection_are_not_remembered(parsed):
    """`connection: close` and `expect` need the parser each time."""
    async with talking() as (running, client):
        assert await status(client, post(request_body(), AS_ONE, ("Expect", "100-continue"))) == 200
        assert await status(client, post(request_body(), AS_ONE, ("Connection", "close"))) == 200
        assert running.pipeline.heads == {}
    assert parsed.reads == 2


async def test_no_more_than_so_many_heads_are_remembered(monkeypatch):
    """Clients that never send the same head twice cannot fill the memory."""
    monkeypatch.setattr(fast_lane, "KNOWN_HEADS", 3)
    async with talking() as (running, client):
        for number in range(5):
            assert await status(client, post(request_body(), AS_ONE, ("X-Trace", str(number)))) == 200
            assert len(running.pipeline.heads) <= 3
        long = ("X-Trace", "n" * fast_lane.KNOWN_HEAD_BYTES)
        before = dict(running.pipeline.heads)
        assert await status(client, post(request_body(), AS_ONE, long)) == 200
        assert running.pipeline.heads == before


class PatientStore(MemoryStore):
    """Answers when others have had their turn, then when a future is done, as a store behind a socket would."""

    async def reserve(self, ask: Ask, now: float) -> Lease | Refusal:
        await self._wait()
        return await super().reserve(ask, now)

    async def settle(self, lease: Lease, tokens: int, now: float) -> None:
        await self._wait()
        await super().settle(lease, tokens, now)

    async def _wait(self) -> None:
        await asyncio.sleep(0)
        await asyncio.create_task(asyncio.sleep(0))


async def test_a_store_may_take_its_time() -> None:
    """The request goes on when its store has answered; what it took is given back, or the next one were refused."""
    async with talking() as (running, client):
        running.pipeline.store = PatientStore()
        for number in range(3):
            assert await status(client, post(request_body(), AS_ONE)) == 200
            assert (await running.records.at(number)).outcome == "completed"
