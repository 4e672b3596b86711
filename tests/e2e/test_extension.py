"""Answers that meet the relay's own budget and go on in the same answer: what client, record and upstreams see."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest

from relay.messages import Outcome
from tests.fakes import FakeClock, settle
from tests.servers import chat
from tests.servers.author import PROMPT_TOKENS, STORY, author, exactly, from_the_start, tokens, with_last_words
from tests.servers.chat import DONE
from tests.servers.client import RawClient, ask, post
from tests.servers.model import model
from tests.servers.policies import NAMES, policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, close, send, stall, tell
from tests.servers.waiting import happens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers.client import Answer
    from tests.servers.relay import Running
    from tests.servers.upstream import Answerer

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

KEY = "sk-client"
LENGTH = len(tokens(STORY))
BUDGETS = {"floor": 64, "ceiling": 8192, "quantile": 0.5}
"""So low a quantile that the story never fits its first budget."""


@contextlib.asynccontextmanager
async def set_scene(
    *answerers: Answerer, front: str, style: str = "prefix", **tables: Any
) -> AsyncIterator[tuple[Running, list[Upstream]]]:
    """A relay that extends, in front of these upstreams; `style` is how they are asked to go on."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(answerer)) for answerer in answerers]
        models = {
            name: {"provider": name, "features": ["tools"], "continuation": style} for name in NAMES[: len(answerers)]
        }
        urls = [upstream.base_url for upstream in upstreams]
        text = policy(*urls, **{"models": models, "budgets": BUDGETS, **tables})
        yield await stack.enter_async_context(serve(text, front=front, clock=FakeClock())), upstreams


@pytest.fixture
def scene(front):
    """`set_scene` behind one front."""
    return partial(set_scene, front=front)


def chunks(answer: Answer) -> list[Any]:
    """The chunks of a stream."""
    return [json.loads(event[6:]) for event in bytes(answer.body).split(b"\n\n") if event.startswith(b"data: {")]


def text(answer: Answer) -> str:
    """What a reader of it sees."""
    if not answer.body.startswith(b"data:"):
        return str(answer.json()["choices"][0]["message"]["content"])
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks(answer) for choice in chunk.get("choices", [])
    )


def limits(upstream: Upstream) -> list[int]:
    """What each request to it was limited to."""
    return [json.loads(received.body)["max_tokens"] for received in upstream.received.items]


async def asked(relay: Running, *headers: tuple[str, str], **fields: Any) -> Answer:
    return await ask(relay.port, post(chat.request_body(**fields), *headers))


WAYS = pytest.mark.parametrize(
    ("style", "way"),
    [
        ("prefix", exactly),
        ("prefix", from_the_start),
        ("instruction", with_last_words),
        ("instruction", from_the_start),
    ],
    ids=["exact", "echo", "last words", "begun anew"],
)


@WAYS
@pytest.mark.parametrize("stream", [True, False])
async def test_answer_is_never_cut(style, way, stream, scene):
    """However the upstream goes on, the client gets the whole answer once, which ends as without a limit."""
    async with scene(author(way), style=style) as (relay, [upstream]):
        answer = await asked(relay, stream=stream, stream_options={"include_usage": True} if stream else None)
        record = await relay.only_record()
    assert text(answer) == STORY
    assert len(limits(upstream)) > 1
    assert limits(upstream)[0] < LENGTH
    assert (record.outcome, record.finish_reason, record.segments) == (Outcome.COMPLETED, "stop", len(limits(upstream)))
    usage = record.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.estimated) == (PROMPT_TOKENS, False)
    assert usage.completion_tokens >= LENGTH
    assert usage.continuation_prompt_tokens > PROMPT_TOKENS
    told = (chunks(answer)[-1] if stream else answer.json())["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == (PROMPT_TOKENS, usage.completion_tokens)


async def test_stream_is_one_stream(scene):
    """One id, one role chunk, one terminal event, one usage, one `[DONE]`."""
    async with scene(author()) as (relay, [upstream]):
        answer = await asked(relay, stream=True, stream_options={"include_usage": True})
        assert len(upstream.received) > 1
    told = chunks(answer)
    assert answer.complete
    assert len({chunk["id"] for chunk in told}) == 1
    assert sum("role" in choice["delta"] for chunk in told for choice in chunk["choices"]) == 1
    ends = [choice["finish_reason"] for chunk in told for choice in chunk["choices"] if choice["finish_reason"]]
    assert ends == ["stop"]
    assert sum("usage" in chunk for chunk in told) == 1
    assert answer.body.count(DONE) == 1
    assert answer.body.endswith(DONE)


async def test_whole_answer_keeps_its_bytes(scene):
    """Of the first segment's body only the text, the finish reason and the usage differ."""
    async with scene(author()) as (relay, [upstream]):
        answer = await asked(relay)
        assert len(upstream.received) > 1
    value = answer.json()
    assert (value["id"], value["object"], value["model"]) == ("c1-0", "chat.completion", "author")
    assert bytes(answer.body).startswith(
        b'{"id": "c1-0", "object": "chat.completion", "model": "author", "choices": [{"index": 0'
    )
    assert answer.header(b"content-length") == b"%d" % len(answer.body)


@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_reads_one_answer(stream, scene):
    """OpenAI's SDK finds nothing odd in an answer of several segments."""
    async with (
        scene(author(with_last_words), style="instruction") as (relay, _),
        openai.AsyncOpenAI(api_key="none", base_url=relay.base_url, max_retries=0) as sdk,
    ):
        completions = sdk.chat.completions
        if stream:
            chunked = await completions.create(model="auto", messages=[{"role": "user", "content": "hi"}], stream=True)
            pieces = [chunk.choices[0] async for chunk in chunked]
            assert "".join(piece.delta.content or "" for piece in pieces) == STORY
            assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]
        else:
            answer = await completions.create(model="auto", messages=[{"role": "user", "content": "hi"}])
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (STORY, "stop")


@pytest.mark.parametrize("stream", [True, False])
async def test_ceiling_is_the_end(stream, scene):
    """An answer longer than the ceiling ends there, as one that met a limit; nobody is asked for more than that."""
    async with scene(author(), budgets={**BUDGETS, "ceiling": 300}) as (relay, [upstream]):
        answer = await asked(relay, stream=stream)
        record = await relay.only_record()
    assert text(answer) == "".join(tokens(STORY)[:300])
    assert sum(limits(upstream)) == 300
    assert (record.outcome, record.finish_reason) == (Outcome.BUDGET, "length")
    if stream:
        assert chunks(answer)[-1]["choices"][0]["finish_reason"] == "length"
        assert answer.body.endswith(DONE)
    else:
        assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_number_of_extensions_is_bounded(scene):
    """The last one is given all up to the ceiling."""
    async with scene(author(), budgets={**BUDGETS, "max_extensions": 1}) as (relay, [upstream]):
        answer = await asked(relay)
    assert text(answer) == STORY
    assert len(limits(upstream)) == 2
    assert sum(limits(upstream)) == 8192


@pytest.mark.parametrize("fields", [{"max_tokens": 100}, {"max_completion_tokens": 100}])
async def test_clients_own_limit_is_kept(fields, scene):
    """What the client wanted cut is cut: its terminal event is not held, and nothing more is asked."""
    async with scene(author()) as (relay, [upstream]):
        answer = await asked(relay, stream=True, **fields)
        record = await relay.only_record()
    assert text(answer) == "".join(tokens(STORY)[:100])
    assert len(upstream.received) == 1
    assert record.outcome == Outcome.LENGTH


async def test_extension_can_be_switched_off(scene):
    """Then the budget is the end."""
    async with scene(author(), budgets={**BUDGETS, "extend": False}) as (relay, [upstream]):
        answer = await asked(relay, stream=True)
        record = await relay.only_record()
    assert len(text(answer)) < len(STORY)
    assert len(upstream.received) == 1
    assert record.outcome == Outcome.BUDGET


async def test_model_that_cannot_go_on_is_given_room_at_once(scene):
    """Where the policy says that a model cannot be asked to, its answers are not cut early."""
    async with scene(author(), style="none") as (relay, [upstream]):
        assert text(await asked(relay)) == STORY
        assert limits(upstream) == [8192]


@pytest.mark.parametrize("stream", [True, False])
async def test_nobody_goes_on(stream, scene):
    """If no upstream gives more, the answer ends where it met the budget, as it would without extension."""
    first = author()
    asked_before: list[int] = []

    def answerer(received):
        asked_before.append(1)
        return first(received) if len(asked_before) == 1 else [send(chat.whole(b"{}", 400))]

    async with scene(answerer) as (relay, [upstream]):
        answer = await asked(relay, stream=stream)
        record = await relay.only_record()
    cut = limits(upstream)[0]
    assert text(answer) == "".join(tokens(STORY)[:cut])
    assert (record.outcome, record.finish_reason, record.segments) == (Outcome.BUDGET, "length", 1)
    assert [attempt.error for attempt in record.attempts] == [None, "upstream_error"]
    if stream:
        assert answer.body.endswith(DONE)


@pytest.mark.parametrize("stream", [True, False])
async def test_another_candidate_goes_on(stream, scene):
    """If the model that began cannot go on, the next one is asked, which is given the text."""
    first = author()
    count = iter(range(9))

    def answerer(received):
        return first(received) if next(count) == 0 else [send(chat.whole(b"{}", 503))]

    async with scene(answerer, author()) as (relay, [_, second]):
        answer = await asked(relay, stream=stream)
        record = await relay.only_record()
    assert text(answer) == STORY
    assert (record.outcome, record.model) == (Outcome.COMPLETED, "second")
    assert json.loads(second.received.items[0].body)["messages"][-1]["role"] == "assistant"


async def test_budget_that_went_into_reasoning_is_not_the_end(scene):
    """Where nothing of the answer was written yet, it is asked for anew with more room: none comes back empty."""
    async with scene(model(words=50, hidden=400), budgets={**BUDGETS, "ceiling": 300, "floor": 16}) as (
        relay,
        [upstream],
    ):
        for stream in (True, False):
            answer = await asked(relay, stream=stream)
            assert answer.body.count(b"word ") == 50
        record = await relay.records.at(0)
    assert limits(upstream)[0] < 400
    assert (record.outcome, record.finish_reason) == (Outcome.COMPLETED, "stop")


async def test_model_that_thinks_again_has_room_for_it(scene):
    """What one segment spent on reasoning comes on top of what the next one is granted, said in the policy or not."""
    async with scene(model(words=2000, hidden=199), budgets={**BUDGETS, "floor": 300}) as (relay, [upstream]):
        await asked(relay)
    first, *others = limits(upstream)
    assert 199 < first < 2000
    assert others
    assert min(others) >= 300 + 199


async def test_whoever_won_the_race_goes_on(front):
    """Of two models that were asked at a time, the one that answers is asked for the rest, and alone."""
    clock = FakeClock()
    async with Upstream(always(stall)) as slow, Upstream(author()) as quick:
        routes = [{"name": "auto", "candidates": ["first", "second"], "hedge": {"after": "p95", "max_extra_cost": 1}}]
        models: dict[str, Any] = {
            name: {"provider": name, "features": [], "continuation": "prefix", "price": {"input": 1, "output": 1}}
            for name in ("first", "second")
        }
        text_of_policy = policy(slow.base_url, quick.base_url, routes=routes, models=models, budgets=BUDGETS)
        async with serve(text_of_policy, front=front, clock=clock) as relay:
            relay.pipeline.ledgers["auto"].spend(1.0, clock.now(), twice=False)
            asking = asyncio.create_task(asked(relay, stream=True))
            await slow.received.at(0)
            await clock.advance(2.5)  # its p95 is 2.2 s
            answer = await asking
            record = await relay.only_record()
        assert len(slow.received) == 1
    assert text(answer) == STORY
    lost, won, *rest = record.attempts
    assert {(lost.model, lost.error), (won.model, won.error)} == {("first", "superseded"), ("second", None)}
    assert {(one.model, one.hedge) for one in rest} == {("second", False)}
    assert [one.segment for one in rest] == list(range(2, record.segments + 1))


@pytest.mark.parametrize("recover", [True, False])
async def test_continuation_breaks_off(recover, scene):
    """It is told in band, or recovered where the policy says so: then with what is left of the grant."""
    async with scene(author(last=[close]), author(), streams={"recover": recover}) as (relay, [first, second]):
        answer = await asked(relay, stream=True)
        record = await relay.only_record()
    if recover:
        assert text(answer) == STORY
        assert (record.outcome, record.model) == (Outcome.COMPLETED, "second")
        assert limits(second)[0] < limits(first)[1]
    else:
        assert STORY.startswith(text(answer))
        assert b"upstream_truncated" in answer.body
        assert DONE not in answer.body
        assert record.outcome == Outcome.UPSTREAM_TRUNCATED


async def test_continuation_stalls(scene):
    """A continuation that falls silent is a stall like any other."""
    silent = asyncio.Event()
    last = [tell(silent), stall]
    async with scene(author(last=last)) as (relay, _), await RawClient.connect(relay.port) as client:
        await client.send(post(chat.request_body(stream=True)))
        await happens(silent)
        await settle()
        clock = relay.pipeline.clock
        assert isinstance(clock, FakeClock)
        await clock.advance(22)
        answer = await client.whole()
        record = await relay.only_record()
    assert b"upstream_stalled" in answer.body
    assert (record.outcome, record.segments) == (Outcome.STALLED, 2)


async def test_tool_call_in_the_middle_is_not_continued(scene):
    """A plain answer that turns into a tool call and then meets the budget ends there: nobody can go on within it."""
    call = {"tool_calls": [{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a'}}]}
    usage = chat.usage(7, 9000)
    events = (chat.ROLE, chat.HELLO, chat.chunk(call), chat.chunk({}, "length"), usage, DONE)
    script = send(chat.stream_head() + b"".join(map(chat.framed, events)) + chat.LAST_CHUNK)
    async with scene(always(script)) as (relay, [upstream]):
        answer = await asked(relay, stream=True)
        record = await relay.only_record()
    assert bytes(answer.body) == b"".join(event for event in events if event != usage)
    assert len(upstream.received) == 1
    assert record.outcome == Outcome.BUDGET


async def test_continuation_that_calls_a_tool_goes_on(scene):
    """What follows plain text may be a tool call: its deltas go on as they are, and so does its end."""
    call = {"tool_calls": [{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    events = (chat.ROLE, chat.chunk(call), chat.chunk({}, "tool_calls"), DONE)
    calls = [send(chat.stream_head() + b"".join(map(chat.framed, events)) + chat.LAST_CHUNK)]
    first = author()

    def answerer(received):
        return first(received) if b"assistant" not in received.body else calls

    async with scene(answerer) as (relay, _):
        answer = await asked(relay, stream=True)
        record = await relay.only_record()
    assert chunks(answer)[-2]["choices"][0]["delta"] == call
    assert chunks(answer)[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert record.outcome == Outcome.COMPLETED


async def test_key_without_tokens_left_ends_the_answer(scene):
    """A continuation is reserved as the first segment was: beyond the key's tokens there is none."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = {"team": {"sha256": digest, "limits": {"tokens_per_min": 200}}}
    async with scene(author(), keys=keys, access={"open": False}) as (relay, [upstream]):
        answer = await asked(relay, ("authorization", f"Bearer {KEY}"), stream=True)
        record = await relay.only_record()
    assert len(upstream.received) == 1
    assert STORY.startswith(text(answer))
    assert record.outcome == Outcome.BUDGET


async def test_reservations_are_given_back(scene):
    """However often an answer was extended, the key has paid for what was used and no more."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = {"team": {"sha256": digest, "limits": {"tokens_per_min": 100_000}}}
    bearer = ("authorization", f"Bearer {KEY}")
    async with scene(author(), keys=keys, access={"open": False}) as (relay, _):
        answer = await asked(relay, bearer)
        used = (await relay.only_record()).usage
        assert used is not None
        assert text(answer) == STORY
        left = 100_000 - used.total_tokens
        assert (await asked(relay, bearer, max_tokens=left + 1000)).status == 429
        assert (await asked(relay, bearer, max_tokens=left - 100)).status == 200


async def test_client_gone_while_it_is_extended(scene):
    """Nobody is asked for more than the segment under way, which is cancelled."""
    async with scene(author(last=[stall])) as (relay, [upstream]):
        client = await RawClient.connect(relay.port)
        await client.send(post(chat.request_body(stream=True)))
        request = await upstream.received.at(1)
        client.close()
        await happens(request.gone)
        record = await relay.only_record()
    assert record.outcome == Outcome.CLIENT_GONE
    assert record.usage is not None


async def test_length_is_learned_whole(scene):
    """What an answer had in all its segments is what the next one's budget is made of."""
    async with scene(author(), budgets={**BUDGETS, "quantile": 0.95}) as (relay, [upstream]):
        for _ in range(8):
            await asked(relay)
        await asked(relay)
    assert limits(upstream)[0] < 0.9 * LENGTH
    assert max(limits(upstream)[-2:]) == pytest.approx(LENGTH, rel=0.05)


async def test_many_at_once(scene):
    """Answers that are extended side by side do not mix."""
    async with scene(author(with_last_words), style="instruction") as (relay, _):
        answers = await asyncio.gather(*(asked(relay, stream=bool(number % 2)) for number in range(20)))
    assert all(text(answer) == STORY for answer in answers)
