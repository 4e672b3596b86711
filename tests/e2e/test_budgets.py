"""Budgets over real sockets: what reaches the upstream, what comes back, and what is learned from it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from relay.messages import BudgetRules
from relay.pipeline import TICK_S
from relay.policy.load import load
from tests.fakes import FakeClock
from tests.servers import chat
from tests.servers.client import ask, post
from tests.servers.model import PROMPT_TOKENS, model
from tests.servers.policies import ENVIRON, NAMES, policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, send, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.servers.client import Answer
    from tests.servers.relay import Running
    from tests.servers.upstream import Answerer, Received, Step

KEY = "sk-client"
CUT = {"extend": False}
"""Without extension a budget is a quantile, not the ceiling."""
REASONS = {"features": ["reasoning", "tools", "json_schema"]}
PLAIN = {"features": ["tools", "json_schema"]}
HEADROOM = BudgetRules().headroom


@contextlib.asynccontextmanager
async def world(
    *answerers: Answerer, models: tuple[dict[str, Any], ...] = (PLAIN, PLAIN), **tables: Any
) -> AsyncIterator[tuple[Running, list[Upstream]]]:
    """A relay with budgets in front of these upstreams."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(answerer)) for answerer in answerers]
        names = NAMES[: len(answerers)]
        text = policy(
            *(upstream.base_url for upstream in upstreams),
            **{
                "models": {name: {"provider": name, **said} for name, said in zip(names, models, strict=False)},
                "budgets": CUT,
                **tables,
            },
        )
        yield await stack.enter_async_context(serve(text, clock=FakeClock())), upstreams


async def asked(relay: Running, *headers: tuple[str, str], **fields: Any) -> Answer:
    return await ask(relay.port, post(chat.request_body(**fields), *headers))


def sent(upstream: Upstream, number: int = -1) -> dict[str, Any]:
    """What an upstream was asked."""
    body: dict[str, Any] = json.loads(upstream.received.items[number].body)
    return body


@pytest.mark.parametrize("budgets", [None, {"mode": "off"}], ids=["no budgets", "off"])
async def test_without_budgets_nothing_is_set(budgets):
    """A policy without budgets, or with budgets that are off, sends what the client sent."""
    tables = {} if budgets is None else {"budgets": budgets}
    async with Upstream(model(words=5)) as upstream:
        async with serve(policy(upstream.base_url, **tables), clock=FakeClock()) as relay:
            body = chat.request_body(temperature=1.0)
            await ask(relay.port, post(body))
            assert relay.pipeline.experience.answers.snapshot(0.0) == []
        assert upstream.received.items[0].body == body.replace(b'"auto"', b'"first-upstream"')


async def test_a_limit_is_filled_in():
    """Where the client set no limit, the upstream gets the budget, under the name that it takes."""
    async with world(model(words=5), models=({**PLAIN, "max_tokens_field": "max_completion_tokens"},)) as (relay, ups):
        await asked(relay)
        assert BudgetRules().floor <= sent(ups[0])["max_completion_tokens"] <= BudgetRules().ceiling


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [1, 100_000])
async def test_a_clients_limit_is_left_alone(name, limit):
    """With `fill`, a client's own limit goes on as it came, whatever the budget is."""
    async with world(model(words=5)) as (relay, ups):
        await asked(relay, **{name: limit})
        assert {key: value for key, value in sent(ups[0]).items() if "tokens" in key} == {name: limit}


@pytest.mark.parametrize(("limit", "reaches"), [(7, 7), (100_000, 400)])
async def test_a_cap_lowers_a_clients_limit(limit, reaches):
    """With `cap`, the lower of the two limits holds, under the client's name for it."""
    budgets = {**CUT, "mode": "cap", "ceiling": 400, "quantile": 0.999}
    async with world(model(words=5), budgets=budgets) as (relay, ups):
        await asked(relay, max_tokens=limit)
        assert sent(ups[0])["max_tokens"] == reaches


async def test_what_cannot_be_continued_is_not_cut_early():
    """Where budgets extend, an answer with tools or a JSON schema gets the ceiling at once."""
    async with world(model(words=5), budgets={"extend": True, "ceiling": 5000}) as (relay, ups):
        await asked(relay, tools=[{"type": "function", "function": {"name": "f"}}])
        await asked(relay, response_format={"type": "json_schema", "json_schema": {"name": "s"}})
        assert [sent(ups[0], number)["max_tokens"] for number in (0, 1)] == [5000, 5000]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("hidden", "words"), [(400, 50), (199, 1)])
async def test_reasoning_never_eats_the_answer(hidden, words, stream):
    """Models that spend 400 tokens on reasoning, or 199 of 200, give their whole answer under a small budget."""
    async with world(model(words=words, hidden=hidden), models=(REASONS,), budgets={**CUT, "ceiling": 64}) as (
        relay,
        _,
    ):
        answer = await asked(relay, stream=stream)
        assert answer.body.count(b"word ") == words
        assert (await relay.only_record()).finish_reason == "stop"


async def test_headroom_follows_the_clients_effort():
    """The client's effort decides the headroom, and what it sets aside itself is never undercut."""
    async with world(model(words=5), models=(REASONS,), budgets={**CUT, "ceiling": 64, "floor": 64}) as (relay, ups):
        for fields in (
            {},
            {"reasoning_effort": "low"},
            {"reasoning": {"effort": "high"}},
            {"reasoning_effort": "none"},
            {"thinking": {"type": "enabled", "budget_tokens": 50_000}},
            {"extra_body": {"google": {"thinking_config": {"thinking_budget": 60_000}}}},
        ):
            await asked(relay, **fields)
        limits = [sent(ups[0], number)["max_tokens"] - 64 for number in range(6)]
        assert limits == [HEADROOM.medium, HEADROOM.low, HEADROOM.high, 0, 50_000, 60_000]


async def test_effort_is_set_where_it_is_taken():
    """An intent's effort goes to models that reason, in the field they want; a client's own is left alone."""
    models = (
        {**REASONS, "effort": "reasoning_effort"},
        {**REASONS, "effort": "thinking"},
        {**REASONS, "effort": "thinking_config"},
    )
    intents = {"code": {"effort": "low"}}
    answers = model(words=1)
    classifier = {"default": "code", "min_confidence": 1.0}
    async with world(answers, answers, answers, models=models, intents=intents, classifier=classifier) as (relay, ups):
        for name in NAMES:
            await asked(relay, model=name)
            await asked(relay, model=name, reasoning_effort="high")
        assert sent(ups[0], 0)["reasoning_effort"] == "low"
        assert sent(ups[1], 0)["thinking"] == {"type": "enabled", "budget_tokens": HEADROOM.low}
        assert sent(ups[2], 0)["extra_body"]["google"]["thinking_config"] == {"thinking_budget": HEADROOM.low}
        for upstream in ups:
            body = sent(upstream, 1)
            assert body["reasoning_effort"] == "high"
            assert not {"thinking", "extra_body"}.intersection(body)


async def test_effort_is_not_set_where_it_would_be_refused():
    """Not for models of which nobody says that they reason, nor as thinking beside what rules it out."""
    intents = {"code": {"effort": "low", "verbosity": "low"}}
    classifier = {"default": "code", "min_confidence": 1.0}
    models: tuple[dict[str, Any], ...] = ({}, {**REASONS, "effort": "thinking"}, {**REASONS, "effort": "off"})
    answers = model(words=1)
    async with world(answers, answers, answers, models=models, intents=intents, classifier=classifier) as (relay, ups):
        await asked(relay, model="first")
        await asked(relay, model="second", temperature=0.2)
        await asked(relay, model="second", max_tokens=HEADROOM.low)
        await asked(relay, model="third")
        for upstream in ups:
            for received in upstream.received.items:
                assert not {"reasoning_effort", "thinking", "verbosity"}.intersection(json.loads(received.body))


async def test_a_fallback_has_a_budget_of_its_own():
    """The second candidate's budget is made for it, not the first one's."""
    failing = always(send(chat.whole(chat.error("no"), status=500)))
    async with world(failing, model(words=5), models=(REASONS, {**PLAIN, "max_output": 77})) as (relay, ups):
        await asked(relay)
        assert sent(ups[0])["max_tokens"] > HEADROOM.medium
        assert sent(ups[1])["max_tokens"] == 77


async def test_the_budget_is_what_is_reserved():
    """A key's tokens are taken before dispatch by prompt and budget of the model that is asked, and n counts."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = {"team": {"sha256": digest, "limits": {"tokens_per_min": 1000}}}
    budgets = {**CUT, "floor": 300, "ceiling": 300}
    async with world(model(words=5), budgets=budgets, keys=keys, access={"open": False}) as (relay, ups):
        bearer = ("authorization", f"Bearer {KEY}")
        assert (await asked(relay, bearer, n=3)).status == 200
        assert (await asked(relay, bearer, n=4)).status == 429
        assert len(ups[0].received) == 1


@pytest.mark.parametrize("mode", ["off", "fill"])
async def test_no_more_is_reserved_than_the_model_can_write(mode):
    """A limit beyond all measure goes on as it came; of the key's tokens it takes what the model's output may have."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = {"team": {"sha256": digest, "limits": {"tokens_per_min": 1000}}}
    tables = {"budgets": {"mode": mode}, "keys": keys, "access": {"open": False}}
    async with world(model(words=5), models=({"max_output": 300},), **tables) as (relay, ups):
        bearer = ("authorization", f"Bearer {KEY}")
        assert (await asked(relay, bearer)).status == 200  # a full bucket lets anything pass
        assert (await asked(relay, bearer, max_tokens=10**12, n=2)).status == 200
        assert sent(ups[0])["max_tokens"] == 10**12
        assert (await asked(relay, bearer, max_tokens=10**12, n=4)).status == 429


async def test_candidates_below_the_tier_are_a_last_resort():
    """An intent's tier puts better models first, and never makes a request fail."""
    failing = always(send(chat.whole(chat.error("no"), status=500)))
    tables = {"intents": {"code": {"min_tier": 2}}, "classifier": {"default": "code", "min_confidence": 1.0}}
    models = ({**PLAIN, "tier": 1}, {**PLAIN, "tier": 2})
    async with world(model(words=5), failing, models=models, **tables) as (relay, ups):
        answer = await asked(relay)
        assert answer.status == 200
        assert answer.header(b"x-relay-model") == b"first"
        assert [len(upstream.received) for upstream in ups] == [1, 1]


async def test_a_running_relay_explains():
    """POST /relay/explain says the intent and the budget that the request would have, with what was learned."""
    async with world(model(words=70), budgets={**CUT, "floor": 1, "quantile": 0.8}) as (relay, ups):
        for _ in range(60):
            await asked(relay)
        shown = (await ask(relay.port, post(chat.request_body(), path="/relay/explain"))).json()
        await asked(relay)
        (row,) = shown["budgets"]
        assert row["limit"] == sent(ups[0])["max_tokens"]
        assert (row["source"], row["cell"][1:]) == ("cell", ["first", "", ""])
        assert row["expected"]["p50"] == pytest.approx(70, rel=0.05)
        assert shown["intent"].keys() == {"label", "confidence", "treated_as", "spoke"}


async def test_lengths_are_learned():
    """What answers had becomes the next one's budget; the answer says so, and the record and the metrics do."""
    async with world(model(words=70), budgets={**CUT, "floor": 1, "quantile": 0.8}) as (relay, ups):
        for _ in range(60):
            answer = await asked(relay)
        limits = [json.loads(received.body)["max_tokens"] for received in ups[0].received.items]
        assert limits[-1] < limits[0]
        assert 70 <= limits[-1] < 100
        assert answer.header(b"x-relay-budget") == b"%d; source=cell" % limits[-1]
        record = await relay.record(answer.header(b"x-request-id") or b"")
        assert record.budget is not None
        assert (record.budget.limit, record.budget.cell[1]) == (limits[-1], "first")
        assert answer.header(b"x-relay-intent") == b"%b; confidence=%g%b" % (
            record.intent.encode(),
            record.confidence,
            b"" if record.confidence >= 0.3 else b"; default",
        )


async def test_a_busy_relay_learns_at_the_tick():
    """While others are under way, what an answer teaches waits, a quarter of a second at most."""
    release, answer = asyncio.Event(), model(words=70)

    def held(received: Received) -> Iterable[Step]:
        return [until(release), *answer(received)] if b"wait" in received.body else answer(received)

    async with world(held) as (relay, ups):
        answers, clock = relay.pipeline.experience.answers, relay.pipeline.clock
        assert isinstance(clock, FakeClock)
        waiting = asyncio.ensure_future(asked(relay, messages=[{"role": "user", "content": "wait"}]))
        await ups[0].received.at(0)
        await relay.record((await asked(relay)).header(b"x-request-id") or b"")
        assert answers.empty
        await clock.advance(TICK_S)
        assert not answers.empty
        release.set()
        await waiting


async def test_an_idle_relay_learns_at_once():
    """Where nobody else is served, the next request already profits."""
    async with world(model(words=70)) as (relay, _):
        await relay.record((await asked(relay)).header(b"x-request-id") or b"")
        assert not relay.pipeline.experience.answers.empty


@pytest.mark.parametrize(("budget", "outcome"), [({"ceiling": 64}, "budget"), ({}, "length")])
async def test_who_cut_an_answer(budget, outcome):
    """An answer that meets the relay's budget ends in `budget`, one that meets the client's limit in `length`."""
    fields = {} if budget else {"max_tokens": 30}
    async with world(model(words=500), budgets={**CUT, **budget}) as (relay, _):
        await asked(relay, **fields)
        record = await relay.only_record()
        assert (record.outcome.value, record.finish_reason) == (outcome, "length")


async def test_a_models_own_limit_is_no_budget():
    """Where the model's own limit was what held, the outcome is `length`."""
    async with world(model(words=500), models=({**PLAIN, "max_output": 40},)) as (relay, _):
        await asked(relay)
        assert (await relay.only_record()).outcome.value == "length"


async def test_hidden_reasoning_of_a_model_that_was_not_known_to_reason():
    """The first answer may be all reasoning; then there is room for it, though the policy says nothing of it."""
    async with world(model(words=50, hidden=400), budgets={**CUT, "ceiling": 64}) as (relay, _):
        texts = [(await asked(relay)).body.count(b"word ") for _ in range(6)]
    assert texts[0] == 0
    assert texts[-1] == 50


async def test_answers_that_were_cut_are_lower_bounds():
    """A client that always cuts at 10 does not teach that answers have 10 tokens."""
    async with world(model(words=500), budgets={**CUT, "quantile": 0.5}) as (relay, ups):
        for _ in range(10):
            await asked(relay, max_tokens=10)
        await asked(relay)
        assert sent(ups[0])["max_tokens"] > 20


async def test_several_answers_count_each():
    """With n = 4 the length of one answer is learned, not of all together."""
    async with world(model(words=70), budgets={**CUT, "floor": 1, "quantile": 0.8}) as (relay, ups):
        for _ in range(60):
            await asked(relay, n=4)
        assert 70 <= sent(ups[0])["max_tokens"] < 100


async def test_prompts_are_calibrated():
    """What the upstream counted corrects how the relay estimates that model's prompts."""
    async with world(model(words=5)) as (relay, _):
        before = relay.pipeline.experience.prompts.factor("first")
        await asked(relay)
        assert relay.pipeline.experience.prompts.factor("first") > before


async def test_a_reload_keeps_what_was_learned():
    """A new policy sets its budgets by what was seen under the old one."""
    async with world(model(words=70), budgets={**CUT, "floor": 1, "quantile": 0.8}) as (relay, ups):
        for _ in range(60):
            await asked(relay)
        text = policy(
            ups[0].base_url,
            models={"first": {"provider": "first", **PLAIN}},
            budgets={**CUT, "floor": 80, "quantile": 0.8},
        )
        relay.pipeline.policy = load({"p": text}, ENVIRON)
        answer = await asked(relay)
        assert b"source=cell" in (answer.header(b"x-relay-budget") or b"")
        assert 80 <= sent(ups[0])["max_tokens"] < 110


async def test_a_client_that_leaves_gives_its_reservation_back():
    """What was reserved for answers that ended in whatever way is settled, so that nothing leaks from the key."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = {"team": {"sha256": digest, "limits": {"tokens_per_min": 100_000}}}
    bearer = ("authorization", f"Bearer {KEY}")
    clock = FakeClock()
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(Upstream(model(words=5)))
        text = policy(upstream.base_url, budgets={**CUT, "floor": 3000}, keys=keys, access={"open": False})
        relay = await stack.enter_async_context(serve(text, clock=clock))
        answers = await asyncio.gather(*(asked(relay, bearer, stream=number % 2 == 0) for number in range(12)))
        assert [answer.status for answer in answers] == [200] * 12
        for number in range(12):
            await relay.records.at(number)
        used = 12 * (PROMPT_TOKENS + 5)
        assert (await asked(relay, bearer, max_tokens=100_000 - used - 200)).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_that_is_sent_along_counts_as_headroom(stream):
    """Servers that send reasoning as text and do not count it apart are understood all the same."""
    message = {"role": "assistant", "content": "x" * 40, "reasoning_content": "y" * 360}
    usage = {"prompt_tokens": 5, "completion_tokens": 1000}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = chat.whole(json.dumps({"choices": [choice], "usage": usage}).encode())
    events = [
        chat.chunk({"reasoning_content": "y" * 360}),
        chat.chunk({"content": "x" * 40}),
        chat.STOP,
        chat.usage(5, 1000),
        chat.DONE,
    ]
    streamed = chat.stream_head() + b"".join(map(chat.framed, events)) + chat.LAST_CHUNK
    async with world(always(send(streamed if stream else whole))) as (relay, _):
        await asked(relay, stream=stream)
        await relay.only_record()
        learned = relay.pipeline.experience.snapshot(relay.pipeline.clock.wall())
    (visible,) = {round(cell.lengths.total) for cell in learned.answers}
    (hidden,) = {round(cell.lengths.total) for cell in learned.reasoning}
    assert (visible, hidden) == (100, 900)
