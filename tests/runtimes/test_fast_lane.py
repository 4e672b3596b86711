"""Requests whose head was seen before are not parsed again, and mean what they meant."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.load import load
from relay.runtimes import fast_lane
from relay.runtimes.http_server import BoundedProtocol
from relay.stores.memory import MemoryStore
from tests.fakes import settle
from tests.servers.chat import chunk, completion, framed, request_body, stream_head, whole
from tests.servers.client import RawClient, post
from tests.servers.policies import ENVIRON, policy
from tests.servers.relay import Running, serve
from tests.servers.upstream import Upstream, always, in_turn, send, stall, tell
from tests.servers.waiting import happens

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


async def test_only_the_first_two_of_like_requests_are_parsed(parsed):
    """A head that came twice, whatever the length of the body behind it, is not read again; the body is."""
    async with talking() as (running, client):
        for text in ("a", "bb", "c" * 5000):
            body = request_body(messages=[{"role": "user", "content": text}])
            assert await status(client, post(body, AS_ONE)) == 200
        assert await status(client, post(b"{", AS_ONE)) == 400
        assert [record.key for record in running.records.items] == ["one"] * 4
    assert parsed.reads == 2


async def test_heads_that_come_once_are_not_kept(parsed):
    """Clients that number their requests in the head, as tracing does, take up no memory."""
    async with talking() as (running, client):
        for number in range(5):
            assert await status(client, post(request_body(), AS_ONE, ("traceparent", str(number)))) == 200
        assert not any(running.pipeline.heads.values())
    assert parsed.reads == 5


async def test_another_key_is_another_head(parsed):
    """Who is asking is looked at again as soon as one byte of the head differs."""
    async with talking() as (_, client):
        for _ in range(2):
            assert await status(client, post(request_body(), AS_ONE)) == 200
        assert await status(client, post(request_body(), ("Authorization", "Bearer sk-two"))) == 401
        assert await status(client, post(request_body(), AS_ONE)) == 200
    assert parsed.reads == 3


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
        for _ in range(2):
            assert await status(client, request) == 200
        await client.send(request + request)
        assert (await client.whole()).status == 200
        assert (await client.whole()).status == 200
        assert await status(client, request) == 200
    assert parsed.reads == 3


@pytest.mark.parametrize("ahead", [0, 1, 2])
async def test_a_client_that_sent_ahead_and_left_is_noticed(ahead):
    """Whichever of its requests is being answered, it is given up when the client leaves; those behind it never run."""
    begun = asyncio.Event()
    scripts = [[send(ANSWER)], [send(stream_head(), framed(chunk({"content": "a"}))), tell(begun), stall]]
    async with (
        Upstream(in_turn(*scripts)) as upstream,
        serve(policy(upstream.base_url)) as running,
        await RawClient.connect(running.port) as client,
    ):
        await client.send(post(request_body()) + post(request_body(stream=True)) + post(request_body()) * ahead)
        assert (await client.whole()).status == 200
        await happens(begun)
        await settle()
        client.reset()
        assert (await running.records.at(1)).outcome == "client_gone"
        assert len(upstream.received) == 2


async def test_a_new_policy_looks_at_heads_anew(parsed):
    """A key that a reload takes away is refused at once."""
    async with talking() as (running, client):
        request = post(request_body(), AS_ONE)
        for _ in range(2):
            assert await status(client, request) == 200
        others = {"two": {"sha256": hashlib.sha256(b"sk-two").hexdigest()}}
        text = policy("http://127.0.0.1:9/v1", access={"open": False}, keys=others)
        running.pipeline.policy = load({"test.toml": text}, ENVIRON)
        assert await status(client, request) == 401
    assert parsed.reads == 3


async def test_a_relay_that_stops_refuses_known_heads_too(parsed):
    """Shutting down is not a matter of the head."""
    async with talking() as (running, client):
        request = post(request_body(), AS_ONE)
        for _ in range(2):
            assert await status(client, request) == 200
        running.pipeline.draining = True
        assert await status(client, request) == 503
    assert parsed.reads == 2


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
        for number in (0, 0, 1, 2, 2, 3, 3, 4):
            assert await status(client, post(request_body(), AS_ONE, ("X-Trace", str(number)))) == 200
            assert len(running.pipeline.heads) <= 3
        long = ("X-Trace", "n" * fast_lane.KNOWN_HEAD_BYTES)
        before = dict(running.pipeline.heads)
        assert await status(client, post(request_body(), AS_ONE, long)) == 200
        assert running.pipeline.heads == before


async def test_a_body_in_tiny_chunks_takes_up_no_more_than_its_size(monkeypatch):
    """A piece of memory for each of two bytes would make the limit on bodies one on a twentieth of what they take."""
    longest = 0
    original = fast_lane.FastLane.on_message_complete

    def looking(protocol: fast_lane.FastLane) -> None:
        nonlocal longest
        assert protocol._lane is not None
        assert protocol._lane.body is not None
        longest = max(longest, len(protocol._lane.body))
        original(protocol)

    monkeypatch.setattr(fast_lane.FastLane, "on_message_complete", looking)
    body = request_body(messages=[{"role": "user", "content": "".join(map(str, range(5000)))}])
    chunks = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body) - 2, 2))
    rest = body[len(body) - 2 + len(body) % 2 :]
    async with (
        Upstream(always(send(ANSWER))) as upstream,
        serve(policy(upstream.base_url)) as running,
        await RawClient.connect(running.port) as client,
    ):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert await status(client, head + chunks, b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest)) == 200
        sent = json.loads(upstream.received.items[0].body)
    assert sent["messages"] == json.loads(body)["messages"]
    assert longest <= fast_lane.PIECES + 1


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


class Parsing:
    """What llhttp makes of some bytes: complete requests, each with its target, headers and body."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.broken = False
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.broken = True

    def on_message_begin(self) -> None:
        self._url, self._body, self._headers = b"", b"", list[tuple[bytes, bytes]]()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"content-length":
            self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.requests.append((self._url, self._headers, self._body))


LENGTH = b"Content-Length: #"
LINES = (LENGTH, b"X-Length: #", b"a: ength: #", b"Content-L: #", b"a: Content-Length: #")
ODD_LINES = (
    b"Content-L",
    b" ength: #",
    b"a:\r\n Content-Length: #",
    b"Transfer-Encoding: chunked",
    b"content-length:#",
)
BODIES = (b"", b"{}", b"0\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n")
NUMBERS = (b"02", b"+2", b"2 ", b"2\r\n ", b"")


@st.composite
def requests(draw, lines, numbers=()):
    """A request with these lines in its head, each # replaced by the length of its body or by one of `numbers`."""
    body = draw(st.sampled_from(BODIES))
    length = b"%d" % len(body)
    number = st.sampled_from([length, *numbers])
    return b"\r\n".join([b"POST / HTTP/1.1", *[line.replace(b"#", draw(number)) for line in lines], b"", body])


@settings(max_examples=300)
@given(data=st.data(), lines=st.lists(st.sampled_from(LINES), max_size=1), at=st.integers(0, 1))
def test_what_is_not_parsed_is_what_would_have_been_parsed(data, lines, at):
    """A request with the head of one that was remembered is, but for its body, what llhttp would find that it is."""
    lines.insert(at, LENGTH)
    before = data.draw(requests(lines))
    known, rest = fast_lane._split(before)
    parsed = Parsing(before)
    if known is None or parsed.broken or [body for _, _, body in parsed.requests] != [rest]:
        return  # not remembered
    if data.draw(st.booleans()):
        lines[data.draw(st.integers(0, len(lines) - 1))] = data.draw(st.sampled_from(LINES + ODD_LINES))
    after = data.draw(requests(lines, (b"%d" % len(rest), *NUMBERS)))
    again, body = fast_lane._split(after)
    if again == known:
        url, headers, _ = parsed.requests[0]
        assert Parsing(after).requests == [(url, headers, body)]


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 2\r\nX-Length: 5",
        b"Content-Length: 2\r\na: \r\n Content-Length: 5",
        b"Content-Length: 2\r\na: Content-Length: 5",
        b"Content-Length: +5",
        b"Content-Length: 05",
        b"Content-Length: 5 ",
        b"Content-Length: 4",
        b"X: 5",
    ],
)
def test_only_the_length_of_the_body_is_taken_for_it(lines):
    """What is not plainly the length of all that follows the head is left to the parser."""
    assert fast_lane._split(b"POST / HTTP/1.1\r\n" + lines + b"\r\n\r\nabcde") == (None, b"")
