"""How a stream's beginning is read: when its turn has come, together with whatever else has come by then."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from relay.attempt import Attempt, StreamAttempt, Trial
from relay.dialects import DIALECTS
from relay.errors import ClientGone, ConnectionLost, UpstreamTruncated
from tests.servers import chat

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.client import Client
    from relay.messages import Headers
    from relay.policy.compiled import Model


class Crowded:
    """An exchange whose steps wait, and its client."""

    dialect = DIALECTS["openai"]

    def __init__(self) -> None:
        self.client: Client = self
        self.steps: list[Callable[[], None]] = []
        self.written: list[bytes] = []
        self.over = False

    def take_steps(self) -> None:
        """The crowd's turn has come."""
        steps, self.steps = self.steps, []
        for step in steps:
            step()

    def commit(self, attempt: Attempt, length: int | None) -> None: ...

    def begun(self, attempt: Attempt) -> None: ...

    def soon(self, step: Callable[[], None]) -> None:
        self.steps.append(step)

    def start(self, status: int, headers: Headers, length: int | None) -> None: ...

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def end(self, data: bytes = b"") -> None:
        self.written.append(data)
        self.over = True


@pytest.fixture
def crowd() -> Crowded:
    return Crowded()


@pytest.fixture
async def attempt(crowd: Crowded) -> StreamAttempt:
    """A stream whose head has come."""
    trial = Trial(cast("Model", SimpleNamespace(name="first")), number=1, probe=False, started_at=0.0)
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    reader = crowd.dialect.stream_reader(choices=1, hide_usage=False)
    attempt = StreamAttempt(crowd, trial, ended, reader)
    attempt.on_head(200, [(b"content-type", b"text/event-stream")])
    return attempt


async def test_beginning(crowd: Crowded, attempt: StreamAttempt) -> None:
    """What comes before the step is read by it at once; what comes behind it goes straight through."""
    for data in (chat.ROLE, chat.HELLO):
        attempt.on_body(data)
    assert not crowd.written
    crowd.take_steps()
    assert crowd.written == [chat.ROLE + chat.HELLO]
    attempt.on_body(chat.HELLO)
    assert crowd.written[1:] == [chat.HELLO]
    assert not crowd.steps


async def test_whole_stream(crowd: Crowded, attempt: StreamAttempt) -> None:
    """A stream that is over before its step is written in one piece."""
    attempt.on_body(chat.HELLO + chat.STOP + chat.DONE)
    attempt.on_end()
    assert not attempt.ended.done()
    crowd.take_steps()
    assert crowd.written == [chat.HELLO + chat.STOP + chat.DONE]
    assert crowd.over
    assert attempt.ended.result() is None


async def test_end_without_terminator(crowd: Crowded, attempt: StreamAttempt) -> None:
    """An end that came before the step is seen behind the data: `[DONE]` is added where it is owed."""
    attempt.on_body(chat.HELLO + chat.STOP)
    attempt.on_end()
    crowd.take_steps()
    assert b"".join(crowd.written) == chat.HELLO + chat.STOP + chat.DONE
    assert attempt.ended.result() is None


async def test_truncated(crowd: Crowded, attempt: StreamAttempt) -> None:
    """An end that came before the step is no clean one where the answer was not complete."""
    attempt.on_body(chat.HELLO)
    attempt.on_end()
    crowd.take_steps()
    assert crowd.written == [chat.HELLO]
    assert isinstance(attempt.ended.result(), UpstreamTruncated)


@pytest.mark.parametrize("complete", [True, False])
async def test_connection_lost(crowd: Crowded, attempt: StreamAttempt, *, complete: bool) -> None:
    """What came before the connection was lost is read first, and the step finds nothing more to do."""
    attempt.on_body(chat.HELLO + chat.STOP if complete else chat.HELLO)
    attempt.on_failure(ConnectionLost("gone"))
    assert b"".join(crowd.written) == (chat.HELLO + chat.STOP + chat.DONE if complete else chat.HELLO)
    assert isinstance(attempt.ended.result(), UpstreamTruncated) != complete
    written = list(crowd.written)
    crowd.take_steps()
    assert crowd.written == written


async def test_client_gone(crowd: Crowded, attempt: StreamAttempt) -> None:
    """Nothing is read for a client that left before the step."""
    attempt.on_body(chat.HELLO)
    attempt.fail(ClientGone("The client left."))
    crowd.take_steps()
    assert not crowd.written
    assert not attempt.committed
