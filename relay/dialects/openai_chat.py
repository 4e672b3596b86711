"""OpenAI Chat Completions, as OpenAI and the many servers that copy it speak it.

Requests and streams go through byte for byte: a request has its model, limit and stream options cut in, a stream
loses at most the usage chunk that its client did not ask for. What is read is read from a copy.
Source: platform.openai.com/docs/api-reference/chat; where servers differ from it, a comment says so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from relay.dialects.base import Answer
from relay.dialects.openai_segments import (
    FirstSegment,
    LaterSegment,
    answer_so_far,
    answer_text,
    continued,
    whole_answer,
)
from relay.errors import (
    MAX_FOREIGN_TEXT,
    InvalidRequest,
    RelayError,
    UpstreamFailure,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTruncated,
)
from relay.messages import ChatRequest, Headers, Reasoning, Shape, Usage
from relay.wire.gist import Gist, gist
from relay.wire.prefixes import prefixes
from relay.wire.retry_after import retry_after_s
from relay.wire.splice import read_object, splice
from relay.wire.sse import EventFramer, event_data, split_events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.dialects.base import SegmentReader, SoFar, StreamReader
    from relay.messages import Continuing

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
"""The two names of the answer's limit; the newer one wins if a client sends both."""

_Loose = str | list[msgspec.Raw] | dict[str, msgspec.Raw] | None


class _Delta(msgspec.Struct, gc=False):
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


_SILENT = (_Delta(), _Delta(content=""))
"""How most streams begin and end: no output at all."""


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


_NOTHING = msgspec.Raw()


class _Body(msgspec.Struct, gc=False):
    """A chunk or an answer: one shape serves both. Usage and error are read apart, so that odd ones spoil nothing."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


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


class _Turn(msgspec.Struct, gc=False):
    """What a model reads of a message."""

    content: msgspec.Raw = _NOTHING
    tool_calls: msgspec.Raw = _NOTHING


class _Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: msgspec.Raw = _NOTHING


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Head(msgspec.Struct, gc=False):
    """What the relay reads of a request."""

    model: str
    messages: list[msgspec.Raw]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n: int | None = None


class _Thinking(msgspec.Struct, gc=False):
    """What OpenRouter's `reasoning`, Anthropic's `thinking` and Gemini's `extra_body` say."""

    type: str | None = None
    effort: str | None = None
    thinking_level: str | None = None
    max_tokens: int | None = None
    budget_tokens: int | None = None
    thinking_budget: int | None = None
    google: _Google | None = None

    def said(self) -> Reasoning:
        """The effort in a word, the tokens as a number, as far as they are there."""
        inner = self.google and self.google.thinking_config
        if inner:
            return inner.said()
        tokens = max(self.max_tokens or 0, self.budget_tokens or 0, self.thinking_budget or 0)
        effort = self.effort or (self.thinking_level and self.thinking_level.lower())
        return Reasoning("none" if self.type == "disabled" or self.thinking_budget == 0 else effort, tokens)


class _Google(msgspec.Struct, gc=False):
    thinking_config: _Thinking | None = None


_FEATURE_FIELDS = {
    "tools": "tools",
    "functions": "tools",
    "reasoning_effort": "reasoning",
    "reasoning": "reasoning",
    "audio": "audio",
}
"""Top-level fields that are a feature by being there."""
_PROMPT_FIELDS = ("messages", "tools", "functions", "response_format")
_REASONING_FIELDS = ("reasoning_effort", "reasoning", "thinking", "extra_body")
"""Where clients speak of hidden reasoning."""
_RULES_THINKING_OUT = {"temperature", "top_p", "tools", "tool_choice"}
_UNUSED = (b"", b"null", b"[]", b'"none"')
_TOOLS = {"tools", "functions"}
_NOT_CONTINUED = {
    "response_format": (b"", b"null", b'{"type":"text"}', b'{"type": "text"}'),
    "modalities": (b"", b"null", b'["text"]'),
    "audio": (b"", b"null"),
    "logprobs": (b"", b"null", b"false"),
}
"""Fields that make answers which cannot be put together from several, and their values that do not."""
_IMAGE_PART = re.compile(rb'"type"\s*:\s*"image_url"')
_AUDIO_PART = re.compile(rb'"type"\s*:\s*"input_audio"')
_AT_FIELD = re.compile(r"(?:at `\$\.|required field `)(\w+)")
_read_head = msgspec.json.Decoder(_Head).decode
_read_body = msgspec.json.Decoder(_Body).decode
_read_bodies = msgspec.json.Decoder(list[_Body]).decode
_read_turn = msgspec.json.Decoder(_Turn).decode
_read_parts = msgspec.json.Decoder(list[_Part]).decode
_read_thinking = msgspec.json.Decoder(str | _Thinking | None).decode
_read_usage = msgspec.json.Decoder(_Usage | None).decode


class OpenAIChat:
    """The dialect, see `relay.dialects.base.Dialect`."""

    name = "openai"
    chat_path = "/chat/completions"

    def auth_headers(self, api_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """A bearer token."""
        return ((b"authorization", b"Bearer " + api_key.encode()),) if api_key else ()

    def parse_request(self, body: bytes) -> ChatRequest:
        """Read what the relay needs; every other field is left for the upstream to judge."""
        try:
            fields = read_object(body)
            head = _read_head(body)
        except msgspec.ValidationError as error:
            param = _AT_FIELD.search(str(error))
            raise InvalidRequest(
                f"The request body is not what the API takes: {error}.", param=param and param[1]
            ) from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
        wants_usage = bool(head.stream_options and head.stream_options.include_usage)
        max_tokens = head.max_tokens if head.max_completion_tokens is None else head.max_completion_tokens
        stream, choices = head.stream or False, head.n or 1
        return ChatRequest(body, fields, head.model, stream, wants_usage, max_tokens, choices, head.messages)

    def features(self, request: ChatRequest) -> frozenset[str]:
        """What a request uses, told from fields and from the types of its messages' parts.

        Inside a text every quote is escaped, so what a prompt says of `"type": "image_url"` is not taken for one.
        """
        fields, messages = request.fields, bytes(request.fields["messages"])
        used = {feature for name, feature in _FEATURE_FIELDS.items() if bytes(fields.get(name, b"")) not in _UNUSED}
        if b'"json_schema"' in bytes(fields.get("response_format", b"")):
            used.add("json_schema")
        if b'"audio"' in bytes(fields.get("modalities", b"")):
            used.add("audio")
        if b'"image_url"' in messages and _IMAGE_PART.search(messages):
            used.add("vision")
        if b'"input_audio"' in messages and _AUDIO_PART.search(messages):
            used.add("audio")
        if messages.rfind(b'"assistant"') > messages.rfind(b'"user"') and _ends_with_assistant(request.turns):
            used.add("prefill")
        return frozenset(used)

    def prefixes(self, request: ChatRequest) -> tuple[tuple[bytes, int], ...]:
        """Of the messages, behind the tools: in this order providers read and cache them."""
        return prefixes(bytes(request.fields["messages"]), bytes(request.fields.get("tools", b"")))

    def prompt(self, request: ChatRequest) -> tuple[bytes, ...]:
        """Messages, tools and response format."""
        fields = request.fields
        return tuple([bytes(fields.get(name, b"")) for name in _PROMPT_FIELDS])

    def gist(self, request: ChatRequest) -> Gist:
        """See `relay.wire.gist`."""
        return gist(request.turns, request.fields)

    def texts(self, request: ChatRequest) -> tuple[list[bytes], int]:
        """Contents, tool calls and tool definitions. Of what is neither text nor an image nothing is known."""
        texts, images = [], 0
        for raw in request.turns:
            try:
                turn = _read_turn(raw)
                content = bytes(turn.content)
                if content.startswith(b"["):
                    parts = _read_parts(content)
                    images += sum(part.type == "image_url" for part in parts)
                    texts += [bytes(part.text)[1:-1] for part in parts]
                elif content.startswith(b'"'):
                    texts.append(content[1:-1])
                texts.append(bytes(turn.tool_calls))
            except msgspec.ValidationError:
                continue  # odd messages are the upstream's to judge
        texts += [bytes(request.fields[name]) for name in ("tools", "functions") if name in request.fields]
        return texts, images

    def reasoning(self, request: ChatRequest) -> Reasoning | None:
        """In the fields of OpenAI, OpenRouter, Anthropic and Gemini; what cannot be read there says nothing."""
        for name in _REASONING_FIELDS:
            if name in request.fields:
                try:
                    read = _read_thinking(request.fields[name])
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                said = Reasoning(read) if isinstance(read, str) else read.said() if read else None
                if said and (said.effort or said.tokens):
                    return said
        return None

    def extendable(self, request: ChatRequest) -> bool:
        """As `may_continue`; a tool that is offered may be called, and a call cannot be taken up in the middle."""
        fields = request.fields
        if not _TOOLS.isdisjoint(fields) and any(bytes(fields.get(name, b"")) not in _UNUSED for name in _TOOLS):
            return False
        return self.may_continue(request)

    def takes_effort(self, request: ChatRequest, effort_field: str) -> bool:
        """Anthropic refuses `thinking` beside sampling parameters and forced tools, and wants more room than it."""
        fields = request.fields
        if any(bytes(fields.get(name, b"null")) != b"null" for name in _REASONING_FIELDS):
            return False
        return effort_field != "thinking" or _RULES_THINKING_OUT.isdisjoint(fields)

    def encode_request(
        self,
        request: ChatRequest,
        *,
        model: str,
        max_tokens_field: str | None,
        ask_usage: bool,
        shape: Shape | None = None,
    ) -> bytes:
        """The client's bytes with model, limit and what else is to be set cut in where they differ."""
        fields = request.fields
        changes = _shaped(request, shape, max_tokens_field) if shape is not None else {}
        if model != request.model:
            changes["model"] = msgspec.json.encode(model)
        if request.stream and ask_usage and not request.wants_usage:
            changes["stream_options"] = _with_usage(fields.get("stream_options"))
        renames = None
        if max_tokens_field and max_tokens_field not in fields:
            renames = {name: max_tokens_field for name in LIMIT_FIELDS if name in fields}
        return splice(request.body, fields, changes, renames) if changes or renames else request.body

    def stream_reader(self, *, choices: int, hide_usage: bool) -> ChatStreamReader:
        """A reader for one attempt."""
        return ChatStreamReader(choices=choices, hide_usage=hide_usage)

    def may_continue(self, request: ChatRequest) -> bool:
        """Not JSON, sound or log probabilities, of one answer only, and none whose beginning the client wrote."""
        fields = request.fields
        for name in _NOT_CONTINUED.keys() & fields:
            if bytes(fields[name]) not in _NOT_CONTINUED[name]:
                return False
        return request.choices == 1 and bool(request.turns) and not _ends_with_assistant(request.turns)

    def answer_text(self, body: bytes) -> str | None:
        """See `relay.dialects.openai_segments`."""
        return answer_text(body)

    def answer_so_far(self, before: SoFar | None, body: bytes, style: Continuing, usage: Usage) -> SoFar:
        """See `relay.dialects.openai_segments`."""
        return answer_so_far(before, body, usage, anchored=style == "instruction")

    def whole_answer(self, so_far: SoFar, last: bytes) -> bytes:
        """See `relay.dialects.openai_segments`."""
        return whole_answer(so_far, last)

    def continue_request(self, body: bytes, text: str, style: Continuing) -> bytes:
        """See `relay.dialects.openai_segments.continued`."""
        return continued(body, text, style)

    def segment_reader(
        self, reader: StreamReader, so_far: SoFar | None, style: Continuing, *, hold_length: bool
    ) -> SegmentReader:
        """See `relay.dialects.openai_segments`."""
        if so_far is None:
            return FirstSegment(reader, hold_length=hold_length)
        return LaterSegment(reader, so_far, anchored=style == "instruction", hold_length=hold_length)

    def parse_answer(self, body: bytes) -> Answer:
        """Read a complete answer's finish reason and usage."""
        try:
            answer = _read_body(body)
        except msgspec.ValidationError:
            # JSON, but of a shape that is not known here: it is the client's to judge.
            return Answer(finish_reason=None, usage=None, output_chars=len(body))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UpstreamProtocolError("The upstream's answer is not JSON.") from None
        if answer.error is not _NOTHING and bytes(answer.error) != b"null":
            raise _refused(bytes(answer.error), None, None)
        usage, choices = parse_usage(answer.usage), answer.choices or [_Choice()]
        output_chars = reasoning_chars = 0
        for choice in choices:
            message = choice.message
            if message is not None and (usage is None or message.reasoning_content or message.reasoning):
                output_chars += message.size()
                reasoning_chars += message.reasoning_size()
        return Answer(choices[0].finish_reason or None, usage, output_chars, reasoning_chars)

    def parse_error(self, status: int, headers: Headers, body: bytes) -> UpstreamRefused:
        """Read `{"error": …}` in the shapes that OpenAI, vLLM, FastAPI and proxies in front of them give it."""
        wait_s = retry_after_s(headers)
        if status in (401, 403):
            # It speaks of the relay's credentials, sometimes with a piece of them: not for the client.
            return UpstreamRefused(
                "The upstream did not accept the relay's credentials.", upstream_status=status, retry_after_s=wait_s
            )
        try:
            fields = read_object(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return UpstreamRefused(
                f"The upstream answered with status {status}.", upstream_status=status, retry_after_s=wait_s
            )
        return _refused(bytes(fields.get("error", body)), status, wait_s)

    def encode_error(self, error: RelayError) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return msgspec.json.encode({"error": _error_object(error)})

    def encode_error_event(self, error: RelayError) -> bytes:
        """One `data:` event, which the OpenAI SDKs raise as an APIError."""
        return b"data: %b\n\n" % self.encode_error(error)


class ChatStreamReader:
    """See `relay.dialects.base.StreamReader`.

    A terminal event is a finish reason for each choice asked for, or `[DONE]` behind some output: one provider
    (Snowflake Cortex) ends its streams with that alone.
    """

    __slots__ = (
        "_choices",
        "_ended",
        "_framer",
        "_hide_usage",
        "_usage",
        "done",
        "failure",
        "finish_reason",
        "finished",
        "output_chars",
        "output_events",
        "reasoning_chars",
    )

    def __init__(self, *, choices: int, hide_usage: bool) -> None:
        self._framer = EventFramer()
        self._choices = choices
        self._hide_usage = hide_usage
        self._ended: set[int] = set()
        self._usage = _NOTHING
        self.done = False
        self.finished = False
        self.finish_reason: str | None = None
        self.output_chars = 0
        self.output_events = 0
        self.reasoning_chars = 0
        self.failure: UpstreamFailure | None = None

    @property
    def usage(self) -> Usage | None:
        """The last usage seen (some providers send a running one with every chunk)."""
        return parse_usage(self._usage)

    def feed(self, data: bytes) -> bytes:
        """See `StreamReader.feed`. Nothing goes on behind `[DONE]` or a failure."""
        if self.done or self.failure is not None:
            return b""
        try:
            whole = self._framer.feed(data)
        except UpstreamProtocolError as error:
            self.failure = error
            return b""
        if not whole:
            return b""
        if whole.find(b"\n\n") == len(whole) - 2 and b"\r" not in whole:  # one event, as nearly always
            return whole if self._take(whole) else b""
        bodies = _read_together(whole)
        return self._take_each(whole) if bodies is None else self._take_together(whole, bodies)

    def _take_together(self, whole: bytes, bodies: list[_Body]) -> bytes:
        """Events that were read in one go; a `[DONE]` may follow them."""
        hidden = []
        taken = 0
        for body in bodies:
            if not self._take_body(body):
                hidden.append(taken)
            taken += 1
            if self.failure is not None:
                break
        if self.failure is None and whole.endswith(DONE_EVENT):
            if not self._take_done():
                hidden.append(taken)
            taken += 1
        if self.failure is None and not hidden:
            return whole
        events = split_events(whole)[:taken]
        for index in reversed(hidden):
            del events[index]
        return b"".join(events)

    def _take_each(self, whole: bytes) -> bytes:
        """Events of any form, one by one."""
        kept = []
        for event in split_events(whole):
            if self._take(event):
                kept.append(event)
            if self.done or self.failure is not None:
                break
        return b"".join(kept)

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

    def _take(self, event: bytes) -> bool:
        """Read one event; False if the client is not to see it.

        Nearly all are one line of JSON behind `data: `, whose line ends JSON takes for white space. What that does not
        fit is looked at closely.
        """
        if event.startswith(b"data: "):
            try:
                return self._take_body(_read_body(event[6:]))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                pass
        data = event_data(event)
        if data is None:
            return True
        if data == DONE:
            return self._take_done()
        try:
            return self._take_body(_read_body(data))
        except msgspec.ValidationError:
            # JSON of a shape that is not known here goes on, and counts as output rather than as silence.
            self.output_events += 1
            return True
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self.failure = UpstreamProtocolError("The upstream sent an event that is not JSON.")
            return False

    def _take_body(self, body: _Body) -> bool:
        usage, choices = body.usage, body.choices
        counted = usage is not _NOTHING and bytes(usage) != b"null"
        if counted:
            self._usage = usage
        if body.error is not _NOTHING and bytes(body.error) != b"null":
            self.failure = _refused(bytes(body.error), None, None)
            return True
        if not choices:
            return not (counted and self._hide_usage)
        for choice in choices:
            if choice.finish_reason:  # some servers send an empty one with every chunk
                self._end_choice(choice.index, choice.finish_reason)
            delta = choice.delta
            if delta is None:
                continue
            text = delta.content
            if text and text.__class__ is str:
                size = len(text)
            elif delta in _SILENT:
                continue
            else:
                size = delta.size()
                self.reasoning_chars += delta.reasoning_size() if size else 0
            if size:
                self.output_chars += size
                self.output_events += 1
        return True

    def _end_choice(self, index: int, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
        self._ended.add(index)
        self.finished = len(self._ended) >= self._choices

    def _take_done(self) -> bool:
        """`[DONE]` is passed on only where something ended: a dead upstream never becomes a clean end."""
        if not self.finished and not self.output_events:
            return False
        self.finished = True
        self.done = True
        return True


def _read_together(whole: bytes) -> list[_Body] | None:
    """Events as one JSON array, in one call; None unless each is one line behind `data: `, but for a last `[DONE]`."""
    if b"\r" in whole or not whole.startswith(b"data: "):
        return None
    lines = whole.removesuffix(DONE_EVENT)
    try:
        bodies = _read_bodies(b"[%b]" % lines[6:-2].replace(b"\n\ndata: ", b","))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return bodies if len(bodies) == lines.count(b"\n\n") else None  # else what is JSON together is not JSON apart


class _Role(msgspec.Struct, gc=False):
    role: str | None = None


def _ends_with_assistant(turns: Sequence[msgspec.Raw]) -> bool:
    """Whether the last message is the beginning of the answer."""
    try:
        return msgspec.json.decode(turns[-1], type=_Role).role == "assistant"
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, IndexError):
        return False


def parse_usage(raw: msgspec.Raw) -> Usage | None:
    """Read a `usage` object; None if it is absent, null or not one."""
    if raw is _NOTHING:
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


def _shaped(request: ChatRequest, shape: Shape, max_tokens_field: str | None) -> dict[str, bytes]:
    """Fields that a shape sets."""
    changes: dict[str, bytes] = {}
    if shape.limit is not None:
        present = [name for name in LIMIT_FIELDS if name in request.fields]
        for name in present or (max_tokens_field or "max_tokens",):
            changes[name] = b"%d" % shape.limit
    if shape.effort is not None:
        match shape.effort_field:
            case "thinking":
                changes["thinking"] = b'{"type":"enabled","budget_tokens":%d}' % shape.thinking_tokens
            case "thinking_config":
                changes["extra_body"] = b'{"google":{"thinking_config":{"thinking_budget":%d}}}' % shape.thinking_tokens
            case name:
                changes[name] = b'"%b"' % shape.effort.encode()
    if shape.verbosity is not None and bytes(request.fields.get("verbosity", b"null")) == b"null":
        changes["verbosity"] = b'"%b"' % shape.verbosity.encode()
    if shape.steering is not None:
        changes["messages"] = _steered(bytes(request.fields["messages"]), request.turns, shape.steering)
    return changes


def _steered(messages: bytes, turns: Sequence[msgspec.Raw], text: str) -> bytes:
    """The messages with a text at the end of their system prompt, or as a system prompt of their own."""
    first = bytes(turns[0]) if turns else b""
    try:
        fields = read_object(first)
        is_system = msgspec.json.decode(fields["role"]) in ("system", "developer")
        content = bytes(fields["content"])
    except (msgspec.DecodeError, KeyError):
        is_system, content = False, b""
    if is_system and content.startswith((b'"', b"[")):
        if content.startswith(b'"'):
            content = content[:-1] + msgspec.json.encode("\n\n" + text)[1:]
        else:
            part = msgspec.json.encode({"type": "text", "text": text})
            content = b"[" + b",".join([*map(bytes, msgspec.json.decode(content, type=list[msgspec.Raw])), part]) + b"]"
        start = messages.index(first)
        return messages[:start] + splice(first, fields, {"content": content}) + messages[start + len(first) :]
    own = msgspec.json.encode({"role": "system", "content": text})
    return b"[%b%b%b" % (own, b"," if turns else b"", messages[1:])


def _with_usage(options: msgspec.Raw | None) -> bytes:
    """`stream_options` with `include_usage` on and everything else as it was."""
    if options is None or bytes(options) == b"null":
        return b'{"include_usage":true}'
    return splice(bytes(options), read_object(options), {"include_usage": b"true"})


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


def _refused(error: bytes, status: int | None, wait_s: float | None) -> UpstreamRefused:
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


def _error_object(error: RelayError) -> dict[str, str | None]:
    """An upstream's own type and code where the fault is the client's to mend, else the relay's."""
    kind, code = error.type, error.code
    if isinstance(error, UpstreamRefused) and error.http_status == error.upstream_status:
        kind, code = error.upstream_type or kind, error.upstream_code or code
    return {"message": error.message, "type": kind, "param": error.param, "code": code}
