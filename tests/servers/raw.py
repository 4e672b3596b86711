"""The scripted upstream where its place or its bytes matter: any address, TLS, listeners that never answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Self

import trustme

from tests.servers.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.servers.upstream import Answerer, Step, Turn


class RawUpstream(Upstream):
    """A scripted upstream on a chosen address, behind TLS if given a context.

    Args:
        answer: the script for a request.
        host: address to listen on.
        tls: server context.
        reads_bodies: False answers as soon as the head is in and leaves the body in the socket.
    """

    def __init__(
        self,
        answer: Answerer,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        reads_bodies: bool = True,
    ) -> None:
        super().__init__(answer, reads_bodies=reads_bodies)
        self.host = host
        self.tls = tls

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, self.host, 0, ssl=self.tls, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self


def pour(piece: bytes, times: int, blocked: asyncio.Event) -> Step:
    """Write a piece many times, and tell when the peer first takes no more."""

    async def step(turn: Turn) -> None:
        for _ in range(times):
            turn.transport.write(piece)
            turn.request.sent += len(piece)
            if not turn.writable.is_set():
                blocked.set()
                await turn.writable.wait()

    return step


class Authority:
    """A certificate authority that exists for a test, with one certificate for `names`."""

    def __init__(self, *names: str) -> None:
        self._authority = trustme.CA()
        self._leaf = self._authority.issue_cert(*names)

    def server(self, *protocols: str) -> ssl.SSLContext:
        """A context that shows the certificate and offers these ALPN protocols."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._leaf.configure_cert(context)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def client(self) -> ssl.SSLContext:
        """A context that trusts this authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context

    def write(self, path: Path) -> None:
        """Write the authority's own certificate, as a trust store would hold it."""
        self._authority.cert_pem.write_to_path(str(path))


@contextlib.contextmanager
def silent_listener() -> Generator[int, None, None]:
    """A port whose connections are taken by the kernel and never served."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


@contextlib.contextmanager
def full_listener() -> Generator[int, None, None]:
    """A port that takes no more connections: its backlog is full, so that the kernel drops what else knocks."""
    with socket.socket() as listener, contextlib.ExitStack() as knocking:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            client = knocking.enter_context(socket.socket())
            client.setblocking(False)  # noqa: FBT003 the standard library's signature
            with contextlib.suppress(BlockingIOError):
                client.connect(address)
        yield address[1]


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False
