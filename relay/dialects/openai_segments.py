"""OpenAI Chat Completions answers that come in several segments, and that their clients read as one.

The first segment's bytes go on as they came, but for a terminal event that may not be the end. Of the others the
text goes on, and whatever else their deltas hold, under the first one's id and without a role of their own: what
begins there is no new message. Usage that a client asked for is that of all segments together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from relay.dialects.base import SoFar
from relay.dialects.openai_answers import (
    MAX_KEPT_BYTES,
    ChatStreamReader,
    read_bodies,
    read_body,
    read_plain_bodies,
    read_plain_body,
    read_text,
)
from relay.errors import UpstreamRefused
from relay.wire.seam import Seam, anchor
from relay.wire.splice import Fields, read_object, splice
from relay.wire.sse import event_data, split_events

if TYPE_CHECKING:
    from relay.messages import Continuing, Usage

INSTRUCTION = (
    "Your answer was cut off. Continue it from exactly where it stops, as if there had been no interruption: begin "
    "with its last words, repeated exactly as they stand, and go straight on. Do not comment on this, do not "
    "apologise, and do not begin anew. The last words are:\n\n"
)
"""For models that take no beginning of an answer. The last words let the seam be found, spaces included."""

_MARKS = ("id", "object", "created", "model", "system_fingerprint")
"""What is the same in every chunk of an answer."""

_REASONING = ("reasoning_content", "reasoning", "reasoning_details")
_PLAIN = frozenset({"role", "content", *_REASONING})
"""What a delta, or a message, may hold of an answer that can be continued."""

_EMPTY = (b"null", b'""', b"[]", b"{}")
_NULL = msgspec.Raw(b"null")

_read_choices = msgspec.json.Decoder(list[Fields]).decode
_encode = msgspec.json.encode


def continued(body: bytes, text: str, style: Continuing) -> bytes:
    """The request that asks for the rest of an answer.

    Args:
        body: of the request for its beginning, as the upstream would get it.
        text: what the client has of it.
        style: how this model is asked. `continue_final_message`: vLLM, SGLang, llama.cpp. `prefix`: Mistral, DeepSeek
            (beta). `prefill`: servers that take a last message of the assistant for the beginning of the answer
            (llama.cpp, older models of Anthropic).
    """
    sent = text.rstrip()
    if not sent:
        return body
    said: dict[str, object] = {"role": "assistant", "content": sent}
    changes = {}
    messages = [said]
    match style:
        case "instruction":
            messages.append({"role": "user", "content": INSTRUCTION + anchor(sent)})
        case "prefix":
            said["prefix"] = True
        case "continue_final_message":
            changes = {"continue_final_message": b"true", "add_generation_prompt": b"false"}
        case _:
            pass
    fields = read_object(body)
    given = bytes(fields["messages"])
    changes["messages"] = b"%b,%b" % (given[: given.rindex(b"]")].rstrip(), _encode(messages)[1:])
    return splice(body, fields, changes)


class _Segment(ChatStreamReader):
    """What a first segment and a later one have in common; see `relay.dialects.base.SegmentReader`."""

    __slots__ = ("_hold_length", "_mark", "held")

    def __init__(self, mark: Fields, *, hide_usage: bool, hold_length: bool) -> None:
        super().__init__(choices=1, hide_usage=hide_usage)
        self._hold_length = hold_length
        self._mark = mark
        self.held = b""

    def _sorted(self, whole: bytes) -> bytes:
        """What of some events goes on now; the others are held."""
        events = split_events(whole)
        refusal = events.pop() if events and isinstance(self.failure, UpstreamRefused) else b""
        passed = b""
        for event in events:
            if self.held:
                self.held += self._pass(event)
            else:
                passed += self._pass(event)
        self.held += refusal
        return passed

    def _pass(self, event: bytes) -> bytes:
        raise NotImplementedError

    def _chunk(self, text: str) -> bytes:
        delta = _raw({"content": text})
        choice = {"index": msgspec.Raw(b"0"), "delta": delta, "finish_reason": _NULL}
        return _event({**self._mark, "choices": _raw([choice])})


class FirstSegment(_Segment):
    """The beginning of an answer. Events go on untouched, but for an end that need not be the answer's.

    The text is that of the deltas, as they are read anyway, for as long as they are nothing but text. What else a
    continuation needs is looked for when there is one.
    """

    __slots__ = ("_beginning",)

    def __init__(self, *, hide_usage: bool, hold_length: bool) -> None:
        super().__init__({}, hide_usage=hide_usage, hold_length=hold_length)
        self._said = bytearray()
        self._read_one, self._read_many = read_plain_body, read_plain_bodies
        self._beginning = b""  # events among which the mark has not been looked for yet

    @property
    def plain(self) -> bool:
        """See `SegmentReader.plain`."""
        return self._said is not None

    def _read_on(self, data: bytes) -> bytes:
        if self._beginning:
            self._find_mark()
        whole = super()._read_on(data)
        if not self._mark:
            self._beginning = whole
        return whole if self.finish_reason is None and self.failure is None else self._ending(whole)

    def end(self) -> bytes:
        """See `StreamReader.end`."""
        return self._ending(super().end())

    def so_far(self, usage: Usage) -> SoFar:
        """See `SegmentReader.so_far`."""
        self._find_mark()
        text = "" if self._said is None else self._said.decode()
        return SoFar(text=text, mark=self._mark, usage=usage, segments=1)

    def _ending(self, whole: bytes) -> bytes:
        """What of the last events goes on, although they may not be the last."""
        at_limit = self._hold_length and self.finish_reason == "length"
        return self._sorted(whole) if at_limit or self.failure is not None else whole

    def _find_mark(self) -> None:
        """The first chunk that has choices tells by which fields the answer is named."""
        for event in split_events(self._beginning):
            opened = _open(event)
            if opened is not None and opened[1]:
                self._mark = {name: value for name, value in opened[0].items() if name in _MARKS}
                break
        self._beginning = b""

    def _take_closely(self, event: bytes) -> bool:
        if self._said is not None and not _is_plain(event):
            self._said = None  # it will not go on
            self._read_one, self._read_many = read_body, read_bodies
        return super()._take_closely(event)

    def _pass(self, event: bytes) -> bytes:
        opened = _open(event) if b'"length"' in event and not self.held else None
        if opened is None:
            return event
        fields, choices = opened
        for choice in choices:
            if bytes(choice.get("finish_reason", _NULL)) != b'"length"':
                continue
            text = _content(_delta(choice))
            if not text:
                self.held = event
                return b""
            self._find_mark()
            self.held = _event({**fields, "choices": _raw([{**choice, "delta": msgspec.Raw(b"{}")}])})
            return self._chunk(text)
        return event


class LaterSegment(_Segment):
    """The rest of an answer, or some of it."""

    __slots__ = ("_seam", "_so_far", "_text", "plain")

    def __init__(self, so_far: SoFar, *, anchored: bool, hide_usage: bool, hold_length: bool) -> None:
        super().__init__(so_far.mark, hide_usage=hide_usage, hold_length=hold_length)
        self._so_far = so_far
        self._text: list[str] = []  # what the client has of it
        self._seam = Seam(so_far.text, anchored=anchored)
        self.plain = True

    def feed(self, data: bytes) -> bytes:
        """See `StreamReader.feed`."""
        return self._sorted(self._read_on(data))

    def end(self) -> bytes:
        """See `StreamReader.end`."""
        return self._sorted(super().end())

    def so_far(self, usage: Usage) -> SoFar:
        """See `SegmentReader.so_far`."""
        before = self._so_far
        return SoFar(
            text=before.text + "".join(self._text),
            mark=self._mark,
            usage=before.usage.continued(usage),
            segments=before.segments + 1,
        )

    def _pass(self, event: bytes) -> bytes:
        opened = _open(event)
        if opened is None:  # a comment, or the terminator
            return (self._rest() if event_data(event) is not None else b"") + event
        fields, choices = opened
        counted = bytes(fields.get("usage", b"null")) != b"null"
        fields = self._joined(fields, counted=counted)
        if not choices:
            return _event(fields)
        choice = choices[0]
        delta = _delta(choice)
        text = self._new_text(delta)
        ended = bytes(choice.get("finish_reason", b"null")) not in (b"null", b'""')
        if ended or delta:
            text += self._seam.end()
        if text:
            self._keep(text)
        if not ended and text:
            delta["content"] = _raw(text)
        if not (delta or ended or counted):
            return b""
        passed = _event({**fields, "choices": _raw([{**choice, "delta": _raw(delta)}])})
        if not ended:
            return passed
        if self._hold_length and not self.held and bytes(choice["finish_reason"]) == b'"length"':
            self.held, passed = passed, b""
        return (self._chunk(text) if text else b"") + passed

    def _joined(self, fields: Fields, *, counted: bool) -> Fields:
        """A chunk's fields under the first segment's name, and with the usage of all."""
        if counted and (usage := self.usage) is not None:
            fields["usage"] = _usage_object(self._so_far.usage.continued(usage))
        return {**self._mark, **{name: value for name, value in fields.items() if name not in _MARKS}}

    def _new_text(self, delta: Fields) -> str:
        """Take out of a delta what is not the client's business, or will be told otherwise; returns its new text."""
        delta.pop("role", None)
        if self._so_far.text:
            for name in _REASONING:  # about how to go on
                delta.pop(name, None)
        for name in [name for name, value in delta.items() if bytes(value) in _EMPTY]:
            del delta[name]
        if _tells_more(delta):
            self.plain = False
        text = _content(delta)
        if text is None:
            self.plain = False
            return ""
        delta.pop("content", None)
        return self._seam.feed(text) if text else ""

    def _keep(self, text: str) -> None:
        """Remember what the client has."""
        self._text.append(text)
        if self.output_chars > MAX_KEPT_BYTES:
            self._text.clear()
            self.plain = False

    def _rest(self) -> bytes:
        """What waits behind the seam, where an answer ends without a finish reason."""
        text = self._seam.end()
        self._keep(text)
        return self._chunk(text) if text else b""


def answer_text(body: bytes) -> str | None:
    """See `relay.dialects.base.Dialect.answer_text`."""
    try:
        [choice] = _read_choices(read_object(body)["choices"])
        message = read_object(choice["message"])
    except (msgspec.DecodeError, KeyError, ValueError):
        return None
    return None if _tells_more(message) else _content(message)


def answer_so_far(before: SoFar | None, body: bytes, usage: Usage, *, anchored: bool) -> SoFar:
    """See `relay.dialects.base.Dialect.answer_so_far`."""
    text = answer_text(body) or ""
    if before is None:
        return SoFar(text=text, mark={}, usage=usage, segments=1, first=body)
    seam = Seam(before.text, anchored=anchored)
    return msgspec.structs.replace(
        before,
        text=before.text + seam.feed(text) + seam.end(),
        usage=before.usage.continued(usage),
        segments=before.segments + 1,
    )


def whole_answer(so_far: SoFar, last: bytes) -> bytes:
    """See `relay.dialects.base.Dialect.whole_answer`."""
    first, text, usage = so_far.first, so_far.text, so_far.usage
    fields = read_object(first)
    choices = bytes(fields["choices"])
    [choice] = _read_choices(choices)
    [ending] = _read_choices(read_object(last)["choices"])
    message = bytes(choice["message"])
    changes = {
        "message": splice(message, read_object(message), {"content": _encode(text)}),
        "finish_reason": bytes(ending.get("finish_reason", _NULL)),
    }
    start, end = choices.index(b"{"), choices.rindex(b"}") + 1
    new_choice = splice(choices[start:end], choice, changes)
    new_choices = choices[:start] + new_choice + choices[end:]
    return splice(first, fields, {"choices": new_choices, "usage": bytes(_usage_object(usage))})


def _open(event: bytes) -> tuple[Fields, list[Fields]] | None:
    """A chunk's fields and its choices; None if it is none."""
    data = event_data(event)
    if data is None:
        return None
    try:
        fields = read_object(data)
        return fields, _read_choices(fields.get("choices", b"[]"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _delta(choice: Fields) -> Fields:
    try:
        return read_object(choice.get("delta", b"{}"))
    except msgspec.ValidationError:  # null
        return {}


def _content(delta: Fields) -> str | None:
    """A delta's text; None if its content is something else."""
    raw = delta.get("content", _NULL)
    if bytes(raw) in _EMPTY:
        return ""
    try:
        return read_text(raw)
    except msgspec.ValidationError:
        return None


def _is_plain(event: bytes) -> bool:
    """Whether there is nothing but text in an event."""
    opened = _open(event)
    deltas = [_delta(choice) for choice in opened[1]] if opened is not None else ()
    return not any(_content(delta) is None or _tells_more(delta) for delta in deltas)


def _tells_more(delta: Fields) -> bool:
    """Whether there is more than text in a delta: a tool call, a refusal, a picture."""
    return any(name not in _PLAIN and bytes(value) not in _EMPTY for name, value in delta.items())


def _usage_object(usage: Usage) -> msgspec.Raw:
    return _raw(
        {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        }
    )


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))


def _event(fields: Fields) -> bytes:
    return b"data: %b\n\n" % _encode(fields)
