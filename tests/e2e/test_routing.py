"""Which upstream a request reaches, over real sockets, where a route leaves a choice."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import FakeClock
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, USAGE, framed
from tests.servers.client import ask, post
from tests.servers.policies import NAMES, policy
from tests.servers.relay import FRONTS, serve
from tests.servers.upstream import Upstream, always, in_turn, send, stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.servers.client import Answer
    from tests.servers.relay import Running
    from tests.servers.upstream import Step

SERVED_BYTES = chat.stream_head() + b"".join(map(framed, (ROLE, HELLO, STOP, USAGE, DONE))) + LAST_CHUNK
SERVED = (send(SERVED_BYTES),)
TOO_LONG = chat.error("This model's maximum context length is 10 tokens.", code="context_length_exceeded")
KEY = "sk-client"


@pytest.fixture(params=FRONTS)
def front(request):
    return request.param


@contextlib.asynccontextmanager
async def world(
    front: str, *scripts: Sequence[Step], models: Sequence[dict[str, Any]] = ({}, {}, {}), **of_route: Any
) -> AsyncIterator[tuple[Running, list[Upstream]]]:
    """A relay with one route over upstreams that follow these scripts."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(always(*script))) for script in scripts]
        names = NAMES[: len(scripts)]
        text = policy(
            *(upstream.base_url for upstream in upstreams),
            models={name: {"provider": name, **said} for name, said in zip(names, models, strict=False)},
            routes=[{"name": "auto", "candidates": names, "attempts": 3, **of_route}],
        )
        relay = await stack.enter_async_context(serve(text, front=front, clock=FakeClock()))
        yield relay, upstreams


async def asked(relay: Running, *headers: tuple[str, str], **fields: Any) -> Answer:
    return await ask(relay.port, post(chat.request_body(stream=True, **fields), *headers))


def price(usd: float) -> dict[str, Any]:
    return {"price": {"input": usd, "output": usd}}


async def test_the_objective_decides_who_is_asked(front):
    """The cheapest candidate answers, though it was not written first; the record says how each one stood."""
    async with world(front, SERVED, SERVED, models=(price(9), price(1)), objective={"cost": 1, "explore": 0}) as (
        relay,
        upstreams,
    ):
        answer = await asked(relay)
        record = await relay.only_record()
    assert answer.header(b"x-relay-model") == b"second"
    assert [len(upstream.received) for upstream in upstreams] == [0, 1]
    assert record.decision is not None
    assert record.decision.order == ("second", "first")
    assert [weighed.usd > 0 for weighed in record.decision.candidates] == [True, True]


async def test_what_a_request_uses_decides_who_is_asked(front):
    """A request with tools goes to the model that has them; one for which nobody is left is told so."""
    async with world(front, SERVED, SERVED, models=({"features": []}, {"features": ["tools"]})) as (relay, _):
        assert (await asked(relay)).header(b"x-relay-model") == b"first"
        tools = [{"type": "function", "function": {"name": "f"}}]
        assert (await asked(relay, tools=tools)).header(b"x-relay-model") == b"second"
        refused = await asked(relay, tools=tools, reasoning_effort="low")
    assert refused.status == 400
    assert "first (features: reasoning, tools), second (features: reasoning)" in refused.error()["message"]


async def test_a_prompt_too_long_goes_to_a_larger_context(front):
    """A context-length error leads to a model whose context is larger, past one whose context is not."""
    refusing = (send(chat.whole(TOO_LONG, 400)),)
    models = ({"context": 1000}, {"context": 1000}, {"context": 100_000})
    async with world(front, refusing, SERVED, SERVED, models=models) as (relay, upstreams):
        answer = await asked(relay)
    assert answer.header(b"x-relay-model") == b"third"
    assert [len(upstream.received) for upstream in upstreams] == [1, 0, 1]


async def test_a_prompt_too_long_for_all_is_the_clients(front):
    """If no larger context is left, the client gets the error as the upstream gave it."""
    refusing = (send(chat.whole(TOO_LONG, 400)),)
    async with world(front, refusing, refusing, models=({"context": 99}, {"context": 50})) as (relay, upstreams):
        answer = await asked(relay)
    assert answer.status == 400
    assert answer.error()["code"] == "context_length_exceeded"
    assert [len(upstream.received) for upstream in upstreams] == [1, 0]


async def test_an_upstream_is_left_before_it_refuses(front):
    """What an answer's headers say is left of its limits keeps the next request away until there is more."""
    head = chat.head(
        200,
        ("transfer-encoding", "chunked"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "20s"),
    )
    limited = (send(head, *map(framed, (ROLE, HELLO, STOP, USAGE, DONE)), LAST_CHUNK),)
    async with world(front, limited, SERVED, models=(price(1), price(9)), objective={"cost": 1, "explore": 0}) as (
        relay,
        _,
    ):
        clock = relay.pipeline.clock
        assert isinstance(clock, FakeClock)
        models = [(await asked(relay)).header(b"x-relay-model") for _ in range(2)]
        await clock.advance(20.0)
        models.append((await asked(relay)).header(b"x-relay-model"))
    assert models == [b"first", b"second", b"first"]


async def test_slow_is_left_for_fast(front):
    """A model that takes long is asked first only until that is seen."""
    clock = FakeClock()

    async def slow(turn):
        await clock.advance(8.0)
        await turn.send(SERVED_BYTES)

    async with Upstream(always(slow)) as first, Upstream(always(*SERVED)) as second:
        text = policy(
            first.base_url,
            second.base_url,
            models={"first": {"provider": "first", "expected": {"ttft_ms": 100}}, "second": {"provider": "second"}},
            routes=[{"name": "auto", "candidates": NAMES[:2], "objective": {"ttft": 1, "explore": 0}}],
        )
        async with serve(text, front=front, clock=clock) as relay:
            models = [(await asked(relay)).header(b"x-relay-model") for _ in range(4)]
    assert models == [b"first", b"second", b"second", b"second"]


@pytest.mark.parametrize(
    ("value", "status", "model"), [("cost", 200, b"second"), ("first", 200, b"first"), ("beauty", 400, None)]
)
async def test_a_key_may_be_allowed_to_prefer(front, value, status, model):
    """`x-relay-prefer` chooses among the candidates, for a key that may; what it cannot say is named."""
    async with Upstream(in_turn(SERVED)) as first, Upstream(in_turn(SERVED)) as second:
        text = policy(
            first.base_url,
            second.base_url,
            models={"first": {"provider": "first", **price(9)}, "second": {"provider": "second", **price(1)}},
            keys={"client": {"sha256": hashlib.sha256(KEY.encode()).hexdigest(), "prefer": True}},
        )
        async with serve(text, front=front) as relay:
            bearer = ("authorization", f"Bearer {KEY}")
            answer = await asked(relay, bearer, ("x-relay-prefer", value))
            unknown = await asked(relay, ("x-relay-prefer", value))
    assert answer.status == status
    assert answer.header(b"x-relay-model") == model
    assert (unknown.status, unknown.error()["param"]) == (403, "x-relay-prefer")
    if status != 200:
        assert answer.error()["param"] == "x-relay-prefer"


async def test_a_wait_is_known_before_it_ends(front):
    """While one stream waits, the next request already goes elsewhere."""
    clock = FakeClock()
    async with Upstream(always(stall)) as first, Upstream(always(*SERVED)) as second:
        text = policy(
            first.base_url,
            second.base_url,
            models={
                "first": {"provider": "first", "expected": {"ttft_ms": 50}, "timeouts": {"first_token_s": 60}},
                "second": {"provider": "second"},
            },
            routes=[{"name": "auto", "candidates": NAMES[:2], "objective": {"ttft": 1, "explore": 0}}],
        )
        async with serve(text, front=front, clock=clock) as relay:
            waiting = asyncio.ensure_future(asked(relay))
            await first.received.at(0)
            await clock.advance(50.0)
            next_one = await asked(relay)
            await clock.advance(20.0)
            waited = await waiting
    assert next_one.header(b"x-relay-model") == b"second"
    assert (waited.header(b"x-relay-model"), waited.header(b"x-relay-attempts")) == (b"second", b"2")


async def test_a_running_relay_explains(front):
    """POST /relay/explain says what would be decided, with the key and headers of the request, and sends nothing."""
    models = ({"features": ["tools"], **price(9)}, {"features": [], **price(1)}, price(3))
    objective = {"cost": 1, "explore": 0}
    async with world(front, SERVED, SERVED, SERVED, models=models, objective=objective) as (relay, upstreams):
        tools = [{"type": "function", "function": {"name": "f"}}]
        answer = await ask(relay.port, post(chat.request_body(tools=tools), path="/relay/explain"))
        unknown = await ask(relay.port, post(chat.request_body(model="x"), path="/relay/explain"))
        assert not any(upstream.received for upstream in upstreams)
        assert not relay.records
    shown = answer.json()
    assert (shown["route"], shown["order"], shown["first_by"]) == ("auto", ["third", "first"], "score")
    assert shown["request"]["features"] == ["tools"]
    assert [row["left_out"] for row in shown["candidates"]] == [None, "features: tools", None]
    assert shown["candidates"][2]["usd"] == pytest.approx(shown["candidates"][0]["usd"] / 3, rel=1e-3)
    assert unknown.status == 404
