"""What every transport promises: the contract of `relay.transports.base`, over real sockets.

A transport joins by an entry in `TRANSPORTS`: a name and a factory that takes a TLS context.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from relay.errors import ConnectFailed, ConnectionLost, ConnectTimeout, UpstreamProtocolError
from relay.transports.http import HttpTransport
from relay.transports.sockets import SocketsTransport
from relay.wire.http1 import MAX_HEAD_BYTES
from tests.fakes import settle
from tests.servers import chat
from tests.servers.raw import Authority, RawUpstream, full_listener, has_ipv6, pour, silent_listener
from tests.servers.upstream import Upstream, always, close, in_turn, reset, send, stall, until, unused_port
from tests.servers.waiting import happens
from tests.transports.receiving import Heard, request_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.messages import UpstreamRequest
    from relay.transports.base import Transport
    from tests.servers.upstream import Step


TRANSPORTS: dict[str, Callable[..., Transport]] = {"sockets": SocketsTransport, "http": HttpTransport}

ANSWER = chat.whole(b'{"id":"c1"}')


@pytest.fixture(params=list(TRANSPORTS.values()), ids=list(TRANSPORTS))
def make(request: pytest.FixtureRequest) -> Callable[..., Transport]:
    chosen: Callable[..., Transport] = request.param
    return chosen


@pytest.fixture
async def transport(make: Callable[..., Transport]) -> AsyncIterator[Transport]:
    transport = make()
    yield transport
    await transport.close()


def start(transport: Transport, request: UpstreamRequest, heard: Heard | None = None) -> Heard:
    """Send without waiting."""
    heard = heard or Heard()
    heard.call = transport.send(request, heard)
    assert heard.status is None, "called back before send had returned"
    assert heard.failure is None, "called back before send had returned"
    return heard


async def ask(transport: Transport, port: int) -> Heard:
    """Send and wait for the end."""
    return await start(transport, request_to(port)).over()


async def answer_to(transport: Transport, *steps: Step) -> Heard:
    """What a transport makes of one scripted answer."""
    async with Upstream(always(*steps)) as upstream:
        return await ask(transport, upstream.port)


# --- requests ----------------------------------------------------------------------------------------------


async def test_request_has_what_the_endpoint_and_the_caller_gave_and_no_more(transport):
    """The upstream gets a POST with the given headers and body, host, length and accept-encoding: identity."""
    async with Upstream(always(send(ANSWER))) as upstream:
        request = request_to(upstream.port, b'{ "x" : 1.0 }', (b"x-a", b"1"), target="/v1/x%2Fy:go?alt=sse&b=")
        await start(transport, request).over()
        got = await upstream.received.at(0)
    assert got.line == b"POST /v1/x%2Fy:go?alt=sse&b= HTTP/1.1"
    assert got.body == b'{ "x" : 1.0 }'
    assert sorted(got.headers) == [
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer sk-secret"),
        (b"content-length", b"13"),
        (b"content-type", b"application/json"),
        (b"host", b"127.0.0.1:%d" % upstream.port),
        (b"x-a", b"1"),
    ]


async def test_an_endpoint_may_be_asked_with_get(transport):
    """A GET goes out as one, without a body, and its answer comes like any other."""
    async with Upstream(always(send(ANSWER))) as upstream:
        request = request_to(upstream.port, b"", target="/v1/models", headers=(), method="GET")
        heard = await start(transport, request).over()
        got = await upstream.received.at(0)
    assert (got.line, got.body) == (b"GET /v1/models HTTP/1.1", b"")
    assert got.header(b"content-length") in {None, b"0"}
    assert (heard.status, heard.ended) == (200, True)


async def test_own_host_and_accept_encoding_win(transport):
    """An endpoint that names a host or an accept-encoding of its own gets just these."""
    headers = ((b"host", b"api.example"), (b"accept-encoding", b"identity;q=1"))
    async with Upstream(always(send(ANSWER))) as upstream:
        await start(transport, request_to(upstream.port, headers=headers)).over()
        got = await upstream.received.at(0)
    assert got.header(b"host") == b"api.example"
    assert got.header(b"accept-encoding") == b"identity;q=1"


@pytest.mark.parametrize("body", [b"", b"x" * 5_000_000], ids=["empty", "5 MB"])
async def test_body_of_any_size_arrives(transport, body):
    """A body is sent whole, whatever its size, and an empty one says that it is."""
    async with Upstream(always(send(ANSWER))) as upstream:
        assert (await start(transport, request_to(upstream.port, body)).over()).ended
        got = await upstream.received.at(0)
    assert got.header(b"content-length") == b"%d" % len(body)
    assert got.body == body


@pytest.mark.parametrize(
    "header",
    [(b"x-a", b"1\r\nx-b: 2"), (b"x-a", b"1\n"), (b"x-a\r", b"1"), (b"x-a", b"\0"), (b"content-length", b"1")],
    ids=["CRLF", "LF", "CR in the name", "NUL", "the transport's own"],
)
@pytest.mark.parametrize("fixed", [True, False], ids=["endpoint", "request"])
async def test_header_that_would_smuggle_another_is_not_sent(transport, header, fixed):
    """A line break or NUL in a header, or a framing header, fails the request before a byte is sent."""
    async with Upstream(always(send(ANSWER))) as upstream:
        request = request_to(upstream.port, headers=(header,)) if fixed else request_to(upstream.port, b"", header)
        heard = await start(transport, request).over()
    assert isinstance(heard.failure, ConnectFailed)
    assert upstream.connections == 0


async def test_failure_known_at_once_can_still_be_cancelled(transport):
    """Even a request that cannot be sent says so only after send has returned, and not if it is cancelled first."""
    heard = start(transport, request_to(unused_port(), b"", (b"x", b"\n")))
    heard.cancel()
    await settle()


# --- answers -----------------------------------------------------------------------------------------------

FRAMINGS = {
    "length": (chat.whole(b"hello"), b"hello"),
    "chunked": (chat.stream_head() + chat.framed(b"hel") + chat.framed(b"lo") + chat.LAST_CHUNK, b"hello"),
    "chunk extension and trailers": (
        chat.stream_head() + b"5;a=b\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"hello",
    ),
    "empty": (chat.whole(b""), b""),
    "empty chunked": (chat.stream_head() + chat.LAST_CHUNK, b""),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    "no reason phrase": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "after 100 and 103": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + chat.whole(b"hello"),
        b"hello",
    ),
    "identity by name": (chat.whole(b"hello", 200, ("content-encoding", "identity")), b"hello"),
}


@pytest.mark.parametrize(("raw", "body"), FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("cut", ["whole", "byte by byte", "random"])
async def test_answer_is_the_same_however_it_is_cut(transport, raw, body, cut):
    """Head, body and end are the same whether an answer comes whole, byte by byte or in any other pieces."""
    if cut == "whole":
        pieces = [raw]
    elif cut == "byte by byte":
        pieces = [raw[n : n + 1] for n in range(len(raw))]
    else:
        at = sorted(random.Random(7).sample(range(1, len(raw)), 8))
        pieces = [raw[a:b] for a, b in zip([0, *at], [*at, len(raw)], strict=True)]
    heard = await answer_to(transport, send(*pieces))
    assert heard.failure is None
    assert heard.ended
    assert heard.body == body
    assert b"link" not in dict(heard.headers)
    assert b"x-trailer" not in dict(heard.headers)


async def test_body_may_end_with_the_connection(transport):
    """An answer without a length is complete when the connection is closed in good order."""
    heard = await answer_to(transport, send(chat.head(200), b"hel", b"lo"), close)
    assert heard.ended
    assert heard.body == b"hello"


async def test_reset_does_not_complete_a_body_that_ends_with_the_connection(transport):
    """A reset is no good order, whatever the framing."""
    heard = await answer_to(transport, send(chat.head(200), b"hello"), reset)
    assert isinstance(heard.failure, ConnectionLost)
    assert heard.body == b"hello"


async def test_headers_keep_order_and_repeats_in_lower_case(transport):
    """Header names come in lower case, values as they are, repeats apart and in order."""
    raw = b"HTTP/1.1 429 X\r\nSet-Cookie: a=1\r\nX-Request-ID: R1\r\nset-cookie: B=2\r\nContent-Length: 0\r\n\r\n"
    heard = await answer_to(transport, send(raw))
    assert heard.status == 429
    assert heard.headers == [
        (b"set-cookie", b"a=1"),
        (b"x-request-id", b"R1"),
        (b"set-cookie", b"B=2"),
        (b"content-length", b"0"),
    ]


async def test_head_does_not_wait_for_the_body_nor_a_piece_for_the_next(transport):
    """Each part is passed on when it came, not when the answer is complete."""
    go_on = asyncio.Event()
    steps = (send(chat.stream_head()), until(go_on), send(chat.framed(b"a")), stall)
    async with Upstream(always(*steps)) as upstream:
        heard = start(transport, request_to(upstream.port))
        await heard.head()
        assert heard.pieces == []
        go_on.set()
        await heard.some()
        assert heard.pieces == [b"a"]
        heard.cancel()


async def test_big_body_arrives_whole(transport):
    """Megabytes in one chunk come through unchanged."""
    body = random.Random(1).randbytes(4_000_000)
    heard = await answer_to(transport, send(chat.stream_head() + chat.framed(body) + chat.LAST_CHUNK))
    assert heard.ended
    assert heard.body == body


@pytest.mark.parametrize("coding", ["gzip", "br", "Zstd", "identity, gzip"])
async def test_compressed_answer_is_refused_by_name(transport, coding):
    """A content coding that nobody asked for is a protocol error that names it."""
    heard = await answer_to(transport, send(chat.whole(b"\x1f\x8b", 200, ("content-encoding", coding))))
    assert isinstance(heard.failure, UpstreamProtocolError)
    assert coding.lower() in heard.failure.message.lower()
    assert heard.status is None


NOT_HTTP = {
    "garbage": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x46" + b"\0" * 32,
    "bad header": b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "unknown transfer coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "status 700": b"HTTP/1.1 700 X\r\ncontent-length: 0\r\n\r\n",
    "one endless header": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 400_000,
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 50_000,
    "a head over the bound": b"HTTP/1.1 200 OK\r\nx: " + b"a" * MAX_HEAD_BYTES + b"\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("raw", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_what_is_not_an_http_answer_is_a_protocol_error(transport, raw):
    """Bytes that are no HTTP/1.1 head, or a head over the bound, fail with UpstreamProtocolError and no head."""
    heard = await answer_to(transport, send(raw), close)
    assert isinstance(heard.failure, UpstreamProtocolError)
    assert heard.status is None


async def test_broken_chunk_fails_after_what_was_good(transport):
    """Chunks before a broken one are passed on; then the failure comes, and it does not quote the body."""
    heard = await answer_to(transport, send(chat.stream_head() + chat.framed(b"good"), b"secret words\r\n"))
    assert heard.body == b"good"
    assert isinstance(heard.failure, UpstreamProtocolError)
    assert "secret" not in heard.failure.message


# --- connections that end ----------------------------------------------------------------------------------


async def test_refused_connection_is_connect_failed(transport):
    """Nobody listens: ConnectFailed, which says where."""
    port = unused_port()
    heard = await ask(transport, port)
    assert isinstance(heard.failure, ConnectFailed)
    assert str(port) in heard.failure.message


async def test_name_that_does_not_resolve_is_connect_failed(transport):
    """A host that has no address: ConnectFailed."""
    heard = await start(transport, request_to(80, host="no-such-host.invalid")).over()
    assert isinstance(heard.failure, ConnectFailed)


@pytest.mark.parametrize("end", [close, reset], ids=["close", "reset"])
@pytest.mark.parametrize(
    ("before", "status", "body"),
    [
        (b"", None, b""),
        (b"HTTP/1.1 200 OK\r\nconte", None, b""),
        (chat.whole(b"hello")[:-2], 200, b"hel"),
        (chat.stream_head() + chat.framed(b"hel"), 200, b"hel"),
        (chat.stream_head() + b"5\r\nhel", 200, b"hel"),
        (chat.stream_head() + chat.framed(b"hel") + b"0\r\n", 200, b"hel"),
    ],
    ids=["before the head", "in the head", "short of its length", "without a last chunk", "in a chunk", "in the end"],
)
async def test_connection_that_ends_too_early_is_lost(transport, before, status, body, end):
    """A connection that ends before the answer does is ConnectionLost, after all that came was passed on."""
    async with Upstream(always(send(before), end)) as upstream:
        heard = await ask(transport, upstream.port)
        assert len(upstream.received) == 1, "a new connection that broke must not be tried again"
    assert isinstance(heard.failure, ConnectionLost)
    assert heard.status == status
    assert heard.body == body


# --- reuse -------------------------------------------------------------------------------------------------


async def test_connection_is_used_again(transport):
    """One request after the other goes over one connection, whatever the framing of the answers."""
    scripts = [[send(raw)] for raw, _ in FRAMINGS.values()]
    async with Upstream(in_turn(*scripts)) as upstream:
        for _ in scripts:
            assert (await ask(transport, upstream.port)).ended
    assert upstream.connections == 1


async def test_connection_whose_server_says_close_is_not_used_again(transport):
    """`connection: close` is honoured."""
    async with Upstream(always(send(chat.whole(b"x", 200, ("connection", "close"))))) as upstream:
        await ask(transport, upstream.port)
        await ask(transport, upstream.port)
    assert upstream.connections == 2


@pytest.mark.parametrize("end", [close, reset], ids=["close", "reset"])
async def test_reused_connection_found_dead_is_replaced_unnoticed(transport, end):
    """A reused connection that ends before any byte of the answer costs the receiver nothing."""
    async with Upstream(in_turn([send(ANSWER)], [end], [send(ANSWER)])) as upstream:
        await ask(transport, upstream.port)
        heard = await start(transport, request_to(upstream.port, b"again")).over()
        bodies = [request.body for request in upstream.received.items]
    assert heard.ended
    assert bodies[1:] == [b"again", b"again"]
    assert upstream.connections == 2


async def test_retry_happens_once(transport):
    """If the new connection breaks as well, the request has failed."""
    async with Upstream(in_turn([send(ANSWER)], [close], [close])) as upstream:
        await ask(transport, upstream.port)
        heard = await ask(transport, upstream.port)
    assert isinstance(heard.failure, ConnectionLost)
    assert len(upstream.received) == 3


async def test_connection_closed_while_idle_is_replaced(transport):
    """A server that closes an idle connection does no harm."""
    end = asyncio.Event()
    async with Upstream(in_turn([send(ANSWER), until(end), close], [send(ANSWER)])) as upstream:
        await ask(transport, upstream.port)
        end.set()
        await happens((await upstream.received.at(0)).gone)
        assert (await ask(transport, upstream.port)).ended
    assert upstream.connections == 2


async def test_broken_answer_spoils_its_connection(transport):
    """After a failure the next request gets a new connection."""
    async with Upstream(in_turn([send(b"garbage\r\n\r\n")], [send(ANSWER)])) as upstream:
        assert (await ask(transport, upstream.port)).failure is not None
        assert (await ask(transport, upstream.port)).ended
    assert upstream.connections == 2


# --- the cap -----------------------------------------------------------------------------------------------


async def test_requests_over_the_cap_wait_their_turn(transport):
    """At `max_connections` requests wait, and are served in the order in which they came."""
    go_on = asyncio.Event()
    async with Upstream(lambda request: [until(go_on), send(chat.whole(request.body))]) as upstream:
        endpoint = request_to(upstream.port, max_connections=1).endpoint
        order: list[bytes] = []
        calls = [
            start(transport, type(r)(endpoint, (), body), Heard(end=lambda heard: order.append(heard.body)))
            for body in (b"first", b"second", b"third")
            for r in [request_to(upstream.port)]
        ]
        await upstream.received.at(0)
        await settle()
        assert len(upstream.received) == 1
        go_on.set()
        for heard in calls:
            await heard.over()
    assert order == [b"first", b"second", b"third"]
    assert upstream.connections == 1


async def test_waiting_request_can_be_cancelled(transport):
    """A cancelled request leaves the queue and is never sent."""
    go_on = asyncio.Event()
    async with Upstream(always(until(go_on), send(ANSWER))) as upstream:
        request = request_to(upstream.port, max_connections=1)
        first, second, third = (start(transport, request) for _ in range(3))
        await upstream.received.at(0)
        second.cancel()
        go_on.set()
        await first.over()
        await third.over()
    assert len(upstream.received) == 2


async def test_failed_connection_makes_room(transport):
    """A connection that could not be opened, or broke, does not count against the cap."""
    async with Upstream(always(close)) as upstream:
        request = request_to(upstream.port, max_connections=1)
        calls = [start(transport, request) for _ in range(4)]
        for heard in calls:
            assert isinstance((await heard.over()).failure, ConnectionLost)
    refused = request_to(unused_port(), max_connections=1)
    for heard in [start(transport, refused) for _ in range(4)]:
        assert isinstance((await heard.over()).failure, ConnectFailed)


async def test_waiting_for_room_counts_as_connecting(transport):
    """A request that gets no connection within the connect timeout fails with ConnectTimeout."""
    async with Upstream(always(stall)) as upstream:
        request = request_to(upstream.port, max_connections=1, connect_timeout_s=0.5)  # enough for a busy machine
        first = start(transport, request)
        await upstream.received.at(0)
        second = await start(transport, request).over()
        first.cancel()
    assert isinstance(second.failure, ConnectTimeout)
    assert first.failure is None, "the connect timeout ends when the connection is there"


# --- timeouts of connecting --------------------------------------------------------------------------------


async def test_connect_timeout(transport):
    """A listener that takes no connection: ConnectTimeout."""
    with full_listener() as port:
        heard = await start(transport, request_to(port, connect_timeout_s=0.05)).over()
    assert isinstance(heard.failure, ConnectTimeout)


async def test_connect_timeout_covers_tls(transport):
    """A listener that never answers the TLS handshake: ConnectTimeout."""
    with silent_listener() as port:
        heard = await start(transport, request_to(port, scheme="https", connect_timeout_s=0.05)).over()
    assert isinstance(heard.failure, ConnectTimeout)


# --- backpressure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_paused_receiver_is_felt_by_the_upstream(make, scheme):
    """While a call is paused next to nothing arrives and the upstream can write no more; resumed, all arrives."""
    authority = Authority("127.0.0.1")
    transport = make(tls=authority.client())
    tls = authority.server() if scheme == "https" else None
    piece, pieces = b"x" * 65_536, 1_000
    blocked = asyncio.Event()
    head = chat.head(200, ("content-length", str(len(piece) * pieces)))
    async with RawUpstream(always(send(head), pour(piece, pieces, blocked)), tls=tls) as upstream:
        heard = start(transport, request_to(upstream.port, scheme=scheme), Heard(head=lambda heard: heard.call.pause()))
        await happens(blocked)
        for _ in range(50):
            await settle()
        assert len(heard.body) <= 256 * 1024
        sent = (await upstream.received.at(0)).sent
        assert sent < len(piece) * pieces / 2, "sockets on loopback hold a few MB, not half of this"
        heard.call.resume()
        await heard.over()
        await transport.close()
    assert len(heard.body) == len(piece) * pieces
    assert heard.ended


async def test_paused_connection_is_read_again_by_its_next_call(transport):
    """Pausing is the call's, not the connection's: what uses the connection next is not paused."""
    async with Upstream(always(send(ANSWER))) as upstream:
        first = start(transport, request_to(upstream.port), Heard(end=lambda heard: heard.call.pause()))
        await first.over()
        assert (await ask(transport, upstream.port)).ended
    assert upstream.connections == 1


async def test_call_paused_before_it_is_connected_stays_paused(transport):
    """A pause that comes before the connection holds."""
    body = b"x" * 10_000_000
    async with Upstream(always(send(chat.whole(body)))) as upstream:
        heard = start(transport, request_to(upstream.port))
        heard.call.pause()
        await upstream.received.at(0)
        for _ in range(20):
            await settle()
        assert not heard.ended
        heard.call.resume()
        await heard.over()
    assert heard.body == body


# --- cancel ------------------------------------------------------------------------------------------------


async def test_cancel_at_once(transport):
    """A call cancelled right after send never calls back, and no request is left behind."""
    async with Upstream(always(send(ANSWER))) as upstream:
        heard = start(transport, request_to(upstream.port))
        heard.cancel()
        assert (await ask(transport, upstream.port)).ended
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    "before", [b"", b"HTTP/1.1 200", chat.stream_head(), chat.stream_head() + chat.framed(b"a")],
    ids=["before the head", "in the head", "after the head", "in the body"],
)  # fmt: skip
async def test_cancel_closes_the_connection(transport, before):
    """The upstream of a cancelled call sees the connection close, and the receiver hears no more."""
    async with Upstream(always(send(before), stall)) as upstream:
        heard = start(transport, request_to(upstream.port))
        request = await upstream.received.at(0)
        await settle()
        heard.cancel()
        await happens(request.gone)


@pytest.mark.parametrize("where", ["head", "body", "end"])
async def test_cancel_from_within_a_callback(transport, where):
    """A receiver may cancel from within a callback; nothing follows, though the rest is already there."""
    answer = chat.stream_head() + chat.framed(b"a") + chat.framed(b"b") + chat.LAST_CHUNK
    async with Upstream(always(send(answer))) as upstream:
        heard = start(transport, request_to(upstream.port), Heard(**{where: Heard.cancel}))
        await {"head": heard.head, "body": heard.some, "end": heard.over}[where]()
        assert (await ask(transport, upstream.port)).ended


async def test_every_method_may_be_called_at_any_time(transport):
    """Pause, resume and cancel are harmless twice, and after the end."""
    async with Upstream(always(send(ANSWER))) as upstream:
        heard = start(transport, request_to(upstream.port))
        for method in (heard.call.pause, heard.call.pause, heard.call.resume, heard.call.resume):
            method()
        await heard.over()
        again = start(transport, request_to(upstream.port))
        for method in (heard.call.pause, heard.call.cancel, heard.call.resume, heard.call.cancel):
            method()
        assert (await again.over()).ended, "a call that is over has no hold on its connection"
        failed = await ask(transport, unused_port())
        for method in (failed.call.pause, failed.call.resume, failed.call.cancel, failed.call.cancel):
            method()


# --- TLS and addresses -------------------------------------------------------------------------------------


async def test_tls_with_a_trusted_certificate(make):
    """An https origin is reached over TLS, and its connection used again."""
    authority = Authority("127.0.0.1", "localhost")
    transport = make(tls=authority.client())
    async with RawUpstream(always(send(ANSWER)), tls=authority.server("http/1.1")) as upstream:
        for _ in range(2):
            heard = await start(transport, request_to(upstream.port, scheme="https")).over()
            assert heard.body == b'{"id":"c1"}'
        await transport.close()
    assert upstream.connections == 1


async def test_certificate_for_another_name_is_refused(make):
    """A certificate that is not for the host: ConnectFailed, and nothing was sent."""
    authority = Authority("elsewhere.example")
    transport = make(tls=authority.client())
    async with RawUpstream(always(send(ANSWER)), tls=authority.server()) as upstream:
        heard = await start(transport, request_to(upstream.port, scheme="https")).over()
        await transport.close()
    assert isinstance(heard.failure, ConnectFailed)
    assert len(upstream.received) == 0


async def test_certificate_that_nobody_signed_is_refused(transport):
    """By default the system's trust store decides, and it does not know the test's authority."""
    async with RawUpstream(always(send(ANSWER)), tls=Authority("127.0.0.1").server()) as upstream:
        heard = await start(transport, request_to(upstream.port, scheme="https")).over()
    assert isinstance(heard.failure, ConnectFailed)
    assert "certificate" in heard.failure.message
    assert len(upstream.received) == 0


async def test_cancel_and_loss_over_tls(make):
    """Over TLS as over TCP: cancel is seen by the upstream, an early end is ConnectionLost."""
    authority = Authority("127.0.0.1")
    transport = make(tls=authority.client())
    scripts = ([send(chat.stream_head()), stall], [send(chat.stream_head(), chat.framed(b"a")), close])
    async with RawUpstream(in_turn(*scripts), tls=authority.server()) as upstream:
        heard = start(transport, request_to(upstream.port, scheme="https"))
        await heard.head()
        heard.cancel()
        await happens((await upstream.received.at(0)).gone)
        lost = await start(transport, request_to(upstream.port, scheme="https")).over()
        await transport.close()
    assert lost.body == b"a"
    assert isinstance(lost.failure, ConnectionLost)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_ipv6(transport):
    """An IPv6 address is reached, and bracketed in the host header."""
    async with RawUpstream(always(send(ANSWER)), host="::1") as upstream:
        assert (await start(transport, request_to(upstream.port, host="::1")).over()).ended
        got = await upstream.received.at(0)
    assert got.header(b"host") == b"[::1]:%d" % upstream.port


async def test_every_address_of_a_name_is_tried(transport):
    """A name with several addresses works if the server listens on any of them."""
    async with RawUpstream(always(send(ANSWER)), host="127.0.0.1") as upstream:
        assert (await start(transport, request_to(upstream.port, host="localhost")).over()).ended


# --- close -------------------------------------------------------------------------------------------------


async def test_close_fails_what_is_in_flight(make):
    """Close fails every call, waiting ones too, closes every connection, and refuses what comes later."""
    transport = make()
    async with Upstream(in_turn([send(ANSWER)], [send(chat.stream_head()), stall])) as upstream:
        request = request_to(upstream.port, max_connections=1)
        await start(transport, request).over()
        streaming = start(transport, request)
        await streaming.head()
        waiting = start(transport, request)
        await settle()
        await transport.close()
        await happens((await upstream.received.at(1)).gone)
        late = await start(transport, request).over()
    assert isinstance(streaming.failure, ConnectionLost)
    assert isinstance(waiting.failure, ConnectionLost)
    assert isinstance(late.failure, ConnectFailed)


async def test_close_fails_what_is_being_connected(make):
    """A connection that is just being opened is given up."""
    transport = make()
    with full_listener() as port:
        heard = start(transport, request_to(port))
        await settle()
        await transport.close()
    assert isinstance(heard.failure, ConnectionLost)


async def test_close_twice(make):
    """Closing again, or what was never used, does nothing."""
    transport = make()
    await transport.close()
    await transport.close()
