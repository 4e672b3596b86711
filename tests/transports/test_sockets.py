"""What the sockets transport does beyond the contract."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import ssl
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConnectFailed, ConnectionLost, ConnectTimeout, UpstreamProtocolError
from relay.transports import sockets
from relay.transports.sockets import SocketsTransport
from relay.wire import http1
from tests.fakes import FakeClock, settle
from tests.servers import chat
from tests.servers.raw import Authority, RawUpstream, full_listener
from tests.servers.upstream import Upstream, always, close, in_turn, reset, send, stall, until
from tests.servers.waiting import happens
from tests.transports.receiving import Heard, request_to

ANSWER = chat.whole(b"{}")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def transport(clock):
    transport = SocketsTransport(clock=clock)
    yield transport
    await transport.close()


def start(transport, request, heard=None):
    heard = heard or Heard()
    heard.call = transport.send(request, heard)
    return heard


async def ask(transport, request):
    return await start(transport, request).over()


# --- what was read -----------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """The transport under a connection, without a socket."""

    def __init__(self):
        super().__init__()
        self.written = []
        self.open = True

    def write(self, data):
        self.written.append(data)

    def get_write_buffer_size(self):
        return 0

    def abort(self):
        self.open = False


async def connection():
    """A connection on a `Wire` with a call in flight, its wire and what the call hears."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one reads the whole trust store
    transport = SocketsTransport(tls=tls, clock=FakeClock())
    request = request_to(80)
    pool, _ = transport._lane(request.endpoint)
    connection, wire = sockets._Connection(pool), Wire()
    connection.connection_made(wire)
    pool.idle[connection] = None
    return connection, wire, start(transport, request)


CHUNKS = st.lists(st.binary(min_size=1, max_size=300), max_size=12)
CUTS = st.lists(st.integers(min_value=0, max_value=5_000), max_size=30)
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b c"'])


@given(chunks=CHUNKS, cuts=CUTS, extension=EXTENSIONS, trailer=st.sampled_from([b"", b"x-t: 1\r\n"]))
def test_chunked_body_is_the_same_however_it_is_cut(chunks, cuts, extension, trailer):
    """For any chunks and any cuts: the same bytes, one call per read at most, and the connection is kept."""
    framed = b"".join(b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    raw = chat.stream_head() + framed + b"0\r\n" + trailer + b"\r\n"
    at = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})

    async def read():
        reader, wire, heard = await connection()
        for begin, end in itertools.pairwise(at):
            before = len(heard.pieces)
            reader.data_received(raw[begin:end])
            assert len(heard.pieces) <= before + 1
            assert reader.pieces == []
        assert heard.ended
        assert heard.body == b"".join(chunks)
        assert wire.open
        assert reader in reader.pool.idle

    asyncio.run(read())


async def test_coalesced_chunks_are_one_piece_and_the_end_follows():
    """What one read brings is passed on in one call, before the end."""
    reader, _, heard = await connection()
    reader.data_received(chat.stream_head() + b"".join(map(chat.framed, [b"a", b"b", b"c"])) + chat.LAST_CHUNK)
    assert heard.pieces == [b"abc"]
    assert heard.ended


async def test_request_leaves_in_one_write():
    """Head and body are one write, and it happens within send."""
    _, wire, _ = await connection()
    assert len(wire.written) == 1
    assert wire.written[0].endswith(b'\r\n\r\n{"a":1}')


async def test_endless_framing_is_refused():
    """Chunk extensions or trailers over the bound are no way to make the relay read for ever."""
    for raw in (b"1;" + b"x" * 70_000, b"0\r\n" + b"x-t: 1\r\n" * 9_000):
        reader, wire, heard = await connection()
        reader.data_received(chat.stream_head())
        for begin in range(0, len(raw), 1_000):
            if heard.failure is None:
                reader.data_received(raw[begin : begin + 1_000])
        assert isinstance(heard.failure, UpstreamProtocolError)
        assert not wire.open


async def test_long_stream_is_not_mistaken_for_endless_framing():
    """The bound is on framing between two pieces of the body, not on all of it."""
    reader, _, heard = await connection()
    reader.data_received(chat.stream_head())
    for _ in range(2 * http1.MAX_HEAD_BYTES // 6):
        reader.data_received(b"1\r\n")
        reader.data_received(b"x\r\n")
    assert heard.failure is None


async def test_head_at_the_bound_with_a_body_in_the_same_read():
    """The bound is on the head alone: a large body behind it in the same read does no harm."""
    reader, _, heard = await connection()
    fill = http1.MAX_HEAD_BYTES - 100
    reader.data_received(chat.whole(b"x" * 100_000, 200, ("x", "a" * fill)))
    assert heard.ended


@pytest.mark.parametrize(
    "surplus",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", b"HTTP/1.1 20", b"x", b"0\r\n\r\n"],
    ids=["a whole answer", "part of one", "a byte", "a chunk"],
)
@pytest.mark.parametrize("framing", [ANSWER, chat.stream_head() + chat.framed(b"{}") + chat.LAST_CHUNK])
async def test_bytes_after_the_answer_cost_the_connection_and_nothing_else(surplus, framing):
    """The answer is complete without what follows it; the connection is not used again (response splitting)."""
    reader, wire, heard = await connection()
    reader.data_received(framing + surplus)
    assert heard.ended
    assert heard.body == b"{}"
    assert not wire.open
    assert not reader.pool.idle


async def test_unsolicited_bytes_close_an_idle_connection(transport):
    """What a server says without being asked is never taken for the next request's answer."""
    go_on = asyncio.Event()
    scripts = ([send(ANSWER), until(go_on), send(chat.whole(b"poison"))], [send(ANSWER)])
    async with Upstream(in_turn(*scripts)) as upstream:
        request = request_to(upstream.port)
        await ask(transport, request)
        go_on.set()
        await happens((await upstream.received.at(0)).gone)
        heard = await ask(transport, request)
    assert heard.body == b"{}"
    assert upstream.connections == 2


# --- which connection --------------------------------------------------------------------------------------


async def test_last_in_first_out(transport):
    """The connection that was used last is used next, so that the others can expire."""
    go_on = asyncio.Event()
    async with Upstream(always(until(go_on), send(ANSWER))) as upstream:
        request = request_to(upstream.port)
        ends = []
        calls = [start(transport, request) for _ in range(3)]
        for n in range(3):
            await upstream.received.at(n)
        go_on.set()
        for heard in calls:
            await heard.over()
        for _ in range(3):
            await ask(transport, request)
            ends.append(upstream.received.items[-1].connection)
    assert upstream.connections == 3
    assert len(set(ends)) == 1


async def test_request_from_within_the_end_of_another_uses_its_connection(transport):
    """At `on_end` the connection is free already."""
    async with Upstream(always(send(ANSWER))) as upstream:
        request = request_to(upstream.port)
        second = Heard()
        await start(transport, request, Heard(end=lambda _: start(transport, request, second))).over()
        assert (await second.over()).ended
    assert upstream.connections == 1


async def test_endpoints_of_one_origin_share_connections(transport):
    """The pool is the origin's."""
    async with Upstream(always(send(ANSWER))) as upstream:
        await ask(transport, request_to(upstream.port, target="/a"))
        await ask(transport, request_to(upstream.port, target="/b"))
    assert upstream.connections == 1
    assert [request.line for request in upstream.received.items] == [b"POST /a HTTP/1.1", b"POST /b HTTP/1.1"]


async def test_forgotten_endpoints_are_built_again(transport, monkeypatch):
    """However many endpoints policies bring over time, few are remembered and all work."""
    monkeypatch.setattr(sockets, "MAX_LANES", 2)
    async with Upstream(always(send(ANSWER))) as upstream:
        requests = [request_to(upstream.port, target=f"/{n}") for n in range(5)]
        for request in requests * 2:
            assert (await ask(transport, request)).ended
        assert len(transport._lanes) <= 2
    assert upstream.connections == 1


@pytest.mark.parametrize("settings", [{"proxy": "http://127.0.0.1:1"}, {"http2": True}])
async def test_what_it_does_not_speak_it_refuses(transport, settings):
    """An endpoint that wants a proxy or HTTP/2 is never reached without."""
    async with Upstream(always(send(ANSWER))) as upstream:
        heard = await ask(transport, request_to(upstream.port, **settings))
    assert isinstance(heard.failure, ConnectFailed)
    assert upstream.connections == 0


# --- time --------------------------------------------------------------------------------------------------


async def test_idle_connections_expire(transport, clock):
    """A connection that nobody used for 55 s is closed; one in use is not."""
    async with Upstream(in_turn([send(ANSWER)], [send(ANSWER)], [stall])) as upstream:
        request = request_to(upstream.port)
        await ask(transport, request)
        await clock.advance(40)
        await ask(transport, request)
        first = await upstream.received.at(0)
        await clock.advance(54)
        assert not first.gone.is_set()
        await clock.advance(1)
        await happens(first.gone)
        busy = start(transport, request)
        last = await upstream.received.at(2)
        await clock.advance(1_000)
        assert not last.gone.is_set()
        busy.cancel()
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("header", "expected_s"), [("timeout=5, max=100", 4), ("max=9,timeout=5", 4), ("timeout=900", 55)]
)
async def test_server_says_how_long_it_keeps_a_connection(transport, clock, header, expected_s):
    """`keep-alive: timeout=N` is honoured with a second to spare, and never lengthens our own time."""
    async with Upstream(always(send(chat.whole(b"{}", 200, ("Keep-Alive", header))))) as upstream:
        await ask(transport, request_to(upstream.port))
        gone = (await upstream.received.at(0)).gone
        await clock.advance(expected_s - 0.1)
        assert not gone.is_set()
        await clock.advance(0.1)
        await happens(gone)


async def test_each_connection_expires_at_its_own_time(transport, clock):
    """Of two idle connections only the one that is due is closed."""
    go_on = asyncio.Event()
    async with Upstream(in_turn([until(go_on), send(ANSWER)], [send(ANSWER)])) as upstream:
        request = request_to(upstream.port)
        slow = start(transport, request)
        await upstream.received.at(0)
        await ask(transport, request)
        await clock.advance(20)
        go_on.set()
        await slow.over()
        younger, older = [received.gone for received in upstream.received.items]
        await clock.advance(35)
        await happens(older)
        assert not younger.is_set()
        await clock.advance(20)
        await happens(younger)


async def test_connect_timeout_is_measured_by_the_clock(transport, clock):
    """ConnectTimeout comes when the endpoint's time is over, not before."""
    with full_listener() as port:
        heard = start(transport, request_to(port, connect_timeout_s=3))
        await clock.advance(2.9)
        assert heard.failure is None
        await clock.advance(0.1)
        assert isinstance(heard.failure, ConnectTimeout)
        assert "3 s" in heard.failure.message


async def test_timeout_says_what_it_waited_for(transport, clock):
    """Waiting at the cap and waiting for the network read differently."""
    async with Upstream(always(stall)) as upstream:
        request = request_to(upstream.port, max_connections=1, connect_timeout_s=3)
        start(transport, request)
        await upstream.received.at(0)
        second = start(transport, request)
        await clock.advance(3)
    assert isinstance(second.failure, ConnectTimeout)
    assert "became free" in second.failure.message


# --- retry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [close, reset])
async def test_no_retry_once_a_byte_of_the_answer_came(transport, end):
    """A reused connection that breaks inside the head is lost: the upstream had read the request."""
    async with Upstream(in_turn([send(ANSWER)], [send(b"H"), end])) as upstream:
        request = request_to(upstream.port)
        await ask(transport, request)
        heard = await ask(transport, request)
    assert isinstance(heard.failure, ConnectionLost)
    assert len(upstream.received) == 2


async def test_retry_takes_a_new_connection_not_another_idle_one(transport):
    """Other idle connections are as old as the dead one: one retry must not be spent on them."""
    go_on = asyncio.Event()
    first = [until(go_on), send(ANSWER)]
    async with Upstream(in_turn(first, first, [close], [send(ANSWER)])) as upstream:
        request = request_to(upstream.port)
        calls = [start(transport, request) for _ in range(2)]
        await upstream.received.at(1)
        go_on.set()
        for heard in calls:
            await heard.over()
        assert (await ask(transport, request)).ended
        assert [received.connection for received in upstream.received.items[2:]] in ([1, 3], [2, 3])


async def test_retried_call_can_be_paused_and_cancelled(transport):
    """A call that is being retried is still the same call."""
    retried = asyncio.Event()
    async with Upstream(
        in_turn([send(ANSWER)], [close], [until(retried), send(chat.whole(b"x" * 5_000_000))])
    ) as upstream:
        request = request_to(upstream.port)
        await ask(transport, request)
        heard = start(transport, request)
        again = await upstream.received.at(2)
        heard.call.pause()
        retried.set()
        for _ in range(20):
            await settle()
        assert not heard.ended
        heard.cancel()
        await happens(again.gone)


# --- requests ----------------------------------------------------------------------------------------------


async def test_answer_before_the_request_was_read(transport):
    """An early answer counts though the request has not all left; its connection is not used again."""
    async with Upstream(always(send(chat.whole(b"no", 413))), reads_bodies=False) as upstream:
        heard = await ask(transport, request_to(upstream.port, b"x" * 20_000_000))
        assert heard.status == 413
        assert heard.ended
        assert (await ask(transport, request_to(upstream.port))).ended
    assert upstream.connections == 2


async def test_upstream_that_closes_without_reading_the_request(transport):
    """A closed upstream is noticed though most of the request waits to be sent."""
    async with Upstream(always(close), reads_bodies=False) as upstream:
        heard = await ask(transport, request_to(upstream.port, b"x" * 20_000_000))
    assert isinstance(heard.failure, ConnectionLost)


async def test_socket_options(transport):
    """Small writes leave at once, and a silent peer is probed."""
    async with Upstream(always(stall)) as upstream:
        heard = start(transport, request_to(upstream.port))
        await upstream.received.at(0)
        sock = heard.call.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        heard.cancel()


class Names:
    """A resolver that knows one more name.

    Attributes:
        answers: what it says of `api.example`, question by question: addresses, or an error.
        asked: how often it was asked.
    """

    def __init__(self, genuine):
        self.genuine = genuine
        self.answers = []
        self.asked = 0

    async def getaddrinfo(self, host, port, **options):
        if host != "api.example":
            return await self.genuine(host, port, **options)
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in answer]


@pytest.fixture
async def names(monkeypatch):
    loop = asyncio.get_running_loop()
    names = Names(loop.getaddrinfo)
    monkeypatch.setattr(loop, "getaddrinfo", names.getaddrinfo)
    return names


async def test_burst_of_connections_asks_for_addresses_once(transport, names):
    """Connections opened at the same time share one lookup."""
    async with Upstream(always(send(ANSWER))) as upstream:
        names.answers = [[("127.0.0.1", upstream.port)]]
        request = request_to(upstream.port, host="api.example")
        for heard in [start(transport, request) for _ in range(20)]:
            assert (await heard.over()).ended
    assert names.asked == 1


async def test_addresses_are_forgotten(transport, names, clock):
    """After five seconds a new connection asks anew: addresses move."""
    async with Upstream(always(send(chat.whole(b"{}", 200, ("connection", "close"))))) as upstream:
        names.answers = [[("127.0.0.1", upstream.port)]] * 2
        request = request_to(upstream.port, host="api.example")
        await ask(transport, request)
        await clock.advance(4.9)
        await ask(transport, request)
        assert names.asked == 1
        await clock.advance(0.1)
        await ask(transport, request)
        assert names.asked == 2


async def test_failed_lookup_is_not_kept(transport, names):
    """After a name did not resolve the next request asks again."""
    async with Upstream(always(send(ANSWER))) as upstream:
        names.answers = [socket.gaierror(socket.EAI_AGAIN, "try again"), [("127.0.0.1", upstream.port)]]
        request = request_to(upstream.port, host="api.example")
        assert isinstance((await ask(transport, request)).failure, ConnectFailed)
        assert (await ask(transport, request)).ended


async def test_dead_first_address_is_overtaken(transport, names, monkeypatch):
    """Happy Eyeballs: an address that does not answer delays the connection, it does not prevent it."""
    monkeypatch.setattr(sockets, "SECOND_ADDRESS_S", 0.01)
    with full_listener() as dead:
        async with Upstream(always(send(ANSWER))) as upstream:
            names.answers = [[("127.0.0.1", dead), ("127.0.0.1", upstream.port)]]
            assert (await ask(transport, request_to(1, host="api.example"))).ended


async def test_cancel_while_the_name_is_looked_up(transport, names):
    """A call that is cancelled during a lookup does not spoil it for the others."""
    async with Upstream(always(send(ANSWER))) as upstream:
        names.answers = [[("127.0.0.1", upstream.port)]]
        request = request_to(upstream.port, host="api.example")
        first, second = (start(transport, request) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second.over()).ended
    assert names.asked == 1


async def test_trust_store_of_the_environment(monkeypatch, tmp_path):
    """`SSL_CERT_FILE` names the authorities that the default context trusts."""
    authority = Authority("127.0.0.1")
    bundle = tmp_path / "ca.pem"
    authority.write(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    transport = SocketsTransport()
    async with RawUpstream(always(send(ANSWER)), tls=authority.server("h2", "http/1.1")) as upstream:
        heard = await ask(transport, request_to(upstream.port, scheme="https"))
        await transport.close()
    assert heard.ended, "and http/1.1 was negotiated though the server would rather speak h2"


# --- nothing is left ---------------------------------------------------------------------------------------


async def test_closed_connection_leaves_no_cycle():
    """A connection is freed when it is closed, without waiting for the garbage collector."""
    transport = SocketsTransport()
    go_on = asyncio.Event()
    async with Upstream(always(send(chat.stream_head()), until(go_on), close)) as upstream:
        heard = start(transport, request_to(upstream.port))
        await heard.head()
        gc.disable()
        try:
            connection = weakref.ref(heard.call.connection)
            go_on.set()
            await heard.over()
            await settle()
            assert connection() is None
        finally:
            gc.enable()
    await transport.close()
