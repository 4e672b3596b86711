"""OpenAI Chat Completions, as OpenAI and the many servers that copy it speak it.

Requests and streams go through byte for byte: a request has its model, limit and stream options cut in, a stream
loses at most the usage chunk that its client did not ask for. What is read is read from a copy.
Source: platform.openai.com/docs/api-reference/chat; where servers differ from it, a comment says so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from relay.dialects.base import Answer
from relay.dialects.openai_answers import ChatStreamReader, Choice, parse_usage, read_body, refused
from relay.dialects.openai_segments import (
    FirstSegment,
    LaterSegment,
    answer_so_far,
    answer_text,
    continued,
    whole_answer,
)
from relay.errors import InvalidRequest, RelayError, UpstreamProtocolError, UpstreamRefused
from relay.messages import ABSENT, ChatRequest, Headers, Reasoning, Shape, Turn
from relay.wire.gist import BRACKET, Gist, begins, gist
from relay.wire.prefixes import prefixes
from relay.wire.retry_after import retry_after_s
from relay.wire.splice import read_object, splice

if TYPE_CHECKING:
    from relay.dialects.base import SegmentReader, SoFar
    from relay.messages import Continuing, Usage

LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
"""The two names of the answer's limit; the newer one wins if a client sends both."""

_Message = TypeVar("_Message")


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Head(msgspec.Struct, Generic[_Message], gc=False):
    """What the relay reads of a request."""

    model: str
    messages: list[_Message]
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
_NOT_CONTINUED = {
    "response_format": (b"null", b'{"type":"text"}', b'{"type": "text"}'),
    "modalities": (b"null", b'["text"]'),
    "audio": (b"null",),
    "logprobs": (b"null", b"false"),
}
"""Fields that make answers which cannot be put together from several, and their values that do not."""
_NOT_SURELY_CONTINUED = _NOT_CONTINUED | {"tools": _UNUSED, "functions": _UNUSED}
"""Those, and fields by which an answer may become a call, which cannot be taken up in the middle."""
_IMAGE_PART = re.compile(rb'"type"\s*:\s*"image_url"')
_AUDIO_PART = re.compile(rb'"type"\s*:\s*"input_audio"')
_AT_FIELD = re.compile(r"(?:at `\$\.|required field `)(\w+)")
_read_usual_head = msgspec.json.Decoder(_Head[Turn]).decode
_read_any_head = msgspec.json.Decoder(_Head[msgspec.Raw]).decode
_read_turn = msgspec.json.Decoder(Turn).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_thinking = msgspec.json.Decoder(str | _Thinking | None).decode


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
            head, turns = _read_head(body)
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
        return ChatRequest(body, fields, head.model, stream, wants_usage, max_tokens, choices, turns)

    def features(self, request: ChatRequest) -> frozenset[str]:
        """What a request uses, told from fields and from the types of its messages' parts.

        Inside a text every quote is escaped, so what a prompt says of `"type": "image_url"` is not taken for one.
        """
        fields = request.fields
        said = _FEATURE_FIELDS.keys() & fields
        used = {_FEATURE_FIELDS[name] for name in said if bytes(fields[name]) not in _UNUSED}
        if b'"json_schema"' in bytes(fields.get("response_format", b"")):
            used.add("json_schema")
        if b'"audio"' in bytes(fields.get("modalities", b"")):
            used.add("audio")
        parts = b"".join([turn.content for turn in request.turns if begins(BRACKET, turn.content)])
        if b'"image_url"' in parts and _IMAGE_PART.search(parts):
            used.add("vision")
        if b'"input_audio"' in parts and _AUDIO_PART.search(parts):
            used.add("audio")
        if request.turns and request.turns[-1].role == "assistant":
            used.add("prefill")
        return frozenset(used)

    def prefixes(self, request: ChatRequest) -> tuple[tuple[bytes, int], ...]:
        """Of the messages, behind the tools: in this order providers read and cache them."""
        return prefixes(memoryview(request.fields["messages"]), memoryview(request.fields.get("tools", b"")))

    def prompt(self, request: ChatRequest) -> tuple[msgspec.Raw, ...]:
        """Messages, tools and response format."""
        fields = request.fields
        return tuple([fields.get(name, ABSENT) for name in _PROMPT_FIELDS])

    def gist(self, request: ChatRequest) -> Gist:
        """See `relay.wire.gist`."""
        return gist(request.turns, request.fields)

    def reasoning(self, request: ChatRequest) -> Reasoning | None:
        """In the fields of OpenAI, OpenRouter, Anthropic and Gemini; what cannot be read there says nothing."""
        for name in filter(request.fields.__contains__, _REASONING_FIELDS):
            try:
                read = _read_thinking(request.fields[name])
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            said = Reasoning(read) if isinstance(read, str) else read.said() if read else None
            if said and (said.effort or said.tokens):
                return said
        return None

    def extendable(self, request: ChatRequest) -> bool:
        """As `may_continue`, and no tools are offered."""
        return _continues(request, _NOT_SURELY_CONTINUED)

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
        return _continues(request, _NOT_CONTINUED)

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
        self, so_far: SoFar | None, style: Continuing, *, hide_usage: bool, hold_length: bool
    ) -> SegmentReader:
        """See `relay.dialects.openai_segments`."""
        if so_far is None:
            return FirstSegment(hide_usage=hide_usage, hold_length=hold_length)
        return LaterSegment(so_far, anchored=style == "instruction", hide_usage=hide_usage, hold_length=hold_length)

    def parse_answer(self, body: bytes) -> Answer:
        """Read a complete answer's finish reason and usage."""
        try:
            answer = read_body(body)
        except msgspec.ValidationError:
            # JSON, but of a shape that is not known here: it is the client's to judge.
            return Answer(finish_reason=None, usage=None, output_chars=len(body))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UpstreamProtocolError("The upstream's answer is not JSON.") from None
        if answer.error is not ABSENT and bytes(answer.error) != b"null":
            raise refused(bytes(answer.error), None, None)
        usage, choices = parse_usage(answer.usage), answer.choices or [Choice()]
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
        return refused(bytes(fields.get("error", body)), status, wait_s)

    def encode_error(self, error: RelayError) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return msgspec.json.encode({"error": _error_object(error)})

    def encode_error_event(self, error: RelayError) -> bytes:
        """One `data:` event, which the OpenAI SDKs raise as an APIError."""
        return b"data: %b\n\n" % self.encode_error(error)


def _read_head(body: bytes) -> tuple[_Head[Any], list[Turn]]:
    """The head and the messages; what is no message is the upstream's to judge, and has nothing to read."""
    try:
        usual = _read_usual_head(body)
    except msgspec.ValidationError:
        odd = _read_any_head(body)
        return odd, [_turn(raw) for raw in odd.messages]
    return usual, usual.messages


def _turn(raw: msgspec.Raw) -> Turn:
    try:
        return _read_turn(raw)
    except msgspec.ValidationError:
        return Turn()


def _continues(request: ChatRequest, unless: dict[str, tuple[bytes, ...]]) -> bool:
    """Whether answers may be put together from several, unless a field has another value than these."""
    fields = request.fields
    for name in filter(fields.__contains__, unless):
        if bytes(fields[name]) not in unless[name]:
            return False
    return request.choices == 1 and bool(request.turns) and request.turns[-1].role != "assistant"


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
        changes["messages"] = _steered(bytes(request.fields["messages"]), shape.steering)
    return changes


def _steered(messages: bytes, text: str) -> bytes:
    """The messages with a text at the end of their system prompt, or as a system prompt of their own."""
    turns = _read_list(messages)
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
            content = b"[" + b",".join([*_read_list(content), part]) + b"]"
        start = messages.index(first)
        return messages[:start] + splice(first, fields, {"content": content}) + messages[start + len(first) :]
    own = msgspec.json.encode({"role": "system", "content": text})
    return b"[%b%b%b" % (own, b"," if turns else b"", messages[1:])


def _with_usage(options: msgspec.Raw | None) -> bytes:
    """`stream_options` with `include_usage` on and everything else as it was."""
    if options is None or bytes(options) == b"null":
        return b'{"include_usage":true}'
    return splice(bytes(options), read_object(options), {"include_usage": b"true"})


def _error_object(error: RelayError) -> dict[str, str | None]:
    """An upstream's own type and code where the fault is the client's to mend, else the relay's."""
    kind, code = error.type, error.code
    if isinstance(error, UpstreamRefused) and error.http_status == error.upstream_status:
        kind, code = error.upstream_type or kind, error.upstream_code or code
    return {"message": error.message, "type": kind, "param": error.param, "code": code}
