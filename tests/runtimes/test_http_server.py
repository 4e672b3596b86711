"""The bounded protocol, below the fast lane and above a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING

import pytest
import uvicorn

from relay.app import CHAT_PATH, create_app
from relay.clock import LoopClock
from relay.exchange import BODY_TIMEOUT_S
from relay.pipeline import TICK_S, Pipeline
from relay.policy.load import load
from relay.runtimes import http_server
from relay.runtimes.fast_lane import FastLane, FastLaneClient
from relay.stores.memory import MemoryStore
from relay.telemetry.metrics import Metrics
from relay.transports.sockets import SocketsTransport
from tests.fakes import FakeClock, settle
from tests.servers.chat import chunk, completion, framed, request_body, stream_head, whole
from tests.servers.client import RawClient, ask, get, post
from tests.servers.policies import ENVIRON, policy
from tests.servers.raw import pour
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, in_turn, send
from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from relay.clock import Clock
    from tests.servers.client import Answer

LIMIT = 2048
"""`requests.max_header_bytes` of the relay under test."""

BODY_LIMIT = 100_000
"""Its `requests.max_body_bytes`."""


@contextlib.asynccontextmanager
async def serving(base_url: str = "http://127.0.0.1:9/v1", *, clock: Clock | None = None) -> AsyncIterator[int]:
    """A relay behind the container's own protocol; gives its port."""
    async with server_of(base_url, keep_alive_s=60, clock=clock) as server:
        yield port_of(server)


def port_of(server: http_server.Server) -> int:
    """Where it listens."""
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def server_of(
    base_url: str, *, keep_alive_s: int, clock: Clock | None = None
) -> AsyncIterator[http_server.Server]:
    """The same, as uvicorn's server."""
    text = policy(base_url, requests={"max_header_bytes": LIMIT, "max_body_bytes": BODY_LIMIT})
    pipeline = Pipeline(
        load({"test.toml": text}, ENVIRON),
        transport=SocketsTransport(),
        store=MemoryStore(),
        observers=[],
        clock=clock or LoopClock(),
        rng=random.Random(0),
    )
    app = create_app(pipeline, metrics=Metrics(), admin_key=None)
    config = uvicorn.Config(
        app,
        http=FastLane.for_pipeline(pipeline),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=keep_alive_s,
    )
    server = http_server.Server(config, pipeline=pipeline, shutdown_s=1, on_started=lambda: None)
    config.load()
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.startup(sockets=[listener])
        yield server
        await server.shutdown(sockets=[listener])
        await pipeline.close()


async def refused(port: int, request: bytes) -> Answer:
    """The answer to a request after which the server closes the connection."""
    async with await RawClient.connect(port) as client:
        await client.send(request)
        answer = await client.whole()
        while not client.answer.end:
            await client.receive()
        return answer


ENDLESS = {
    "a header that never ends": (b"GET /healthz HTTP/1.1\r\nx: ", b"a" * 1000),
    "headers that never end": (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n" * 200),
    "a URL that never ends": (b"GET /", b"a" * 1000),
    "empty lines that never end": (b"", b"\r\n" * 500),
    "a chat request's header that never ends": (b"POST /v1/chat/completions HTTP/1.1\r\nx: ", b"a" * 1000),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS)
async def test_a_head_without_end_is_refused(start: bytes, more: bytes) -> None:
    """The server gives up at its limit, with a 431 in OpenAI's shape, and closes; it does not read on for ever."""
    async with serving() as port, await RawClient.connect(port) as client:
        await client.send(start)
        for _ in range(LIMIT // len(more) + 1):
            await client.send(more)
        answer = await client.whole()
        assert answer.status == 431
        assert answer.error()["code"] == "headers_too_large"
        assert answer.header(b"connection") == b"close"


async def test_trailers_without_end_are_refused() -> None:
    """What follows a chunked body is bounded like a head; no answer is due, the connection is closed."""
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: "
    async with serving() as port, await RawClient.connect(port) as client:
        await client.send(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):  # several reads' worth: one may pass unseen
                await client.send(b"a" * 1000)
        while not client.answer.end:
            await client.receive()
        assert not client.answer.complete


async def test_a_head_up_to_the_limit_is_served() -> None:
    """A head that is nearly as large as allowed is answered, also when it comes in small pieces."""
    async with serving() as port, await RawClient.connect(port) as client:
        for piece in (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ", *[b"a" * 100] * 19, b"\r\n\r\n"):
            await client.send(piece)
        assert (await client.whole()).status == 200


async def test_bodies_are_not_headers() -> None:
    """A body far larger than the head may be is read as it comes, in any pieces and on one connection."""
    async with (
        Upstream(always(send(whole(completion())))) as upstream,
        serving(upstream.base_url) as port,
        await RawClient.connect(port) as client,
    ):
        request = post(request_body(padding="a" * 20 * LIMIT))
        for _ in range(3):
            for at in range(0, len(request), 1500):
                await client.send(request[at : at + 1500])
            assert (await client.whole()).status == 200


async def test_what_is_not_http_gets_an_error_in_openais_shape() -> None:
    """A client that speaks something else is told so, and cut off."""
    async with serving() as port:
        answer = await refused(port, b"\x16\x03\x01 not HTTP\r\n\r\n")
    assert answer.status == 400
    assert answer.error()["message"] == "This is not an HTTP/1.1 request."


OFFER = (("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQBAAAAAAIAAAAA"))


async def test_an_offer_to_upgrade_is_ignored() -> None:
    """A request that offers HTTP/2 is answered over HTTP/1.1, body and all, and so is the next one."""
    async with (
        Upstream(always(send(whole(completion())))) as upstream,
        serving(upstream.base_url) as port,
        await RawClient.connect(port) as client,
    ):
        for _ in range(2):
            await client.send(post(request_body(), *OFFER))
            assert (await client.whole()).json()["choices"]
            await client.send(get("/healthz", *OFFER))
            assert (await client.whole()).status == 200
        assert upstream.received.items[0].header(b"upgrade") is None
        request = post(request_body(), *OFFER)
        for at in range(0, len(request), 7):
            await client.send(request[at : at + 7])
        assert (await client.whole()).json()["choices"]


async def test_a_websocket_is_not_served() -> None:
    """Where no WebSocket is, the handshake gets the plain answer of the path."""
    async with serving() as port:
        answer = await ask(port, get("/nowhere", ("connection", "Upgrade"), ("upgrade", "websocket")))
    assert answer.status == 404


async def test_connect_is_not_served() -> None:
    """The relay is no forward proxy."""
    async with serving() as port:
        answer = await refused(port, b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n")
    assert answer.status == 400
    assert "CONNECT" in answer.error()["message"]


async def test_a_head_that_dawdles_is_cut_off() -> None:
    """A connection whose head does not get on is closed, one that says nothing is left alone."""
    clock = FakeClock()
    async with (
        serving(clock=clock) as port,
        await RawClient.connect(port) as slow,
        await RawClient.connect(port) as idle,
    ):
        await slow.send(b"GET /healthz HTTP/1.1\r\nhost: ")
        await idle.send(get("/healthz"))
        assert (await idle.whole()).status == 200
        await clock.advance(http_server.HEAD_TIMEOUT_S)
        assert await slow.receive() == b""
        await idle.send(get("/healthz"))
        assert (await idle.whole()).status == 200


def unfinished(path: str, body: bytes, *, length: int | None) -> bytes:
    """A POST whose body goes on behind these first bytes of it; in chunks if no length is given."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    begun = b"%x\r\n%b\r\n" % (len(body), body) if length is None else body
    return f"POST {path} HTTP/1.1\r\nhost: relay.test\r\n{framing}\r\n\r\n".encode() + begun


TOO_MUCH = b" " * (BODY_LIMIT + 1)
REFUSED = {
    "below ASGI, in the middle of its body": (413, unfinished(CHAT_PATH, TOO_MUCH, length=4 * BODY_LIMIT)),
    "below ASGI, in chunks": (413, unfinished(CHAT_PATH, TOO_MUCH, length=None)),
    "by the application, in the middle of its body": (
        413,
        unfinished("/relay/explain", TOO_MUCH, length=4 * BODY_LIMIT),
    ),
    "by the application, in chunks": (413, unfinished("/relay/explain", TOO_MUCH, length=None)),
    "by the application, by its head": (405, unfinished("/healthz", b"{", length=4 * BODY_LIMIT)),
}
"""Requests that are answered before their body is complete."""


@pytest.mark.parametrize(("status", "begun"), REFUSED.values(), ids=REFUSED)
async def test_a_refused_body_that_dawdles_is_cut_off(status: int, begun: bytes) -> None:
    """Whose answer is given may send the rest of its body for a while, and not for ever, however it trickles."""
    clock = FakeClock()
    async with (
        server_of("http://127.0.0.1:9/v1", keep_alive_s=60, clock=clock) as server,
        await RawClient.connect(port_of(server)) as client,
    ):
        await client.send(begun)
        assert (await client.whole()).status == status
        trickle = b"1\r\n \r\n" if b"chunked" in begun else b" "
        for _ in range(3):
            await clock.advance(http_server.REST_TIMEOUT_S / 4)
            await client.send(trickle)
            assert server.server_state.connections
        await clock.advance(http_server.REST_TIMEOUT_S / 4)
        assert await client.receive() == b""


@pytest.mark.parametrize("path", [CHAT_PATH, "/relay/explain"])
async def test_a_body_refused_by_its_head_is_cut_off(path: str) -> None:
    """The same for a client that is not known, which is told so before any of its body was read."""
    clock = FakeClock()
    text = policy("http://127.0.0.1:9/v1", access={"open": False}, keys={"one": {"sha256": "0" * 64}})
    async with serve(text, clock=clock) as running, await RawClient.connect(running.port) as client:
        await client.send(unfinished(path, b"{", length=BODY_LIMIT))
        assert (await client.whole()).status == 401
        await clock.advance(http_server.REST_TIMEOUT_S)
        assert await client.receive() == b""


@pytest.mark.parametrize("path", [CHAT_PATH, "/relay/explain"])
async def test_a_body_that_dawdles_is_refused(path: str) -> None:
    """What a request is read for makes no difference to how long that may take."""
    clock = FakeClock()
    async with serving(clock=clock) as port, await RawClient.connect(port) as client:
        await client.send(unfinished(path, b"{", length=BODY_LIMIT))
        await settle()
        for _ in range(3):
            await clock.advance(BODY_TIMEOUT_S / 3 + TICK_S)
            await client.send(b" ")
        answer = await client.whole()
        assert answer.status == 408
        assert answer.error()["code"] == "request_timeout"


@pytest.mark.parametrize("path", [CHAT_PATH, "/relay/explain"])
async def test_a_client_that_leaves_within_its_body_is_no_error(path: str) -> None:
    """Nobody is left to be answered, and nothing is logged but the request."""
    async with serve(policy("http://127.0.0.1:9/v1")) as running:
        async with await RawClient.connect(running.port) as client:
            await client.send(unfinished(path, b"{", length=BODY_LIMIT))
            await settle()
        await settle()


@pytest.mark.parametrize("path", [CHAT_PATH, "/relay/explain"])
async def test_a_refused_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """However fast the rest of a body comes, no more than so much of it is read."""
    monkeypatch.setattr(http_server, "REST_BYTES", BODY_LIMIT)
    async with serving() as port, await RawClient.connect(port) as client:
        await client.send(unfinished(path, TOO_MUCH, length=200 * BODY_LIMIT))
        assert (await client.whole()).status == 413
        with contextlib.suppress(ConnectionError):
            for _ in range(198):
                await client.send(TOO_MUCH)
        while not client.answer.end:
            await client.receive()


async def test_the_rest_of_a_refused_body_gets_no_answer_of_its_own() -> None:
    """Chunks that are none, behind an answer, end the connection and nothing else."""
    async with serving() as port, await RawClient.connect(port) as client:
        await client.send(unfinished(CHAT_PATH, TOO_MUCH, length=None))
        assert (await client.whole()).status == 413
        await client.send(b"no chunk\r\n")
        assert await client.receive() == b""


async def test_a_refused_body_that_ends_leaves_the_connection_open() -> None:
    """Once the rest is in, the connection is as good as any."""
    clock = FakeClock()
    async with serving(clock=clock) as port, await RawClient.connect(port) as client:
        await client.send(unfinished("/relay/explain", TOO_MUCH, length=len(TOO_MUCH) + 1))
        assert (await client.whole()).status == 413
        await client.send(b" ")
        await settle()
        await clock.advance(http_server.REST_TIMEOUT_S)
        await client.send(get("/healthz"))
        assert (await client.whole()).status == 200


async def test_a_connection_that_never_asks_is_closed_at_last() -> None:
    """A connection without a request is kept as long as one between two requests."""
    async with (
        server_of("http://127.0.0.1:9/v1", keep_alive_s=0) as server,
        await RawClient.connect(port_of(server)) as client,
    ):
        await settle()
        await server.on_tick(0)
        assert await client.receive() == b""


async def test_idle_time_counts_from_the_end_of_the_last_answer() -> None:
    """A connection is closed when nothing was asked on it for the whole time, and never in the middle of a request."""
    async with (
        Upstream(always(send(whole(completion())))) as upstream,
        server_of(upstream.base_url, keep_alive_s=60) as server,
        await RawClient.connect(port_of(server)) as client,
    ):
        await client.send(post(request_body()))
        assert (await client.whole()).status == 200
        (connection,) = server.server_state.connections
        assert isinstance(connection, FastLane)
        now = asyncio.get_running_loop().time()
        connection.close_if_idle(now + 59)
        assert not connection.transport.is_closing()
        connection.data_received(post(request_body())[:10])
        connection.close_if_idle(now + 1000)
        await client.send(post(request_body())[10:])
        assert (await client.whole()).status == 200
        connection.close_if_idle(now + 1000)
        assert await client.receive() == b""


async def test_a_client_that_never_takes_its_answer_is_let_go() -> None:
    """A connection to which nothing gets through is not kept, nor is what is to go there, longer than an idle one."""
    async with (
        Upstream(always(send(whole(completion("a" * 8_000_000))))) as upstream,
        server_of(upstream.base_url, keep_alive_s=60) as server,
        await RawClient.connect(port_of(server), receive_buffer=4096) as client,
    ):
        await client.send(post(request_body(), ("Connection", "close")))
        await client.receive(1)
        (connection,) = server.server_state.connections
        assert isinstance(connection, FastLane)
        now = asyncio.get_running_loop().time()
        connection.close_if_idle(now + 59)
        await settle()
        assert connection.transport.get_write_buffer_size()
        connection.close_if_idle(now + 61)
        await settle()
        assert not server.server_state.connections


async def test_a_client_that_takes_its_answer_slowly_is_waited_for() -> None:
    """A connection through which an answer still goes is not idle, however long that takes."""
    async with (
        Upstream(always(send(whole(completion("a" * 30_000_000))))) as upstream,
        server_of(upstream.base_url, keep_alive_s=60) as server,
        await RawClient.connect(port_of(server)) as client,
    ):
        await client.send(post(request_body()))
        await client.receive(1)
        (connection,) = server.server_state.connections
        assert isinstance(connection, FastLane)
        now = asyncio.get_running_loop().time()
        for minute in range(1, 4):
            unsent = connection.transport.get_write_buffer_size()
            connection.close_if_idle(now + 60 * minute - 1)
            while connection.transport.get_write_buffer_size() == unsent:
                assert await client.receive()
        connection.close_if_idle(now + 60 * 4)
        assert not connection.transport.is_closing()
        assert connection.transport.get_write_buffer_size()


async def test_an_answer_behind_one_that_was_not_taken_waits() -> None:
    """A client that asks again and takes nothing of the last answer does not fill the memory with the next one."""
    text = "a" * 8_000_000
    long = [send(stream_head()), pour(framed(chunk({"content": "b" * 60_000})), 2000, asyncio.Event())]
    async with (
        Upstream(in_turn([send(whole(completion(text)))], long)) as upstream,
        server_of(upstream.base_url, keep_alive_s=60) as server,
        await RawClient.connect(port_of(server), receive_buffer=4096) as client,
    ):
        await client.send(post(request_body()))
        await client.receive(1)
        await client.send(post(request_body(stream=True)))
        (connection,) = server.server_state.connections
        assert isinstance(connection, FastLane)
        for _ in range(100):
            await settle()
            assert connection.transport.get_write_buffer_size() < 10_000_000
        assert (await client.whole()).json()["choices"][0]["message"]["content"] == text
        await client.until_count(b"b" * 60_000, 3)


async def test_an_answer_of_the_application_waits_for_a_slow_reader() -> None:
    """What goes by ASGI, as requests do that were sent ahead, is held back while its client takes nothing."""
    text = "a" * 8_000_000
    async with (
        Upstream(always(send(whole(completion(text))))) as upstream,
        server_of(upstream.base_url, keep_alive_s=60) as server,
        await RawClient.connect(port_of(server)) as client,
    ):
        await client.send(post(request_body()) * 2)
        assert len((await client.whole()).body) > len(text)
        (connection,) = server.server_state.connections
        assert isinstance(connection, FastLane)
        async with asyncio.timeout(PATIENCE_S):
            while isinstance(connection.cycle, FastLaneClient) or not connection.flow.write_paused:
                await settle()
        assert (await client.whole()).json()["choices"][0]["message"]["content"] == text
