"""OpenAI Chat Completions answers as upstreams send them: whole bodies, streams, usage, errors.

A stream goes through byte for byte and loses at most the usage chunk that its client did not ask for. What is read is
read from a copy. Source: platform.openai.com/docs/api-reference/chat; where servers differ from it, a comment says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec

from relay.errors import MAX_FOREIGN_TEXT, UpstreamFailure, UpstreamProtocolError, UpstreamRefused, UpstreamTruncated
from relay.messages import ABSENT, Usage
from relay.wire.sse import EventFramer, event_data, split_events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"

MAX_KEPT_BYTES = 1024 * 1024
"""Of an answer's text that is kept so that it can go on: a quarter of a million tokens. A longer one cannot."""

_CR, _LF = b"\r\n"
"""As numbers: a byte that is asked for by its number is found sooner."""

_MAX_MISSES = 2
"""One may be chance: some providers' events tell the second in which they were sent."""

_Around: TypeAlias = tuple[bytes, bytes, slice]
"""What stands before and behind an event's text, both with its quotes, and where the text stands, with them too."""

_NO_TEXT: _Around = (b"\0", b"", slice(0))
"""Around none: no such event is read."""

_NoList = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=0)]
_Loose = str | list[msgspec.Raw] | dict[str, msgspec.Raw] | None


class Delta(msgspec.Struct, gc=False):
    """The parts of a message or a delta that are output. Text is a string, with Mistral sometimes a list of parts."""

    content: _Loose = None
    reasoning_content: _Loose = None  # DeepSeek, vLLM, llama.cpp, xAI
    reasoning: _Loose = None  # OpenRouter, Groq, Ollama
    refusal: _Loose = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: dict[str, msgspec.Raw] | None = None
    audio: _Loose = None
    images: list[msgspec.Raw] | None = None

    def reasoning_size(self) -> int:
        """Characters of reasoning that is sent along."""
        return sum(len(part) for part in (self.reasoning_content, self.reasoning) if isinstance(part, str))

    def size(self) -> int:
        """Characters of text, and JSON characters of everything else; 0 if it is no output at all."""
        size = 0
        for part in (self.content, self.reasoning_content, self.reasoning, self.refusal, self.audio):
            if part:
                size += len(part) if isinstance(part, str) else _json_size(part)
        for structure in (self.tool_calls, self.function_call, self.images):
            if structure:
                size += _json_size(structure)
        return size


class Choice(msgspec.Struct, gc=False):
    """One of the answers that were asked for, or a piece of it."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


_UNSAID = {b"", b"null"}


class Body(msgspec.Struct, gc=False):
    """A chunk or an answer: one shape serves both. Usage and error are read apart, so that odd ones spoil nothing."""

    choices: list[Choice] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class PlainDelta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A delta that is nothing but text; most are of this shape. What else it may name is empty."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[msgspec.Raw] | None = None
    refusal: None = None
    tool_calls: _NoList | None = None
    function_call: None = None

    def reasoning_size(self) -> int:
        """See `Delta`."""
        return len(self.reasoning_content or "") + len(self.reasoning or "")

    def size(self) -> int:
        """See `Delta`."""
        return len(self.content or "") + self.reasoning_size()


_NO_DELTA = Delta()
_SILENT = (_NO_DELTA, Delta(content=""), PlainDelta(), PlainDelta("assistant", ""))
"""How most streams begin and end: no output at all."""


class PlainChoice(msgspec.Struct, gc=False):
    """As `Choice`."""

    index: int = 0
    delta: PlainDelta | None = None
    finish_reason: str | None = None


class PlainBody(msgspec.Struct, gc=False):
    """As `Body`, of a chunk."""

    choices: list[PlainChoice] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek


AnyBody = Body | PlainBody

read_body = msgspec.json.Decoder(Body).decode
read_bodies = msgspec.json.Decoder(list[Body]).decode
read_text = msgspec.json.Decoder(str).decode
read_plain_body = msgspec.json.Decoder(PlainBody).decode
read_plain_bodies = msgspec.json.Decoder(list[PlainBody]).decode
_read_usage = msgspec.json.Decoder(_Usage | None).decode


class ChatStreamReader:
    """See `relay.dialects.base.StreamReader`.

    A terminal event is a finish reason for each choice asked for, or `[DONE]` behind some output: one provider
    (Snowflake Cortex) ends its streams with that alone.

    Most reads bring one event, which with many providers differs from the one before in nothing but its text. Such an
    event is known by what stands around its text (`_known`): its JSON need not be read.
    """

    __slots__ = (
        "_choices",
        "_counted",
        "_ended",
        "_framer",
        "_hide_usage",
        "_known",
        "_misses",
        "_read_many",
        "_read_one",
        "_said",
        "_usage",
        "done",
        "failure",
        "finish_reason",
        "finished",
        "output_chars",
        "reasoning_chars",
    )

    def __init__(self, *, choices: int, hide_usage: bool) -> None:
        self._framer = EventFramer()
        self._choices = choices
        self._hide_usage = hide_usage
        self._read_one: Callable[[bytes], AnyBody] = read_body
        self._read_many: Callable[[bytes], Sequence[AnyBody]] = read_bodies
        self._said: bytearray | None = None  # the text, where it is kept and known
        self._known = _NO_TEXT
        self._misses = 0  # times that it was tried to learn that, since an event was known by it
        self._ended: frozenset[int] = frozenset()
        self._counted = ABSENT  # the last usage, until somebody asks for it
        self._usage: Usage | None = None
        self.done = False
        self.finished = False
        self.finish_reason: str | None = None
        self.output_chars = 0
        self.reasoning_chars = 0
        self.failure: UpstreamFailure | None = None

    @property
    def usage(self) -> Usage | None:
        """The last usage seen (some providers send a running one with every chunk)."""
        if self._counted is not ABSENT:
            self._usage, self._counted = parse_usage(self._counted), ABSENT
        return self._usage

    def feed(self, data: bytes) -> bytes:
        """See `StreamReader.feed`. Nothing goes on behind `[DONE]` or a failure."""
        before, after, place = self._known
        if data.startswith(before) and data.endswith(after):
            try:
                text = read_text(data[place])
            except (msgspec.DecodeError, UnicodeDecodeError):
                return self._read_on(data)
            self._misses = 0
            self.output_chars += len(text)
            said = self._said
            if said is not None:
                said += text.encode()
                if len(said) > MAX_KEPT_BYTES:
                    self._said = None
            return data
        return self._read_on(data)

    def _read_on(self, data: bytes) -> bytes:
        """As `feed`, what is not known. Nor is what follows it, unless that begins an event before any end."""
        if self.done or self.failure is not None:
            return b""
        try:
            whole = self._framer.feed(data)
        except UpstreamProtocolError as error:
            self.failure = error
            whole = b""
        if _CR in whole:
            passed = self._take_each(whole)
        elif whole.find(b"\n") == len(whole) - 2:  # one event, as nearly always
            passed = whole if self._take(whole) else b""
        elif whole:
            bodies = self._read_together(whole)
            passed = self._take_each(whole) if bodies is None else self._take_together(whole, bodies)
        else:
            passed = b""
        if self._said is not None and len(self._said) > MAX_KEPT_BYTES:
            self._said = None
        if whole is not data or self.finish_reason is not None or self.done or self.failure is not None:
            self._known = _NO_TEXT
        return passed

    def end(self) -> bytes:
        """See `StreamReader.end`. A last event whose blank line is missing counts if it is whole."""
        rest = self._framer.rest()
        owed = b""
        if rest.strip() and not self.done and self.failure is None:
            rest += b"\n\n"
            owed = rest if self._take(rest) else b""
        if isinstance(self.failure, UpstreamRefused):
            raise self.failure
        if not self.finished:
            raise UpstreamTruncated("The upstream closed the stream before the answer was complete.")
        if self.done:
            return owed
        self.done = True
        return owed + DONE_EVENT

    def _read_together(self, whole: bytes) -> Sequence[AnyBody] | None:
        """Events without CRs as one JSON array; None unless each is a line behind `data: `, but for a last `[DONE]`."""
        if not whole.startswith(b"data: "):
            return None
        events = whole.removesuffix(DONE_EVENT)[6:-2].split(b"\n\ndata: ")
        array = b"[%b]" % b",".join(events)
        if _LF in array:
            return None
        try:
            bodies = self._read_many(array)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        return bodies if len(bodies) == len(events) else None  # else what is JSON together is not JSON apart

    def _take_together(self, whole: bytes, bodies: Sequence[AnyBody]) -> bytes:
        """Events that were read in one go; a `[DONE]` may follow them."""
        hidden = self._take_bodies(bodies)
        if whole.endswith(DONE_EVENT) and not (self.failure is None and self._take_done()):
            hidden.append(len(bodies))
        if not hidden:
            return whole
        events = whole.split(b"\n\n")
        for number in reversed(hidden):
            del events[number]
        return b"\n\n".join(events)

    def _take_each(self, whole: bytes) -> bytes:
        """Events of any form, one by one."""
        kept = []
        for event in split_events(whole):
            if self._take(event):
                kept.append(event)
            if self.done or self.failure is not None:
                break
        return b"".join(kept)

    def _take(self, event: bytes) -> bool:
        """Read one event; False if the client is not to see it.

        Nearly all are one line of JSON behind `data: `, whose line ends JSON takes for white space.
        """
        if event.startswith(b"data: "):
            try:
                body = self._read_one(event[6:])
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass
            else:
                spoken = self.output_chars - self.reasoning_chars
                hidden = self._take_bodies((body,))
                told = self.output_chars - self.reasoning_chars > spoken > 0  # text, and not the first
                if told and self._misses < _MAX_MISSES:
                    self._misses += 1
                    self._known = _around_text(event, body) or self._known
                return not hidden
        return self._take_closely(event)

    def _take_closely(self, event: bytes) -> bool:
        """As `_take`, an event that it does not know at a glance."""
        data = event_data(event)
        if data is None:
            return True
        if data == DONE:
            return self._take_done()
        try:
            body = read_body(data)
        except msgspec.ValidationError:
            # JSON of a shape that is not known here goes on, and counts as output rather than as silence.
            self.output_chars += len(data)
            self._said = None
            return True
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self.failure = UpstreamProtocolError("The upstream sent an event that is not JSON.")
            return False
        return not self._take_bodies((body,))

    def _take_bodies(self, bodies: Sequence[AnyBody]) -> list[int]:
        """Read events, up to an error. Returns the numbers of those that the client is not to see."""
        hidden: list[int] = []
        texts = []
        for number, body in enumerate(bodies):
            if body.usage is not ABSENT or body.error is not ABSENT:
                if self._take_count(body):
                    hidden.append(number)
                if self.failure is not None:
                    hidden += range(number + 1, len(bodies))
                    break
            for choice in body.choices or ():
                if choice.finish_reason:  # some servers send an empty one with every chunk
                    self._end_choice(choice.index, choice.finish_reason)
                delta = choice.delta or _NO_DELTA
                text = delta.content
                if text and type(text) is str:
                    texts.append(text)
                elif delta not in _SILENT:
                    self.output_chars += delta.size()
                    self.reasoning_chars += delta.reasoning_size()
        text = "".join(texts)
        self.output_chars += len(text)
        if self._said is not None:
            self._said += text.encode()
        return hidden

    def _take_count(self, body: AnyBody) -> bool:
        """What stands beside the choices: usage, error. True if the event is one that counts, and to be hidden."""
        counted = bytes(body.usage) not in _UNSAID
        if counted:
            self._counted = body.usage
        if bytes(body.error) not in _UNSAID:
            self.failure = refused(bytes(body.error), None, None)
        return counted and not body.choices and self._hide_usage and self.failure is None

    def _end_choice(self, index: int, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
        self._ended |= {index}
        self.finished = len(self._ended) >= self._choices

    def _take_done(self) -> bool:
        """`[DONE]` is passed on only where something ended: a dead upstream never becomes a clean end."""
        if not self.finished and not self.output_chars:
            return False
        self.finished = True
        self.done = True
        return True


def _around_text(event: bytes, body: AnyBody) -> _Around | None:
    """What stands around the text of an event that has one; None if it tells anything else.

    The event is read once more without that text: it stood where nothing is then.
    """
    try:
        [choice] = body.choices or []
        if choice.delta is None or not choice.delta.content:
            return None
        before, _, after = event.partition(msgspec.json.encode(choice.delta.content)[1:-1])
        empty = read_plain_body(before[6:] + after)
        [choice] = empty.choices or []
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return None
    delta = choice.delta
    if delta is None or delta.content != "" or delta.reasoning_size() or choice.finish_reason:
        return None
    if bytes(empty.usage) not in _UNSAID or bytes(empty.error) not in _UNSAID:
        return None
    return before, after, slice(len(before) - 1, 1 - len(after))


def parse_usage(raw: msgspec.Raw) -> Usage | None:
    """Read a `usage` object; None if it is absent, null or not one."""
    if raw is ABSENT:
        return None
    try:
        usage = _read_usage(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if usage is None:
        return None
    prompt_details, completion_details = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = prompt_details.cached_tokens if prompt_details else usage.prompt_cache_hit_tokens
    reasoning = completion_details.reasoning_tokens if completion_details else 0
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, cached or 0, reasoning or 0)


def _json_size(value: Sequence[msgspec.Raw] | dict[str, msgspec.Raw]) -> int:
    raws = value.values() if isinstance(value, dict) else value
    return sum(len(bytes(raw)) for raw in raws)


class _ErrorFields(msgspec.Struct, gc=False):
    """`{"message", "type", "param", "code"}`; FastAPI says `detail`, and some servers number their codes."""

    message: str | None = None
    detail: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


def refused(error: bytes, status: int | None, wait_s: float | None) -> UpstreamRefused:
    """Read an error object, or a bare string in its place."""
    try:
        read = msgspec.json.decode(error, type=_ErrorFields | str)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        read = _ErrorFields()
    fields = _ErrorFields(message=read) if isinstance(read, str) else read
    fallback = f"The upstream answered with status {status}." if status else "The upstream sent an error."
    return UpstreamRefused(
        (fields.message or fields.detail or fallback)[:MAX_FOREIGN_TEXT],
        upstream_status=status,
        upstream_type=fields.type,
        upstream_code=None if fields.code is None else str(fields.code),
        retry_after_s=wait_s,
        param=fields.param,
    )
