"""Streams that break off behind their first output and go on elsewhere: what client, record and upstreams see."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest

from relay.messages import Outcome
from tests.fakes import FakeClock, settle
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, USAGE, WORLD, framed
from tests.servers.client import RawClient, ask, post
from tests.servers.policies import policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, close, in_turn, reset, send, stall, until
from tests.servers.waiting import happens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.servers.client import Answer
    from tests.servers.relay import Running
    from tests.servers.upstream import Received, Step

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

SILENCE_S = 20  # the default
BEGUN = send(chat.stream_head(), framed(ROLE), framed(HELLO))
ERROR = b'data: {"error": {"message": "overloaded"}}\n\n'
BREAKS = {
    "closed": (close,),
    "reset": (reset,),
    "ended": (send(LAST_CHUNK),),
    "ended in an event": (send(framed(WORLD[:-9]), LAST_CHUNK),),
    "broken JSON": (send(framed(b'data: {"choices": [\n\n')), stall),
    "broken chunk": (send(b"no size\r\n"), stall),
    "error event": (send(framed(ERROR)), stall),
    "silent": (stall,),
}
"""How a stream breaks off behind its first output."""
CODES = {
    "broken JSON": "upstream_protocol_error",
    "broken chunk": "upstream_protocol_error",
    "error event": "upstream_error",
    "silent": "upstream_stalled",
}
"""Where it is not `upstream_truncated`."""


def renamed(event: bytes) -> bytes:
    """An event as the second upstream would name it."""
    return chat.event(json.loads(event[6:]) | {"id": "c2", "created": 2, "model": "n"})


def streaming(*events: bytes) -> Step:
    """A stream under the second upstream's name, sent event by event."""
    named = [renamed(event) if event not in (DONE, ERROR) else event for event in events]
    return send(chat.stream_head(), *map(framed, named))


REST = (streaming(ROLE, WORLD, STOP, USAGE, DONE), send(LAST_CHUNK))
JOINED = ROLE + HELLO + WORLD + STOP + DONE


@dataclass(frozen=True)
class Scene:
    """A relay that recovers, in front of an upstream that breaks off and one that goes on; its time stands still."""

    relay: Running
    clock: FakeClock
    first: Upstream
    second: Upstream

    async def ask(self, *, wait_s: float = 0, **fields: Any) -> Answer:
        """One stream; the clock moves by `wait_s` once its first output is there."""
        async with await RawClient.connect(self.relay.port) as client:
            await client.send(post(chat.request_body(stream=True, **fields)))
            if wait_s:
                await client.until_count(HELLO, 1)
                await self.clock.advance(wait_s)
            return await client.whole()


@contextlib.asynccontextmanager
async def set_scene(
    *script: Step, front: str, second: Sequence[Step] = REST, style: str = "prefix", **tables: Any
) -> AsyncIterator[Scene]:
    """The first candidate follows the script, the second one the other; `style` is how both are asked to go on."""
    clock = FakeClock()
    async with Upstream(always(*script)) as one, Upstream(always(*second)) as other:
        models = {name: {"provider": name, "continuation": style} for name in ("first", "second")}
        text = policy(one.base_url, other.base_url, **{"streams": {"recover": True}, "models": models, **tables})
        async with serve(text, front=front, clock=clock) as relay:
            yield Scene(relay, clock, one, other)


@pytest.fixture
def scene(front):
    """`set_scene` behind one front."""
    return partial(set_scene, front=front)


def same(left: bytes, right: bytes) -> bool:
    """Whether two streams have the same events, however their JSON is spaced."""
    return [_value(event) for event in left.split(b"\n\n")] == [_value(event) for event in right.split(b"\n\n")]


def _value(event: bytes) -> Any:
    return json.loads(event[6:]) if event.startswith(b"data: {") else event


def values(answer: Answer) -> list[Any]:
    """The chunks of a stream."""
    return [_value(event) for event in bytes(answer.body).split(b"\n\n") if event.startswith(b"data: {")]


def text(piece: str) -> bytes:
    """A chunk that says something."""
    return chat.chunk({"content": piece})


def sent(request: Received) -> Any:
    """What an upstream was asked."""
    return json.loads(request.body)


@pytest.mark.parametrize("style", ["instruction", "prefix", "prefill", "continue_final_message"])
@pytest.mark.parametrize("how", BREAKS)
async def test_broken_stream_goes_on_elsewhere(how, style, scene):
    """The client sees one stream: one id, one role, one end; the record tells of both segments."""
    async with scene(BEGUN, *BREAKS[how], style=style) as on:
        answer = await on.ask(wait_s=SILENCE_S + 1 if how == "silent" else 0)
        record = await on.relay.only_record()
        asked = sent(await on.second.received.at(0))
    assert answer.complete
    assert bytes(answer.body).startswith(ROLE + HELLO)
    assert same(bytes(answer.body), JOINED)
    assert asked["messages"][1]["content"] == "hello"
    assert asked["messages"][1]["role"] == "assistant"
    assert (record.outcome, record.error, record.segments, record.model) == (Outcome.COMPLETED, None, 2, "second")
    code = CODES.get(how, "upstream_truncated")
    assert [(one.model, one.error, one.segment) for one in record.attempts] == [("first", code, 1), ("second", None, 2)]
    usage = record.usage
    assert usage is not None
    assert (usage.completion_tokens, usage.continuation_prompt_tokens, usage.estimated) == (4, 7, True)
    assert record.ttft_s is not None


async def test_broken_stream_is_told_of_where_the_policy_does_not_ask_for_more(scene):
    """Recovery is off by default."""
    async with scene(BEGUN, close, streams={}) as on:
        answer = await on.ask()
        record = await on.relay.only_record()
    assert b"upstream_truncated" in answer.body
    assert (record.outcome, record.segments) == (Outcome.UPSTREAM_TRUNCATED, 1)
    assert not len(on.second.received)


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"response_format": {"type": "json_object"}}, {"logprobs": True}],
    ids=["two answers", "JSON", "log probabilities"],
)
async def test_answer_that_cannot_be_joined_is_not_recovered(fields, scene):
    """Its client is told in band, as without recovery."""
    async with scene(BEGUN, close) as on:
        answer = await on.ask(**fields)
        assert b"upstream_truncated" in answer.body
        assert not len(on.second.received)


async def test_tool_call_is_not_recovered(scene):
    """Nobody can go on within a tool call, also where text came first."""
    call = chat.chunk({"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": '{"a'}}]})
    async with scene(BEGUN, send(framed(call)), close) as on:
        answer = await on.ask(tools=[{"type": "function", "function": {"name": "f"}}])
        assert bytes(answer.body).startswith(ROLE + HELLO + call)
        assert b"upstream_truncated" in answer.body
        assert not len(on.second.received)


async def test_candidate_that_cannot_go_on_is_not_asked(scene):
    """A model with `continuation = "none"` gets no beginnings of answers."""
    async with scene(BEGUN, close, style="none") as on:
        answer = await on.ask()
        record = await on.relay.only_record()
    assert b"upstream_truncated" in answer.body
    assert (record.outcome, len(record.attempts)) == (Outcome.UPSTREAM_TRUNCATED, 1)


@pytest.mark.parametrize("how", ["closed", "error event"])
async def test_nobody_can_go_on(how, scene):
    """The client is told what broke its stream, not how the search went on; an error event as it came."""
    async with scene(BEGUN, *BREAKS[how], second=[send(chat.whole(b"{}", 503))]) as on:
        answer = await on.ask()
        record = await on.relay.only_record()
    assert answer.complete
    last = bytes(answer.body).removeprefix(ROLE + HELLO)
    code = CODES.get(how, "upstream_truncated")
    if how == "error event":
        assert last == ERROR
    else:
        assert _value(last)["error"]["code"] == code
    assert (record.error, record.model, record.segments, record.status) == (code, "first", 1, 200)
    assert [one.error for one in record.attempts] == [code, "upstream_error"]
    assert record.usage is not None


async def test_second_segment_breaks_off_too(scene):
    """With an attempt left, a third one follows, and is given all text so far."""
    routes = [{"name": "auto", "candidates": ["first", "second"], "attempts": 3}]
    async with scene(BEGUN, close, second=[streaming(ROLE, WORLD), close], routes=routes) as on:
        asking = asyncio.create_task(on.ask())
        await on.second.received.at(0)
        await settle()
        await settle()
        await on.clock.advance(0.5)
        answer = await asking
        record = await on.relay.only_record()
        asked = sent(await on.first.received.at(1))
    assert same(bytes(answer.body)[: len(ROLE + HELLO)], ROLE + HELLO)
    assert asked["messages"][1]["content"] == "hello world"
    assert [one.segment for one in record.attempts] == [1, 2, 3]
    assert (record.segments, record.error) == (3, "upstream_truncated")


async def test_same_candidate_goes_on(front):
    """Where there is one candidate, it is asked again after a drawn wait."""
    clock = FakeClock()
    async with Upstream(in_turn((BEGUN, close), REST)) as one:
        text = policy(one.base_url, attempts=2, streams={"recover": True})
        async with serve(text, front=front, clock=clock) as relay:
            asking = asyncio.create_task(ask(relay.port, post(chat.request_body(stream=True))))
            await one.received.at(0)
            await settle()
            await settle()
            await clock.advance(0.25)
            answer = await asking
            record = await relay.only_record()
    assert same(bytes(answer.body), JOINED)
    assert (record.outcome, record.segments) == (Outcome.COMPLETED, 2)


async def test_usage_is_told_once_for_all_segments(scene):
    """A client that asked for usage gets one chunk of it, which counts what both upstreams wrote."""
    async with scene(BEGUN, close) as on:
        answer = await on.ask(stream_options={"include_usage": True})
        record = await on.relay.only_record()
    [told] = [value["usage"] for value in values(answer) if value.get("usage")]
    assert record.usage is not None
    assert told["prompt_tokens"] == record.usage.prompt_tokens
    assert (told["completion_tokens"], record.usage.completion_tokens) == (4, 4)
    assert told["total_tokens"] == told["prompt_tokens"] + 4


async def test_clients_limit_holds_for_all_segments(scene):
    """The second upstream is asked for what is left of the client's limit; what the first wrote is estimated."""
    async with scene(BEGUN, close) as on:
        await on.ask(max_tokens=100)
        assert sent(await on.first.received.at(0))["max_tokens"] == 100
        assert sent(await on.second.received.at(0))["max_tokens"] == 98


async def test_client_gone_in_the_second_segment(scene):
    """The second upstream is cancelled, and what both wrote is counted."""
    async with scene(BEGUN, close, second=[streaming(ROLE, WORLD), stall]) as on:
        client = await RawClient.connect(on.relay.port)
        await client.send(post(chat.request_body(stream=True)))
        await client.until_count(b" world", 1)
        client.close()
        await happens((await on.second.received.at(0)).gone)
        record = await on.relay.only_record()
    assert (record.outcome, record.segments) == (Outcome.CLIENT_GONE, 2)
    assert record.usage is not None
    assert record.usage.completion_tokens == 4


async def test_client_gone_before_the_second_segment(scene):
    """As in the first: nothing more is asked."""
    async with scene(BEGUN, close, second=[stall]) as on:
        client = await RawClient.connect(on.relay.port)
        await client.send(post(chat.request_body(stream=True)))
        request = await on.second.received.at(0)
        client.close()
        await happens(request.gone)
        record = await on.relay.only_record()
    assert (record.outcome, record.segments, record.model) == (Outcome.CLIENT_GONE, 1, "first")


async def test_wait_for_the_second_segment_is_bridged(scene):
    """With keep-alives on, a client that waits for somebody to go on hears comments."""
    go = asyncio.Event()
    streams = {"recover": True, "keep_alive_s": 5}
    async with (
        scene(BEGUN, close, second=[until(go), *REST], streams=streams) as on,
        await RawClient.connect(on.relay.port) as client,
    ):
        await client.send(post(chat.request_body(stream=True)))
        await on.second.received.at(0)
        await on.clock.advance(6)
        await client.until_count(b": keep-alive", 1)
        go.set()
        answer = await client.whole()
    assert same(bytes(answer.body).replace(b": keep-alive\n\n", b""), JOINED)


async def test_second_segment_that_does_not_begin_is_given_up(scene):
    """It has the time to its first output that any attempt has; then the client is told of what broke the first."""
    async with scene(BEGUN, close, second=[stall]) as on:
        asking = asyncio.create_task(on.ask())
        await on.second.received.at(0)
        await on.clock.advance(16)
        answer = await asking
        record = await on.relay.only_record()
    assert b"upstream_truncated" in answer.body
    assert [one.error for one in record.attempts] == ["upstream_truncated", "upstream_first_token_timeout"]


async def test_shutdown_in_the_second_segment_ends_in_band(scene):
    """An answer that cannot be finished in time is ended as any other."""
    async with scene(BEGUN, close, second=[streaming(ROLE, WORLD), stall]) as on:
        async with await RawClient.connect(on.relay.port) as client:
            await client.send(post(chat.request_body(stream=True)))
            await client.until_count(b" world", 1)
            draining = asyncio.create_task(on.relay.pipeline.drain(5))
            await settle()
            await on.clock.advance(6)
            answer = await client.whole()
            await draining
        record = await on.relay.only_record()
    assert b"shutting_down" in answer.body
    assert (record.outcome, record.segments) == (Outcome.RELAY_ERROR, 2)


SAID = "The quick brown fox ju"
REMAINDER = ["mps", " over the", " dog."]


@pytest.mark.parametrize(
    ("style", "again"),
    [
        ("instruction", ["Sure: The quick ", "brown fox", " ju", *REMAINDER]),
        ("instruction", [SAID, *REMAINDER]),
        ("prefix", [SAID, *REMAINDER]),
        ("prefix", REMAINDER),
    ],
    ids=["last words", "begun anew", "echo", "exact"],
)
async def test_sdk_reads_one_answer(style, again, scene):
    """However the second upstream goes on, OpenAI's SDK finds each word once, one id, one role and one end."""
    first = send(chat.stream_head(), framed(ROLE), *(framed(text(piece)) for piece in (SAID[:9], SAID[9:])))
    second = [streaming(ROLE, *map(text, again), STOP, DONE), send(LAST_CHUNK)]
    async with (
        scene(first, close, second=second, style=style) as on,
        openai.AsyncOpenAI(api_key="none", base_url=on.relay.base_url, max_retries=0) as sdk,
    ):
        stream = await sdk.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.delta.content or "" for choice in choices) == "The quick brown fox jumps over the dog."
    assert {chunk.id for chunk in chunks} == {"c1"}
    assert sum(choice.delta.role is not None for choice in choices) == 1
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
