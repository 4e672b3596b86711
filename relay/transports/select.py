"""Two transports as one: the fast one for what it speaks, the full one for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.messages import UpstreamRequest
    from relay.transports.base import Call, Receiver, Transport


class Split:
    """Sends endpoints with a proxy or HTTP/2 to one transport and all others to another.

    Args:
        plain: for HTTP/1.1 without a proxy.
        full: makes the transport for the rest, when the first such request comes.
    """

    def __init__(self, plain: Transport, full: Callable[[], Transport]) -> None:
        self._plain = plain
        self._make_full = full
        self._full: Transport | None = None

    def send(self, request: UpstreamRequest, receiver: Receiver) -> Call:
        """See `base.Transport`."""
        if request.endpoint.proxy is None and not request.endpoint.http2:
            return self._plain.send(request, receiver)
        if self._full is None:
            self._full = self._make_full()
        return self._full.send(request, receiver)

    async def close(self) -> None:
        """See `base.Transport`."""
        await self._plain.close()
        if self._full is not None:
            await self._full.close()
