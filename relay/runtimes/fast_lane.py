"""uvicorn's HTTP protocol with the hot endpoint answered below ASGI.

For a chat request the way is short: llhttp's callbacks collect it, the exchange runs without a task, and bytes from the
upstream's socket go to the client's socket in one call stack. Everything is decided by the same `Exchange` as behind
ASGI; this file only translates. Any other request goes to the ASGI application.

Clients send the same head again and again. A request that arrives in one piece, with a head that was admitted twice
and differs in nothing but the body's length, is not parsed once more: the same bytes mean the same.

uvicorn keeps what it calls a cycle per request: the state it looks at for pipelining, shutdown and disconnects.
`FastLaneClient` stands in for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay.admission import body_too_large
from relay.app import CHAT_PATH
from relay.head import Head
from relay.runtimes.http_server import BoundedProtocol
from relay.wire.http1 import LAST_CHUNK, response_head

if TYPE_CHECKING:
    from relay.exchange import Exchange
    from relay.messages import Headers

_CHAT_URL = CHAT_PATH.encode()
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_Known = tuple[bytes, bytes]  # what stands in a head before the digits of its body's length, and behind their line

_NO_REQUEST: tuple[_Known | None, bytes] = (None, b"")
_LENGTH = b"ength: "
_LENGTH_LINES = (b"\r\nContent-L", b"\r\ncontent-l")

KNOWN_HEAD_BYTES = 4096
"""Largest head that is remembered: SDKs send about one kilobyte."""

PIECES = 1024
"""Pieces of a body that are kept as they come: 64 MiB in reads of 64 KiB. What is behind them, in far smaller chunks
then, is put together at once: each piece takes up some forty bytes more than what is in it."""

KNOWN_HEADS = 1024
"""Heads remembered, or that they were seen: four megabytes at most. When there are more, all are forgotten."""


class FastLaneClient:
    """A client on the other end of uvicorn's transport; see `relay.client.Client`.

    The head is kept until the first piece of the body, so that both leave in one write.

    Attributes:
        exchange: whose answer this is.
        body: pieces of the request's, while it comes in; None once it is complete or not wanted any more.
        response_complete, disconnected, keep_alive, message_event, more_body: what uvicorn's cycles are looked at for.
    """

    __slots__ = (
        "_chunked",
        "_head",
        "_protocol",
        "body",
        "body_bytes",
        "disconnected",
        "exchange",
        "keep_alive",
        "response_complete",
    )

    def __init__(self, protocol: FastLane, *, chunked: bool, keep_alive: bool) -> None:
        self.exchange: Exchange | None = None
        self.body: list[bytes | bytearray] | None = None
        self.body_bytes = 0
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self._protocol = protocol
        self._head = b""
        self._chunked = chunked  # if not and no length is known, the connection's end is the body's

    @property
    def message_event(self) -> FastLaneClient:
        """Uvicorn wakes a waiting `receive` with `message_event.set()`; nobody waits here."""
        return self

    def set(self) -> None:
        """See `message_event`."""

    @property
    def more_body(self) -> bool:
        """The request's body was not complete when its answer was."""
        return self.body is not None

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """See `relay.client.Client`."""
        if length is not None:
            self._chunked = False
            headers.append((b"content-length", b"%d" % length))
        elif self._chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        headers += self._protocol.server_state.default_headers
        self._head = response_head(status, headers)

    def write(self, data: bytes) -> None:
        """See `relay.client.Client`."""
        if self.disconnected:
            return
        if self._chunked:
            data = b"%b%x\r\n%b\r\n" % (self._head, len(data), data)
            self._head = b""
        elif self._head:
            data = self._head + data
            self._head = b""
        self._protocol.transport.write(data)

    def end(self, data: bytes = b"") -> None:
        """See `relay.client.Client`."""
        if self.disconnected:
            return
        if not self._chunked:
            data = self._head + data
        elif data:
            data = b"%b%x\r\n%b\r\n%b" % (self._head, len(data), data, LAST_CHUNK)
        else:
            data = self._head + LAST_CHUNK
        self._protocol.transport.write(data)
        self.exchange = None  # which knows this client: no cycles are left for the collector
        self.response_complete = True
        self._protocol.answered(keep_alive=self.keep_alive)
        self.body = None


class FastLane(BoundedProtocol):
    """One client connection. Make a subclass with `for_pipeline` and give it to uvicorn as `http=`."""

    __slots__ = ("_lane", "_parsing", "_unknown")

    cycle: Any  # uvicorn's, or a FastLaneClient, or None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lane: FastLaneClient | None = None  # the request being read or answered here, not by ASGI
        self._parsing = False  # llhttp is within a request
        self._unknown = _NO_REQUEST  # head and body of what is parsed, if it is one whole request

    def data_received(self, data: bytes) -> None:
        """Bytes have come: often a whole request, with a head like one before."""
        if self._parsing or self._unframed or self.busy:
            super().data_received(data)
            return
        known, body = _split(data)
        head = self.relay.heads.get(known)
        if head is None:
            self._unknown = known, body
            super().data_received(data)
            self._unknown = _NO_REQUEST
            return
        self.parser = None
        client = self.cycle = self._lane = FastLaneClient(self, chunked=True, keep_alive=True)
        exchange = client.exchange = self.relay.open(client, head)
        if exchange.admit(known=True):
            exchange.start(body)

    # --- llhttp calls, while a request comes in ---

    def on_message_begin(self) -> None:
        """Uvicorn's scope is made only for requests that go to ASGI."""
        self._parsing = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Take chat requests, leave all others to ASGI, and pipelined ones too: uvicorn queues those."""
        if self.busy or self.url != _CHAT_URL or self.parser.get_method() != b"POST":
            self._to_asgi()
            return
        self.framed()
        if self.offers_upgrade:
            return
        modern = self.parser.get_http_version() != "1.0"
        keep_alive = modern and self.parser.should_keep_alive()
        client = self.cycle = self._lane = FastLaneClient(self, chunked=modern, keep_alive=keep_alive)
        client.body = []
        exchange = client.exchange = self.relay.open(client, Head(CHAT_PATH, self.headers))
        if exchange.admit() and self.expect_100_continue:
            self.transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Collect, up to the policy's limit."""
        client = self._lane
        if client is None or client.body is None or client.exchange is None:  # of a request that ASGI has
            super().on_body(body)
            return
        self.framed()
        pieces = client.body
        if len(pieces) <= PIECES:
            pieces.append(body if len(pieces) < PIECES else bytearray(body))
        else:
            pieces[-1] += body
        client.body_bytes += len(body)
        if client.body_bytes > client.exchange.max_body_bytes:
            client.exchange.refuse(body_too_large(client.exchange.max_body_bytes))

    def on_message_complete(self) -> None:
        """The request is complete: run it."""
        self._parsing = False
        client = self._lane
        if client is None or client.body is None or client.exchange is None:
            super().on_message_complete()
            return
        self.framed()
        body = b"".join(client.body)  # of one piece that is the piece itself
        client.body = None
        if client.keep_alive and not self.expect_100_continue:
            self._remember(*self._unknown, client.exchange.head, body)
        client.exchange.start(body)

    # --- the answer ---

    def answered(self, *, keep_alive: bool) -> None:
        """The answer has been written: make ready for the next request."""
        self._lane = None
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    # --- asyncio calls ---

    def pause_writing(self) -> None:
        """The client reads more slowly than the upstream sends."""
        super().pause_writing()
        if self._lane is not None and self._lane.exchange is not None:
            self._lane.exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._lane is not None and self._lane.exchange is not None:
            self._lane.exchange.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        super().connection_lost(exc)
        client, self._lane = self._lane, None
        if client is not None and client.exchange is not None:
            client.disconnected = True
            client.exchange.client_gone()
            client.exchange = None
        self.cycle = None

    # --- inner steps ---

    def _remember(self, known: _Known | None, rest: bytes, head: Head, body: bytes) -> None:
        """The next request that begins with the same bytes need not be parsed, if what follows them was the body.

        Provided that the head came before: clients that number their requests there never send the same one twice.
        """
        if known is None or rest != body or sum(map(len, known)) > KNOWN_HEAD_BYTES:
            return
        heads, sight = self.relay.heads, hash(known)
        if sight in heads:
            del heads[sight]
            heads[known] = head
            return
        if len(heads) >= KNOWN_HEADS:
            heads.clear()
        heads[sight] = None

    def _to_asgi(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()


def _split(data: bytes) -> tuple[_Known | None, bytes]:
    """A head, without its body's length, and the body; None unless that is exactly what the bytes are."""
    head, _, body = data.partition(b"\r\n\r\n")
    before, _, rest = head.rpartition(_LENGTH)
    length, _, after = rest.partition(b"\r\n")
    if length == b"%d" % len(body) and before.endswith(_LENGTH_LINES):
        return (before, after), body
    return _NO_REQUEST
