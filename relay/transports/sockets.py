"""Our own pooled HTTP/1.1 client: the container's hot path.

How a request goes. `SocketsTransport.send` looks up the endpoint's lane (its pool, its ready-made head). If a
connection is idle, the request is written there and then: one write, no task, no future, no timer. Otherwise the call
waits: for a connection of its own to be opened, or, at the origin's cap, first come first served for any to be free.
Bytes that come in go from `data_received` through llhttp to the receiver in the same call stack, and none is kept
beyond it. What llhttp cuts out of one read (many small chunks, usually) is joined, so that one read of the upstream is
one write to the client. After `pause` no more is read; what the present read brought (256 KB at most) still arrives.

A connection is idle (in `_Pool.idle`, no call), busy (has a call) or closed. It goes back to idle only if the answer
was complete by its own framing, nothing came after it, the request had left, and the server allows it. Everything else
closes it: to close is always safe, to reuse is not (RFC 9112 §9.3, §11.2).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import TYPE_CHECKING, cast

import httptools
from aiohappyeyeballs import start_connection

from relay.clock import LoopClock
from relay.errors import ConnectFailed, ConnectionLost, ConnectTimeout, UpstreamProtocolError
from relay.wire import http1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohappyeyeballs import AddrInfoType

    from relay.clock import Clock, Timer
    from relay.errors import UpstreamFailure
    from relay.messages import Endpoint, Headers, Origin, UpstreamRequest
    from relay.transports.base import Receiver

IDLE_S = 55.0
"""Seconds an unused connection is kept: less than the 60 s after which AWS's load balancers close theirs; nginx (75 s)
and most others wait longer. Servers with less patience say so (`keep-alive: timeout=5`, Node) or are noticed when they
close (uvicorn)."""

SWEEP_S = 1.0
"""Seconds between two looks for idle connections past their time, at least."""

ADDRESSES_S = 5.0
"""Seconds for which an origin's addresses are kept. A burst of new connections must not become a burst of lookups: a
resolver thread pool that is behind eats the connect timeout."""

SECOND_ADDRESS_S = 0.25
"""Seconds a first address gets before the next is tried beside it (RFC 8305 §5)."""

MAX_LANES = 1024
"""Endpoints remembered. Reloaded policies bring new ones; what is forgotten is built again."""

PROBE_S = 60
"""Seconds of silence before TCP probes the peer: models that reason in silence outlast NAT tables (AWS: 350 s)."""

OK = 200

_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_TIMEOUT = re.compile(rb"\btimeout=(\d{1,9})")


class SocketsTransport:
    """HTTP/1.1 over pooled TCP and TLS connections. Make it inside the running loop that it is to serve.

    Args:
        tls: context for `https` origins; by default the system's trust store (`SSL_CERT_FILE` honoured), with
            certificate and host name checked.
        clock: what connect timeouts and idle expiry go by.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, clock: Clock | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls or _default_tls()
        self._clock = clock or LoopClock()
        self._pools: dict[Origin, _Pool] = {}
        self._lanes: dict[Endpoint, tuple[_Pool, bytes]] = {}
        self._closed = False

    def send(self, request: UpstreamRequest, receiver: Receiver) -> _Call:
        """See `base.Transport`. Waiting for a free connection counts as connecting.

        Endpoints with `proxy` or `http2` fail with ConnectFailed: they are the other transport's.
        """
        endpoint = request.endpoint
        call = _Call(endpoint, receiver)
        try:
            pool, head = self._lanes.get(endpoint) or self._lane(endpoint)
            call.message = http1.encode_request(head, request.headers, request.body)
        except ValueError as error:
            call.wait = self._loop.call_soon(receiver.on_failure, ConnectFailed(f"{endpoint!r}: {error}"))
            return call
        if pool.idle:
            pool.idle.popitem()[0].start(call)
        else:
            pool.enqueue(call)
        return call

    async def close(self) -> None:
        """See `base.Transport`. Requests sent afterwards fail with ConnectFailed."""
        self._closed = True
        self._lanes.clear()
        pools, self._pools = self._pools, {}
        await asyncio.gather(*[pool.close() for pool in pools.values()])

    def _lane(self, endpoint: Endpoint) -> tuple[_Pool, bytes]:
        if self._closed:
            raise ValueError("the transport is closed")
        if endpoint.proxy is not None or endpoint.http2:
            raise ValueError("proxies and HTTP/2 need the httpx2 transport")
        head = http1.request_head(endpoint)
        origin = endpoint.origin
        pool = self._pools.get(origin)
        if pool is None:
            tls = self._tls if origin.scheme == "https" else None
            pool = self._pools[origin] = _Pool(self._loop, self._clock, origin, tls)
        if len(self._lanes) >= MAX_LANES:
            self._lanes.clear()
        lane = self._lanes[endpoint] = (pool, head)
        return lane


def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Call:
    """`base.Call`: waits (`wait`), then is on a connection (`connection`); neither, once it is over."""

    __slots__ = ("connection", "endpoint", "message", "paused", "receiver", "wait")

    message: bytes

    def __init__(self, endpoint: Endpoint, receiver: Receiver) -> None:
        self.endpoint = endpoint
        self.receiver = receiver
        self.connection: _Connection | None = None
        self.wait: _Wait | asyncio.Handle | None = None
        self.paused = False

    def pause(self) -> None:
        self.paused = True
        if self.connection is not None:
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        self.paused = False
        if self.connection is not None:
            self.connection.transport.resume_reading()

    def cancel(self) -> None:
        if self.connection is not None:
            self.connection.abandon()
        elif self.wait is not None:
            self.wait.cancel()


class _Wait:
    """A call's wait for a connection: for any to be free, or (`task`) for its own to be opened."""

    __slots__ = ("call", "pool", "task", "timer")

    def __init__(self, pool: _Pool, call: _Call) -> None:
        self.pool = pool
        self.call = call
        self.timer = pool.clock.call_later(call.endpoint.connect_timeout_s, self._timed_out)
        self.task: asyncio.Task[None] | None = None
        call.wait = self

    def cancel(self) -> None:
        self.call.wait = None
        self.timer.cancel()
        self.pool.waiting.pop(self, None)
        if self.task is not None:
            self.task.cancel()

    def fail(self, failure: UpstreamFailure) -> None:
        if self.call.wait is self:  # else it is over already
            self.cancel()
            self.call.receiver.on_failure(failure)

    def succeed(self, connection: _Connection) -> None:
        self.call.wait = None
        self.timer.cancel()
        connection.start(self.call)

    def _timed_out(self) -> None:
        became_free = " became free" if self.task is None else ""
        within = f"within {self.call.endpoint.connect_timeout_s:g} s"
        self.fail(ConnectTimeout(f"no connection to {self.pool}{became_free} {within}"))


class _Pool:
    """The connections to one origin, and the calls that wait for one."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, origin: Origin, tls: ssl.SSLContext | None
    ) -> None:
        self.clock = clock
        self.idle: dict[_Connection, None] = {}  # an ordered set: last in, first out
        self.waiting: dict[_Wait, None] = {}  # an ordered set: first in, first out
        self.connections: set[_Connection] = set()  # idle and busy
        self._opening: dict[asyncio.Task[None], _Wait] = {}
        self._loop = loop
        self._origin = origin
        self._tls = tls
        self._addresses: asyncio.Task[Sequence[AddrInfoType]] | None = None
        self._sweeper: Timer | None = None
        self._drained: asyncio.Future[None] | None = None  # close() waits for it

    def __str__(self) -> str:
        return http1.host_header(*self._origin).decode()

    # --- a call wants a connection -------------------------------------------------------------------------

    def enqueue(self, call: _Call) -> None:
        """None is idle: open one, or wait for one to be free if there are as many as there may be."""
        wait = _Wait(self, call)
        if self._has_room(wait):
            self._open(wait)
        else:
            self.waiting[wait] = None

    def retry(self, call: _Call) -> None:
        """Its connection was dead: open another in that one's place."""
        self._open(_Wait(self, call))

    def _has_room(self, wait: _Wait) -> bool:
        return len(self.connections) + len(self._opening) < wait.call.endpoint.max_connections

    def _serve(self) -> None:
        """Something has become free: give it to those who wait."""
        while self.waiting:
            wait = next(iter(self.waiting))
            if self.idle:
                del self.waiting[wait]
                wait.succeed(self.idle.popitem()[0])
            elif self._has_room(wait):
                del self.waiting[wait]
                self._open(wait)
            else:
                return

    # --- connections come and go ---------------------------------------------------------------------------

    def release(self, connection: _Connection) -> None:
        """The connection may serve another call."""
        connection.expires = self.clock.now() + connection.idle_s
        self.idle[connection] = None
        if self.waiting:
            self._serve()
        elif self._sweeper is None:
            self._sweeper = self.clock.call_later(max(connection.idle_s, SWEEP_S), self._sweep)

    def lost(self, connection: _Connection) -> None:
        """The connection is closed."""
        self.connections.discard(connection)
        if self._drained is not None and not self.connections:
            self._drained.set_result(None)
        self._serve()

    async def close(self) -> None:
        """Close every connection and fail every call."""
        failure = ConnectionLost(f"the connection to {self} was closed: the relay is shutting down")
        opening = tuple(self._opening)
        for wait in (*self.waiting, *self._opening.values()):
            wait.fail(failure)
        for timer_or_task in (self._sweeper, self._addresses):
            if timer_or_task is not None:
                timer_or_task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        if self.connections:
            self._drained = self._loop.create_future()
            for connection in tuple(self.connections):
                connection.break_off(failure)
            await self._drained

    def _sweep(self) -> None:
        now = self.clock.now()
        for connection in [connection for connection in self.idle if connection.expires <= now]:
            del self.idle[connection]
            connection.transport.abort()
        self._sweeper = None
        if self.idle:
            next_s = min(connection.expires for connection in self.idle) - now
            self._sweeper = self.clock.call_later(max(next_s, SWEEP_S), self._sweep)

    def _open(self, wait: _Wait) -> None:
        # Not loop.create_task: an eager task factory would run it, and perhaps fail the call, before send has returned.
        task = wait.task = asyncio.Task(self._connect(wait), loop=self._loop)
        self._opening[task] = wait
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        del self._opening[task]
        self._serve()

    async def _connect(self, wait: _Wait) -> None:
        try:
            connection = await self._dial()
        except (OSError, RuntimeError, ValueError) as error:  # uvloop's own, and a name that no resolver takes
            wait.fail(ConnectFailed(f"no connection to {self}: {_reason(error)}"))
        else:
            wait.succeed(connection)

    async def _dial(self) -> _Connection:
        """A new connection. Happy Eyeballs is done outside the loop, because uvloop has none."""
        addresses = await self._resolve()
        sock = await start_connection(addresses, happy_eyeballs_delay=SECOND_ADDRESS_S)
        try:
            _probe_when_silent(sock)
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self),
                sock=sock,
                ssl=self._tls,
                server_hostname=self._origin.host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _resolve(self) -> Sequence[AddrInfoType]:
        if self._addresses is None:
            self._addresses = asyncio.Task(self._look_up(), loop=self._loop)
            self._addresses.add_done_callback(self._looked_up)
        return await asyncio.shield(self._addresses)

    async def _look_up(self) -> Sequence[AddrInfoType]:
        return await self._loop.getaddrinfo(self._origin.host, self._origin.port, type=socket.SOCK_STREAM)

    def _looked_up(self, addresses: asyncio.Task[Sequence[AddrInfoType]]) -> None:
        if addresses.cancelled() or addresses.exception() is not None:
            self._forget_addresses()
        else:
            self.clock.call_later(ADDRESSES_S, self._forget_addresses)

    def _forget_addresses(self) -> None:
        self._addresses = None


def _probe_when_silent(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # elsewhere the system's own interval holds
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_S)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


class _Connection(asyncio.Protocol):
    """One connection, and the answer it is reading.

    llhttp calls `on_*` from within `feed`; they only take notes. The receiver is called after `feed` has returned: it
    may pause or cancel the call, or send another one.
    """

    transport: asyncio.Transport

    def __init__(self, pool: _Pool) -> None:
        self.pool = pool
        self.call: _Call | None = None  # None: idle or closed
        self.reused = False
        self.idle_s = IDLE_S
        self.expires = 0.0  # on the clock: idle no longer than until then
        # The answer being read:
        self.status = 0  # of the final head, once that is complete
        self.headers: Headers = []  # the head's so far; after the head, trailers
        self.head: Headers | None = None  # complete, not yet delivered
        self.pieces: list[bytes] = []  # what the present read brought of the body
        self.dry = 0  # bytes read since anything was delivered: head, chunk framing, trailers
        self.until_close = False  # the body ends where the connection does
        self.complete = True
        self.keep = False  # the server would take another request
        self.on_body = self.pieces.append  # llhttp's callback: no Python frame for each chunk
        self.parser = httptools.HttpResponseParser(self)
        self.feed = self.parser.feed_data

    # --- asyncio calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        error: Exception | None = None
        try:
            self.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as broken:
            error = broken
            self.keep = False  # if the answer is complete, more came than the answer
        if self.head is not None:
            self._deliver_head(self.head, len(data))
        if self.pieces:
            body = b"".join(self.pieces)  # of one piece that is the piece itself
            self.pieces.clear()
            self.dry = 0
            if self.call is not None:
                self.call.receiver.on_body(body)
        else:
            self.dry += len(data)
        if self.complete:
            self._finish()
        elif error is not None:
            self.break_off(UpstreamProtocolError(f"{self.pool} sent what is not HTTP/1.1: {error}"))
        elif self.dry > http1.MAX_HEAD_BYTES:
            self.break_off(UpstreamProtocolError(f"{self.pool} sent {self.dry} bytes of head or framing on end"))

    def eof_received(self) -> None:
        # Closed for reading is closed: an upstream that will not answer need not get the rest of the request.
        self.transport.abort()
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self.pool.lost(self)
        del self.parser, self.feed  # they hold this object

    # --- llhttp calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("bytes that belong to no answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        headers, self.headers = self.headers, []
        if not 100 <= status < 200:  # noqa: PLR2004
            self.status, self.head = status, headers

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self.keep = self.parser.should_keep_alive()  # llhttp forgets it after this callback

    # --- one call ------------------------------------------------------------------------------------------

    def start(self, call: _Call) -> None:
        """Send the call's request. The connection is new or was idle."""
        self.call = call
        call.connection = self
        self.headers = []
        self.status = self.dry = 0
        self.complete = self.until_close = False
        self.transport.write(call.message)
        if call.paused:
            self.transport.pause_reading()

    def abandon(self) -> None:
        """The call is not wanted any more."""
        self._take_call()
        self.transport.abort()

    def break_off(self, failure: UpstreamFailure) -> None:
        """The answer will not be read further."""
        call = self._take_call()
        self.transport.abort()
        if call is not None:
            call.receiver.on_failure(failure)

    def _take_call(self) -> _Call | None:
        call, self.call = self.call, None
        if call is not None:
            call.connection = None
        return call

    def _deliver_head(self, head: Headers, read: int) -> None:
        self.head = None
        call = self.call
        if call is None:
            return
        fields = dict(head)  # if names repeat, it is not all there is
        if (
            self.status != OK
            or len(fields) != len(head)
            or b"content-encoding" in fields
            or fields.get(b"transfer-encoding", b"chunked") != b"chunked"
            or self.dry + read > http1.MAX_HEAD_BYTES
        ) and (problem := http1.unusable(self.status, head)) is not None:
            self.break_off(UpstreamProtocolError(f"{self.pool} sent {problem}"))
            return
        self.until_close = _FRAMING.isdisjoint(fields)
        if b"keep-alive" in fields and (timeout := _TIMEOUT.search(fields[b"keep-alive"])) is not None:
            self.idle_s = min(IDLE_S, max(0.0, int(timeout[1]) - 1.0))  # the server's clock started earlier
        call.message = b""  # it arrived: there will be no retry
        call.receiver.on_head(self.status, head)

    def _finish(self) -> None:
        """The answer is complete, or bytes came where none were due."""
        call = self._take_call()
        if call is None:
            self.pool.idle.pop(self, None)
            self.transport.abort()
            return
        if self.keep and not self.transport.get_write_buffer_size():
            if call.paused:
                self.transport.resume_reading()
            self.reused = True
            self.pool.release(self)
        else:
            self.transport.abort()
        call.receiver.on_end()

    def _ended(self, exc: Exception | None) -> None:
        """The connection has ended, perhaps in the middle of an answer."""
        self.pool.idle.pop(self, None)
        call = self._take_call()
        if call is None:
            return
        if self.until_close and exc is None:
            call.receiver.on_end()
        elif self.reused and not self.status and not self.dry:
            self.pool.retry(call)  # closed while idle, before it can have read the request
        else:
            part = "in the middle of the body" if self.status else "before the head was complete"
            call.receiver.on_failure(ConnectionLost(f"{self.pool} closed the connection {part}"))
