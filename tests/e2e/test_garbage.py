"""Requests leave nothing behind that only the garbage collector could find."""

from __future__ import annotations

import gc

import pytest

from relay.app import AsgiClient
from relay.attempt import Attempt
from relay.exchange import Exchange
from relay.messages import ChatRequest
from relay.runtimes.fast_lane import FastLaneClient
from tests.fakes import settle
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, framed
from tests.servers.client import RawClient, post
from tests.servers.policies import policy
from tests.servers.relay import FRONTS, serve
from tests.servers.upstream import Upstream, send

STREAM = send(chat.stream_head(), *map(framed, (ROLE, HELLO, STOP, DONE)), LAST_CHUNK)
TORN = send(chat.stream_head(), framed(ROLE), framed(HELLO), LAST_CHUNK)
ASK = chat.request_body(stream=True)


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize(("step", "body"), [(STREAM, ASK), (TORN, ASK), (send(b"no HTTP"), ASK), (STREAM, b"{")])
async def test_a_finished_request_is_freed_at_once(front, step, body):
    """Served, broken and refused requests hold no reference cycles, so memory does not wait for a collection."""
    kinds = (Exchange, Attempt, ChatRequest, AsgiClient, FastLaneClient)
    async with (
        Upstream(lambda _: [step]) as upstream,
        serve(policy(upstream.base_url), front=front) as running,
        await RawClient.connect(running.port) as client,
    ):
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                await client.send(post(body))
                await client.whole()
            await settle()
            gc.collect()
            left = [type(thing).__name__ for thing in gc.garbage if isinstance(thing, kinds)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert left == []
