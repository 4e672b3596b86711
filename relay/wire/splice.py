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
_OPEN = ord("{")
_BACKSLASH = ord("\\")  # a byte that is asked for by its number is found sooner
_SHORT = 4096
"""Bytes of a body from which on searching it is dearer than going from field to field."""
_STEP = dict.fromkeys(b"[{", 1) | dict.fromkeys(b"]}", -1)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))


def is_deeper(body: bytes, most: int) -> bool:
    """Whether arrays and objects are nested more than `most` deep; a flat object is 1 deep. Needs valid JSON."""
    return _has_brackets(body, most + 1) and depth(body) > most


def _has_brackets(body: bytes, at_least: int) -> bool:
    """Whether that many arrays and objects begin. Python counts bytes slowly, but finds the next one fast."""
    seen = 0
    for bracket in (b"[", b"{"):
        at = body.find(bracket)
        while at >= 0 and seen < at_least:
            seen += 1
            at = body.find(bracket, at + 1)
    return seen >= at_least


def depth(body: bytes) -> int:
    """How deep arrays and objects are nested; 1 for a flat object. Needs valid JSON.

    Counted without building anything: escapes are dropped, then all bytes but quotes and brackets, then what
    stands between quotes; each step is one pass in C.
    """
    if _BACKSLASH in body:
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
    usual = len(body) < _SHORT and (_BACKSLASH not in body or b"\\u" not in body)  # a single byte is found much faster
    quick = _search(body, fields, changes, renames) if usual else None
    return _walk(body, fields, changes, renames or {}) if quick is None else quick


def _search(
    body: bytes, fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str] | None
) -> bytes | None:
    """Searching a short text for a name is less work than walking it; None if a key might stand elsewhere too.

    A quoted name that occurs once in the whole text is the key, as long as no key is written with escapes. (Inside a
    string its quotes would be escaped.)
    """
    for name, value in changes.items():
        if name not in fields:
            body = _add(body, name, value)
            continue
        key = b'"%b"' % name.encode()
        if body.count(key) != 1:
            return None
        before, _, behind = body.partition(key)
        colon = b": " if behind.startswith(b": ") else b":"  # as JSON is written
        old = colon + fields[name]
        if not behind.startswith(old):
            return None
        body = b"".join((before, key, colon, value, behind[len(old) :]))
    for name, new_name in renames.items() if renames else ():
        if name in fields:
            key = b'"%b"' % name.encode()
            if body.count(key) != 1:
                return None
            body = body.replace(key, msgspec.json.encode(new_name))
    return body


def _add(body: bytes, name: str, value: bytes) -> bytes:
    """One more field, at the end."""
    end = body.rindex(b"}")
    while body[end - 1] in _SPACE:
        end -= 1
    comma = b"" if body[end - 1] == _OPEN else b","
    return b"".join((body[:end], comma, msgspec.json.encode(name), b":", value, body[end:]))


def _walk(body: bytes, fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str]) -> bytes:
    """The same for any text, field by field, without a look at what a value says."""
    pieces: list[bytes | memoryview] = []
    kept = memoryview(body)
    kept_to, at = 0, body.index(b"{") + 1
    for name, raw in fields.items():
        key = b'"%b"' % name.encode()
        start = body.index(b'"', at)
        if not body.startswith(key, start):  # escaped, or it stands twice
            return _rebuild(fields, changes, renames)
        value = body.index(b":", start + len(key)) + 1
        while body[value] in _SPACE:
            value += 1
        at = value + len(memoryview(raw))
        if name in renames:
            pieces += (kept[kept_to:start], msgspec.json.encode(renames[name]))
            kept_to = start + len(key)
        if name in changes:
            pieces += (kept[kept_to:value], changes[name])
            kept_to = at
    if body[at : body.rindex(b"}")].strip(_SPACE):
        return _rebuild(fields, changes, renames)
    changed = b"".join((*pieces, kept[kept_to:]))
    for name, new in changes.items():
        if name not in fields:
            changed = _add(changed, name, new)
    return changed


def _rebuild(fields: Fields, changes: Mapping[str, bytes], renames: Mapping[str, str]) -> bytes:
    """Values byte for byte and in order; of a key that stands twice the last value, as JSON readers take it."""
    merged = {renames.get(name, name): changes.get(name, raw) for name, raw in fields.items()}
    merged |= {name: value for name, value in changes.items() if name not in fields}
    return b"{%b}" % b",".join(b"%b:%b" % (msgspec.json.encode(name), bytes(value)) for name, value in merged.items())
