"""Two transports as one."""

from __future__ import annotations

from typing import Any

from relay.errors import ConnectFailed
from relay.messages import Endpoint, Origin, UpstreamRequest
from relay.transports.select import Split
from tests.transports.receiving import Heard


class Noting:
    """A transport that notes what it is asked."""

    def __init__(self) -> None:
        self.sent: list[UpstreamRequest] = []
        self.closed = False

    def send(self, request, receiver):
        self.sent.append(request)
        receiver.on_failure(ConnectFailed("not today"))

    async def close(self):
        self.closed = True


def request(**settings: Any) -> UpstreamRequest:
    return UpstreamRequest(Endpoint(Origin("https", "api.example", 443), "/", (), **settings), (), b"")


async def test_only_proxies_and_http2_need_the_full_transport():
    """The full transport is made for the first request that needs it, serves all that do, and no others."""
    plain, made = Noting(), []

    def full() -> Noting:
        made.append(Noting())
        return made[-1]

    split = Split(plain, full)
    simple, proxied, http2 = request(), request(proxy="http://proxy.example:3128"), request(http2=True)
    split.send(simple, Heard())
    assert plain.sent == [simple]
    assert made == []
    split.send(proxied, Heard())
    split.send(http2, Heard())
    assert plain.sent == [simple]
    assert [transport.sent for transport in made] == [[proxied, http2]]
    await split.close()
    assert plain.closed
    assert made[0].closed


async def test_close_without_a_full_transport():
    """Closing makes none."""
    plain = Noting()
    await Split(plain, Noting).close()
    assert plain.closed
