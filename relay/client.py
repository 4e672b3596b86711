"""The seam to the client: where a runtime lets the pipeline write an answer.

Writes never wait. A client that cannot take more says so to its exchange (`Exchange.pause`), which stops reading
from the upstream until `Exchange.resume`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from relay.messages import Headers


class Client(Protocol):
    """One response on its way to a client. After the client has gone, writes are dropped silently."""

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """The head. Called at most once.

        Args:
            status: of the answer.
            headers: in order, without those that frame the body: they are the runtime's. The list is its to keep.
            length: bytes of the body; None if they are not known yet.
        """

    def write(self, data: bytes) -> None:
        """A piece of the body, never empty, to be sent at once."""

    def end(self, data: bytes = b"") -> None:
        """The last piece of the body, perhaps empty. Called once, after `start`."""


class Nobody:
    """A client that takes nothing, for exchanges that only answer their caller."""

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """See `Client`."""

    def write(self, data: bytes) -> None:
        """See `Client`."""

    def end(self, data: bytes = b"") -> None:
        """See `Client`."""
