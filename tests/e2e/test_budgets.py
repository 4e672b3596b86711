"""Budgets over real sockets: what reaches the upstream, what comes back, and what is learned from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from relay.messages import BudgetRules
from tests.fakes import FakeClock
from tests.servers import chat
from tests.servers.client import ask, post
from tests.servers.model import model
from tests.servers.policies import NAMES, policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers.client import Answer
    from tests.servers.relay import Running
    from tests.servers.upstream import Answerer

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
