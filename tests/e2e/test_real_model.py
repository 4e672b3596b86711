"""OpenAI's own SDKs through the relay to a real model, each token as it is made."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.e2e.real_model import MODEL, ROOT, model, relay, tap
from tests.node.runtime import node
from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai.types.chat import ChatCompletionChunk

REQUEST: dict[str, Any] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Tell me about lighthouses."}],
    "temperature": 0,
    "seed": 1,
    "max_tokens": 48,
}
WHOLE_TOKENS = 48


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with model() as url:
        yield url


@pytest.fixture(scope="module")
def relay_url(model_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with relay(model_url, tmp_path_factory.mktemp("relay")) as url:
        yield url


@pytest.fixture(scope="module")
def direct_text(model_url: str) -> str:
    """What the model answers without the relay."""
    with openai.OpenAI(base_url=f"{model_url}/v1", api_key="none-needed", max_retries=0) as client:
        text: str = client.chat.completions.create(**REQUEST).choices[0].message.content
        return text


@pytest.fixture
def client(relay_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{relay_url}/v1", api_key="none-needed", max_retries=0) as client:
        yield client


BUDGETS = """
[budgets]
quantile = 0.5
floor    = 16
ceiling  = 200
"""
"""Lower than any sensible policy's, so that answers of a sentence or two meet them."""


@pytest.fixture(scope="module")
def extending(model_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of a relay whose budgets answers of one word have made small."""
    short: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France? One word."}]}
    with (
        relay(model_url, tmp_path_factory.mktemp("extending"), more=BUDGETS) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0) as client,
    ):
        for _ in range(8):
            client.chat.completions.create(model="auto", temperature=0, **short)
        yield client


@pytest.mark.parametrize("stream", [True, False])
def test_answer_that_meets_its_budget_is_the_models_own(
    extending: openai.OpenAI, model_url: str, *, stream: bool
) -> None:
    """An answer in several segments is, word for word, what the model writes without a limit."""
    request: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": "Who wrote Faust?"}],
        "temperature": 0,
        "seed": 1,
    }
    with openai.OpenAI(base_url=f"{model_url}/v1", api_key="none-needed", max_retries=0) as direct:
        whole: Any = direct.chat.completions.create(**request)
    raw: Any = extending.chat.completions.with_raw_response.create(**request, stream=stream)
    answer = raw.parse()
    if stream:
        choices = [choice for chunk in answer for choice in chunk.choices]
        text, end = "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason
    else:
        text, end = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert answer.usage.completion_tokens == whole.usage.completion_tokens
    assert int(raw.headers["x-relay-budget"].split(";")[0]) < whole.usage.completion_tokens
    assert (text, end) == (whole.choices[0].message.content, "stop")


def test_sync_whole(client: openai.OpenAI, direct_text: str) -> None:
    """The whole answer is the model's own, with its usage, and says which model gave it."""
    raw = client.chat.completions.with_raw_response.create(**REQUEST)
    answer = raw.parse()
    assert answer.choices[0].message.content == direct_text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == WHOLE_TOKENS
    assert raw.headers["x-relay-model"] == MODEL
    assert raw.headers["x-relay-attempts"] == "1"
    assert raw.headers["x-request-id"]


def test_sync_stream(client: openai.OpenAI, direct_text: str) -> None:
    """The streamed pieces make up the same text; usage that was not asked for is not shown."""
    pieces, finish_reasons, roles = [], [], []
    for chunk in client.chat.completions.create(**REQUEST, stream=True):
        (choice,) = chunk.choices
        pieces.append(choice.delta.content or "")
        roles += [choice.delta.role] if choice.delta.role else []
        finish_reasons += [choice.finish_reason] if choice.finish_reason else []
        assert chunk.usage is None
    assert "".join(pieces) == direct_text
    assert len([piece for piece in pieces if piece]) > 1
    assert roles == ["assistant"]
    assert finish_reasons == ["length"]


def test_usage_chunk(client: openai.OpenAI) -> None:
    """A client that asks for usage gets it in the last chunk, which has no choices."""
    *_, last = client.chat.completions.create(**REQUEST, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == WHOLE_TOKENS


async def test_async(relay_url: str, direct_text: str) -> None:
    """The asynchronous SDK gets the same text, whole and streamed."""
    async with openai.AsyncOpenAI(base_url=f"{relay_url}/v1", api_key="none-needed", max_retries=0) as client:
        answer = await client.chat.completions.create(**REQUEST)
        stream = await client.chat.completions.create(**REQUEST, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert answer.choices[0].message.content == direct_text
    assert "".join(pieces) == direct_text


def test_javascript(relay_url: str, direct_text: str) -> None:
    """The JavaScript SDK gets the same text, whole and streamed, the usage it asks for, and its own kinds of error."""
    script = ROOT / "tests" / "node" / "chat.mjs"
    command = [str(node()), str(script), f"{relay_url}/v1", json.dumps(REQUEST)]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seen["text"] == direct_text
    assert "".join(seen["pieces"]) == direct_text
    assert seen["finishReason"] == "length"
    assert seen["usage"]["completion_tokens"] == WHOLE_TOKENS
    assert seen["refusal"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}


def test_models(client: openai.OpenAI) -> None:
    """The list of models has the routes and the models that may be asked for."""
    assert {entry.id for entry in client.models.list()} == {"auto", MODEL}


def test_model_refusal(client: openai.OpenAI) -> None:
    """A request that the model's server refuses comes back as that refusal, with its status."""
    too_long = [{"role": "user", "content": "lighthouse " * 10_000}]
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(**(REQUEST | {"messages": too_long}))


def test_arrives_while_generating(client: openai.OpenAI, model_url: str) -> None:
    """The first piece is in the client's hands while the model still works on the answer."""
    with client.chat.completions.create(**(REQUEST | {"max_tokens": 400}), stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        with urllib.request.urlopen(f"{model_url}/slots") as slots:
            assert any(slot["is_processing"] for slot in json.load(slots))


async def test_each_event_on_its_own(model_url: str, tmp_path: Path) -> None:
    """Each piece is in the client's hands before the model's next event gets to the relay: nothing waits for more."""
    pieces = 0
    async with asyncio.timeout(PATIENCE_S), tap(model_url) as held:
        with relay(held.url, tmp_path) as url:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0) as client:
                opening = asyncio.create_task(client.chat.completions.create(**REQUEST, stream=True))
                async for event in held.events():
                    if text := text_of(event):
                        assert await next_text(await opening) == text
                        pieces += 1
    assert pieces > 1


def text_of(event: bytes) -> str | None:
    """The text in an event of the model; None for the first, which has the role, and the last, which have the rest."""
    payload = event.partition(b"data: ")[2]
    choices = [] if payload.startswith(b"[DONE]") else json.loads(payload)["choices"]
    return choices[0]["delta"].get("content") if choices else None


async def next_text(stream: openai.AsyncStream[ChatCompletionChunk]) -> str:
    """The next text that reaches the client."""
    async for chunk in stream:
        if text := chunk.choices[0].delta.content:
            return text
    raise AssertionError("the stream ended")
