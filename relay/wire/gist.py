"""The part of a conversation that tells what it is after and how long it is, however long the prompt.

People put their request at the beginning or at the end of what they write, applications put the task at the beginning
of the system prompt. So the body of a gist is a small Chat Completions body: the first message and the last few, text
only in the first and in the last user's, and of long texts their two ends. Nothing long is copied or decoded, and
contents are walked only where they are lists of parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from relay.messages import ABSENT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.messages import Turn

RECENT = 16
"""Messages kept from the end, beside the first."""

PARTS = 4
"""Content parts kept of each end of a message."""

TOOLS = 8
"""Tool definitions kept."""

END_CHARS = 256
"""Characters kept of each end of a text, at least. By so many an application is known; the classifier reads fewer."""

_PLAIN_END = 4 * (END_CHARS + 1)  # bytes, in UTF-8; one for the quote
_ESCAPED_END = 12 * (END_CHARS + 1)  # bytes, each character a pair of \u escapes
_ESCAPE = 6  # bytes, of half a character at least
_LOOK_BACK = 64
_SHORT = 64
_QUOTE, BRACKET, _BRACE = b'"[{'
"""By which JSON's strings, lists and objects begin, see `begins`."""

_NOTHING = (b"null", b"false", b"0", b'""', b"{}")
_IMAGE = msgspec.Raw(b'"image_url"')


class Gist(msgspec.Struct, frozen=True, gc=False):
    """What is left.

    Attributes:
        body: a Chat Completions body as decoded JSON.
        texts: all that a model reads, uncut, as it stands between the quotes of JSON; tools as JSON. Views.
        images: how many pictures there are among the parts.
    """

    body: dict[str, Any]
    texts: list[memoryview]
    images: int


class _Part(msgspec.Struct, gc=False):
    type: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT


class _Function(msgspec.Struct, gc=False):
    name: msgspec.Raw = ABSENT
    description: msgspec.Raw = ABSENT


class _Tool(_Function, gc=False):
    function: msgspec.Raw = ABSENT


class _Format(msgspec.Struct, gc=False):
    type: msgspec.Raw = ABSENT


_read_part = msgspec.json.Decoder(_Part).decode
_read_parts = msgspec.json.Decoder(list[_Part]).decode
_read_tool = msgspec.json.Decoder(_Tool).decode
_read_function = msgspec.json.Decoder(_Function).decode
_read_format = msgspec.json.Decoder(_Format).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_text = msgspec.json.Decoder(str).decode


def gist(turns: Sequence[Turn], fields: Mapping[str, msgspec.Raw]) -> Gist:
    """Cut a request down.

    Args:
        turns: its messages.
        fields: its top-level fields.
    """
    latest = turns[: -RECENT - 1 : -1]
    roles = [turn.role for turn in latest]
    asked = latest[roles.index("user")] if "user" in roles else None
    messages: list[dict[str, Any]] = []
    body: dict[str, Any] = {"messages": messages}
    texts, images = [], 0
    for place, turn in enumerate(turns):
        view, parts = memoryview(turn.content), None
        if view and view[0] == _QUOTE:
            texts.append(view[1:-1])
        elif view and view[0] == BRACKET:
            parts = _parts(turn.content)
            for part in parts:
                texts.append(memoryview(part.text)[1:-1])
                images += part.type == _IMAGE
        if turn.tool_calls is not ABSENT:
            texts.append(memoryview(turn.tool_calls))
        if not place or turn is asked:
            messages.append({"role": turn.role, "content": _ends(parts) if parts else _text(view)})
        elif place >= len(turns) - RECENT:
            messages.append({"role": turn.role})
    for name in filter(fields.__contains__, ("tools", "functions")):
        body[name] = _tools(fields[name])
        texts.append(memoryview(fields[name]))
    if "response_format" in fields:
        body["response_format"] = _response_format(fields["response_format"])
    return Gist(body, texts, images)


def shortened(string: memoryview) -> bytes:
    """A JSON string without its middle: `END_CHARS` of each end are kept or more; what is short stays whole."""
    escapes = max(bytes(end).count(b"\\u") for end in (string[:_ESCAPED_END], string[-_ESCAPED_END:]))
    size = min(_PLAIN_END + _ESCAPE * escapes, _ESCAPED_END)
    if len(string) <= 2 * size + _LOOK_BACK:
        return bytes(string)
    start, end = _between_characters(string, size), _between_characters(string, len(string) - size)
    return bytes(string) if start is None or end is None else b"\\n".join((string[:start], string[end:]))


def _between_characters(string: memoryview, at: int) -> int | None:
    """The first place from `at` on that is in no escape and no character; None if backslashes hide it."""
    before = bytes(string[at - _LOOK_BACK : at])
    escapes = before[: before.rfind(b"\\") + 1]
    run = len(escapes) - len(escapes.rstrip(b"\\"))
    if run and run == len(before):
        return None
    if run % 2:
        start = at - len(before) + len(escapes) - 1
        code = bytes(string[start + 1 : start + 4]).lower()
        size = 2 if code[:1] != b"u" else 12 if code[1:] >= b"d8" and code[1:] < b"dc" else 6
        at = max(at, start + size)
    while string[at] & 0xC0 == 0x80:  # noqa: PLR2004 - UTF-8's mark of a byte that continues a character
        at += 1
    return at


def _ends(parts: list[_Part]) -> list[dict[str, str | None]]:
    kept = parts if len(parts) <= 2 * PARTS else [*parts[:PARTS], *parts[-PARTS:]]
    return [{"type": _text(memoryview(part.type)), "text": _text(memoryview(part.text))} for part in kept]


def _parts(content: msgspec.Raw) -> list[_Part]:
    try:
        return _read_parts(content)
    except msgspec.ValidationError:
        return [_part(raw) for raw in _read_list(content)]


def _part(raw: msgspec.Raw) -> _Part:
    """One of a list in which not all are objects."""
    if begins(_BRACE, raw):
        return _read_part(raw)
    return _Part(text=raw) if begins(_QUOTE, raw) else _Part()


def _tools(tools: msgspec.Raw) -> list[Any] | bool:
    """The first of a list of tools; for what is none, whether anything is there."""
    if not begins(BRACKET, tools):
        return bytes(tools) not in _NOTHING
    return [_tool(raw) for raw in _read_list(tools)[:TOOLS]]


def _tool(raw: msgspec.Raw) -> dict[str, Any] | None:
    if not begins(_BRACE, raw):
        return None
    tool = _read_tool(raw)
    if tool.function is ABSENT:
        return _described(tool)
    return {"function": _described(_read_function(tool.function)) if begins(_BRACE, tool.function) else None}


def _described(function: _Function) -> dict[str, Any]:
    return {"name": _text(memoryview(function.name)), "description": _text(memoryview(function.description))}


def _response_format(value: msgspec.Raw) -> dict[str, Any] | None:
    return {"type": _text(memoryview(_read_format(value).type))} if begins(_BRACE, value) else None


def _text(view: memoryview) -> str | None:
    """A string, if it is one: of a long one the two ends."""
    if not view or view[0] != _QUOTE:
        return None
    try:
        return _read_text(view if len(view) <= 2 * _PLAIN_END else shortened(view))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def begins(kind: int, raw: msgspec.Raw) -> bool:
    """Whether JSON begins with that byte."""
    view = memoryview(raw)
    return bool(view) and view[0] == kind
