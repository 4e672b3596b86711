"""What a client, a record and the next candidate see when an upstream or a client fails, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from relay.app import CHAT_PATH
from relay.client import Nobody
from relay.head import Head
from relay.messages import Outcome
from tests.fakes import FakeClock, settle
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, USAGE, WORLD, framed
from tests.servers.client import RawClient, ask, post
from tests.servers.policies import policy
from tests.servers.relay import serve
from tests.servers.upstream import (
    Turn,
    Upstream,
    always,
    close,
    in_turn,
    reset,
    send,
    stall,
    tell,
    until,
    unused_port,
)
from tests.servers.waiting import happens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.servers.client import Answer
    from tests.servers.relay import Running
    from tests.servers.upstream import Received, Step

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

MB = 1024 * 1024
FIRST_TOKEN_S, SILENCE_S, TOTAL_S = 15, 20, 600  # the defaults

HEALTHY_STREAM = (send(chat.stream_head(), *map(framed, (ROLE, HELLO, WORLD, STOP, USAGE, DONE)), LAST_CHUNK),)
SERVED_STREAM = ROLE + HELLO + WORLD + STOP + DONE
HEALTHY_ANSWER = (send(chat.whole(chat.completion())),)
BEGUN = send(chat.stream_head(), framed(ROLE))
COMMITTED = send(chat.stream_head(), framed(ROLE), framed(HELLO))


def resident_bytes() -> int:
    """Memory of this process: of the relay, and of the servers and clients around it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def flood(begin: bytes, total: int, frame: Callable[[bytes], bytes] = bytes) -> Step:
    """Send `begin` and then the letter x, `total` times or until the peer closes."""

    async def step(turn: Turn) -> None:
        piece = b"x" * (64 * 1024)
        await turn.send(frame(begin))
        for _ in range(total // len(piece)):
            await turn.send(frame(piece))

    return step


@dataclass(frozen=True)
class Fault:
    """A script that fails, and what it comes to.

    Attributes:
        script: what the upstream does.
        code: of the error.
        outcome: of the request, if nothing makes up for it.
        status: that the client gets, if nothing was sent before.
        wait_s: seconds until the relay gives up.
        kept: the answer ended as HTTP wants it, so its connection may be used again.
    """

    script: tuple[Step, ...]
    code: str
    outcome: str = "upstream_error"
    status: int = 502
    wait_s: float = 0
    kept: bool = False


def cases(table: dict[str, Fault]) -> pytest.MarkDecorator:
    """One case per row."""
    return pytest.mark.parametrize("fault", table.values(), ids=table.keys())


def truncated(*script: Step, kept: bool = False) -> Fault:
    return Fault(script, "upstream_truncated", "upstream_truncated", kept=kept)


def lost(*script: Step) -> Fault:
    return Fault(script, "upstream_connection_lost")


def nonsense(*script: Step) -> Fault:
    return Fault(script, "upstream_protocol_error")


HEAD = chat.stream_head()
BEFORE_HEAD = {
    "closed": lost(close),
    "reset": lost(reset),
    "closed in the head": lost(send(HEAD[:25]), close),
    "reset in the head": lost(send(HEAD[:25]), reset),
    "not HTTP": nonsense(send(b"SSH-2.0-OpenSSH_9.9\r\n")),
    "garbage line in the head": nonsense(send(b"HTTP/1.1 200 OK\r\ngarbage without a colon\r\n\r\n")),
    "endless head": nonsense(flood(b"HTTP/1.1 200 OK\r\nx: ", 100 * MB)),
    "encoded although identity was asked for": nonsense(
        send(chat.head(200, ("content-encoding", "gzip"), ("content-length", "3")) + b"\x1f\x8b\x08")
    ),
}
"""Faults of any request."""

BEFORE_OUTPUT = {
    **BEFORE_HEAD,
    "silent before the head": Fault((stall,), "upstream_first_token_timeout", "ttft_timeout", 504, FIRST_TOKEN_S + 1),
    "silent before the first token": Fault(
        (BEGUN, stall), "upstream_first_token_timeout", "ttft_timeout", 504, FIRST_TOKEN_S + 1
    ),
    "closed before the first token": truncated(BEGUN, close),
    "reset before the first token": truncated(BEGUN, reset),
    "ended before the first token": truncated(BEGUN, send(LAST_CHUNK), kept=True),
    "empty": truncated(send(chat.stream_head(), LAST_CHUNK), kept=True),
    "nothing but [DONE]": truncated(send(chat.stream_head(), framed(DONE), LAST_CHUNK), kept=True),
    "a web page": truncated(
        send(chat.head(200, ("content-length", "14"), media="text/html") + b"<html>\n</html>"), kept=True
    ),
    "broken JSON": nonsense(send(chat.stream_head(), framed(b'data: {"choices": [\n\n'))),
    "100 MB line": nonsense(send(chat.stream_head()), flood(b"data: ", 100 * MB, framed)),
    "only comments": nonsense(send(chat.stream_head()), flood(b": ", 100 * MB, lambda data: framed(data + b"\n\n: "))),
    "broken chunk": nonsense(BEGUN, send(b"no size\r\n")),
    "shorter than its length": truncated(send(chat.head(200, ("content-length", "9999")), ROLE), close),
    "longer than its length": truncated(send(chat.head(200, ("content-length", str(len(ROLE)))), ROLE + HELLO)),
    "error event": Fault(
        (BEGUN, send(framed(b'data: {"error": {"message": "overloaded"}}\n\n')), stall), "upstream_error"
    ),
    "error as an answer": Fault((send(chat.whole(chat.error("overloaded"))),), "upstream_error", kept=True),
}
"""Faults of a stream before its commit point."""

BEFORE_END = {
    **BEFORE_HEAD,
    "closed in the body": lost(send(chat.whole(chat.completion())[:-5]), close),
    "reset in the body": lost(send(chat.whole(chat.completion())[:-5]), reset),
    "silent in the body": Fault(
        (send(chat.whole(chat.completion())[:-5]), stall), "upstream_stalled", "stalled", 504, SILENCE_S + 1
    ),
    "not JSON": nonsense(send(chat.whole(b"<html></html>"))),
    "shorter than its length": lost(send(chat.head(200, ("content-length", "9999")) + chat.completion()), close),
    "longer than its length": nonsense(send(chat.head(200, ("content-length", "20")) + chat.completion())),
    "100 MB": nonsense(send(chat.stream_head()), flood(b'{"x": "', 100 * MB, framed)),
    "error as an answer": Fault((send(chat.whole(chat.error("overloaded"))),), "upstream_error", kept=True),
}
"""Faults of a non-stream answer."""

AFTER_OUTPUT = {
    "closed": truncated(COMMITTED, close),
    "reset": truncated(COMMITTED, reset),
    "ended": truncated(COMMITTED, send(LAST_CHUNK), kept=True),
    "ended in an event": truncated(COMMITTED, send(framed(WORLD[:-9]), LAST_CHUNK), kept=True),
    "silent": Fault((COMMITTED, stall), "upstream_stalled", "stalled", wait_s=SILENCE_S + 1),
    "broken JSON": nonsense(COMMITTED, send(framed(b'data: {"choices": [\n\n')), stall),
    "100 MB line": nonsense(COMMITTED, flood(b"data: ", 100 * MB, framed)),
    "broken chunk": nonsense(COMMITTED, send(b"no size\r\n"), stall),
    "shorter than its length": truncated(send(chat.head(200, ("content-length", "9999")), ROLE + HELLO), close),
    "longer than its length": truncated(
        send(chat.head(200, ("content-length", str(len(ROLE + HELLO)))), ROLE + HELLO + WORLD + STOP + DONE)
    ),
}
"""Faults of a stream behind its commit point."""


@dataclass(frozen=True)
class Scene:
    """A relay between a client, a failing candidate and perhaps a healthy one; its time stands still."""

    relay: Running
    clock: FakeClock
    failing: Upstream
    healthy: Upstream

    async def ask(self, *, stream: bool, wait_s: float = 0) -> Answer:
        """One request; once the failing upstream has it, the clock moves by `wait_s`."""
        asking = asyncio.create_task(ask(self.relay.port, post(chat.request_body(stream=stream))))
        if wait_s:
            await self.failing.received.at(0)
            await settle()
            await self.clock.advance(wait_s)
        return await asking

    async def commit(self, client: RawClient, body: bytes | None = None) -> None:
        """One stream up to its first output."""
        await client.send(post(body or chat.request_body(stream=True)))
        await client.until_count(HELLO, 1)


@contextlib.asynccontextmanager
async def set_scene(
    *script: Step,
    front: str,
    spare: bool = False,
    url: str | None = None,
    healthy: Sequence[Step] = HEALTHY_STREAM,
    **tables: Any,
) -> AsyncIterator[Scene]:
    """The failing candidate follows the script; a spare one is well.

    Args:
        script: the same for each request.
        front: of the relay.
        spare: whether there is a second candidate.
        url: of the failing candidate, if it is to be found elsewhere.
        healthy: what the second candidate does.
        tables: for the policy.
    """
    clock = FakeClock()
    async with Upstream(always(*script)) as failing, Upstream(always(*healthy)) as second:
        urls = [url or failing.base_url, second.base_url][: 2 if spare else 1]
        async with serve(policy(*urls, **tables), front=front, clock=clock) as relay:
            yield Scene(relay, clock, failing, second)


@contextlib.asynccontextmanager
async def set_scene_for_one(
    *scripts: Sequence[Step], front: str, attempts: int = 2, **tables: Any
) -> AsyncIterator[Scene]:
    """One candidate that follows one script after the other; timers are a little early, as uvloop's may be."""
    clock = FakeClock(early_s=0.001)
    async with (
        Upstream(in_turn(*scripts)) as upstream,
        serve(policy(upstream.base_url, attempts=attempts, **tables), front=front, clock=clock) as relay,
    ):
        yield Scene(relay, clock, upstream, upstream)


@pytest.fixture
def scene(front):
    """`set_scene` behind one front."""
    return partial(set_scene, front=front)


@pytest.fixture
def one_candidate(front):
    """`set_scene_for_one` behind one front."""
    return partial(set_scene_for_one, front=front)


def events(body: bytes) -> list[Any]:
    """The values of a stream's events."""
    return [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n") if event]


async def expect_error(running: Running, answer: Answer, fault: Fault) -> None:
    """The answer is an OpenAI-shaped error, and the only record says the same."""
    assert (answer.status, answer.complete) == (fault.status, True)
    assert answer.error()["code"] == fault.code
    record = await running.only_record()
    assert (record.outcome, record.error, record.status) == (fault.outcome, fault.code, fault.status)
    assert [attempt.error for attempt in record.attempts] == [fault.code]


async def expect_made_up_for(running: Running, answer: Answer, body: bytes, code: str) -> None:
    """The answer is the second candidate's, as if there had been no other; only the record tells."""
    assert (answer.status, answer.complete) == (200, True)
    assert bytes(answer.body) == body
    assert answer.header(b"x-relay-model") == b"second"
    record = await running.only_record()
    assert (record.outcome, record.error, record.model) == (Outcome.COMPLETED, None, "second")
    assert [(attempt.model, attempt.error) for attempt in record.attempts] == [("first", code), ("second", None)]


# --- before the first output ---------------------------------------------------------------------------------


@cases(BEFORE_OUTPUT)
async def test_stream_that_fails_before_its_output_becomes_an_error(fault, scene):
    """With no other candidate the client gets a plain error answer, and nothing of the stream."""
    async with scene(*fault.script) as on:
        answer = await on.ask(stream=True, wait_s=fault.wait_s)
        await expect_error(on.relay, answer, fault)
        if not fault.kept:
            await happens((await on.failing.received.at(0)).gone)


@cases(BEFORE_OUTPUT)
async def test_stream_that_fails_before_its_output_is_made_up_for(fault, scene):
    """With a healthy candidate the client sees that one's stream alone."""
    async with scene(*fault.script, spare=True) as on:
        answer = await on.ask(stream=True, wait_s=fault.wait_s)
        await expect_made_up_for(on.relay, answer, SERVED_STREAM, fault.code)


@cases(BEFORE_END)
async def test_answer_that_fails_becomes_an_error(fault, scene):
    """With no other candidate the client gets an error answer, and nothing of a torn one."""
    async with scene(*fault.script) as on:
        answer = await on.ask(stream=False, wait_s=fault.wait_s)
        await expect_error(on.relay, answer, fault)


@cases(BEFORE_END)
async def test_answer_that_fails_is_made_up_for(fault, scene):
    """With a healthy candidate the client sees that one's answer alone."""
    async with scene(*fault.script, spare=True, healthy=HEALTHY_ANSWER) as on:
        answer = await on.ask(stream=False, wait_s=fault.wait_s)
        await expect_made_up_for(on.relay, answer, chat.completion(), fault.code)


REFUSED = Fault((), "upstream_unreachable")


@pytest.mark.parametrize("stream", [True, False])
async def test_refused_connection_becomes_an_error(stream, scene, caplog):
    """Nobody listens, and there is no other candidate. Where that was is for the log alone."""
    port = unused_port()
    async with scene(url=f"http://127.0.0.1:{port}/v1") as on:
        answer = await on.ask(stream=stream)
        await expect_error(on.relay, answer, REFUSED)
    assert str(port) not in answer.error()["message"]
    assert f"127.0.0.1:{port}" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
async def test_refused_connection_is_made_up_for(stream, scene):
    """Nobody listens at the first candidate's place."""
    healthy, body = (HEALTHY_STREAM, SERVED_STREAM) if stream else (HEALTHY_ANSWER, chat.completion())
    async with scene(url=f"http://127.0.0.1:{unused_port()}/v1", spare=True, healthy=healthy) as on:
        await expect_made_up_for(on.relay, await on.ask(stream=stream), body, REFUSED.code)


async def test_answer_that_never_begins_meets_the_deadline(scene):
    """A whole answer may take its time before the head, but not more than the request has; then none is tried."""
    async with scene(stall, spare=True) as on:
        answer = await on.ask(stream=False, wait_s=TOTAL_S + 1)
        await expect_error(on.relay, answer, Fault((), "deadline_exceeded", "deadline", 504))


@pytest.mark.parametrize("begun", [(), (send(chat.whole(chat.completion())[:-5]),)], ids=["silent", "begun"])
async def test_answer_that_takes_too_long_is_asked_for_elsewhere(begun, scene):
    """`answer_s` bounds each attempt at a whole answer, so that the next candidate still has time."""
    answer_s = {"timeouts": {"answer_s": SILENCE_S - 5}}
    async with scene(*begun, stall, spare=True, healthy=HEALTHY_ANSWER, provider=answer_s) as on:
        answer = await on.ask(stream=False, wait_s=SILENCE_S - 4)
        await expect_made_up_for(on.relay, answer, chat.completion(), "upstream_first_token_timeout")


async def test_every_candidate_failed(scene):
    """The client is told of the last failure, and the record holds each."""
    async with scene(close, spare=True, healthy=[send(chat.whole(b"[]", 500))]) as on:
        answer = await on.ask(stream=True)
        record = await on.relay.only_record()
    assert answer.status == 500
    assert [attempt.error for attempt in record.attempts] == ["upstream_connection_lost", "upstream_error"]
    assert [attempt.upstream_status for attempt in record.attempts] == [None, 500]


# --- behind the first output ---------------------------------------------------------------------------------


@cases(AFTER_OUTPUT)
async def test_committed_stream_that_fails_ends_in_band(fault, scene):
    """What came is kept, an error event follows, no `[DONE]`, a proper end, and no other candidate is asked."""
    async with scene(*fault.script, spare=True) as on, await RawClient.connect(on.relay.port) as client:
        await on.commit(client)
        await on.clock.advance(fault.wait_s)
        answer = await client.whole()
        assert (answer.status, answer.complete) == (200, True)
        assert bytes(answer.body).startswith(ROLE + HELLO)
        [event] = events(bytes(answer.body).removeprefix(ROLE + HELLO))
        assert event["error"]["code"] == fault.code
        assert set(event["error"]) == {"message", "type", "param", "code"}
        record = await on.relay.only_record()
        assert (record.outcome, record.error, record.status) == (fault.outcome, fault.code, 200)
        assert [attempt.error for attempt in record.attempts] == [fault.code]
        assert record.usage is not None
        assert record.usage.estimated
        assert not len(on.healthy.received)
        if not fault.kept:
            await happens((await on.failing.received.at(0)).gone)


async def test_error_event_behind_output_is_passed_on(scene):
    """The provider's own error event is the last thing a client gets, as it came."""
    error = b'event: error\ndata: {"error": {"message": "overloaded", "code": 529}}\n\n'
    async with scene(COMMITTED, send(framed(error), framed(WORLD), framed(DONE), LAST_CHUNK), spare=True) as on:
        answer = await on.ask(stream=True)
        record = await on.relay.only_record()
    assert bytes(answer.body) == ROLE + HELLO + error
    assert answer.complete
    assert (record.outcome, record.error) == (Outcome.UPSTREAM_ERROR, "upstream_error")
    assert not len(on.healthy.received)


async def test_pings_do_not_outlast_the_deadline(scene):
    """A stream that is alive, but never ends, is ended in band when the request's time is up."""
    pings = [asyncio.Event() for _ in range(TOTAL_S // 10)]
    script = [step for ping in pings for step in (until(ping), send(framed(b": ping\n\n")))]
    async with scene(COMMITTED, *script, stall) as on, await RawClient.connect(on.relay.port) as client:
        await on.commit(client)
        for count, ping in enumerate(pings, 1):
            ping.set()
            await client.until_count(b": ping", count)
            await on.clock.advance(10)
        answer = await client.whole()
        record = await on.relay.only_record()
    assert events(bytes(answer.body.rpartition(b": ping\n\n")[2]))[0]["error"]["code"] == "deadline_exceeded"
    assert record.outcome == Outcome.DEADLINE


# --- nothing is missing --------------------------------------------------------------------------------------

COMPLETE = (ROLE, HELLO, WORLD, STOP)
GARBAGE = b"garbage\n\xff\xfe\x00: \n\n"
WITHOUT_LAST_CHUNK = send(chat.stream_head(), *map(framed, (*COMPLETE, USAGE, DONE)))
WITHOUT_DONE = send(chat.stream_head(), *map(framed, COMPLETE))
NO_FAULTS = {
    "closed behind [DONE]": (WITHOUT_LAST_CHUNK, close),
    "reset behind [DONE]": (WITHOUT_LAST_CHUNK, reset),
    "silent behind [DONE]": (WITHOUT_LAST_CHUNK, stall),
    "more behind [DONE]": (WITHOUT_LAST_CHUNK, send(framed(WORLD), framed(DONE), LAST_CHUNK)),
    "nonsense behind [DONE]": (WITHOUT_LAST_CHUNK, send(b"no size\r\n")),
    "ended without [DONE]": (WITHOUT_DONE, send(LAST_CHUNK)),
    "closed without [DONE]": (WITHOUT_DONE, close),
    "reset without [DONE]": (WITHOUT_DONE, reset),
    "garbage line": (send(chat.stream_head(), framed(GARBAGE), *map(framed, (*COMPLETE, DONE)), LAST_CHUNK),),
}
"""Streams that are odd, but whole."""


@pytest.mark.parametrize("script", NO_FAULTS.values(), ids=NO_FAULTS.keys())
async def test_whole_stream_is_served_however_it_ends(script, scene):
    """Behind a terminal event nothing is missing: `[DONE]` comes once, at once, and the outcome is `completed`."""
    async with scene(*script, spare=True) as on:
        answer = await on.ask(stream=True)
        record = await on.relay.only_record()
    assert bytes(answer.body).removeprefix(GARBAGE) == SERVED_STREAM
    assert answer.complete
    assert (record.outcome, record.finish_reason, len(record.attempts)) == (Outcome.COMPLETED, "stop", 1)


async def test_upstream_that_falls_silent_behind_the_finish_is_not_a_stall(scene):
    """The answer is whole: only the usage is missing, and the client is not told of an error."""
    async with scene(WITHOUT_DONE, stall) as on, await RawClient.connect(on.relay.port) as client:
        await client.send(post(chat.request_body(stream=True)))
        await client.until_count(STOP, 1)
        await on.clock.advance(SILENCE_S + 1)
        answer = await client.whole()
        record = await on.relay.only_record()
    assert bytes(answer.body) == SERVED_STREAM
    assert record.outcome == Outcome.COMPLETED


# --- error answers -------------------------------------------------------------------------------------------

REFUSAL = chat.error("try later", "some_error", "some_code")


def refusal(status: int, retry_after: str | None) -> Step:
    """An error answer."""
    return send(chat.whole(REFUSAL, status, *([("retry-after", retry_after)] if retry_after else [])))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("retry_after", [None, "7"])
@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_busy_or_broken_upstream_is_made_up_for(status, retry_after, stream, scene):
    """Another candidate is asked at once, whatever time the first one asked for."""
    healthy, body = (HEALTHY_STREAM, SERVED_STREAM) if stream else (HEALTHY_ANSWER, chat.completion())
    async with scene(refusal(status, retry_after), spare=True, healthy=healthy) as on:
        await expect_made_up_for(on.relay, await on.ask(stream=stream), body, "upstream_error")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("retry_after", [None, "7"])
@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_busy_or_broken_upstream_is_told_of(status, retry_after, stream, scene):
    """With no other candidate the client gets the upstream's status, words and Retry-After."""
    async with scene(refusal(status, retry_after)) as on:
        answer = await on.ask(stream=stream)
        record = await on.relay.only_record()
    assert (answer.status, answer.complete) == (status, True)
    assert answer.error() == json.loads(REFUSAL)["error"]
    assert answer.header(b"retry-after") == (retry_after and retry_after.encode())
    assert (record.outcome, record.status) == (Outcome.UPSTREAM_ERROR, status)
    assert record.attempts[0].upstream_status == status


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_clients_own_fault_is_not_tried_elsewhere(status, stream, scene):
    """What one upstream finds wrong with the request, another would too: it is passed on at once."""
    async with scene(refusal(status, None), spare=True) as on:
        answer = await on.ask(stream=stream)
        record = await on.relay.only_record()
    assert answer.status == status
    assert answer.error() == json.loads(REFUSAL)["error"]
    assert record.outcome == Outcome.UPSTREAM_ERROR
    assert not len(on.healthy.received)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_relays_own_credentials_are_no_matter_of_the_client(status, scene):
    """A refusal of the relay's key or model name at a provider is a 502, and its text stays here."""
    async with scene(send(chat.whole(chat.error("Incorrect API key: sk-ups***ret"), status))) as on:
        answer = await on.ask(stream=True)
    assert answer.status == 502
    assert answer.error()["code"] == "upstream_error"
    if status != 404:
        assert b"sk-ups" not in answer.body


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_relays_own_credentials_may_hold_elsewhere(status, scene):
    """Such a refusal is made up for by the next candidate."""
    async with scene(send(chat.whole(b"{}", status)), spare=True) as on:
        await expect_made_up_for(on.relay, await on.ask(stream=True), SERVED_STREAM, "upstream_error")


async def test_redirect_is_not_followed(scene):
    """A redirect could lead anywhere: its place is never asked. The next candidate would be."""
    async with scene() as elsewhere:
        to = ("location", f"{elsewhere.failing.base_url}/chat/completions")
        async with scene(send(chat.whole(b"", 307, to))) as on:
            answer = await on.ask(stream=True)
    assert answer.status == 502
    assert not len(elsewhere.failing.received)


@pytest.mark.parametrize(
    "end", [close, reset, stall, flood(b"x", 100 * MB, framed)], ids=["closed", "reset", "silent", "endless"]
)
async def test_error_answer_counts_though_its_body_is_torn(end, scene):
    """The status is known: a client's fault is passed on as such, and an endless body is not read to its end."""
    async with scene(send(chat.stream_head().replace(b"200", b"400"), framed(b"{")), end, spare=True) as on:
        answer = await on.ask(stream=True, wait_s=FIRST_TOKEN_S + 1 if end is stall else 0)
        await happens((await on.failing.received.at(0)).gone)
    assert answer.status == 400
    assert not len(on.healthy.received)


# --- trying the same upstream again --------------------------------------------------------------------------


async def test_second_attempt_waits(one_candidate):
    """The same upstream is tried again after a drawn wait, not at once."""
    async with one_candidate([refusal(500, None)], HEALTHY_STREAM) as on:
        asking = asyncio.create_task(ask(on.relay.port, post(chat.request_body(stream=True))))
        await on.failing.received.at(0)
        await settle()
        assert len(on.failing.received) == 1
        await on.clock.advance(0.25)
        answer = await asking
    assert bytes(answer.body) == SERVED_STREAM
    assert answer.header(b"x-relay-attempts") == b"2"


async def test_second_attempt_waits_as_long_as_the_upstream_asks(one_candidate):
    """Retry-After is kept, to the second."""
    async with one_candidate([refusal(429, "3")], HEALTHY_STREAM) as on:
        asking = asyncio.create_task(ask(on.relay.port, post(chat.request_body(stream=True))))
        await on.failing.received.at(0)
        await settle()
        await on.clock.advance(2.9)
        assert len(on.failing.received) == 1
        await on.clock.advance(1.1)
        answer = await asking
    assert bytes(answer.body) == SERVED_STREAM


async def test_other_requests_wait_as_long_as_the_only_upstream_asks(one_candidate):
    """A short Retry-After is worth waiting for, also for those who come later."""
    async with one_candidate([refusal(429, "3")], HEALTHY_STREAM, HEALTHY_STREAM, attempts=1) as on:
        assert (await on.ask(stream=True)).status == 429
        asking = asyncio.create_task(ask(on.relay.port, post(chat.request_body(stream=True))))
        await settle()
        await on.clock.advance(2.9)
        assert len(on.failing.received) == 1
        await on.clock.advance(0.2)
        assert bytes((await asking).body) == SERVED_STREAM


async def test_upstream_that_asks_for_too_long_is_left_alone(one_candidate):
    """Nobody waits an hour: the client gets the 429 with its Retry-After, and so does the next one, unasked."""
    async with one_candidate([refusal(429, "60")]) as on:
        answers = [await on.ask(stream=True), await on.ask(stream=True)]
    assert [answer.status for answer in answers] == [429, 503]
    assert [answer.header(b"retry-after") for answer in answers] == [b"60", b"60"]


async def test_breaker_keeps_requests_away_until_a_probe_passes(one_candidate):
    """After failures in a row the upstream is not asked; when its time is up one request may try."""
    failures = [[refusal(500, None)]] * 3
    breaker = {"breaker": {"failures": 3, "open_s": 10}}
    async with one_candidate(*failures, HEALTHY_STREAM, HEALTHY_STREAM, attempts=1, provider=breaker) as on:
        statuses = [(await on.ask(stream=True)).status for _ in range(4)]
        assert statuses == [500, 500, 500, 503]
        await on.clock.advance(10)
        assert [(await on.ask(stream=True)).status for _ in range(2)] == [200, 200]
        assert len(on.failing.received) == 5
        assert [record.error for record in on.relay.records.items][3] == "no_upstream_available"


async def test_dead_pooled_connection_is_not_a_failure(one_candidate):
    """An upstream that closed a kept connection is asked on a new one; the client and the record see one attempt."""
    async with one_candidate([*HEALTHY_STREAM], [reset], HEALTHY_STREAM, attempts=1) as on:
        answers = [await on.ask(stream=True), await on.ask(stream=True)]
        record = await on.relay.records.at(1)
    assert [bytes(answer.body) for answer in answers] == [SERVED_STREAM, SERVED_STREAM]
    assert (record.outcome, len(record.attempts)) == (Outcome.COMPLETED, 1)


async def test_connection_with_surplus_bytes_is_not_used_again(one_candidate):
    """Bytes behind the end of an answer never become part of the next one."""
    surplus = [send(chat.whole(chat.completion()) + chat.whole(b'{"choices": []}'))]
    async with one_candidate(surplus, HEALTHY_ANSWER, attempts=1) as on:
        await on.ask(stream=False)
        answer = await on.ask(stream=False)
    assert bytes(answer.body) == chat.completion()
    assert on.failing.connections == 2


async def test_connection_is_used_again(one_candidate):
    """Stream after stream goes over one upstream connection, also when its last chunk comes behind `[DONE]`."""
    late = asyncio.Event()
    async with one_candidate([WITHOUT_LAST_CHUNK, until(late), send(LAST_CHUNK)], HEALTHY_STREAM) as on:
        await on.ask(stream=True)
        late.set()
        await settle()
        await on.ask(stream=True)
    assert on.failing.connections == 1


# --- the client --------------------------------------------------------------------------------------------


LEAVES = pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset], ids=["closes", "resets"])


@LEAVES
@pytest.mark.parametrize("stream", [True, False])
async def test_client_gone_before_the_head(stream, leave, scene):
    """The upstream's connection is closed, nothing else is tried, and the record says that the client left."""
    async with scene(stall, spare=True) as on:
        client = await RawClient.connect(on.relay.port)
        await client.send(post(chat.request_body(stream=stream)))
        request = await on.failing.received.at(0)
        leave(client)
        await happens(request.gone)
        record = await on.relay.only_record()
    assert (record.outcome, record.status, len(record.attempts)) == (Outcome.CLIENT_GONE, 0, 1)
    assert not len(on.healthy.received)


@LEAVES
async def test_client_gone_before_the_first_token(leave, scene):
    """As before the head, though the upstream has begun."""
    begun = asyncio.Event()
    async with scene(BEGUN, send(framed(b": ping\n\n")), tell(begun), stall, spare=True) as on:
        client = await RawClient.connect(on.relay.port)
        await client.send(post(chat.request_body(stream=True)))
        request = await on.failing.received.at(0)
        await happens(begun)
        leave(client)
        await happens(request.gone)
        record = await on.relay.only_record()
    assert (record.outcome, record.status) == (Outcome.CLIENT_GONE, 0)
    assert not len(on.healthy.received)


@LEAVES
async def test_client_gone_in_the_stream(leave, scene):
    """The upstream's connection is closed; what was streamed is counted and marked as an estimate."""
    async with scene(COMMITTED, stall) as on:
        client = await RawClient.connect(on.relay.port)
        await on.commit(client)
        leave(client)
        await happens((await on.failing.received.at(0)).gone)
        record = await on.relay.only_record()
    assert (record.outcome, record.status) == (Outcome.CLIENT_GONE, 200)
    assert record.usage is not None
    assert record.usage.estimated


async def test_client_gone_between_attempts(one_candidate):
    """Nothing is tried for a client that left during the wait."""
    async with one_candidate([refusal(429, "3")]) as on:
        client = await RawClient.connect(on.relay.port)
        await client.send(post(chat.request_body(stream=True)))
        await on.failing.received.at(0)
        await settle()
        client.close()
        record = await on.relay.only_record()
    assert (record.outcome, record.status) == (Outcome.CLIENT_GONE, 0)
    assert len(on.failing.received) == 1


SLACK_MB = 24
"""What the kernel's buffers on both connections and this test's own reading may take."""

DRAIN = {"on_disconnect": "drain", "drain_max_bytes": 64 * 1024, "drain_max_s": 5}


async def test_drain_learns_the_true_usage(scene):
    """With `drain` the upstream is read to its end for the client that left, and its usage is the record's."""
    gone = asyncio.Event()
    rest = send(*map(framed, (WORLD, STOP, USAGE, DONE)), LAST_CHUNK)
    async with scene(COMMITTED, until(gone), rest, streams=DRAIN) as on:
        client = await RawClient.connect(on.relay.port)
        await on.commit(client)
        client.close()
        await settle()
        gone.set()
        record = await on.relay.only_record()
    assert record.outcome == Outcome.CLIENT_GONE
    assert record.usage is not None
    assert (record.usage.prompt_tokens, record.usage.completion_tokens) == (7, 2)
    assert not record.usage.estimated


async def test_drain_ends_at_its_cap_of_bytes(scene):
    """An upstream that goes on and on is cut."""
    gone = asyncio.Event()

    def event(data: bytes) -> bytes:
        return framed(b": %b\n\n" % data)

    async with scene(COMMITTED, until(gone), flood(b"", 100 * MB, event), streams=DRAIN) as on:
        client = await RawClient.connect(on.relay.port)
        await on.commit(client)
        client.close()
        await settle()
        gone.set()
        request = await on.failing.received.at(0)
        await happens(request.gone)
        record = await on.relay.only_record()
    assert record.outcome == Outcome.CLIENT_GONE
    assert request.sent < SLACK_MB * MB


async def test_drain_ends_at_its_cap_of_time(scene):
    """An upstream that falls silent is not waited for."""
    async with scene(COMMITTED, stall, streams=DRAIN) as on:
        client = await RawClient.connect(on.relay.port)
        await on.commit(client)
        client.close()
        await settle()
        request = await on.failing.received.at(0)
        assert not request.gone.is_set()
        await on.clock.advance(6)
        await happens(request.gone)
        record = await on.relay.only_record()
    assert record.outcome == Outcome.CLIENT_GONE


STREAM_MB = 80


async def test_slow_client_slows_the_upstream_and_not_the_memory(scene):
    """An 80 MB stream for a client that stops reading waits in the upstream; then every byte arrives."""
    event = chat.chunk({"content": "x" * 60_000})
    events_sent = STREAM_MB * MB // len(event)
    script = (COMMITTED, *[send(framed(event))] * events_sent, send(*map(framed, (STOP, DONE)), LAST_CHUNK))
    async with scene(*script) as on, await RawClient.connect(on.relay.port, receive_buffer=64 * 1024) as client:
        await on.commit(client)
        before = resident_bytes()
        request = await on.failing.received.at(0)
        assert await standstill(request) < SLACK_MB * MB
        await on.clock.advance(TOTAL_S - 60)  # waiting for the client is no fault of the upstream
        digest, peak = hashlib.sha256(), 0
        while not client.answer.complete:
            assert await client.receive(16 * 1024)
            digest.update(client.answer.body)
            client.answer.body.clear()
            client.answer.pieces.clear()
            peak = max(peak, resident_bytes())
        record = await on.relay.only_record()
    expected = hashlib.sha256(ROLE + HELLO)
    for _ in range(events_sent):
        expected.update(event)
    expected.update(STOP + DONE)
    assert digest.digest() == expected.digest()
    assert peak - before < SLACK_MB * MB
    assert record.outcome == Outcome.COMPLETED


async def test_client_that_stopped_reading_and_left_frees_the_upstream(scene):
    """A client that left is seen though nothing can be written to it."""
    event = framed(chat.chunk({"content": "x" * 60_000}))
    async with scene(COMMITTED, *[send(event)] * 1000) as on:
        client = await RawClient.connect(on.relay.port, receive_buffer=4096)
        await on.commit(client)
        request = await on.failing.received.at(0)
        await standstill(request)
        client.reset()
        await happens(request.gone)
        record = await on.relay.only_record()
    assert record.outcome == Outcome.CLIENT_GONE


@pytest.mark.parametrize("ended", ["cancelled", "dropped"])
async def test_a_request_that_nobody_runs_any_more_is_written_down(ended):
    """A server that cancels the task of a request, or lets go of it, leaves a record and no upstream connection."""
    async with Upstream(always(stall)) as upstream, serve(policy(upstream.base_url)) as relay:
        exchange = relay.pipeline.open(Nobody(), Head(CHAT_PATH, [(b"authorization", b"Bearer sk-client")]))
        assert exchange.admit()
        story = exchange.run(chat.request_body())
        if ended == "cancelled":
            task = asyncio.ensure_future(story)
            await upstream.received.at(0)
            task.cancel()
            await asyncio.wait([task])
        else:
            while story.send(None) is None:  # up to its first wait
                pass
            await upstream.received.at(0)
            story.close()
        record = await relay.only_record()
        await happens(upstream.received.items[0].gone)
    assert record.outcome == Outcome.CLIENT_GONE


async def standstill(request: Received) -> int:
    """Wait until the upstream can send no more; how many bytes it has sent."""
    sent = -1
    while request.sent != sent:
        sent = request.sent
        for _ in range(200):
            await asyncio.sleep(0)
    return sent
