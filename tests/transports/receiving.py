"""A receiver that writes down what it hears and insists on the order that the seam promises."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from relay.messages import Endpoint, Origin, UpstreamRequest
from tests.servers.waiting import happens

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.errors import UpstreamFailure
    from relay.messages import Headers
    from relay.transports.base import Call


class Heard:
    """What came back for one request.

    Attributes:
        status: None until the head came.
        headers: of the head.
        pieces: the body, as it was cut.
        ended: the body is complete.
        failure: why it never will be.
        on: called with this object after a callback, by its name; for what a receiver may do from within.
    """

    def __init__(self, **on: Callable[[Heard], object]) -> None:
        self.status: int | None = None
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.ended = False
        self.failure: UpstreamFailure | None = None
        self.on = on
        self.call: Call
        self._head = asyncio.Event()
        self._some = asyncio.Event()
        self._over = asyncio.Event()
        self._forbidden = False

    @property
    def body(self) -> bytes:
        """All that came of it."""
        return b"".join(self.pieces)

    def header(self, name: bytes) -> list[bytes]:
        """Its values, in order."""
        return [value for key, value in self.headers if key == name]

    def forbid(self) -> None:
        """From here on nothing may come."""
        self._forbidden = True

    def cancel(self) -> None:
        """Give up; from here on nothing may come."""
        self.call.cancel()
        self.forbid()

    def _heard(self, what: str) -> None:
        assert not self._forbidden, f"{what} after cancel"
        assert not self._over.is_set(), f"{what} after the end"

    def on_head(self, status: int, headers: Headers) -> None:
        self._heard("on_head")
        assert self.status is None
        self.status, self.headers = status, headers
        self._head.set()
        self._react("head")

    def on_body(self, data: bytes) -> None:
        self._heard("on_body")
        assert self.status is not None
        assert data
        assert isinstance(data, bytes)
        self.pieces.append(data)
        self._some.set()
        self._react("body")

    def on_end(self) -> None:
        self._heard("on_end")
        assert self.status is not None
        self.ended = True
        self._over.set()
        self._react("end")

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._heard("on_failure")
        self.failure = failure
        self._over.set()
        self._react("failure")

    def _react(self, what: str) -> None:
        if what in self.on:
            self.on[what](self)

    async def head(self) -> None:
        """Wait for it."""
        await happens(self._head)

    async def some(self) -> None:
        """Wait for the first piece of the body."""
        await happens(self._some)

    async def over(self) -> Heard:
        """Wait for the end or the failure."""
        await happens(self._over)
        return self


def request_to(
    port: int,
    body: bytes = b'{"a":1}',
    *headers: tuple[bytes, bytes],
    scheme: str = "http",
    host: str = "127.0.0.1",
    **settings: Any,
) -> UpstreamRequest:
    """A request to an endpoint of its own."""
    fixed = ((b"content-type", b"application/json"), (b"authorization", b"Bearer sk-secret"))
    settings = {"connect_timeout_s": 20.0, "headers": fixed, "target": "/v1/chat/completions", **settings}
    return UpstreamRequest(Endpoint(Origin(scheme, host, port), **settings), headers, body)
