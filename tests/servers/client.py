"""A client that sees what a real one never shows: exact bytes, arrival by arrival, and how the connection ended."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.messages import Headers

READ_BYTES = 256 * 1024


@dataclass(eq=False)
class Answer:
    """One response, as far as it has come.

    Attributes:
        status: 0 until the head is in.
        headers: in order, names in lower case.
        body: transfer coding removed.
        pieces: what each arrival added to the body.
        complete: the body ended by its own framing (for a body that the close ends: by a clean close).
        end: how the connection ended: "" while it is open, "closed" or "reset".
        surplus: bytes behind the end of this response.
    """

    status: int = 0
    version: str = ""
    headers: Headers = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False
    end: str = ""
    surplus: bytearray = field(default_factory=bytearray)

    def header(self, name: bytes) -> bytes | None:
        """The value of the only field of that name; None if there is none."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name!r} came {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        """The body as a value."""
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """The error of an OpenAI-shaped error answer: exactly its four members."""
        assert self.header(b"content-type") == b"application/json"
        value = self.json()
        assert list(value) == ["error"]
        assert set(value["error"]) == {"message", "type", "param", "code"}
        fault: dict[str, Any] = value["error"]
        return fault

    def feed(self, data: bytes) -> None:
        """Take bytes off the wire."""
        self.surplus += data
        if not self.status:
            self._read_head()
        if self.status and not self.complete:
            before = len(self.body)
            self._read_body()
            if len(self.body) > before:
                self.pieces.append(bytes(self.body[before:]))

    def _read_head(self) -> None:
        while not self.status and (end := self.surplus.find(b"\r\n\r\n")) >= 0:
            line, *fields = bytes(self.surplus[:end]).split(b"\r\n")
            del self.surplus[: end + 4]
            version, status, *_ = line.decode().split(" ")
            if not status.startswith("1"):
                self.version, self.status = version, int(status)
                pairs = (f.partition(b":") for f in fields)
                self.headers = [(name.lower(), value.strip()) for name, _, value in pairs]

    def _read_body(self) -> None:
        length = self.header(b"content-length")
        if self.header(b"transfer-encoding") == b"chunked":
            assert length is None
            while not self.complete and self._read_chunk():
                pass
        elif length is not None:
            missing = int(length) - len(self.body)
            self.body += self.surplus[:missing]
            del self.surplus[:missing]
            self.complete = len(self.body) == int(length)
        else:
            self.body += self.surplus
            self.surplus.clear()

    def _read_chunk(self) -> bool:
        line_end = self.surplus.find(b"\r\n")
        if line_end < 0:
            return False
        size = int(self.surplus[:line_end], 16)
        start = line_end + 2
        if len(self.surplus) < start + size + 2:
            return False
        assert self.surplus[start + size : start + size + 2] == b"\r\n"
        self.body += self.surplus[start : start + size]
        del self.surplus[: start + size + 2]
        self.complete = size == 0
        return True


class RawClient:
    """One connection to the relay.

    Args:
        sock: connected, non-blocking; closed by `close` or `reset`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answer = Answer()

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> Self:
        """Open a connection; a small receive buffer makes a client that does not read felt sooner."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int = READ_BYTES) -> bytes:
        """The next arrival; b"" when the peer has closed or reset, which `answer.end` tells apart."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                data = await asyncio.get_running_loop().sock_recv(self.sock, size)
        except ConnectionResetError:
            self.answer.end = "reset"
            return b""
        if data:
            self.answer.feed(data)
        else:
            self.answer.end = "closed"
            lengths = {b"content-length", b"transfer-encoding"}
            if self.answer.status and not any(name in lengths for name, _ in self.answer.headers):
                self.answer.complete = True
        return data

    async def until(self, enough: Callable[[Answer], bool]) -> Answer:
        """Read until it is enough; the end of the connection before that fails the test."""
        while not enough(self.answer):
            assert await self.receive(), f"the connection was {self.answer.end} after {bytes(self.answer.body)!r}"
        return self.answer

    async def until_count(self, marker: bytes, count: int) -> Answer:
        """Read until the body holds the marker that often."""
        return await self.until(lambda answer: answer.body.count(marker) >= count)

    async def whole(self) -> Answer:
        """Read until the answer is complete or the connection ends, then be ready for the next one."""
        while not self.answer.complete and await self.receive():
            pass
        answer, self.answer = self.answer, Answer()
        if answer.surplus:
            self.answer.feed(bytes(answer.surplus))
        return answer

    def close(self) -> None:
        """Close in good order."""
        self.sock.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def post(body: bytes, *headers: tuple[str, str], path: str = "/v1/chat/completions", version: str = "1.1") -> bytes:
    """A POST with its length, as bytes."""
    fields = {"host": "relay.test", "content-type": "application/json", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in [*fields.items(), *headers])
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode() + body


def get(path: str, *headers: tuple[str, str], method: str = "GET") -> bytes:
    """A request without a body, as bytes."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (("host", "relay.test"), *headers))
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


async def ask(port: int, request: bytes) -> Answer:
    """One request on a connection of its own, and all of its answer."""
    async with await RawClient.connect(port) as client:
        await client.send(request)
        return await client.whole()
