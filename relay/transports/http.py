"""What the hot path does not speak, on httpx2: HTTP proxies (CONNECT and forward) and HTTP/2.

Each request runs a small task that pulls from httpx2 and pushes into the receiver. It uses httpx2's transport, not its
client: no redirects, no cookies, and no header, proxy or certificate that the policy does not name.

A connection serves one request at a time, over HTTP/2 as well: each is an httpx2 transport of its own. httpx2's HTTP/2
neither resets a stream that is given up nor forgets it (encode/httpcore#943, #1022), so that the upstream would go on
generating for nobody, and the connection would refuse new streams after a hundred of these. To close the connection
stops every upstream; it must not carry anybody else's stream then.

Three things are up to httpx2 and weaker than in `sockets.py`: it does not say whether part of a head came before a
reused connection broke (it counts as dead while idle), nor whether bytes followed a complete answer; and it reads no
answer before the request has all left.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx2

from relay.clock import LoopClock
from relay.errors import ConnectFailed, ConnectionLost, ConnectTimeout, UpstreamFailure, UpstreamProtocolError
from relay.wire import http1

if TYPE_CHECKING:
    from relay.clock import Clock, Timer
    from relay.messages import Endpoint, Origin, UpstreamRequest
    from relay.transports.base import Receiver

IDLE_S = 55.0
"""Seconds an unused connection is kept: less than the 60 s after which AWS's load balancers close theirs."""

FAILURES: dict[type[Exception], type[UpstreamFailure]] = {
    httpx2.ConnectTimeout: ConnectTimeout,
    httpx2.PoolTimeout: ConnectTimeout,
    httpx2.ConnectError: ConnectFailed,
    httpx2.ProxyError: ConnectFailed,
    httpx2.UnsupportedProtocol: ConnectFailed,
    httpx2.InvalidURL: ConnectFailed,
    httpx2.LocalProtocolError: ConnectFailed,
    httpx2.ReadError: ConnectionLost,
    httpx2.WriteError: ConnectionLost,
    httpx2.CloseError: ConnectionLost,
    httpx2.NetworkError: ConnectionLost,
    httpx2.ReadTimeout: ConnectionLost,
    httpx2.WriteTimeout: ConnectionLost,
    httpx2.TimeoutException: ConnectionLost,
    httpx2.StreamClosed: ConnectionLost,
    httpx2.RemoteProtocolError: UpstreamProtocolError,
    httpx2.ProtocolError: UpstreamProtocolError,
    httpx2.DecodingError: UpstreamProtocolError,
    httpx2.TooManyRedirects: UpstreamProtocolError,
    httpx2.HTTPStatusError: UpstreamProtocolError,
    httpx2.CookieConflict: UpstreamProtocolError,
    httpx2.StreamConsumed: UpstreamProtocolError,
    httpx2.ResponseNotRead: UpstreamProtocolError,
    httpx2.RequestNotRead: UpstreamProtocolError,
    httpx2.StreamError: UpstreamProtocolError,
    httpx2.TransportError: UpstreamProtocolError,
    httpx2.RequestError: UpstreamProtocolError,
    httpx2.HTTPError: UpstreamProtocolError,
    httpx2.SSEError: UpstreamProtocolError,
    ImportError: ConnectFailed,  # SOCKS without the package that speaks it
    Exception: UpstreamProtocolError,  # h2's own come through where httpx2 forgets to translate them
}
"""What each of the library's exceptions is here. The nearest base class counts."""

_GONE = re.compile(r"disconnected|closed connection|ConnectionTerminated|StreamReset")
"""The library's one error for "closed" and for "not HTTP" says only in its text which of them it is."""

_TELLING = (httpx2.ConnectError, httpx2.ProxyError)
"""Errors whose text may be passed on. Others quote headers, URLs with credentials, or the answer."""


class HttpTransport:
    """HTTP/1.1 and HTTP/2, through a proxy if the endpoint names one. Make it inside the running loop.

    Args:
        tls: context for `https` origins, of this transport alone (ALPN is set on it); by default the system's trust
            store (`SSL_CERT_FILE` honoured), with certificate and host name checked.
        clock: what idle expiry goes by. Connect timeouts are the event loop's.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, clock: Clock | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls or ssl.create_default_context()
        self._clock = clock or LoopClock()
        self._lanes: dict[tuple[Origin, str | None, bool, int], _Lane] = {}
        self._calls: dict[asyncio.Task[None], _Call] = {}
        self._closed = False
        for name in ("httpcore2", "hpack"):  # at DEBUG they log headers, and so credentials
            logging.getLogger(name).setLevel(logging.INFO)

    def send(self, request: UpstreamRequest, receiver: Receiver) -> _Call:
        """See `base.Transport`. Waiting for a free connection counts as connecting."""
        call = _Call(request, receiver)
        task = call.task = asyncio.Task(self._run(call), loop=self._loop)  # never eager: send must return first
        self._calls[task] = call
        task.add_done_callback(self._calls.pop)
        return call

    async def close(self) -> None:
        """See `base.Transport`. Requests sent afterwards fail with ConnectFailed."""
        self._closed = True
        calls = dict(self._calls)
        for call in calls.values():
            call.fail(ConnectionLost(f"the connection to {_name(call)} was closed: the relay is shutting down"))
        await asyncio.gather(*calls, return_exceptions=True)
        for lane in self._lanes.values():
            await lane.close()

    async def _run(self, call: _Call) -> None:
        try:
            lane = self._lane(call.request.endpoint)
            message = _message(call.request)
        except httpx2.InvalidURL:
            call.fail(ConnectFailed(f"{call.request.endpoint!r}: its proxy is no URL"))  # nor to be quoted
            return
        except ValueError as error:
            call.fail(ConnectFailed(f"{call.request.endpoint!r}: {error}"))
            return
        try:
            async with asyncio.timeout(call.request.endpoint.connect_timeout_s) as connecting, lane.room:
                await _exchange(call, lane, message, connecting)
        except TimeoutError:
            within = f"within {call.request.endpoint.connect_timeout_s:g} s"
            call.fail(ConnectTimeout(f"no connection to {_name(call)} {within}"))
        except Exception as error:  # noqa: BLE001 the receiver must hear of it, whatever it is
            call.fail(_failure(call, error))
        else:
            call.end()

    def _lane(self, endpoint: Endpoint) -> _Lane:
        if self._closed:
            raise ValueError("the transport is closed")
        key = (endpoint.origin, endpoint.proxy, endpoint.http2, endpoint.max_connections)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(endpoint, self._tls, self._clock)
        return lane


class _Call:
    """`base.Call` and the task that serves it."""

    task: asyncio.Task[None]

    def __init__(self, request: UpstreamRequest, receiver: Receiver) -> None:
        self.request = request
        self._receiver = receiver
        self._reading = asyncio.Event()
        self._reading.set()
        self._over = False

    def pause(self) -> None:
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self.task.cancel()

    def fail(self, failure: UpstreamFailure) -> None:
        """Tell the receiver, and stop the task if it is not this one that tells."""
        if not self._over:
            self._over = True
            if asyncio.current_task() is not self.task:
                self.task.cancel()
            self._receiver.on_failure(failure)

    def end(self) -> None:
        if not self._over:
            self._over = True
            self._receiver.on_end()

    async def deliver(self, response: httpx2.Response) -> None:
        """Push the answer, all but its end.

        Raises:
            UpstreamProtocolError: it is not one that can be passed on.
        """
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        problem = http1.unusable(response.status_code, headers)
        if problem is not None:
            raise UpstreamProtocolError(f"{_name(self)} sent {problem}")
        self._receiver.on_head(response.status_code, headers)
        await self._may_go_on()
        async with aclosing(response.aiter_raw()) as pieces:
            async for data in pieces:
                if data:
                    self._receiver.on_body(data)
                    await self._may_go_on()

    async def _may_go_on(self) -> None:
        if self._over:  # cancelled from within a callback: what is already read would come without a suspension
            raise asyncio.CancelledError
        await self._reading.wait()


class _Lane:
    """The connections that serve one kind of endpoint."""

    def __init__(self, endpoint: Endpoint, tls: ssl.SSLContext, clock: Clock) -> None:
        self.room = asyncio.Semaphore(endpoint.max_connections)
        self._proxy = None if endpoint.proxy is None else httpx2.Proxy(endpoint.proxy)
        self._http2 = endpoint.http2
        self._tls = tls
        self._clock = clock
        self._idle: dict[httpx2.AsyncHTTPTransport, float] = {}  # until when on the clock; last in, first out
        self._sweeper: Timer | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def idle(self) -> httpx2.AsyncHTTPTransport | None:
        return self._idle.popitem()[0] if self._idle else None

    def new(self) -> httpx2.AsyncHTTPTransport:
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
        return httpx2.AsyncHTTPTransport(
            verify=self._tls, trust_env=False, http2=self._http2, limits=limits, proxy=self._proxy
        )

    def keep(self, connection: httpx2.AsyncHTTPTransport) -> None:
        self._idle[connection] = self._clock.now() + IDLE_S
        if self._sweeper is None:
            self._sweeper = self._clock.call_later(IDLE_S, self._sweep)

    def _sweep(self) -> None:
        now = self._clock.now()
        for connection in [connection for connection, until in self._idle.items() if until <= now]:
            del self._idle[connection]
            task = asyncio.ensure_future(connection.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._sweeper = None
        if self._idle:
            self._sweeper = self._clock.call_later(min(self._idle.values()) - now, self._sweep)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.gather(*self._closing, *[connection.aclose() for connection in self._idle])
        self._idle.clear()


async def _exchange(call: _Call, lane: _Lane, message: httpx2.Request, connecting: asyncio.Timeout) -> None:
    """Send the request, deliver the answer, and keep the connection if all went well."""
    opened: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            connecting.reschedule(None)

    message.extensions["trace"] = trace
    deadline = connecting.when()
    connection = lane.idle() or lane.new()
    try:
        try:
            response = await connection.handle_async_request(message)
        except httpx2.TransportError as error:
            if opened or not _is_gone(error):
                raise
            await connection.aclose()
            connection = lane.new()
            connecting.reschedule(deadline)
            response = await connection.handle_async_request(message)
        await call.deliver(response)
    except BaseException:
        for stream in opened:  # httpx2 loses it if it is cancelled amid the TLS handshake
            await stream.aclose()
        await connection.aclose()
        raise
    lane.keep(connection)


def _message(request: UpstreamRequest) -> httpx2.Request:
    endpoint = request.endpoint
    http1.check_request_headers(request.headers)
    scheme, host, port = endpoint.origin
    return httpx2.Request(
        endpoint.method,
        httpx2.URL(scheme=scheme, host=host, port=port),
        headers=[*http1.fixed_headers(endpoint), *request.headers],
        content=request.body,
        extensions={"target": endpoint.target.encode("ascii")},  # as it is: a URL would be normalised
    )


def _is_gone(error: Exception) -> bool:
    lost = (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError)
    return isinstance(error, lost) or (
        isinstance(error, httpx2.RemoteProtocolError) and _GONE.search(str(error)) is not None
    )


def _failure(call: _Call, error: Exception) -> UpstreamFailure:
    if isinstance(error, UpstreamFailure):
        return error
    kind = next(FAILURES[base] for base in type(error).__mro__ if base in FAILURES)
    if _is_gone(error):
        kind = ConnectionLost
    detail = str(error) if isinstance(error, _TELLING) else type(error).__name__
    return kind(f"{_name(call)}: {detail}")


def _name(call: _Call) -> str:
    return http1.host_header(*call.request.endpoint.origin).decode()
