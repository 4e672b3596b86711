"""An upstream whose every byte is scripted: a real TCP server that speaks HTTP/1.1 by hand.

A script is a sequence of steps, each an async function of the turn (one request on one connection). After the
last step the connection is kept open and the next request is read, as a well-behaved server would.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeAlias, cast

from tests.servers.waiting import Arrivals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from relay.messages import Headers


@dataclass(eq=False)
class Received:
    """A request as it came.

    Attributes:
        line: the request line, without its end.
        headers: in order, names in lower case.
        body: all of it; only what came with the head if the server does not read bodies.
        connection: number of the connection it came on, from 1.
        gone: set when the peer has closed that connection, in whatever way.
        sent: bytes written in answer so far.
    """

    line: bytes
    headers: Headers
    body: bytes
    connection: int
    gone: asyncio.Event
    sent: int = 0

    def header(self, name: bytes) -> bytes | None:
        """The value of the only field of that name; None if there is none."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name!r} came {len(values)} times"
        return values[0] if values else None


@dataclass(eq=False)
class Turn:
    """One request being answered: what steps act on."""

    request: Received
    transport: asyncio.Transport
    writable: asyncio.Event

    async def send(self, data: bytes) -> None:
        """Write, and wait while the peer takes no more. Never comes back once the connection is lost."""
        if self.transport.is_closing():
            await stall(self)
        self.transport.write(data)
        self.request.sent += len(data)
        await self.writable.wait()


Step: TypeAlias = "Callable[[Turn], Awaitable[None]]"
Answerer: TypeAlias = "Callable[[Received], Iterable[Step]]"


def send(*pieces: bytes) -> Step:
    """Send each piece so that a peer in this event loop reads it apart from the next."""

    async def step(turn: Turn) -> None:
        for piece in pieces:
            await turn.send(piece)
            await asyncio.sleep(0)  # the loop sees that the peer's socket is readable
            await asyncio.sleep(0)  # and the peer has read it

    return step


def until(event: asyncio.Event) -> Step:
    """Wait for the test."""

    async def step(_turn: Turn) -> None:
        await event.wait()

    return step


def tell(event: asyncio.Event) -> Step:
    """Let the test know that the script has come this far."""

    async def step(_turn: Turn) -> None:
        event.set()

    return step


async def stall(_turn: Turn) -> None:
    """Say nothing more, for ever."""
    await asyncio.Event().wait()


async def close(turn: Turn) -> None:
    """Close in good order (FIN), once all is sent."""
    turn.transport.close()


async def reset(turn: Turn) -> None:
    """Close with a reset (RST): the peer gets ECONNRESET, once it has read what was sent before."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # a reset also throws away what the peer has not yet read
    linger_without_time = struct.pack("ii", 1, 0)
    turn.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_without_time)
    turn.transport.abort()


@dataclass(eq=False)
class _Connection(asyncio.Protocol):
    """One accepted connection: collects bytes, answers request after request."""

    server: Upstream
    number: int
    buffer: bytearray = field(default_factory=bytearray)
    readable: asyncio.Event = field(default_factory=asyncio.Event)
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.writable.set()
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self.server.open[self.transport] = self.task

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.readable.set()

    def eof_received(self) -> None:
        self.gone.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.gone.set()
        self.task.cancel()
        self.server.open.pop(self.transport, None)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def _serve(self) -> None:
        while not self.transport.is_closing():
            request = await self._read_request()
            self.server.received.add(request)
            turn = Turn(request, self.transport, self.writable)
            for step in self.server.answer(request):
                await step(turn)

    async def _read_request(self) -> Received:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        line, *fields = bytes(self.buffer[:end]).split(b"\r\n")
        del self.buffer[: end + 4]
        headers = [(name.lower(), value.strip()) for name, _, value in (f.partition(b":") for f in fields)]
        length = int(dict(headers).get(b"content-length", b"0"))
        if not self.server.reads_bodies:
            self.transport.pause_reading()
            length = min(length, len(self.buffer))
        while len(self.buffer) < length:
            await self._more()
        body = bytes(self.buffer[:length])
        del self.buffer[:length]
        return Received(line, headers, body, self.number, self.gone)

    async def _more(self) -> None:
        self.readable.clear()
        await self.readable.wait()


class Upstream:
    """A server on loopback that answers each request with the script it is given.

    Args:
        answer: the script for a request.
        reads_bodies: False answers as soon as the head is in and leaves the body in the socket.
    """

    def __init__(self, answer: Answerer, *, reads_bodies: bool = True) -> None:
        self.answer = answer
        self.reads_bodies = reads_bodies
        self.received: Arrivals[Received] = Arrivals()
        self.connections = 0
        self.open: dict[asyncio.Transport, asyncio.Task[None]] = {}

    @property
    def base_url(self) -> str:
        """What a policy calls it."""
        return f"http://127.0.0.1:{self.port}/v1"

    def _accept(self) -> _Connection:
        self.connections += 1
        return _Connection(self, self.connections)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0, backlog=4096)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        tasks = list(self.open.values())
        for transport in list(self.open):
            transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


def always(*steps: Step) -> Answerer:
    """The same script for every request."""
    return lambda _request: steps


def in_turn(*scripts: Iterable[Step]) -> Answerer:
    """One script after the other; one request more than there are scripts fails the test."""
    remaining = iter(scripts)
    return lambda _request: next(remaining)


def unused_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
