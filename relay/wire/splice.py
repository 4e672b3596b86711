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
    present = [name for name in (*changes, *renames) if name in fields]
    places = _find(body, fields, present)
    if places is None:
        places = _walk(body, fields)
        if places is None:
            return _rebuild(fields, changes, renames)
    cuts: list[tuple[int, int, bytes]] = []
    added = b""
    for name, value in changes.items():
        if name in fields:
            _, _, start, end = places[name]
            cuts.append((start, end, value))
        else:
            added += b"%b%b:%b" % (b"," if fields or added else b"", msgspec.json.encode(name), value)
    for name, new_name in renames.items():
        if name in fields:
            start, end, _, _ = places[name]
            cuts.append((start, end, msgspec.json.encode(new_name)))
    if added:
        end = len(body[: body.rindex(b"}")].rstrip(_SPACE))
        cuts.append((end, end, added))
    cuts.sort()
    kept = memoryview(body)  # a slice of bytes would be one more copy of a long conversation
    pieces: list[bytes | memoryview] = []
    kept_to = 0
    for start, end, new in cuts:
        pieces += (kept[kept_to:start], new)
        kept_to = end
    pieces.append(kept[kept_to:])
    return b"".join(pieces)


_Place = tuple[int, int, int, int]
"""Offsets of a field: of its key's first quote, behind the last one, of its value, and behind that."""


def _find(body: bytes, fields: Fields, names: list[str]) -> dict[str, _Place] | None:
    """Places of a few fields, at once; None if their keys might stand elsewhere too.

    A quoted name that occurs once in the whole text is the key, as long as no key can be written with escapes.
    (Inside a string its quotes would be escaped.)
    """
    if b"\\u" in body:
        return None
    places = {}
    for name in names:
        key = b'"%b"' % name.encode()
        if body.count(key) != 1:
            return None
        places[name] = _place(body, body.index(key), len(key), fields[name])
    return places


def _walk(body: bytes, fields: Fields) -> dict[str, _Place] | None:
    """Places of all fields, one after the other; None if a key is escaped or stands twice."""
    places = {}
    at = body.index(b"{") + 1
    for name, raw in fields.items():
        key = b'"%b"' % name.encode()
        start = body.index(b'"', at)
        if not body.startswith(key, start):
            return None
        place = places[name] = _place(body, start, len(key), raw)
        at = place[3]
    return None if body[at : body.rindex(b"}")].strip(_SPACE) else places


def _place(body: bytes, key: int, size: int, raw: msgspec.Raw) -> _Place:
    value = body.index(b":", key + size) + 1
    while body[value] in _SPACE:
        value += 1
    return key, key + size, value, value + len(memoryview(raw))


def _rebuild(fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str]) -> bytes:
    """Values byte for byte and in order; of a key that stands twice the last value, as JSON readers take it."""
    merged = {renames.get(name, name): changes.get(name, raw) for name, raw in fields.items()}
    merged |= {name: value for name, value in changes.items() if name not in fields}
    return b"{%b}" % b",".join(b"%b:%b" % (msgspec.json.encode(name), bytes(value)) for name, value in merged.items())
