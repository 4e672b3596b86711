"""The seam to the upstream: a request goes out, callbacks come back.

It pushes instead of being pulled because a stream's chunk then costs one call from the socket to the client,
with no task to wake. A transport whose library pulls (httpx2, `fetch`) runs its own small pump behind this seam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from relay.errors import UpstreamFailure
    from relay.messages import Headers, UpstreamRequest


class Receiver(Protocol):
    """What a transport tells. Callbacks never overlap and must not raise.

    Order: `on_head` once, then `on_body` any number of times, then `on_end` once. `on_failure` may come at any
    point instead of what is still missing, and is the last. After `Call.cancel` nothing comes any more.
    """

    def on_head(self, status: int, headers: Headers) -> None:
        """The final answer's head. 1xx answers are swallowed. Hop-by-hop headers are still in."""

    def on_body(self, data: bytes) -> None:
        """Body bytes, never empty, transfer coding removed, as soon as they were read."""

    def on_end(self) -> None:
        """The body is complete by its own framing: length reached, last chunk, or close where close ends it."""

    def on_failure(self, failure: UpstreamFailure) -> None:
        """ConnectFailed, ConnectTimeout, ConnectionLost or UpstreamProtocolError; nothing else."""


class Call(Protocol):
    """One request in flight. Every method may be called at any time, also twice, also after the end."""

    def pause(self) -> None:
        """Stop reading; what is already read may still arrive. The upstream feels it through TCP."""

    def resume(self) -> None:
        """Read on."""

    def cancel(self) -> None:
        """Give up: the connection is closed at once and no callback follows."""


class Transport(Protocol):
    """Sends requests over connections that it keeps."""

    def send(self, request: UpstreamRequest, receiver: Receiver) -> Call:
        """Start a request and return at once; never raises, never calls back before it has returned.

        A reused connection that turns out dead before any byte of the answer came is retried once on a new
        connection without the receiver noticing: the upstream had closed it before it read the request.
        """

    async def close(self) -> None:
        """Close every connection. Requests in flight fail with ConnectionLost."""
