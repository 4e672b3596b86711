"""One line in the log per finished request: metadata only, as JSON for machines or short and coloured for people.

Finished requests are put aside and written together, at the latest after `FLUSH_S`, because a write each would cost
more than all else that is done to finish a request, and many lines in a row are made faster than one now and then. A
line that tells of trouble goes out at once, with those before it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from relay.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.clock import Clock
    from relay.messages import RequestRecord

Level = Literal["debug", "info", "warning", "error"]

Style = Literal["json", "console"]

LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
"""From chatty to quiet."""

FLUSH_S = 0.2
"""Seconds a line may wait: too short for a person to notice, long enough to gather hundreds under load."""

MAX_WAITING = 64
"""Lines that may wait. Of half a kilobyte each, they are what a pipe takes in one write (it holds 64 KiB on Linux)."""

LEVEL_OF: dict[Outcome, Level] = {
    Outcome.COMPLETED: "info",
    Outcome.LENGTH: "info",
    Outcome.BUDGET: "info",
    Outcome.CLIENT_GONE: "info",
    Outcome.REJECTED: "info",
    Outcome.UPSTREAM_ERROR: "warning",
    Outcome.UPSTREAM_TRUNCATED: "warning",
    Outcome.STALLED: "warning",
    Outcome.TTFT_TIMEOUT: "warning",
    Outcome.DEADLINE: "warning",
    Outcome.RELAY_ERROR: "error",
}
"""How loud an outcome is. What a client brought about is no trouble of the relay's: rejected requests do not shout."""


class RequestEvent(msgspec.Struct, gc=False, omit_defaults=True):
    """The JSON line, field by field; what has nothing to say is left out. docs/operations.md describes each one."""

    ts: datetime
    level: Level
    event: Literal["request"]
    id: str
    endpoint: str
    status: int
    outcome: Outcome
    duration_s: float
    attempts: int
    stream: bool
    policy: str
    key: str = ""
    route: str = ""
    model: str = ""
    provider: str = ""
    upstream_model: str = ""
    error: str | None = None
    param: str | None = None
    ttft_s: float | None = None
    upstream_ttft_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    usage_estimated: bool = False
    finish_reason: str | None = None
    tried: list[str] = []
    intent: str = ""
    confidence: float | None = None
    budget: int | None = None
    budget_source: str = ""
    segments: int = 0
    extensions: int = 0
    continuation_prompt_tokens: int = 0


def _to_microseconds(seconds: float) -> float:
    """Rounded; `round` with digits goes through text, which takes longer than all else here."""
    return round(seconds * 1e6) / 1e6


def request_event(record: RequestRecord) -> RequestEvent:
    """The event of a record. Its time is when the request ended; seconds are rounded to microseconds."""
    attempts = record.attempts
    event = RequestEvent(  # by place, as fields given by name are looked for one by one
        datetime.fromtimestamp(record.at + record.duration_s, UTC),
        LEVEL_OF[record.outcome],
        "request",
        record.id,
        record.endpoint,
        record.status,
        record.outcome,
        _to_microseconds(record.duration_s),
        len(attempts),
        record.stream,
        record.policy,
        record.key,
        record.route,
        record.model,
        record.provider,
        record.upstream_model,
        record.error,
        record.param,
        None if record.ttft_s is None else _to_microseconds(record.ttft_s),
    )
    event.finish_reason = record.finish_reason
    for attempt in attempts:
        if attempt.ttft_s is not None:
            event.upstream_ttft_s = _to_microseconds(attempt.ttft_s)
            break
    if len(attempts) > 1:
        event.tried = [f"{attempt.model}: {attempt.error or 'ok'}" for attempt in attempts]
    usage = record.usage
    if usage is not None:
        event.prompt_tokens = usage.prompt_tokens
        event.completion_tokens = usage.completion_tokens
        event.cached_tokens = usage.cached_tokens
        event.reasoning_tokens = usage.reasoning_tokens
        event.usage_estimated = usage.estimated
        event.continuation_prompt_tokens = usage.continuation_prompt_tokens
    if record.intent:
        event.intent = record.intent
        event.confidence = record.confidence
    if record.budget is not None:
        event.budget = record.budget.limit
        event.budget_source = record.budget.source
    if record.segments > 1:
        event.segments = record.segments
        event.extensions = record.extensions
    return event


COLOURS: dict[Level, str] = {"debug": "2", "info": "32", "warning": "33", "error": "31"}
"""ANSI: faint, green, yellow, red."""


def painted(text: str, ansi: str, *, colour: bool) -> str:
    """`text` in that colour, or as it is."""
    return f"\x1b[{ansi}m{text}\x1b[0m" if colour else text


def console_line(record: RequestRecord, *, colour: bool) -> str:
    """A record as one line for a person: what happened, who asked, what served it, how long it took."""
    at = datetime.fromtimestamp(record.at + record.duration_s, UTC)
    level = LEVEL_OF[record.outcome]
    parts = [
        painted(f"{at:%H:%M:%S}", "2", colour=colour),
        painted(f"{level:<7}", COLOURS[level], colour=colour),
        f"{record.status or '---'} {record.outcome.value}",
    ]
    if record.route:
        parts.append(f"{record.route} -> {record.model or '-'}" if record.model != record.route else record.model)
    if record.key:
        parts.append(record.key)
    if record.ttft_s is not None and record.stream:
        parts.append(f"ttft {record.ttft_s:.3f}s")
    parts.append(f"{record.duration_s:.3f}s")
    if record.usage is not None:
        about = "~" if record.usage.estimated else ""
        parts.append(f"{about}{record.usage.prompt_tokens}+{record.usage.completion_tokens} tokens")
    if len(record.attempts) > 1:
        parts.append(f"{len(record.attempts)} attempts")
    if record.error is not None:
        parts.append(record.error)
    if record.param is not None:
        parts.append(f"param {record.param}")
    parts.append(painted(record.id, "2", colour=colour))
    return "  ".join(parts)


class EventLog:
    """Writes finished requests to the log. An observer of the pipeline.

    Args:
        write: takes some whole lines, and must not wait.
        clock: times the flush.
        level: quieter ones are not written.
        style: JSON, or short lines for people.
        colour: whether those lines are coloured.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        *,
        clock: Clock,
        level: Level = "info",
        style: Style = "json",
        colour: bool = False,
    ) -> None:
        self._write = write
        self._clock = clock
        self._style = style
        self._colour = colour
        self._written_levels = frozenset(LEVELS[LEVELS.index(level) :])
        self._encoder = msgspec.json.Encoder()
        self._waiting: list[RequestRecord] = []

    def record(self, record: RequestRecord) -> None:
        """Add a finished request's line."""
        level = LEVEL_OF[record.outcome]
        if level not in self._written_levels:
            return
        waiting = self._waiting
        if not waiting:
            self._clock.call_later(FLUSH_S, self.flush)
        waiting.append(record)
        if level != "info" or len(waiting) >= MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits, if anything does."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        if self._style == "json":
            self._write(self._encoder.encode_lines(map(request_event, waiting)))
        else:
            self._write("".join([f"{console_line(record, colour=self._colour)}\n" for record in waiting]).encode())
