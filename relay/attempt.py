"""One try at one upstream, from the request to the last byte: reads what comes, holds back what must wait.

An attempt is the transport's receiver. It writes to the client through its exchange, which it tells when the
answer is sure enough to begin (`commit`), and resolves `ended` once: with None if the answer was served, else with
what went wrong.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import msgspec

from relay.errors import (
    ClientGone,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstTokenTimeout,
    RelayError,
    SilenceTimeout,
    UpstreamFailure,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTruncated,
)
from relay.messages import Budget
from relay.policy.compiled import Model

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from relay.client import Client
    from relay.dialects.base import Answer, Dialect, SegmentReader, SoFar, StreamReader
    from relay.messages import Headers, UpstreamRequest, Usage
    from relay.transports.base import Call

MAX_ERROR_BYTES = 64 * 1024
"""Of an error answer's body; more of it would not be passed on anyway."""

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of a non-stream answer, which is held until it is complete; images in base64 fit several times over."""

MAX_HELD_BYTES = 1024 * 1024
"""Of a stream before its first real output: role chunks and pings, a few hundred bytes as a rule."""

OK = 200

NO_HEADERS: Headers = []
"""Shared, never changed."""

_TOLD: dict[type[UpstreamFailure], str] = {
    ConnectFailed: "cannot be reached",
    ConnectTimeout: "did not take a connection in time",
    ConnectionLost: "closed the connection before its answer was complete",
    UpstreamProtocolError: "sent what is not an HTTP answer that can be passed on",
}
"""What a client is told of a transport's failure."""

_log = logging.getLogger("relay")


class Downstream(Protocol):
    """What an attempt may ask of its exchange.

    Attributes:
        client: where committed bytes go.
        dialect: of the client and the upstream.
    """

    client: Client
    dialect: Dialect

    def commit(self, attempt: Attempt, length: int | None) -> None:
        """The answer begins: send the head, unless keep-alives made it go out before.

        Args:
            attempt: whose answer it is; any other one still under way is ended.
            length: bytes of the body, if they are known.
        """

    def soon(self, step: Callable[[], None]) -> None:
        """Take a step in this turn of the event loop or the next, together with those of other requests."""

    def begun(self, attempt: Attempt) -> None:
        """Learn from its beginning. The first bytes have been sent, unless they are all; the end is not known yet."""


class Trial(msgspec.Struct, frozen=True, gc=False):
    """What is known of an attempt when it starts.

    Attributes:
        model: whom it asks.
        number: 1 for the request's first.
        probe: it is the one request that a half-open breaker let through.
        started_at: seconds on the pipeline's clock.
        hedge: it runs beside another one.
        budget: what its answer may take; None if the policy sets no budgets.
    """

    model: Model
    number: int
    probe: bool
    started_at: float
    hedge: bool = False
    budget: Budget | None = None


class Attempt:
    """What a stream and a whole answer have in common.

    Attributes:
        trial: what was known when it started.
        ended: resolves once; None if the answer was served.
        status: HTTP status of the upstream's answer; None before it came.
        head: headers of the upstream's answer; empty before they came, and again once the answer has begun.
        committed: the client has been sent some of it.
        committed_at: when that was; set by the exchange.
        client_told: the client has already been sent the error that ended it.
        request: what is to be sent; None once it was.
        call: at the transport; None before it was sent, and once the transport has said its last word.
    """

    __slots__ = (
        "_client",
        "_downstream",
        "_drain_left",
        "_heard",
        "_paused",
        "_quiet_since",
        "_refusal",
        "call",
        "client_told",
        "committed",
        "committed_at",
        "ended",
        "head",
        "request",
        "status",
        "trial",
    )

    def __init__(self, downstream: Downstream, trial: Trial, ended: asyncio.Future[RelayError | None]) -> None:
        self.trial = trial
        self.ended = ended
        self.status: int | None = None
        self.committed = False
        self.committed_at: float | None = None
        self.client_told = False
        self.request: UpstreamRequest | None = None
        self.call: Call | None = None
        self._downstream = downstream
        self._client = downstream.client
        self._heard = False  # bytes came since the last tick
        self._quiet_since = trial.started_at
        self._paused = False
        self._drain_left: int | None = None
        self.head = NO_HEADERS
        self._refusal: list[bytes] | None = None  # body of an error answer, while it comes in

    # --- what the transport tells ---

    def on_head(self, status: int, headers: Headers) -> None:
        """The head alone is no output: nothing goes to the client yet."""
        self.status = status
        self.head = headers
        self._heard = True
        if status != OK or not self._accepts(headers):
            self._refusal = []

    def on_body(self, data: bytes) -> None:
        """Bytes of the answer, or of an error answer."""
        self._heard = True
        if self._drain_left is not None:
            self._drain_left -= len(data)
            if self._drain_left < 0:
                self.fail(ClientGone("The client left; its answer was read up to the limit."))
        if self.ended.done():
            return
        if self._refusal is None:
            self._take(data)
        else:
            self._refusal.append(data)
            if sum(map(len, self._refusal)) > MAX_ERROR_BYTES:
                self.fail(self._refused(self._refusal))

    def on_end(self) -> None:
        """The body is complete by its framing; whether the answer is, the dialect knows."""
        self.call = None
        if self.ended.done():
            return
        if self._refusal is None:
            self._finish()
        else:
            self.fail(self._refused(self._refusal))

    def on_failure(self, failure: UpstreamFailure) -> None:
        """The transport gave up. Its words name hosts and ports: they are for the log, not for the client."""
        self.call = None
        if not self.ended.done():
            model = self.trial.model.name
            fields = {"model": model, "error": failure.code}
            _log.warning(
                "attempt on %s: %s", model, failure.message, extra={"event": "attempt_failed", "fields": fields}
            )
            self._break_off(type(failure)(f"The upstream of {model!r} {_TOLD[type(failure)]}."))

    # --- what the exchange tells ---

    def fail(self, error: RelayError) -> None:
        """End it here, whatever the upstream still sends. Does nothing if it has ended."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        self.cancel()

    def cancel(self) -> None:
        """Close the upstream's connection, unless its answer is complete."""
        call, self.call = self.call, None
        if call is not None:
            call.cancel()

    def drain(self, max_bytes: int) -> None:
        """The client has gone: read on for the usage, `max_bytes` at most."""
        self._drain_left = max_bytes
        self.resume()

    def pause(self) -> None:
        """The client takes no more: stop reading."""
        self._paused = True
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        """The client takes more again."""
        self._paused = False
        if self.call is not None:
            self.call.resume()

    def tick(self, now: float) -> float:
        """Look at the time. Returns since when nothing has been heard; ends the attempt if that is too long.

        Silence is measured in ticks, so that a chunk costs no look at the clock. A paused upstream is not silent.
        """
        if self._heard or self._paused:
            self._heard = False
            self._quiet_since = now
        if failure := self._overdue(now):
            self._break_off(failure)
        return self._quiet_since

    # --- what differs ---

    @property
    def held(self) -> bytes:
        """What the client gets if nothing follows this attempt: it may be one of several that make an answer."""
        return b""

    @property
    def usage(self) -> Usage | None:
        """As the upstream counted; None if it did not (yet)."""
        raise NotImplementedError

    @property
    def output_chars(self) -> int:
        """Characters of output that came."""
        raise NotImplementedError

    @property
    def reasoning_chars(self) -> int:
        """Those of them that are reasoning."""
        raise NotImplementedError

    @property
    def finish_reason(self) -> str | None:
        """As the upstream gave it."""
        raise NotImplementedError

    def _accepts(self, headers: Headers) -> bool:
        """Whether a 200 is the kind of answer that was asked for."""
        raise NotImplementedError

    def _take(self, data: bytes) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _break_off(self, failure: UpstreamFailure) -> None:
        """Nothing more will come. An error answer counts as far as it came: its status is known."""
        self.fail(failure if self._refusal is None else self._refused(self._refusal))

    def _overdue(self, now: float) -> UpstreamFailure | None:
        raise NotImplementedError

    def _refused(self, body: list[bytes]) -> UpstreamRefused:
        return self._downstream.dialect.parse_error(self.status or 0, self.head, b"".join(body))

    def _silent_for(self, now: float) -> SilenceTimeout | None:
        limit_s = self.trial.model.timeouts.silence_s
        if now - self._quiet_since < limit_s:
            return None
        return SilenceTimeout(f"The upstream of {self.trial.model.name!r} sent nothing for {limit_s:g} s.")

    def _serve(self, last: bytes) -> None:
        """The answer is complete: send its last bytes."""
        self._client.end(last)
        self.ended.set_result(None)


class StreamAttempt(Attempt):
    """A stream. Held until its first real output, then passed on as it comes.

    What comes before that is read together with what comes for other requests; short streams are over with it.

    Attributes:
        reader: reads the stream.
    """

    __slots__ = ("_arrived", "_ends", "_held", "reader")

    def __init__(
        self, downstream: Downstream, trial: Trial, ended: asyncio.Future[RelayError | None], reader: StreamReader
    ) -> None:
        super().__init__(downstream, trial, ended)
        self.reader = reader
        self._arrived: list[bytes] = []  # not read yet
        self._ends = False  # with what has arrived
        self._held: list[bytes] = []

    @property
    def usage(self) -> Usage | None:
        """Of the last usage chunk."""
        return self.reader.usage

    @property
    def output_chars(self) -> int:
        """Of all deltas."""
        return self.reader.output_chars

    @property
    def reasoning_chars(self) -> int:
        """Of all deltas."""
        return self.reader.reasoning_chars

    @property
    def finish_reason(self) -> str | None:
        """Of the first choice that ended."""
        return self.reader.finish_reason

    def _accepts(self, headers: Headers) -> bool:
        """Some servers answer 200 with an error as plain JSON; that is not a stream."""
        return not dict(headers).get(b"content-type", b"").startswith(b"application/json")

    def _take(self, data: bytes) -> None:
        reader = self.reader
        if not self.committed:
            self._arrived.append(data)
            if len(self._arrived) == 1:
                self._downstream.soon(self._read)
            return
        data = reader.feed(data)
        if reader.done:
            self._serve(data)
        else:
            if data:
                self._client.write(data)
            if reader.failure is not None:
                self.client_told = isinstance(reader.failure, UpstreamRefused)
                self.fail(reader.failure)

    def _read(self) -> None:
        """Before the commit point. A failure lets nothing through: another attempt may follow."""
        if self.ended.done():
            return
        reader = self.reader
        self._held.append(reader.feed(b"".join(self._arrived)))
        self._arrived.clear()
        if reader.failure is not None:
            self.fail(reader.failure)
        elif reader.output_chars or reader.finished:
            self._commit()
        elif sum(map(len, self._held)) > MAX_HELD_BYTES:
            self.fail(UpstreamProtocolError(f"The upstream sent {MAX_HELD_BYTES} bytes without any output."))
        if self._ends and not self.ended.done():
            self._finish()

    def _commit(self) -> None:
        held = b"".join(self._held)
        self._held.clear()
        self.committed = True
        self._downstream.commit(self, None)
        if held and not self.reader.done:
            self._client.write(held)
        self._downstream.begun(self)
        if self.reader.done:
            self._serve(held)

    def _finish(self) -> None:
        if self._arrived:
            self._ends = True
            return
        try:
            owed = self.reader.end()
        except UpstreamFailure as error:
            self.fail(error)
            return
        if self.committed:
            self._serve(owed)
        else:
            self._held.append(owed)
            self._commit()

    def _break_off(self, failure: UpstreamFailure) -> None:
        """Behind a terminal event nothing is missing; before it a lost connection is a truncated stream."""
        if self._arrived:
            self._read()
        if self.ended.done():
            return
        if self.reader.finished:
            self._finish()
        elif self.status == OK and self._refusal is None and isinstance(failure, ConnectionLost):
            self.fail(UpstreamTruncated("The upstream's connection was lost before the answer was complete."))
        else:
            super()._break_off(failure)

    def _overdue(self, now: float) -> UpstreamFailure | None:
        if self.committed:
            return self._silent_for(now)
        limit_s = self.trial.model.timeouts.first_token_s
        if now - self.trial.started_at < limit_s:
            return None
        return FirstTokenTimeout(f"The upstream of {self.trial.model.name!r} sent no output within {limit_s:g} s.")


class SegmentAttempt(StreamAttempt):
    """A stream that may be one of several that make an answer: whether it is the last, the exchange decides.

    It has ended well (`ended` is None) also where its reader holds the end back.

    Attributes:
        reader: reads the stream, and joins it to those before it.
    """

    __slots__ = ()

    reader: SegmentReader

    @property
    def held(self) -> bytes:
        """See `relay.dialects.base.SegmentReader`."""
        return self.reader.held

    @property
    def plain(self) -> bool:
        """See `relay.dialects.base.SegmentReader`."""
        return self.reader.plain

    def so_far(self, usage: Usage) -> SoFar:
        """See `relay.dialects.base.SegmentReader`."""
        return self.reader.so_far(usage)

    def release(self, usage: Usage) -> None:  # noqa: ARG002 - it was told as the segment went by
        """No segment follows: send what was held."""
        held, self.reader.held = self.reader.held, b""
        self._client.end(held)

    def _serve(self, last: bytes) -> None:
        if not self.reader.held:
            super()._serve(last)
            return
        if last:
            self._client.write(last)
        self.ended.set_result(None)


class AnswerAttempt(Attempt):
    """A whole answer. Held until it is complete, so that a torn one can still be tried elsewhere.

    Attributes:
        answer: what it says of itself, once it is complete.
    """

    __slots__ = ("_parts", "_size", "answer")

    def __init__(self, downstream: Downstream, trial: Trial, ended: asyncio.Future[RelayError | None]) -> None:
        super().__init__(downstream, trial, ended)
        self.answer: Answer | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def usage(self) -> Usage | None:
        """Of the answer."""
        return self.answer.usage if self.answer else None

    @property
    def output_chars(self) -> int:
        """Of all choices."""
        return self.answer.output_chars if self.answer else 0

    @property
    def reasoning_chars(self) -> int:
        """Of all choices."""
        return self.answer.reasoning_chars if self.answer else 0

    @property
    def finish_reason(self) -> str | None:
        """Of the first choice."""
        return self.answer.finish_reason if self.answer else None

    def _accepts(self, headers: Headers) -> bool:  # noqa: ARG002 - any 200 is read; its body decides
        return True

    def _take(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self.fail(UpstreamProtocolError(f"The upstream's answer is larger than {MAX_ANSWER_BYTES} bytes."))

    def _finish(self) -> None:
        self._downstream.soon(self._read)

    def _read(self) -> None:
        """See whether it is an answer, unless the client left or something else ended it since it came."""
        if self.ended.done():
            return
        body = b"".join(self._parts)
        try:
            self.answer = self._downstream.dialect.parse_answer(body)
        except UpstreamFailure as error:
            self.fail(error)
            return
        self._deliver(body)

    def _deliver(self, body: bytes) -> None:
        self.committed = True
        self._downstream.commit(self, len(body))
        self._downstream.begun(self)
        self._serve(body)

    def _overdue(self, now: float) -> UpstreamFailure | None:
        """Generation may take its whole time before the head; behind it silence is not normal."""
        limit_s = self.trial.model.timeouts.answer_s
        if now - self.trial.started_at >= limit_s:
            return FirstTokenTimeout(f"The upstream of {self.trial.model.name!r} sent no answer within {limit_s:g} s.")
        return None if self.status is None else self._silent_for(now)


class PartAttempt(AnswerAttempt):
    """A whole answer that may be one of several segments: whether it is the last, the exchange decides.

    Args:
        before: the segments before it; None if it is the first.
        hold_length: hold an answer that met a limit.
        downstream: as for any attempt, like the rest.
    """

    __slots__ = ("_before", "_held", "_hold_length")

    def __init__(
        self,
        downstream: Downstream,
        trial: Trial,
        ended: asyncio.Future[RelayError | None],
        before: SoFar | None,
        *,
        hold_length: bool,
    ) -> None:
        super().__init__(downstream, trial, ended)
        self._before = before
        self._hold_length = hold_length
        self._held = b""

    @property
    def held(self) -> bytes:
        """The body, if it is not to be sent as it is, or not yet."""
        return self._held

    @property
    def plain(self) -> bool:
        """There is nothing but text in it."""
        return self._downstream.dialect.answer_text(self.held) is not None

    def so_far(self, usage: Usage) -> SoFar:
        """See `relay.dialects.base.SegmentReader`."""
        style = self.trial.model.continuation
        return self._downstream.dialect.answer_so_far(self._before, self.held, style, usage)

    def release(self, usage: Usage) -> None:
        """No segment follows: send the answer, joined of all segments.

        Args:
            usage: of this one.
        """
        body = self.held
        if self._before is not None:
            body = self._downstream.dialect.whole_answer(self.so_far(usage), body)
        self._held = b""
        self._downstream.commit(self, len(body))
        self._downstream.begun(self)
        self._client.end(body)

    def _deliver(self, body: bytes) -> None:
        if self._before is None and not (self._hold_length and self.finish_reason == "length"):
            super()._deliver(body)
            return
        self._held = body
        self.committed = True
        self.ended.set_result(None)
