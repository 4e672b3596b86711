"""Change a few top-level fields of a JSON object and leave every other byte as it came.

A relay that decodes and re-encodes a body loses what JSON libraries do not keep: number formats (`1.0`, `1e5`,
integers over 64 bits), escapes, white space, order. So the body is read once into raw views of its top-level
values (`read_object`), and new values are cut into the client's own bytes (`splice`).
"""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

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
    names = [name for name in fields if name in changes or name in renames]
    places = _find(body, fields, names)
    if places is None:
        places = _walk(body, fields)
    if places is None:
        return _rebuild(fields, changes, renames)
    pieces: list[bytes] = []
    kept_to = 0
    for name in names:
        place = places[name]
        if name in renames:
            pieces += (body[kept_to : place.key], msgspec.json.encode(renames[name]))
            kept_to = place.colon
        if name in changes:
            pieces += (body[kept_to : place.value], changes[name])
            kept_to = place.end
    end = body.rindex(b"}")
    while body[end - 1] in _SPACE:
        end -= 1
    pieces.append(body[kept_to:end])
    comma = b"," if fields else b""
    for name, value in changes.items():
        if name not in fields:
            pieces.append(b"%b%b:%b" % (comma, msgspec.json.encode(name), value))
            comma = b","
    pieces.append(body[end:])
    return b"".join(pieces)


class _Place(NamedTuple):
    """Offsets of a field: of its key's first quote, behind the last one, of its value, and behind that."""

    key: int
    colon: int
    value: int
    end: int


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
        at = place.end
    return None if body[at : body.rindex(b"}")].strip(_SPACE) else places


def _place(body: bytes, key: int, size: int, raw: msgspec.Raw) -> _Place:
    value = body.index(b":", key + size) + 1
    while body[value] in _SPACE:
        value += 1
    return _Place(key, key + size, value, value + len(memoryview(raw)))


def _rebuild(fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str]) -> bytes:
    """Values byte for byte and in order; of a key that stands twice the last value, as JSON readers take it."""
    merged = {renames.get(name, name): changes.get(name, raw) for name, raw in fields.items()}
    merged |= {name: value for name, value in changes.items() if name not in fields}
    return b"{%b}" % b",".join(b"%b:%b" % (msgspec.json.encode(name), bytes(value)) for name, value in merged.items())
