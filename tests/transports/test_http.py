"""What the httpx2 transport does beyond the contract: HTTP/2, proxies, the library's errors."""

from __future__ import annotations

import asyncio
import logging

import httpx2
import pytest

from relay import errors
from relay.errors import ConnectFailed, ConnectionLost, ConnectTimeout, UpstreamFailure, UpstreamProtocolError
from relay.transports import http
from relay.transports.http import HttpTransport
from tests.fakes import FakeClock, settle
from tests.servers import chat
from tests.servers.raw import Authority, RawUpstream, silent_listener
from tests.servers.upstream import Upstream, always, in_turn, send, stall, unused_port
from tests.servers.waiting import happens
from tests.transports.peers import H2Server, Proxy
from tests.transports.receiving import Heard, request_to

ANSWER = chat.whole(b"{}")


@pytest.fixture(scope="module")
def authority():
    return Authority("127.0.0.1", "api.example")


@pytest.fixture
async def transport(authority):
    transport = HttpTransport(tls=authority.client())
    yield transport
    await transport.close()


def start(transport, request, heard=None):
    heard = heard or Heard()
    heard.call = transport.send(request, heard)
    return heard


async def ask(transport, request):
    return await start(transport, request).over()


def h2_request(server, **settings):
    return request_to(server.port, scheme="https", http2=True, **settings)


# --- HTTP/2 ------------------------------------------------------------------------------------------------


async def echo(stream):
    stream.head(200, (b"content-type", b"text/event-stream"), (b"x-a", b"1"), (b"x-a", b"2"))
    for n in range(0, len(stream.body), 2):
        await stream.data(stream.body[n : n + 2])
    await stream.data(b"", end=True)


async def test_http2(transport, authority):
    """Over HTTP/2 a request arrives with its headers and no others, and its answer comes back whole."""
    async with H2Server(echo, authority.server("h2")) as server:
        request = request_to(server.port, b"hello", (b"x-b", b"3"), scheme="https", http2=True, target="/v1/x?y=%2F")
        heard = await ask(transport, request)
        got = await server.received.at(0)
    assert heard.ended
    assert (heard.status, heard.body) == (200, b"hello")
    assert heard.headers == [(b"content-type", b"text/event-stream"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert sorted(got.headers) == [
        (b":authority", b"127.0.0.1:%d" % server.port),
        (b":method", b"POST"),
        (b":path", b"/v1/x?y=%2F"),
        (b":scheme", b"https"),
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer sk-secret"),
        (b"content-length", b"5"),
        (b"content-type", b"application/json"),
        (b"x-b", b"3"),
    ]


async def test_http2_connection_is_used_again_by_one_request_at_a_time(transport, authority):
    """A free HTTP/2 connection serves the next request; one that is busy is not shared."""
    async with H2Server(echo, authority.server("h2")) as server:
        request = h2_request(server)
        for _ in range(3):
            assert (await ask(transport, request)).ended
        assert len(server.connections) == 1
        for heard in [start(transport, request) for _ in range(3)]:
            assert (await heard.over()).ended
        assert len(server.connections) == 3


async def test_http2_cancel_is_seen_by_the_upstream_alone(transport, authority):
    """A cancelled stream's upstream sees its connection close; the other streams go on."""
    go_on = asyncio.Event()

    async def wait(stream):
        stream.head(200)
        await stream.data(b"a")
        await go_on.wait()
        await stream.data(b"b", end=True)

    async with H2Server(wait, authority.server("h2")) as server:
        request = h2_request(server)
        cancelled, other = (start(transport, request) for _ in range(2))
        await cancelled.some()
        await other.some()
        cancelled.cancel()
        await happens((await server.received.at(0)).connection.gone)
        go_on.set()
        assert (await other.over()).body == b"ab"


async def test_http2_cancel_before_the_head(transport, authority):
    """An upstream that is still thinking sees the cancel as well."""

    async def think(_stream):
        await asyncio.Event().wait()

    async with H2Server(think, authority.server("h2")) as server:
        heard = start(transport, h2_request(server))
        stream = await server.received.at(0)
        heard.cancel()
        await happens(stream.connection.gone)


async def test_http2_pause_is_felt_by_the_upstream(transport, authority):
    """While a call is paused the upstream runs out of window; resumed, all arrives."""
    body = b"x" * 24_000_000  # httpx2 gives 16 MB of window
    sent = asyncio.Event()

    async def pour(stream):
        stream.head(200)
        await stream.data(body, end=True)
        sent.set()

    async with H2Server(pour, authority.server("h2")) as server:
        heard = start(transport, h2_request(server), Heard(head=lambda heard: heard.call.pause()))
        await heard.head()
        for _ in range(200):
            await settle()
        assert len(heard.body) <= 256 * 1024
        assert not sent.is_set()
        heard.call.resume()
        await heard.over()
    assert heard.body == body


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_http2_stream_that_ends_too_early_is_lost(transport, authority, how):
    """RST_STREAM and a closed connection are ConnectionLost, after what came."""

    async def end(stream):
        stream.head(200)
        await stream.data(b"a")
        if how == "reset":
            stream.reset()
        else:
            stream.connection.transport.close()

    async with H2Server(end, authority.server("h2")) as server:
        heard = await ask(transport, h2_request(server))
    assert heard.body == b"a"
    assert isinstance(heard.failure, ConnectionLost)


async def test_http2_nonsense_is_a_protocol_error(transport, authority):
    """Frames that must not be are UpstreamProtocolError."""

    async def talk(stream):
        stream.head(200)
        data_without_a_stream = b"\0\0\1" + b"\0\0" + b"\0\0\0\0" + b"x"
        stream.connection.transport.write(data_without_a_stream)
        await asyncio.Event().wait()

    async with H2Server(talk, authority.server("h2")) as server:
        heard = await ask(transport, h2_request(server))
    assert isinstance(heard.failure, UpstreamProtocolError)


async def test_server_without_http2_is_spoken_to_in_its_own(transport, authority):
    """`http2` is an offer: a server that does not take it gets HTTP/1.1."""
    async with RawUpstream(always(send(ANSWER)), tls=authority.server("http/1.1")) as upstream:
        heard = await ask(transport, request_to(upstream.port, scheme="https", http2=True))
    assert heard.ended


# --- proxies -----------------------------------------------------------------------------------------------


async def test_plain_requests_are_forwarded(transport):
    """An http origin is asked for through the proxy by its whole URL, and its connection used again."""
    async with Upstream(always(send(ANSWER))) as upstream, Proxy(upstream.port) as proxy:
        request = request_to(80, host="api.example", proxy=proxy.url())
        assert (await ask(transport, request)).ended
        assert (await ask(transport, request)).ended
        got = await upstream.received.at(1)
    assert got.line == b"POST http://api.example/v1/chat/completions HTTP/1.1"
    assert got.header(b"host") == b"api.example"
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("http2", [False, True])
async def test_tls_goes_through_a_tunnel(transport, authority, http2):
    """An https origin is reached by CONNECT; the proxy sees its name and nothing else, HTTP/2 works inside."""
    server = (
        H2Server(echo, authority.server("h2"))
        if http2
        else RawUpstream(always(send(ANSWER)), tls=authority.server("http/1.1"))
    )
    async with server, Proxy(server.port) as proxy:
        request = request_to(443, host="api.example", scheme="https", proxy=proxy.url(), http2=http2)
        for _ in range(2):
            assert (await ask(transport, request)).ended
    assert len(proxy.requests) == 1
    assert proxy.requests[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")
    assert b"secret" not in proxy.requests[0]


async def test_proxy_credentials_come_from_its_url(transport):
    """User and password of the proxy's URL go to the proxy, and it lets the request through."""
    async with Upstream(always(send(ANSWER))) as upstream, Proxy(upstream.port, "relay:pa55word") as proxy:
        request = request_to(80, host="api.example", proxy=proxy.url("relay:pa55word"))
        assert (await ask(transport, request)).ended


async def test_tunnel_refused_by_the_proxy(transport):
    """A proxy that refuses CONNECT is ConnectFailed with its reason, and without its password."""
    async with Proxy(unused_port(), "relay:pa55word") as proxy:
        request = request_to(443, host="api.example", scheme="https", proxy=proxy.url("relay:wr0ng"))
        heard = await ask(transport, request)
    assert isinstance(heard.failure, ConnectFailed)
    assert "407" in heard.failure.message
    assert "wr0ng" not in heard.failure.message


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_that_is_not_there(transport, scheme):
    """A proxy that cannot be reached is ConnectFailed."""
    proxy = f"http://127.0.0.1:{unused_port()}"
    heard = await ask(transport, request_to(80, host="api.example", scheme=scheme, proxy=proxy))
    assert isinstance(heard.failure, ConnectFailed)


async def test_proxy_that_never_answers_connect(transport):
    """The tunnel is part of connecting: a silent proxy is ConnectTimeout."""
    with silent_listener() as port:
        request = request_to(
            443, host="api.example", scheme="https", proxy=f"http://127.0.0.1:{port}", connect_timeout_s=0.05
        )
        heard = await ask(transport, request)
    assert isinstance(heard.failure, ConnectTimeout)


@pytest.mark.parametrize(
    "proxy", ["ftp://user:pa55word@127.0.0.1", "socks5://user:pa55word@127.0.0.1:1", "http://[pa55word"]
)
async def test_proxy_that_cannot_be_used(transport, proxy):
    """A proxy URL that the library does not take is ConnectFailed, without the password in it."""
    heard = await ask(transport, request_to(80, host="api.example", proxy=proxy))
    assert isinstance(heard.failure, ConnectFailed)
    assert "pa55word" not in heard.failure.message


async def test_environment_names_no_proxy(transport, monkeypatch):
    """HTTP_PROXY and its like are not the policy."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    async with Upstream(always(send(ANSWER))) as upstream:
        assert (await ask(transport, request_to(upstream.port))).ended


# --- the library -------------------------------------------------------------------------------------------


def test_every_exception_of_the_library_is_mapped():
    """Each exception class that httpx2 exports has a row, and each row is what a transport may tell."""
    exported = {
        value
        for value in vars(httpx2).values()
        if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, Warning)
    }
    assert exported
    assert exported - set(http.FAILURES) == set()
    allowed = {ConnectFailed, ConnectTimeout, ConnectionLost, UpstreamProtocolError}
    assert set(http.FAILURES.values()) == allowed
    assert all(issubclass(kind, UpstreamFailure) for kind in allowed)


async def test_defect_of_the_library_reaches_the_receiver(transport, monkeypatch):
    """Whatever the library raises, the receiver hears of a failure and sees none of the error's text."""

    async def fail(*_args):
        raise KeyError("sk-secret")

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", fail)
    heard = await ask(transport, request_to(80))
    assert type(heard.failure) is UpstreamProtocolError
    assert "sk-secret" not in str(heard.failure)
    assert errors.may_retry(heard.failure)


async def test_credentials_are_not_logged(transport, caplog):
    """Not even at DEBUG does the library log headers."""
    caplog.set_level(logging.DEBUG)
    async with Upstream(always(send(ANSWER))) as upstream:
        await ask(transport, request_to(upstream.port))
    assert "sk-secret" not in caplog.text


async def test_redirects_and_cookies_are_the_clients_business(transport):
    """A redirect is passed on, and a cookie is not sent back."""
    answer = chat.whole(b"", 307, ("location", "/elsewhere"), ("set-cookie", "a=1"))
    async with Upstream(always(send(answer))) as upstream:
        first = await ask(transport, request_to(upstream.port))
        await ask(transport, request_to(upstream.port))
        again = await upstream.received.at(1)
    assert first.status == 307
    assert again.header(b"cookie") is None


async def test_idle_connections_expire():
    """A connection that nobody used for 55 s is closed; one in use is not."""
    clock = FakeClock()
    transport = HttpTransport(clock=clock)
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
        await transport.close()
    assert upstream.connections == 2
