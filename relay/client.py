"""The seam to the client: where a runtime lets the pipeline write an answer.

Writes never wait. A client that cannot take more says so to the exchange (`Exchange.pause`), which stops reading
from the upstream until `Exchange.resume`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from relay.messages import Headers


class Client(Protocol):
    """One response on its way to a client. After the client has gone, writes are dropped silently."""

    def start(self, status: int, headers: Headers) -> None:
        """Send the head. Called at most once; without a content-length header the body is chunked."""

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once. Never empty."""

    def end(self) -> None:
        """The body is complete. Called once, unless `abort` is."""

    def abort(self) -> None:
        """Close the connection without completing the body: the head promised bytes that will not come."""
