"""Real peers for the httpx2 transport: an HTTP/2 server and an HTTP proxy, both small."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import TYPE_CHECKING, Self, cast

import h2.config
import h2.connection
import h2.events

from tests.servers.waiting import Arrivals

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from relay.messages import Headers


class Stream:
    """One HTTP/2 request, and the answer that a script gives it."""

    def __init__(self, connection: _H2Connection, stream_id: int, headers: Headers) -> None:
        self.connection = connection
        self.id = stream_id
        self.headers = headers
        self.body = b""
        self.room = asyncio.Event()

    def head(self, status: int, *headers: tuple[bytes, bytes], end: bool = False) -> None:
        """Send the head."""
        h2_state = self.connection.h2
        h2_state.send_headers(self.id, [(b":status", b"%d" % status), *headers], end_stream=end)
        self.connection.flush()

    async def data(self, data: bytes, *, end: bool = False) -> None:
        """Send body bytes as the peer's window allows."""
        h2_state = self.connection.h2
        begin = 0
        while begin < len(data):
            room = min(h2_state.local_flow_control_window(self.id), h2_state.max_outbound_frame_size)
            if not room:
                self.room.clear()
                await self.room.wait()
                continue
            h2_state.send_data(self.id, data[begin : begin + room])
            self.connection.flush()
            begin += room
        if end:
            h2_state.end_stream(self.id)
            self.connection.flush()

    def reset(self) -> None:
        """Give the stream up."""
        self.connection.h2.reset_stream(self.id)
        self.connection.flush()


class _H2Connection(asyncio.Protocol):
    def __init__(self, server: H2Server) -> None:
        self.server = server
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.streams: dict[int, Stream] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.server.connections.append(self)
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.gone.set()
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    self.streams[event.stream_id] = Stream(self, event.stream_id, list(event.headers))
                case h2.events.DataReceived():
                    self.streams[event.stream_id].body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.WindowUpdated():
                    for stream in self.streams.values():
                        stream.room.set()
                case h2.events.StreamEnded():
                    stream = self.streams[event.stream_id]
                    self.server.received.add(stream)
                    self.tasks.append(asyncio.get_running_loop().create_task(self.server.answer(stream)))
        self.flush()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.transport.write(data)


class H2Server:
    """An HTTP/2 server over TLS on loopback.

    Args:
        answer: answers one request.
        tls: server context that offers h2.
    """

    def __init__(self, answer: Callable[[Stream], Coroutine[None, None, None]], tls: ssl.SSLContext) -> None:
        self.answer = answer
        self.tls = tls
        self.connections: list[_H2Connection] = []
        self.received: Arrivals[Stream] = Arrivals()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _H2Connection(self), "127.0.0.1", 0, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        for connection in self.connections:
            connection.transport.abort()
            await asyncio.gather(*connection.tasks, return_exceptions=True)
            await connection.gone.wait()


class Proxy:
    """An HTTP proxy on loopback: tunnels CONNECT and forwards absolute-form requests, all to one port.

    Args:
        port: where everything goes, whatever was asked for; as a proxy's own resolver would.
        credentials: `user:password` it insists on; None lets everybody in.
    """

    def __init__(self, port: int, credentials: str | None = None) -> None:
        self.target = port
        self.credentials = credentials
        self.requests: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, credentials: str = "") -> str:
        """What an endpoint calls it."""
        return f"http://{credentials and credentials + '@'}127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            if self.credentials and b"Basic " + base64.b64encode(self.credentials.encode()) not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            else:
                await self._connect(head, reader, writer)
        writer.close()

    async def _connect(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:
            to_writer.write(head)
        await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
