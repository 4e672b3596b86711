"""The part of a conversation that tells what it is after, as JSON and bounded, however long the prompt is.

People put their request at the beginning or at the end of what they write, applications put the task at the beginning
of the system prompt. So a gist is a small Chat Completions body: the first message and the last few, text only in the
first and in the last user's, and of long texts their two ends. It is cut from the client's bytes; nothing long is
decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RECENT = 16
"""Messages kept from the end, beside the first."""

PARTS = 4
"""Content parts kept of each end of a message."""

TOOLS = 8
"""Tool definitions kept."""

END_CHARS = 320
"""Characters kept of each end of a text, at least."""

_PLAIN_END = 4 * (END_CHARS + 1)  # bytes, in UTF-8; one for the quote
_ESCAPED_END = 12 * (END_CHARS + 1)  # bytes, each character a pair of \u escapes
_BRIEF = 2 * _PLAIN_END
_LOOK_BACK = 64
_SHORT = 64

_BESIDE = {"tools", "functions", "response_format"}
_ABSENT = msgspec.Raw()


class Gist(NamedTuple):
    """What is left.

    Attributes:
        body: a Chat Completions body.
        first: its first message, which may be a system prompt; nothing if it has none.
    """

    body: bytes
    first: bytes


class _Turn(msgspec.Struct, gc=False):
    role: Any = None
    content: msgspec.Raw = _ABSENT


class _Part(msgspec.Struct, gc=False):
    type: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT


class _Function(msgspec.Struct, gc=False):
    name: msgspec.Raw = _ABSENT
    description: msgspec.Raw = _ABSENT


class _Tool(_Function, gc=False):
    function: msgspec.Raw = _ABSENT


class _Format(msgspec.Struct, gc=False):
    type: msgspec.Raw = _ABSENT


_read_turn = msgspec.json.Decoder(_Turn).decode
_read_part = msgspec.json.Decoder(_Part).decode
_read_tool = msgspec.json.Decoder(_Tool).decode
_read_function = msgspec.json.Decoder(_Function).decode
_read_format = msgspec.json.Decoder(_Format).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def gist(turns: Sequence[msgspec.Raw], fields: Mapping[str, msgspec.Raw]) -> Gist:
    """Cut a request down.

    Args:
        turns: its messages.
        fields: its top-level fields.
    """
    prompt = bytes(fields["messages"])
    if len(prompt) <= _BRIEF and len(turns) <= RECENT and _BESIDE.isdisjoint(fields):
        return Gist(b'{"messages":%b}' % prompt, bytes(turns[0]) if turns else b"")
    kept = [_turn(raw) for raw in (turns if len(turns) <= RECENT else (turns[0], *turns[-RECENT:]))]
    asked = next((turn for turn in reversed(kept[-RECENT:]) if turn is not None and turn.role == "user"), None)
    first = kept[0] if kept else None
    messages = [_message(turn, whole=turn is first or turn is asked) for turn in kept]
    body = b'{"messages":[%b]' % b",".join(messages)
    for name in ("tools", "functions"):
        if name in fields:
            body += b',"%b":%b' % (name.encode(), _tools(bytes(fields[name])))
    if "response_format" in fields:
        body += b',"response_format":' + _response_format(bytes(fields["response_format"]))
    return Gist(body + b"}", messages[0] if messages else b"")


def shortened(string: bytes) -> bytes:
    """A JSON string without its middle: `END_CHARS` of each end are kept or more. What is short or no string stays."""
    if len(string) <= 2 * _PLAIN_END or not string.startswith(b'"'):
        return string
    ends = string[:_ESCAPED_END], string[-_ESCAPED_END:]
    size = _ESCAPED_END if any(b"\\u" in end for end in ends) else _PLAIN_END
    if len(string) <= 2 * size + _LOOK_BACK:
        return string
    start, end = _between_characters(string, size), _between_characters(string, len(string) - size)
    return string if start is None or end is None else b"%b\\n%b" % (string[:start], string[end:])


def _between_characters(string: bytes, at: int) -> int | None:
    """The first place from `at` on that is in no escape and no character; None if backslashes hide it."""
    before = string[at - _LOOK_BACK : at]
    escapes = before[: before.rfind(b"\\") + 1]
    run = len(escapes) - len(escapes.rstrip(b"\\"))
    if run and run == len(before):
        return None
    if run % 2:
        start = at - len(before) + len(escapes) - 1
        code = string[start + 1 : start + 4].lower()
        size = 2 if code[:1] != b"u" else 12 if code[1:] >= b"d8" and code[1:] < b"dc" else 6
        at = max(at, start + size)
    while string[at] & 0xC0 == 0x80:  # noqa: PLR2004 - UTF-8's mark of a byte that continues a character
        at += 1
    return at


def _turn(raw: msgspec.Raw) -> _Turn | None:
    """A message; one that is no object counts as one without a role, but for null."""
    try:
        return _read_turn(raw)
    except msgspec.ValidationError:
        return None if bytes(raw) == b"null" else _Turn()


def _message(turn: _Turn | None, *, whole: bool) -> bytes:
    if turn is None:
        return b"null"
    role = msgspec.json.encode(turn.role[:_SHORT] if isinstance(turn.role, str) else None)
    if not whole or turn.content is _ABSENT:
        return b'{"role":%b}' % role
    return b'{"role":%b,"content":%b}' % (role, _content(bytes(turn.content)))


def _content(content: bytes) -> bytes:
    if not content.startswith(b"["):
        return shortened(content) if content.startswith(b'"') else b"null"
    parts = _read_list(content)
    if len(parts) > 2 * PARTS:
        parts = [*parts[:PARTS], *parts[-PARTS:]]
    return b"[%b]" % b",".join(_part(bytes(part)) for part in parts)


def _part(part: bytes) -> bytes:
    if part.startswith(b'"'):
        return shortened(part)
    if not part.startswith(b"{"):
        return b"null"
    read = _read_part(part)
    return _object((("type", read.type), ("text", read.text)))


def _tools(tools: bytes) -> bytes:
    if not tools.startswith(b"["):
        return tools if len(tools) <= _SHORT else b"true"
    return b"[%b]" % b",".join(_tool(bytes(tool)) for tool in _read_list(tools)[:TOOLS])


def _tool(tool: bytes) -> bytes:
    if not tool.startswith(b"{"):
        return b"null"
    read = _read_tool(tool)
    if read.function is _ABSENT:
        return _object((("name", read.name), ("description", read.description)))
    if not bytes(read.function).startswith(b"{"):
        return b'{"function":null}'
    function = _read_function(read.function)
    return b'{"function":%b}' % _object((("name", function.name), ("description", function.description)))


def _response_format(value: bytes) -> bytes:
    return _object((("type", _read_format(value).type),)) if value.startswith(b"{") else b"null"


def _object(values: Iterable[tuple[str, msgspec.Raw]]) -> bytes:
    """Fields that are there; long strings shortened, what else is long left out."""
    members = []
    for name, raw in values:
        value = shortened(bytes(raw))
        if value and (value.startswith(b'"') or len(value) <= _SHORT):
            members.append(b'"%b":%b' % (name.encode(), value))
    return b"{%b}" % b",".join(members)
