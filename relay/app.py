"""The ASGI application: routes, and the plain way from ASGI to an exchange.

It is complete on any ASGI server. A runtime may answer the hot endpoint below ASGI with the same exchange.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.admission import body_too_large
from relay.dialects import DIALECTS
from relay.errors import AuthenticationFailed, ClientGone, InvalidRequest, RelayError
from relay.exchange import BODY_TIMEOUT_S, CHAT_DIALECT, body_too_late
from relay.head import Head

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from relay.exchange import Exchange
    from relay.messages import Headers
    from relay.pipeline import Pipeline
    from relay.telemetry.metrics import Metrics

CHAT_PATH = "/v1/chat/completions"

HIGH_WATER_BYTES = 64 * 1024
"""Unsent bytes at which the upstream is paused; it goes on when they are all sent."""


class AsgiClient:
    """A client behind ASGI: writes are queued, `pump` sends them as fast as the server takes them.

    Attributes:
        exchange: whose answer this is.
        running: the exchange at work; None until the request's body is complete.
    """

    exchange: Exchange

    def __init__(self) -> None:
        self.running: asyncio.Future[None] | None = None
        self._head: Message | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._paused = False
        self._ended = False
        self._gone = False
        self._news = asyncio.Event()

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """See `relay.client.Client`."""
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        self._news.set()

    def write(self, data: bytes) -> None:
        """See `relay.client.Client`."""
        if self._gone:
            return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._news.set()
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self.exchange.pause()

    def end(self, data: bytes = b"") -> None:
        """See `relay.client.Client`."""
        if data:
            self.write(data)
        self._ended = True
        self._news.set()

    async def pump(self, send: Send) -> None:
        """Send until the answer is complete or the client has gone."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._gone:
                return
            if self._head is not None:
                head, self._head = self._head, None
                await send(head)
            ended = self._ended  # before the queue is taken, so that nothing is left in it
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._unsent_bytes = 0
            if data or ended:
                await send({"type": "http.response.body", "body": data, "more_body": not ended})
            if ended:
                return
            if self._paused and not self._unsent:
                self._paused = False
                self.exchange.resume()

    async def read(self, receive: Receive) -> None:
        """Read the request's body, run the exchange, then wait for the client to leave."""
        parts: list[bytes] = []
        left = self.exchange.max_body_bytes
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._leave()
                return
            parts.append(message.get("body", b""))
            left -= len(parts[-1])
            if left < 0:
                self.exchange.refuse(body_too_large(self.exchange.max_body_bytes))
                return
            more = message.get("more_body", False)
        self.running = asyncio.ensure_future(self.exchange.run(b"".join(parts)))
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        """The client has left: drop what is unsent, send nothing more."""
        self._gone = True
        self._unsent.clear()
        self._news.set()
        self.exchange.client_gone()


class ChatEndpoint:
    """POST /v1/chat/completions as a bare ASGI application: no request or response object stands in the way."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        client = AsgiClient()
        exchange = client.exchange = self._pipeline.open(client, Head(scope["path"], scope["headers"]))
        reading = asyncio.ensure_future(client.read(receive)) if exchange.admit() else None
        try:
            await client.pump(send)
        finally:
            if reading is not None:
                reading.cancel()
            if not exchange.closed:
                exchange.client_gone()
            if client.running is not None:
                await client.running
            del client.exchange  # which knows this client: no cycles are left for the collector


def explaining(pipeline: Pipeline) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint that says what would be decided for a chat request, which is not sent."""

    async def explain(request: Request) -> Response:
        head = Head(CHAT_PATH, request.headers.raw)
        pipeline.check(head)
        return JSONResponse(pipeline.explain(head, await _body_of(request, pipeline)))

    return explain


async def _body_of(request: Request, pipeline: Pipeline) -> bytes:
    """All of it, as bounded in bytes and in time as that of a request that is sent."""
    max_body_bytes = pipeline.policy.requests.max_body_bytes
    body = bytearray()
    late = asyncio.timeout(None)
    timer = pipeline.clock.call_later(BODY_TIMEOUT_S, lambda: late.reschedule(0))
    try:
        async with late:
            async for piece in request.stream():
                body += piece
                if len(body) > max_body_bytes:
                    raise body_too_large(max_body_bytes)
    except TimeoutError:
        raise body_too_late() from None
    except ClientDisconnect:
        raise ClientGone("The client closed the connection before its request was complete.") from None
    finally:
        timer.cancel()
    return bytes(body)


def create_app(pipeline: Pipeline, *, metrics: Metrics, admin_key: str | None) -> Starlette:
    """The application.

    Args:
        pipeline: answers requests; its policy is looked up anew for each.
        metrics: what `/metrics` shows.
        admin_key: if set, `/metrics` asks for it as a bearer token.
    """

    async def models(request: Request) -> Response:
        """What the caller's key may ask for, in OpenAI's list shape."""
        key = None
        policy = pipeline.policy
        presented = _bearer(request)
        if presented:
            key = policy.key_for(presented)
        if key is None and not policy.open:
            raise AuthenticationFailed("The API key is not known here." if presented else "No API key was sent.")
        names = policy.visible_models(key)
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "relay"} for name in names]
        return JSONResponse({"object": "list", "data": listed})

    async def healthz(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
        """Requests are welcome: a policy is loaded, the store can be reached, no shutdown is under way."""
        ready = not pipeline.draining and await pipeline.store.ready()
        status = "ready" if ready else "draining" if pipeline.draining else "store unreachable"
        return JSONResponse({"status": status, "policy": pipeline.policy.version}, 200 if ready else 503)

    async def show_metrics(request: Request) -> Response:
        """Prometheus text."""
        if admin_key is not None and not hmac.compare_digest(_bearer(request), admin_key.encode()):
            raise AuthenticationFailed("/metrics asks for the admin key.")
        text, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    app = Starlette(
        routes=[
            Route(CHAT_PATH, ChatEndpoint(pipeline), methods=["POST"]),
            Route("/v1/models", models),
            Route("/relay/explain", explaining(pipeline), methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ],
        exception_handlers={RelayError: _relay_error, HTTPException: _http_error},
    )
    app.router.redirect_slashes = False  # a client that is told 404 mends its URL; one that is redirected never does
    return app


def _bearer(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _error_response(error: RelayError, status: int) -> Response:
    response = Response(DIALECTS[CHAT_DIALECT].encode_error(error), status, media_type="application/json")
    for name, value in error.headers():
        response.headers[name.decode()] = value.decode()
    return response


async def _relay_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    assert isinstance(error, RelayError)  # noqa: S101 - registered for this class alone
    return _error_response(error, error.http_status)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 in OpenAI's shape, so that an SDK shows their text."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
    shown = f"{request.method} {request.url.path[:200]}: {error.detail}."
    response = _error_response(InvalidRequest(shown), error.status_code)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
