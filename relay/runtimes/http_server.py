"""uvicorn, with the relay's own manners: bounded heads, errors in OpenAI's shape, a stop that streams survive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Self

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay.dialects import DIALECTS
from relay.errors import HeadersTooLarge, InvalidRequest, RelayError
from relay.exchange import CHAT_DIALECT
from relay.wire.http1 import encode_headers, response_head

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from relay.clock import Timer
    from relay.pipeline import Pipeline

KEEP_ALIVE_S = 620
"""Seconds an idle connection is kept: longer than any load balancer in front (Google's 600 s is the longest), so that
it is always the balancer that closes and never a request that meets a closed door."""

HEAD_TIMEOUT_S = 20.0
"""Seconds a head may take to arrive once it has begun; nginx gives 60, but a head is one packet or a few."""

REST_TIMEOUT_S = 30.0
"""Seconds for which the rest of a body is read and thrown away where the answer is given already, as to an unknown key.
To close at once would reset the connection, and lose the answer of a client that sends all before it reads; nginx waits
as long (`lingering_time`)."""

REST_BYTES = 64 * 1024 * 1024
"""How much of such a body is read, or as much as the policy allows a body to have if that is more."""

BACKLOG = 4096
"""Connections that may wait to be accepted: a burst of reconnecting clients. Linux caps it at `somaxconn`, 4096."""

LINGER_S = 5.0
"""Seconds that a stopped server waits for clients to take the last of their answers."""

IDLE_LOOK_S = 10
"""Seconds between two looks for connections that have been idle for too long."""

_TICKS_PER_S = 10  # uvicorn's
_NONE_QUEUED: deque[Any] = deque()  # shared, never changed

_log = logging.getLogger("relay")


class _Flow(FlowControl):
    """uvicorn's flow control, with an event only from when there is something to wait for."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False

    def pause_writing(self) -> None:
        if not self.write_paused:
            self._is_writable_event = asyncio.Event()
        super().pause_writing()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, with bounds on what is not a body.

    The parser keeps an unfinished head (or a chunked body's trailers) in memory without a limit. Bytes that bring
    neither the end of a head nor any of a body are therefore counted as they arrive, and timed. One read (256 KiB)
    may pass unseen; heads that are complete are measured exactly by `Exchange.admit`.

    What comes of a body behind its answer is bounded too.

    What few connections need is made only for those: a queue for pipelined requests, an event to wait for, timers, a
    parser where heads are known. What is not uvicorn's is in slots: an object of more than thirty attributes keeps
    them in a dict of its own. All that would be 5 KB for each connection.

    Attributes:
        relay: its policy says how large a head may be. Make a subclass that has it with `for_pipeline`.
    """

    __slots__ = ("_head_timer", "_idle_since", "_rest_bytes", "_rest_timer", "_started", "_unframed", "_unsent")

    relay: ClassVar[Pipeline]
    parser: Any  # llhttp; None while none is needed

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = None
        self.pipeline = _NONE_QUEUED
        self._unframed = 0
        self._idle_since = self.loop.time()
        self._unsent = 0  # bytes of its answer that the client had not taken at the last look
        self._head_timer: Timer | None = None
        self._rest_timer: Timer | None = None  # while a body comes in whose request is answered
        self._started: Any = None  # uvicorn's cycle that the application runs, or ran last

    @classmethod
    def for_pipeline(cls, pipeline: Pipeline) -> type[Self]:
        """The protocol class for one pipeline: uvicorn makes the instances."""
        return type(cls.__name__, (cls,), {"relay": pipeline})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected. Nobody wants to know its address, so that it is not asked for, unlike in uvicorn."""
        self.connections.add(self)
        self.transport = transport
        self.flow = _Flow(transport)
        self.scheme = "http"

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more."""
        self.framed()
        self._rest_is_in()
        if self._started is not None and self._started is not self.cycle:  # uvicorn tells the latest request alone
            self._started.disconnected = True
            self._started.message_event.set()
        self._started = None
        super().connection_lost(exc)

    def close_if_idle(self, now: float) -> None:
        """Close the connection if it has been idle for long enough; `Server` looks from time to time.

        A client that takes its last answer is not idle. One that takes none of it never may: it is not waited for, as
        `close` would.
        """
        if self.busy or (self._unframed and not self.transport.is_closing()):
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._idle_since = now
        self._unsent = unsent
        if now - self._idle_since >= self.timeout_keep_alive:
            self.transport.abort()

    @property
    def busy(self) -> bool:
        """An answer is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._started = cycle
        super()._start_asgi_task(cycle, app)

    def _unset_keepalive_if_required(self) -> None:
        """Nothing: uvicorn calls this where it would stop a timer, of which there is none."""

    def on_response_complete(self) -> None:
        """An answer has been written: serve what the client sent ahead, or wait for more."""
        self._idle_since = self.loop.time()
        if self.parser is not None and not self.busy and not self.transport.is_closing() and self.cycle.more_body:
            self._rest_bytes = max(REST_BYTES, self.relay.policy.requests.max_body_bytes)
            self._rest_timer = self.relay.clock.call_later(REST_TIMEOUT_S, self.transport.close)
        if self.pipeline:
            super().on_response_complete()
        elif self.flow.read_paused and not self.flow.write_paused and not self.transport.is_closing():
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client does not take its answer. It is not heard until it does: the next one would only add to that."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if not self.pipeline:
            self.flow.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._unframed += len(data)
        if self.parser is None:
            self._parse_anew()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("This is not an HTTP/1.1 request."))
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        if self._unframed and not self.transport.is_closing():
            self._bound_head()

    def _bound_head(self) -> None:
        limit = self.relay.policy.requests.max_header_bytes
        if self._unframed > limit:
            self._refuse(HeadersTooLarge(f"The request's headers have more than the {limit} bytes that are allowed."))
        elif self._head_timer is None:
            self._head_timer = self.relay.clock.call_later(HEAD_TIMEOUT_S, self.transport.close)

    @property
    def offers_upgrade(self) -> bool:
        """The request offers a protocol that is not served, so that its head is going to be read once more."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _upgrade(self, rest: bytes) -> None:
        """Read a request that offers another protocol as if it did not, which RFC 9110 §7.8 allows.

        Java's HTTP client offers `h2c` with each request. The parser takes what follows such a head for the other
        protocol; so the head is fed to a new parser, without the offer and in front of what follows.
        """
        if self._should_upgrade():
            self.handle_websocket_upgrade()
            return
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(InvalidRequest("CONNECT is not served here."))
            return
        headers = encode_headers([(name, value) for name, value in self.headers if name != b"upgrade"])
        self._parse_anew()
        self.data_received(b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, self.url, headers, rest))

    def _parse_anew(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self.framed()
        if self.busy and not self.pipeline:
            self.pipeline = deque()
        if not self.offers_upgrade:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self.framed()
        if self._rest_timer is None:
            super().on_body(body)
            return
        self._rest_bytes -= len(body)
        if self._rest_bytes < 0:
            self.transport.close()

    def on_message_complete(self) -> None:
        """A request is complete."""
        self.framed()
        self._rest_is_in()
        if not self.offers_upgrade:
            super().on_message_complete()

    def framed(self) -> None:
        """What has come so far belongs to something: begin to count anew."""
        self._unframed = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _rest_is_in(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _refuse(self, error: RelayError) -> None:
        """Answer, unless another answer is under way or was given to this very request, and close the connection."""
        if not self.busy and self._rest_timer is None:
            body = DIALECTS[CHAT_DIALECT].encode_error(error)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            self.transport.write(response_head(error.http_status, headers) + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which stops as the relay promises.

    The first call of `stop` closes the listener and lets running requests finish; connections that are already
    open stay, so that a health check on one of them sees `/readyz` turn 503. `hurry` ends what still runs.

    Args:
        config: for uvicorn.
        pipeline: what the requests run in.
        shutdown_s: seconds that running requests get.
        on_started: called when requests are being answered.
    """

    def __init__(
        self, config: uvicorn.Config, *, pipeline: Pipeline, shutdown_s: float, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._pipeline = pipeline
        self._shutdown_s = shutdown_s
        self._on_started = on_started
        self._hurried = asyncio.Event()

    def stop(self) -> None:
        """Stop gracefully. Calling it again changes nothing."""
        self.should_exit = True

    def hurry(self) -> None:
        """Stop at once: streams are ended in band, nothing is waited for."""
        self.should_exit = self.force_exit = True
        self._hurried.set()

    def stop_or_hurry(self) -> None:
        """Stop; if that was asked before, at once."""
        (self.hurry if self.should_exit else self.stop)()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the event loop, where `container` puts them, instead of raising them again at the end."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: uvicorn's own duties, and now and then a look at idle connections."""
        if counter % (IDLE_LOOK_S * _TICKS_PER_S) == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.close_if_idle(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, see requests to their end, then let go of connections."""
        for server in self.servers:
            server.close()
        active = len(self._pipeline.active)
        fields = {"active_requests": active, "shutdown_s": self._shutdown_s}
        _log.info("stopping, %d requests may finish", active, extra={"event": "stopping", "fields": fields})
        drained = asyncio.ensure_future(self._pipeline.drain(self._shutdown_s))
        hurried = asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            drained.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pipeline.drain(0), LINGER_S)
        hurried.cancel()
        await super().shutdown(sockets)
