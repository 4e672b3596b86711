"""The ASGI application: routes, and the plain way from ASGI to an exchange.

It is complete on any ASGI server. A runtime may answer the hot endpoint below ASGI with the same exchange.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.dialects import DIALECTS
from relay.errors import AuthenticationFailed, InvalidRequest, RelayError, RequestTimeout
from relay.exchange import CHAT_DIALECT, body_too_large

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from relay.exchange import Exchange
    from relay.messages import Headers
    from relay.pipeline import Pipeline
    from relay.telemetry.metrics import Metrics

CHAT_PATH = "/v1/chat/completions"

BODY_TIMEOUT_S = 60.0
"""Seconds a request's body may take to arrive."""

HIGH_WATER_BYTES = 64 * 1024
"""Unsent bytes at which the upstream is paused; it goes on when they are all sent."""


class AsgiClient:
    """A client behind ASGI's `send`: writes are queued, `pump` sends them as fast as the server takes them."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self._head: Message | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._paused = False
        self._ended = False
        self._gone = False
        self._news = asyncio.Event()

    def start(self, status: int, headers: Headers) -> None:
        """See `relay.client.Client`."""
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        self._news.set()

    def write(self, data: bytes) -> None:
        """See `relay.client.Client`."""
        if self._gone:
            return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._news.set()
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._paused and self.exchange is not None:
            self._paused = True
            self.exchange.pause()

    def end(self, data: bytes = b"") -> None:
        """See `relay.client.Client`."""
        if data:
            self.write(data)
        self._ended = True
        self._news.set()

    def gone(self) -> None:
        """The client has left: drop what is unsent, send nothing more."""
        self._gone = True
        self._unsent.clear()
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
            if self._paused and not self._unsent and self.exchange is not None:
                self._paused = False
                self.exchange.resume()


class ChatEndpoint:
    """POST /v1/chat/completions as a bare ASGI application: no request or response object stands in the way."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        client = AsgiClient()
        exchange = client.exchange = self._pipeline.open(client, scope["path"], scope["headers"])
        body = await _body(exchange, receive) if exchange.admit() else None
        if body is None:
            await client.pump(send)
            return
        run = asyncio.ensure_future(exchange.run(body))
        watch = asyncio.ensure_future(_watch(exchange, client, receive))
        try:
            await client.pump(send)
        finally:
            watch.cancel()
            if not exchange.closed:
                exchange.client_gone()
            await run


async def _body(exchange: Exchange, receive: Receive) -> bytes | None:
    """The request's body; None if it was refused or the client left."""
    parts: list[bytes] = []
    left = exchange.max_body_bytes
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    exchange.client_gone()
                    return None
                parts.append(message.get("body", b""))
                left -= len(parts[-1])
                if left < 0:
                    exchange.refuse(body_too_large(exchange.max_body_bytes))
                    return None
                more = message.get("more_body", False)
    except TimeoutError:
        exchange.refuse(RequestTimeout(f"The request's body did not arrive within {BODY_TIMEOUT_S:g} s."))
        return None
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _watch(exchange: Exchange, client: AsgiClient, receive: Receive) -> None:
    """Tell the exchange when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    client.gone()
    exchange.client_gone()


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

    return Starlette(
        routes=[
            Route(CHAT_PATH, ChatEndpoint(pipeline), methods=["POST"]),
            Route("/v1/models", models),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ],
        exception_handlers={RelayError: _relay_error, HTTPException: _http_error},
    )


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
