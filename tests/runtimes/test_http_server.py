"""The bounded protocol, below the fast lane and above a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import TYPE_CHECKING

import pytest
import uvicorn

from relay.app import create_app
from relay.clock import LoopClock
from relay.pipeline import Pipeline
from relay.policy.load import load
from relay.runtimes import http_server
from relay.runtimes.fast_lane import FastLane, FastLaneClient
from relay.stores.memory import MemoryStore
from relay.telemetry.metrics import Metrics
from relay.transports.sockets import SocketsTransport
from tests.fakes import settle
from tests.servers.chat import completion, request_body, whole
from tests.servers.client import RawClient, ask, get, post
from tests.servers.policies import ENVIRON, policy
from tests.servers.upstream import Upstream, always, send
from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers.client import Answer

LIMIT = 2048
"""`requests.max_header_bytes` of the relay under test."""


@contextlib.asynccontextmanager
async def serving(base_url: str = "http://127.0.0.1:9/v1") -> AsyncIterator[int]:
    """A relay behind the container's own protocol; gives its port."""
    async with server_of(base_url, keep_alive_s=60) as server:
        yield port_of(server)


def port_of(server: http_server.Server) -> int:
    """Where it listens."""
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def server_of(base_url: str, *, keep_alive_s: int) -> AsyncIterator[http_server.Server]:
    """The same, as uvicorn's server."""
    text = policy(base_url, requests={"max_header_bytes": LIMIT})
    pipeline = Pipeline(
        load({"test.toml": text}, ENVIRON),
        transport=SocketsTransport(),
        store=MemoryStore(),
        observers=[],
        clock=LoopClock(),
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


async def test_a_head_that_dawdles_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose head does not get on is closed, one that says nothing is left alone."""
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.01)
    async with serving() as port, await RawClient.connect(port) as slow, await RawClient.connect(port) as idle:
        await slow.send(b"GET /healthz HTTP/1.1\r\nhost: ")
        assert await slow.receive() == b""
        await idle.send(get("/healthz"))
        assert (await idle.whole()).status == 200


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
