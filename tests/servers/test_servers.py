"""The scripted upstream and the raw client, against each other: the proofs stand on them."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeClock
from tests.servers import chat
from tests.servers.client import RawClient, ask, get, post
from tests.servers.upstream import Upstream, always, close, in_turn, reset, send, stall, until
from tests.servers.waiting import happens


async def test_request_is_recorded_as_it_came():
    """The upstream keeps the request line, the header fields and the exact body."""
    async with Upstream(always(send(chat.whole(b"{}")))) as upstream:
        await ask(upstream.port, post(b'{ "a" : 1.0}', ("X-Thing", "1")))
        request = await upstream.received.at(0)
    assert request.line == b"POST /v1/chat/completions HTTP/1.1"
    assert request.header(b"x-thing") == b"1"
    assert request.body == b'{ "a" : 1.0}'


async def test_pieces_arrive_one_by_one():
    """Each piece that a script sends is one arrival at the client."""
    pieces = [chat.framed(bytes([n])) for n in b"abcdef"]
    async with (
        Upstream(always(send(chat.stream_head(), *pieces, chat.LAST_CHUNK))) as upstream,
        await RawClient.connect(upstream.port) as client,
    ):
        await client.send(get("/"))
        answer = await client.whole()
    assert answer.pieces == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert answer.complete


async def test_connection_serves_request_after_request():
    """A connection is kept, also for requests that were sent ahead."""
    script = in_turn([send(chat.whole(b"[1]"))], [send(chat.whole(b"[2]"))])
    async with Upstream(script) as upstream, await RawClient.connect(upstream.port) as client:
        await client.send(get("/1") + get("/2"))
        answers = [await client.whole(), await client.whole()]
    assert [answer.json() for answer in answers] == [[1], [2]]
    assert upstream.connections == 1


@pytest.mark.parametrize(("step", "end"), [(close, "closed"), (reset, "reset")])
async def test_client_tells_close_from_reset(step, end):
    """How the connection ended is seen, and that the body did not end by its own framing."""
    async with Upstream(always(send(chat.stream_head(), chat.framed(b"x")), step)) as upstream:
        answer = await ask(upstream.port, get("/"))
    assert (bytes(answer.body), answer.end, answer.complete) == (b"x", end, False)


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset])
async def test_upstream_sees_the_client_leave(leave):
    """A close and a reset are both seen while the script is waiting."""
    async with Upstream(always(stall)) as upstream:
        client = await RawClient.connect(upstream.port)
        await client.send(get("/"))
        request = await upstream.received.at(0)
        assert not request.gone.is_set()
        leave(client)
        await happens(request.gone)


async def test_client_that_does_not_read_stops_the_upstream():
    """`send` waits when the peer takes no more, and goes on when it does."""
    piece = bytes(64 * 1024)
    length = 400 * len(piece)
    script = always(send(chat.head(200, ("content-length", str(length)))), *[send(piece)] * 400)
    async with Upstream(script) as upstream, await RawClient.connect(upstream.port, receive_buffer=4096) as client:
        await client.send(get("/"))
        request = await upstream.received.at(0)
        sent = -1
        while request.sent != sent:
            sent = request.sent
            for _ in range(100):
                await asyncio.sleep(0)
        assert sent < length
        answer = await client.whole()
    assert len(answer.body) == length


async def test_script_waits_for_the_test():
    """A step can hold the answer until an event is set."""
    go = asyncio.Event()
    async with Upstream(always(until(go), send(chat.whole(b"{}")))) as upstream:
        asking = asyncio.create_task(ask(upstream.port, get("/")))
        await upstream.received.at(0)
        assert not asking.done()
        go.set()
        assert (await asking).status == 200


async def test_fake_clock_runs_what_falls_due_in_order():
    """Timers run at their own times, also those that a timer sets, and cancelled ones do not."""
    clock = FakeClock(now=0.0, wall=100.0)
    seen: list[tuple[str, float]] = []
    clock.call_later(2, lambda: seen.append(("late", clock.now())))
    clock.call_later(1, lambda: clock.call_later(0.5, lambda: seen.append(("again", clock.now()))))
    clock.call_later(1, lambda: seen.append(("early", clock.now())))
    clock.call_later(1, lambda: seen.append(("never", clock.now()))).cancel()
    await clock.advance(1.9)
    assert seen == [("early", 1.0), ("again", 1.5)]
    await clock.advance(0.1)
    assert seen[2:] == [("late", 2.0)]
    assert (clock.now(), clock.wall()) == (2.0, 102.0)
