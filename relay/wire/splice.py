"""Change a few top-level fields of a JSON object and leave every other byte as it came.

A relay that decodes and re-encodes a body loses what JSON libraries do not keep: number formats (`1.0`, `1e5`,
integers over 64 bits), escapes, white space, order. So the body is read once into raw views of its top-level
values (`read_object`), and new values are cut into the client's own bytes (`splice`).
"""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

Fields = dict[str, msgspec.Raw]
"""Top-level fields in order, each value a raw view of its JSON text."""

read_object = msgspec.json.Decoder(Fields).decode
"""Read an object's top level. Raises msgspec.DecodeError (not JSON) or msgspec.ValidationError (not an object)."""

_SPACE = b" \t\n\r"
_STEP = dict.fromkeys(b"[{", 1) | dict.fromkeys(b"]}", -1)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))


def depth(body: bytes) -> int:
    """How deep arrays and objects are nested; 1 for a flat object. Needs valid JSON.

    Counted without building anything: escapes are dropped, then all bytes but quotes and brackets, then what
    stands between quotes; each step is one pass in C.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = body.translate(None, _NOT_STRUCTURE).split(b'"')
    return max(accumulate(map(_STEP.__getitem__, chain.from_iterable(structure[::2]))), default=0)


def splice(
    body: bytes, fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str] | None = None
) -> bytes:
    """The body with some top-level fields changed.

    Args:
        body: the object's JSON text.
        fields: `read_object(body)`.
        changes: field name -> JSON text of its new value. A field the body does not have is added at the end.
        renames: old name -> new name of fields that keep their value (or take the changed one).

    Returns:
        New JSON text; equal to `body` byte for byte outside of what was changed.
    """
    renames = renames or {}
    try:
        return _cut(body, fields, changes, renames)
    except _IrregularError:
        return _rebuild(fields, changes, renames)


class _IrregularError(Exception):
    """A key is escaped or stands twice, so a view's place in the body is not certain."""


def _cut(body: bytes, fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str]) -> bytes:
    pieces: list[bytes] = []
    kept_to = 0
    at = body.index(b"{") + 1
    for name, raw in fields.items():
        key_start = body.index(b'"', at)
        key_end = key_start + len(name.encode()) + 2
        if body[key_start:key_end] != b'"%b"' % name.encode():
            raise _IrregularError
        start = body.index(b":", key_end) + 1
        while body[start] in _SPACE:
            start += 1
        at = start + len(memoryview(raw))
        if name in renames:
            pieces += (body[kept_to:key_start], msgspec.json.encode(renames[name]))
            kept_to = key_end
        if name in changes:
            pieces += (body[kept_to:start], changes[name])
            kept_to = at
    end = body.rindex(b"}")
    if body[at:end].strip(_SPACE):
        raise _IrregularError
    pieces.append(body[kept_to:at])
    comma = b"," if fields else b""
    for name, value in changes.items():
        if name not in fields:
            pieces.append(b"%b%b:%b" % (comma, msgspec.json.encode(name), value))
            comma = b","
    pieces.append(body[at:])
    return b"".join(pieces)


def _rebuild(fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str]) -> bytes:
    """Values byte for byte and in order; of a key that stands twice the last value, as JSON readers take it."""
    merged = {renames.get(name, name): changes.get(name, raw) for name, raw in fields.items()}
    merged |= {name: value for name, value in changes.items() if name not in fields}
    return b"{%b}" % b",".join(b"%b:%b" % (msgspec.json.encode(name), bytes(value)) for name, value in merged.items())
