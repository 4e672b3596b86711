"""What a client meets at the relay's HTTP surface, byte for byte, behind each front."""

from __future__ import annotations

import asyncio
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest

from relay import __version__
from relay.messages import Outcome
from tests.fakes import FakeClock, settle
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, USAGE, WORLD, framed
from tests.servers.client import RawClient, ask, get, post
from tests.servers.policies import UPSTREAM_KEY, policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, close, send, stall, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.client import Answer

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

ANSWER = send(chat.whole(chat.completion()))
STREAM = send(chat.stream_head(), *map(framed, (ROLE, HELLO, WORLD, STOP, USAGE, DONE)), LAST_CHUNK)
SERVED_STREAM = ROLE + HELLO + WORLD + STOP + DONE


@pytest.fixture
def relay(front):
    """A relay behind one front."""
    return partial(serve, front=front)


@pytest.fixture
async def upstream():
    """An upstream that answers as it is asked to: a stream or a whole answer."""
    answer = Upstream(lambda request: [STREAM if b'"stream": true' in request.body else ANSWER])
    async with answer:
        yield answer


def bearer(key: str) -> tuple[str, str]:
    """The header that carries a key."""
    return ("authorization", f"Bearer {key}")


def keys(**routes: list[str] | None) -> dict[str, Any]:
    """A policy's tables for keys `sk-NAME`, each with the routes it may use; nobody else may call."""
    made = {
        name: {"sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest()} | ({"routes": only} if only else {})
        for name, only in routes.items()
    }
    return {"access": {"open": False}, "keys": made}


def refused(answer: Answer, status: int, code: str | None, param: str | None = None) -> str:
    """An OpenAI-shaped error of that status, code and field; its message."""
    assert (answer.status, answer.complete) == (status, True)
    error = answer.error()
    assert (error["code"], error["param"]) == (code, param)
    message: str = error["message"]
    return message


# --- who may ask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("sk-other")],
        [bearer("")],
        [("authorization", "Basic sk-team")],
        [("authorization", "sk-team")],
        [("x-api-key", "sk-other")],
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_caller_without_a_known_key_is_refused(relay, upstream, headers, path):
    """401, with the scheme named; nothing reaches an upstream, and the message does not repeat what was sent."""
    async with relay(policy(upstream.base_url, **keys(team=None))) as running:
        request = get(path, *headers) if path == "/v1/models" else post(chat.request_body(), *headers)
        answer = await ask(running.port, request)
    message = refused(answer, 401, "invalid_api_key")
    assert "sk-" not in message
    assert answer.header(b"www-authenticate") == b"Bearer"
    assert not len(upstream.received)


async def test_known_key_is_served_under_its_name(relay, upstream):
    """The record says which key it was, never the key itself."""
    async with relay(policy(upstream.base_url, **keys(team=None, other=None))) as running:
        answer = await ask(running.port, post(chat.request_body(), bearer("sk-team")))
        record = await running.only_record()
    assert answer.status == 200
    assert record.key == "team"
    assert "sk-team" not in repr(record)


async def test_key_may_use_its_routes_alone(relay, upstream):
    """Another route is a 403, though it exists."""
    async with relay(policy(upstream.base_url, **keys(team=["first"]))) as running:
        allowed = await ask(running.port, post(chat.request_body("first"), bearer("sk-team")))
        forbidden = await ask(running.port, post(chat.request_body("auto"), bearer("sk-team")))
    assert allowed.status == 200
    refused(forbidden, 403, "route_not_allowed", "model")


async def test_models_are_those_of_the_key(relay, upstream):
    """GET /v1/models lists in OpenAI's shape what the caller may ask for."""
    async with relay(policy(upstream.base_url, **keys(all=None, team=["first"]))) as running:
        answers = [await ask(running.port, get("/v1/models", bearer(key))) for key in ("sk-all", "sk-team")]
    assert [[model["id"] for model in answer.json()["data"]] for answer in answers] == [["auto", "first"], ["first"]]
    assert answers[0].json()["object"] == "list"
    assert all(model["object"] == "model" for model in answers[0].json()["data"])


@pytest.mark.parametrize("headers", [[], [bearer("anything")]])
async def test_open_policy_serves_everybody(relay, upstream, headers):
    """With or without a key: SDKs always send one."""
    async with relay(policy(upstream.base_url)) as running:
        answers = [await ask(running.port, post(chat.request_body(), *headers))]
        answers += [await ask(running.port, get("/v1/models", *headers))]
    assert [answer.status for answer in answers] == [200, 200]


@pytest.mark.parametrize(
    ("origin", "content_type", "status"),
    [
        (True, "text/plain", 403),
        (True, "application/json", 200),
        (False, "text/plain", 200),
    ],
)
async def test_web_pages_use_an_open_relay_only_with_the_browsers_leave(relay, upstream, origin, content_type, status):
    """A page's request that needs no preflight is refused; scripts and SDKs send no origin."""
    headers = [("content-type", content_type), *([("origin", "https://page.test")] if origin else [])]
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(chat.request_body(), *headers))
    assert answer.status == status
    if status == 403:
        refused(answer, 403, "cross_site_request")


# --- what a request may look like ----------------------------------------------------------------------------

LIMITS: dict[str, Any] = {
    "requests": {"max_body_bytes": 5000, "max_header_bytes": 4096, "max_json_depth": 8, "max_messages": 4}
}
"""Small, so that tests can be."""

MESSAGES = [{"role": "user", "content": "hi"}]


def nested(levels: int) -> str:
    """A request that is `levels` deep."""
    return f'{{"model": "auto", "messages": [], "x": {"[" * (levels - 1)}1{"]" * (levels - 1)}}}'


BAD_BODIES = {
    "empty": (b"", None),
    "not JSON": (b"model=auto", None),
    "torn": (chat.request_body()[:-1], None),
    "two values": (chat.request_body() * 2, None),
    "not UTF-8": (chat.request_body("\u00ff").replace(b"\\u00ff", b"\xff"), None),
    "an array": (b"[]", None),
    "a number": (b"7", None),
    "no model": (b'{"messages": []}', "model"),
    "no messages": (b'{"model": "auto"}', "messages"),
    "model of another type": (b'{"model": 7, "messages": []}', "model"),
    "messages of another type": (b'{"model": "auto", "messages": "hi"}', "messages"),
    "stream of another type": (b'{"model": "auto", "messages": [], "stream": "yes"}', "stream"),
    "max_tokens of another type": (b'{"model": "auto", "messages": [], "max_tokens": "7"}', "max_tokens"),
    "stream_options of another type": (b'{"model": "auto", "messages": [], "stream_options": 7}', "stream_options"),
    "too deep": (nested(9).encode(), None),
    "far too deep": (nested(2000).encode(), None),
    "too many messages": (json.dumps({"model": "auto", "messages": MESSAGES * 5}).encode(), "messages"),
}


@pytest.mark.parametrize(("body", "param"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_bad_body_is_refused(relay, upstream, body, param):
    """400 that names the field; nothing reaches an upstream, and the record says `rejected`, and for which field."""
    async with relay(policy(upstream.base_url, **LIMITS)) as running:
        answer = await ask(running.port, post(body))
        record = await running.only_record()
    refused(answer, 400, None, param)
    assert (record.outcome, record.status, record.attempts, record.param) == (Outcome.REJECTED, 400, (), param)
    assert not len(upstream.received)


async def test_what_an_upstream_finds_wrong_is_not_recorded(relay):
    """The client hears which field an upstream named; the record does not, because that text is the upstream's own."""
    error = b'{"error": {"message": "No.", "type": "invalid_request_error", "param": "secret words", "code": "no"}}'
    async with Upstream(always(send(chat.whole(error, 400)))) as upstream, relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(chat.request_body()))
        record = await running.only_record()
    refused(answer, 400, "no", "secret words")
    assert record.param is None


async def test_depth_that_would_exhaust_a_stack_is_refused(relay, upstream):
    """A hundred thousand levels are a 400 like any others."""
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(nested(100_000).encode()))
    refused(answer, 400, None)


async def test_body_that_does_not_arrive_is_not_waited_for(relay, upstream):
    """408 a minute after the head, as long as the body is not complete."""
    clock = FakeClock()
    async with (
        relay(policy(upstream.base_url), clock=clock) as running,
        await RawClient.connect(running.port) as client,
    ):
        await client.send(post(chat.request_body())[:-5])
        await settle()
        await clock.advance(61)
        answer = await client.whole()
        record = await running.only_record()
    refused(answer, 408, "request_timeout")
    assert (record.outcome, record.status) == (Outcome.REJECTED, 408)


async def test_body_at_the_limits_is_served(relay, upstream):
    """The bounds are inclusive."""
    bodies = [
        nested(8).encode(),
        json.dumps({"model": "auto", "messages": MESSAGES * 4}).encode(),
        chat.request_body(x="x" * (5000 - len(chat.request_body(x="")))),
    ]
    async with relay(policy(upstream.base_url, **LIMITS)) as running:
        answers = [await ask(running.port, post(body)) for body in bodies]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert len(bodies[2]) == 5000


async def test_unknown_model_is_refused(relay, upstream):
    """404, which names the field; a long name is cut."""
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(chat.request_body("x" * 1000)))
    assert "x" * 81 not in refused(answer, 404, "model_not_found", "model")
    assert not len(upstream.received)


TOO_LARGE = chat.request_body(x="x" * 5000)


@pytest.mark.parametrize("chunked", [True, False])
async def test_body_too_large_is_refused(relay, upstream, chunked):
    """413, whether the length was said or not, and before the whole body has come."""
    request = post(TOO_LARGE)
    if chunked:
        length = b"content-length: %d" % len(TOO_LARGE)
        request = request.removesuffix(TOO_LARGE).replace(length, b"transfer-encoding: chunked") + framed(TOO_LARGE)
    else:
        request = request[:-10]
    async with relay(policy(upstream.base_url, **LIMITS)) as running:
        answer = await ask(running.port, request)
        record = await running.only_record()
    refused(answer, 413, "request_too_large")
    assert record.outcome == Outcome.REJECTED
    assert not len(upstream.received)


async def test_client_that_is_still_sending_gets_the_refusal(relay, upstream):
    """A far larger body is read and dropped, so that the answer is not lost with the connection, which goes on."""
    async with relay(policy(upstream.base_url, **LIMITS)) as running, await RawClient.connect(running.port) as client:
        await client.send(post(bytes(32 * 1024 * 1024)))
        refused(await client.whole(), 413, "request_too_large")
        await client.send(post(chat.request_body()))
        answer = await client.whole()
    assert bytes(answer.body) == chat.completion()


async def test_client_that_waits_for_leave_to_send_gets_it(relay, upstream):
    """`Expect: 100-continue` is answered before the body; the body then makes the request."""
    body = chat.request_body()
    async with relay(policy(upstream.base_url)) as running, await RawClient.connect(running.port) as client:
        await client.send(post(body, ("expect", "100-continue")).removesuffix(body))
        assert await client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        answer = await client.whole()
    assert bytes(answer.body) == chat.completion()


async def test_headers_too_large_are_refused(relay, upstream):
    """431, and nothing reaches an upstream."""
    async with relay(policy(upstream.base_url, **LIMITS)) as running:
        answer = await ask(running.port, post(chat.request_body(), ("x-large", "x" * 5000)))
    refused(answer, 431, "headers_too_large")
    assert not len(upstream.received)


async def test_client_gone_while_it_sends_is_recorded_once(relay, upstream):
    """Half a request and a close: one record, which says that the client left."""
    async with relay(policy(upstream.base_url)) as running:
        async with await RawClient.connect(running.port) as client:
            await client.send(post(chat.request_body())[:-5])
            await settle()
        record = await running.only_record()
    assert (record.outcome, record.status) == (Outcome.CLIENT_GONE, 0)
    assert not len(upstream.received)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/v1/chat/completions"), 405),
        (get("/v1/models", ("content-length", "0"), method="POST"), 405),
        (get("/v1/chat/completions", method="DELETE"), 405),
        (get("/v1/nothing"), 404),
        (get("/"), 404),
        (get("/v1/chat/completions/"), 404),
        (post(chat.request_body(), path="/v1/none"), 404),
    ],
)
async def test_wrong_door_is_told_in_openais_shape(relay, upstream, request_bytes, status):
    """404 or 405 with a message that an SDK can show; a 405 names the method that is served."""
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, request_bytes)
    assert refused(answer, status, None)
    assert (answer.header(b"allow") is not None) == (status == 405)


async def test_head_has_no_body(relay, upstream):
    """HEAD of a page that is there answers with the head alone, and the connection goes on."""
    async with relay(policy(upstream.base_url)) as running, await RawClient.connect(running.port) as client:
        await client.send(get("/healthz", method="HEAD"))
        head = await client.receive()
        await client.send(get("/healthz"))
        client.answer = type(client.answer)()
        answer = await client.whole()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")
    assert answer.status == 200


# --- what the upstream sees ----------------------------------------------------------------------------------

ODD = (
    b'{ "temperature" : 1.0,"top_p":1e0, "seed": 123456789012345678901234567890,\t"model":\n"auto",'
    b'"messages":[{"role":"user","content":"\\u00e9\\ud83d\\ude00 \xc3\xa9 \\/","content":"again"}],'
    b'"logit_bias":{"50256":-100,"a":{"b":[1.50,-0,1E-7]}}, "unknown_field":[null , true], "user" : "x" }\r\n'
)
"""What JSON libraries do not keep: number formats, escapes, white space, order, nested duplicates."""


async def test_request_reaches_the_upstream_byte_for_byte(relay, upstream):
    """Only the model's name is cut in."""
    async with relay(policy(upstream.base_url)) as running:
        await ask(running.port, post(ODD))
    request = await upstream.received.at(0)
    assert request.line == b"POST /v1/chat/completions HTTP/1.1"
    assert request.body == ODD.replace(b'"auto"', b'"first-upstream"')


async def test_usage_is_asked_for_without_touching_anything_else(relay, upstream):
    """For a stream, `stream_options` is added at the end, or its own options are kept and `include_usage` added."""
    with_stream = ODD.replace(b'"user" : "x" ', b'"stream": true')
    with_options = with_stream.replace(b'"stream":', b'"stream_options": {"x": 1.0}, "stream":')
    async with relay(policy(upstream.base_url)) as running:
        await ask(running.port, post(with_stream))
        await ask(running.port, post(with_options))
    asked = with_stream.replace(b'"auto"', b'"first-upstream"')
    added = b'true,"stream_options":{"include_usage":true}}'
    assert (await upstream.received.at(0)).body == asked.replace(b"true}", added)
    assert (await upstream.received.at(1)).body == asked.replace(
        b'"stream":', b'"stream_options": {"x": 1.0,"include_usage":true}, "stream":'
    )


async def test_client_that_asks_for_usage_gets_it(relay, upstream):
    """Its request is not changed for it, and the usage chunk is not hidden."""
    body = chat.request_body("auto", stream=True, stream_options={"include_usage": True})
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(body))
    assert (await upstream.received.at(0)).body == body.replace(b'"auto"', b'"first-upstream"')
    assert bytes(answer.body) == ROLE + HELLO + WORLD + STOP + USAGE + DONE


async def test_field_that_stands_twice_counts_once(relay, upstream):
    """Relay and upstream cannot read two models out of one request: the last value is the one that goes on."""
    body = b'{"model": "none", "messages": [], "model": "auto", "seed": 1.0}'
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(body))
    assert answer.status == 200
    sent = (await upstream.received.at(0)).body
    assert sent.count(b'"model"') == 1
    assert json.loads(sent)["model"] == "first-upstream"
    assert b"1.0" in sent


async def test_answers_limit_goes_under_the_name_the_provider_takes(relay, upstream):
    """`max_tokens` becomes `max_completion_tokens` where a model's entry says so; its value stays."""
    model = {"provider": "first", "max_tokens_field": "max_completion_tokens"}
    text = policy(upstream.base_url, models={"first": model})
    async with relay(text) as running:
        await ask(running.port, post(b'{"model": "auto", "messages": [], "max_tokens": 70}'))
    assert (await upstream.received.at(0)).body == (b'{"model": "first", "messages": [], "max_completion_tokens": 70}')


async def test_upstream_sees_only_what_the_policy_gives_it(relay, upstream):
    """The relay's own credentials, host and agent, and the client's headers that are on the list; nothing else."""
    client_headers = [
        bearer("sk-client"),
        ("cookie", "session=1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-api-key", "sk-client"),
        ("user-agent", "client/1"),
        ("accept-encoding", "gzip, br"),
        ("openai-organization", "org-client"),
        ("openai-beta", "assistants=v2"),
        ("x-client-request-id", "c-1"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
    ]
    async with relay(policy(upstream.base_url)) as running:
        await ask(running.port, post(chat.request_body(), *client_headers))
    request = await upstream.received.at(0)
    assert sorted(request.headers) == sorted(
        [
            (b"host", b"127.0.0.1:%d" % upstream.port),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(request.body)),
            (b"accept", b"application/json, text/event-stream"),
            (b"accept-encoding", b"identity"),
            (b"user-agent", f"relay/{__version__}".encode()),
            (b"authorization", f"Bearer {UPSTREAM_KEY}".encode()),
            (b"openai-beta", b"assistants=v2"),
            (b"x-client-request-id", b"c-1"),
        ]
    )


# --- what the client gets ------------------------------------------------------------------------------------


async def test_stream_has_the_promised_headers(relay):
    """Those of DESIGN §4 and §7, and none of the upstream's."""
    script = send(chat.stream_head().replace(b"\r\n\r\n", b"\r\nset-cookie: a=b\r\nopenai-organization: o\r\n\r\n"))
    body = send(*map(framed, (ROLE, HELLO, STOP, DONE)), LAST_CHUNK)
    async with Upstream(always(script, body)) as other, relay(policy(other.base_url)) as running:
        answer = await ask(running.port, post(chat.request_body(stream=True)))
    headers = dict(answer.headers)
    assert headers.pop(b"x-request-id").startswith(b"req_")
    assert headers.pop(b"server-timing").startswith(b"relay;dur=")
    headers.pop(b"date", None)
    headers.pop(b"server", None)
    assert headers == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache, no-transform",
        b"x-accel-buffering": b"no",
        b"x-relay-model": b"first",
        b"x-relay-attempts": b"1",
        b"transfer-encoding": b"chunked",
    }


async def test_answer_has_the_promised_headers(relay, upstream):
    """Its length, and the same word on who served it."""
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(chat.request_body()))
    assert answer.header(b"content-type") == b"application/json"
    assert answer.header(b"content-length") == b"%d" % len(chat.completion())
    assert (answer.header(b"x-relay-model"), answer.header(b"x-relay-attempts")) == (b"first", b"1")
    assert answer.header(b"server-timing") is not None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("client-id_1.2", True), ("", False), ("two words", False), ("x" * 129, False), ("a;b", False), ("é", False)],
)
async def test_request_id_is_the_clients_own_if_it_is_harmless(relay, upstream, sent, kept):
    """Else the relay makes one; record and answer agree."""
    async with relay(policy(upstream.base_url)) as running:
        answer = await ask(running.port, post(chat.request_body(), ("x-request-id", sent)))
        record = await running.only_record()
    assert record.id.encode() == answer.header(b"x-request-id")
    assert (record.id == sent) == kept
    assert kept or record.id.startswith("req_")


async def test_refusals_have_a_request_id_too(relay, upstream):
    """So that a user can name it."""
    async with relay(policy(upstream.base_url)) as running:
        answers = [await ask(running.port, post(b"")) for _ in range(2)]
        records = [await running.records.at(index) for index in range(2)]
    assert [answer.header(b"x-request-id") for answer in answers] == [record.id.encode() for record in records]
    assert records[0].id != records[1].id


KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVES: dict[str, Any] = {"streams": {"keep_alive_s": 5}}


async def test_keep_alives_bridge_a_long_wait(relay):
    """In silence, before the first token and between chunks, a comment goes out each time the policy's time is up."""
    first, more = asyncio.Event(), asyncio.Event()
    script = (until(first), send(chat.stream_head(), framed(ROLE), framed(HELLO)), until(more))
    rest = send(*map(framed, (STOP, DONE)), LAST_CHUNK)
    clock = FakeClock()
    async with (
        Upstream(always(*script, rest)) as slow,
        relay(policy(slow.base_url, **KEEP_ALIVES), clock=clock) as running,
        await RawClient.connect(running.port) as client,
    ):
        await client.send(post(chat.request_body(stream=True)))
        await slow.received.at(0)
        await settle()
        await clock.advance(11)
        await client.until_count(KEEP_ALIVE, 2)
        first.set()
        await client.until_count(HELLO, 1)
        await clock.advance(6)
        await client.until_count(KEEP_ALIVE, 3)
        more.set()
        answer = await client.whole()
        record = await running.only_record()
    assert bytes(answer.body) == KEEP_ALIVE * 2 + ROLE + HELLO + KEEP_ALIVE + STOP + DONE
    assert answer.complete
    assert record.outcome == Outcome.COMPLETED


async def test_failure_behind_keep_alives_is_made_up_for(relay, upstream):
    """Comments commit to nothing but the status: the next candidate's stream follows them."""
    clock = FakeClock()
    failing = Upstream(always(until(go := asyncio.Event()), close))
    async with (
        failing,
        relay(policy(failing.base_url, upstream.base_url, **KEEP_ALIVES), clock=clock) as running,
        await RawClient.connect(running.port) as client,
    ):
        await client.send(post(chat.request_body(stream=True)))
        await failing.received.at(0)
        await settle()
        await clock.advance(6)
        await client.until_count(KEEP_ALIVE, 1)
        go.set()
        answer = await client.whole()
    assert bytes(answer.body) == KEEP_ALIVE + SERVED_STREAM


async def test_failure_behind_keep_alives_is_told_in_band(relay):
    """With no candidate left there is nothing but an error event to say so; no `[DONE]`."""
    clock = FakeClock()
    async with (
        Upstream(always(stall)) as silent,
        relay(policy(silent.base_url, **KEEP_ALIVES), clock=clock) as running,
        await RawClient.connect(running.port) as client,
    ):
        await client.send(post(chat.request_body(stream=True)))
        await silent.received.at(0)
        await settle()
        await clock.advance(16)
        answer = await client.whole()
        record = await running.only_record()
    assert (answer.status, answer.complete) == (200, True)
    event = bytes(answer.body).rpartition(KEEP_ALIVE)[2]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_first_token_timeout"
    assert (record.outcome, record.status) == (Outcome.TTFT_TIMEOUT, 200)


async def test_keep_alives_are_for_streams_alone(relay):
    """Nothing may stand before a JSON answer."""
    go, clock = asyncio.Event(), FakeClock()
    async with (
        Upstream(always(until(go), ANSWER)) as slow,
        relay(policy(slow.base_url, **KEEP_ALIVES), clock=clock) as running,
    ):
        asking = asyncio.create_task(ask(running.port, post(chat.request_body())))
        await slow.received.at(0)
        await settle()
        await clock.advance(30)
        go.set()
        answer = await asking
    assert bytes(answer.body) == chat.completion()


# --- connections ---------------------------------------------------------------------------------------------


async def test_connection_serves_many_requests(relay, upstream):
    """Streams, answers and refusals, one after the other on one connection."""
    requests = [
        post(chat.request_body(stream=True)),
        post(chat.request_body()),
        post(b""),
        get("/healthz"),
        post(chat.request_body(stream=True)),
    ]
    async with relay(policy(upstream.base_url)) as running, await RawClient.connect(running.port) as client:
        statuses = []
        for request in requests:
            await client.send(request)
            statuses.append((await client.whole()).status)
    assert statuses == [200, 200, 400, 200, 200]


async def test_requests_sent_ahead_are_answered_in_order(relay, upstream):
    """HTTP/1.1 pipelining: rare, but allowed."""
    requests = [post(chat.request_body(stream=True)), get("/healthz"), post(chat.request_body()), post(b"")]
    async with relay(policy(upstream.base_url)) as running, await RawClient.connect(running.port) as client:
        await client.send(b"".join(requests))
        answers = [await client.whole() for _ in requests]
    assert [answer.status for answer in answers] == [200, 200, 200, 400]
    assert bytes(answers[0].body) == SERVED_STREAM
    assert bytes(answers[2].body) == chat.completion()


async def test_request_sent_ahead_during_a_stream_waits(relay):
    """The second request begins when the first stream has ended, and the first is not disturbed."""
    go = asyncio.Event()
    script = (send(chat.stream_head(), framed(ROLE), framed(HELLO)), until(go), send(framed(STOP + DONE), LAST_CHUNK))
    async with (
        Upstream(always(*script)) as slow,
        relay(policy(slow.base_url)) as running,
        await RawClient.connect(running.port) as client,
    ):
        await client.send(post(chat.request_body(stream=True)))
        await client.until_count(HELLO, 1)
        await client.send(post(chat.request_body(stream=True)))
        await settle()
        go.set()
        answers = [await client.whole(), await client.whole()]
    assert [bytes(answer.body) for answer in answers] == [ROLE + HELLO + STOP + DONE] * 2


async def test_http_1_0_client_gets_an_answer(relay, upstream):
    """Under its length, and then the connection is closed."""
    async with relay(policy(upstream.base_url)) as running, await RawClient.connect(running.port) as client:
        await client.send(post(chat.request_body(), version="1.0"))
        answer = await client.whole()
        assert await client.receive() == b""
    assert bytes(answer.body) == chat.completion()


async def test_http_1_0_client_gets_a_stream(upstream):
    """It knows no chunks, so the connection's end is the stream's; uvicorn's ASGI has no way to say that."""
    async with serve(policy(upstream.base_url), front="fast") as running:
        answer = await ask(running.port, post(chat.request_body(stream=True), version="1.0"))
    assert answer.header(b"transfer-encoding") is None
    assert (answer.status, answer.complete) == (200, True)
    assert bytes(answer.body) == SERVED_STREAM


async def test_client_that_closes_after_the_answer_is_told_so(relay, upstream):
    """`Connection: close` is kept."""
    async with relay(policy(upstream.base_url)) as running, await RawClient.connect(running.port) as client:
        await client.send(post(chat.request_body(stream=True), ("connection", "close")))
        answer = await client.whole()
        assert await client.receive() == b""
    assert answer.header(b"connection") == b"close"
    assert bytes(answer.body) == SERVED_STREAM


# --- the stock SDK -------------------------------------------------------------------------------------------

CHAT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def sdk(relay):
    """The OpenAI SDK, pointed at a relay in front of a script."""

    async def ask_with_sdk(upstream: Upstream, use: Callable[[openai.AsyncOpenAI], Any], **tables: Any) -> Any:
        async with (
            relay(policy(upstream.base_url, **tables)) as running,
            openai.AsyncOpenAI(base_url=running.base_url, api_key="sk-team", max_retries=0) as client,
        ):
            return await use(client)

    return ask_with_sdk


async def test_sdk_reads_an_answer(sdk, upstream):
    """`create` returns the completion, usage included."""

    async def use(client: openai.AsyncOpenAI) -> None:
        completion = await client.chat.completions.create(**CHAT)
        assert completion.choices[0].message.content == "hello world"
        assert completion.usage is not None
        assert completion.usage.total_tokens == 9

    await sdk(upstream, use)


async def test_sdk_reads_a_stream(sdk):
    """`create(stream=True)` yields the chunks and ends."""

    async def use(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(text) == "hello world"

    async with Upstream(always(STREAM)) as streaming:
        await sdk(streaming, use)


async def test_sdk_lists_models(sdk, upstream):
    """`models.list` returns the names that a request may ask for."""

    async def use(client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == ["auto", "first"]

    await sdk(upstream, use)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.InternalServerError),
        (403, openai.InternalServerError),
        (404, openai.InternalServerError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_raises_its_typed_error_for_an_upstreams(sdk, status, error, stream):
    """The upstream's status reaches the client as the exception it would have raised there, its text included."""

    async def use(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(**CHAT, stream=stream)
        assert raised.value.request_id
        if status not in {401, 403}:
            assert raised.value.body["message"] == "no"

    async with Upstream(always(send(chat.whole(chat.error("no"), status)))) as failing:
        await sdk(failing, use)


@pytest.mark.parametrize(
    ("fields", "tables", "error"),
    [
        ({"messages": "hi"}, {}, openai.BadRequestError),
        ({}, keys(other=None), openai.AuthenticationError),
        ({}, keys(team=["first"]), openai.PermissionDeniedError),
        ({"model": "none"}, {}, openai.NotFoundError),
        ({"user": "x" * 5000}, LIMITS, openai.APIStatusError),
        ({"extra_headers": {"x": "x" * 5000}}, LIMITS, openai.APIStatusError),
    ],
)
async def test_sdk_raises_its_typed_error_for_the_relays(sdk, upstream, fields, tables, error):
    """The relay's own refusals as well."""

    async def use(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(error) as raised:
            await client.chat.completions.create(**{**CHAT, **fields})
        assert raised.value.body["message"]

    await sdk(upstream, use, **tables)


async def test_sdk_raises_rate_limit_error_for_a_spent_key(sdk, upstream):
    """A key's own limits are a 429 with the time to wait."""

    async def use(client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(**CHAT)
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(**CHAT)
        assert raised.value.code == "rate_limit_exceeded"
        assert int(raised.value.response.headers["retry-after"]) > 0

    tables = keys(team=None)
    tables["keys"]["team"]["limits"] = {"requests_per_min": 1}
    await sdk(upstream, use, **tables)


async def test_sdk_raises_for_a_stream_that_breaks(sdk):
    """An in-band error is an exception behind the chunks that came, never a silent end."""

    async def use(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        text = [(await anext(stream)).choices[0].delta.content for _ in (ROLE, HELLO)]
        assert text == ["", "hello"]
        with pytest.raises(openai.APIError, match="connection"):
            await anext(stream)

    async with Upstream(always(send(chat.stream_head(), framed(ROLE), framed(HELLO)), close)) as failing:
        await sdk(failing, use)
