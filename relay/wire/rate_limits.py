"""What an upstream says of its own limits in the headers of its answers, before it has to refuse anything."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from relay.messages import Headers

WINDOW_S = 10.0
"""How long a count without a reset time is believed: Azure sends none, and counts requests in windows of 1 to 10 s."""

LONGEST_S = 86_400.0
"""A day, the longest window that providers count in; more than that is taken for a mistake and cut."""

_LEFT = re.compile(
    rb"(?:x-)?ratelimit-remaining-(requests|tokens)(-minute|-hour|-day)?"  # OpenAI, Azure, Groq, xAI; Cerebras
    rb"|anthropic-ratelimit-(requests|tokens|input-tokens|output-tokens)-remaining"
)
_SHORTEST = len(b"ratelimit-remaining-tokens")  # most names are shorter: then they need not be searched
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s|d|us|µs|ns)?")
_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class Room(msgspec.Struct, frozen=True, gc=False):
    """What is left of one limit.

    Attributes:
        kind: what it counts.
        left: requests or tokens.
        reset_s: seconds from the answer until there is more.
    """

    kind: Literal["requests", "tokens"]
    left: int
    reset_s: float


def rooms(headers: Headers) -> list[Room]:
    """All limits that an answer tells of, in the order of its headers; what cannot be read is passed over.

    Dates (Anthropic) are counted from the answer's own `date`, so that no clock is needed.
    """
    found = []
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if len(name) < _SHORTEST or b"ratelimit" not in name or (counted := _counted(name)) is None:
            continue
        if value.isdigit():  # Azure says -1 for what it does not count
            kind, reset = counted
            fields = fields or dict(headers)
            until = fields.get(reset, b"")
            found.append(Room(kind, int(value), _reset_s(until, fields.get(b"date", b"") if b"T" in until else b"")))
    return found


@lru_cache(maxsize=64)
def _counted(name: bytes) -> tuple[Literal["requests", "tokens"], bytes] | None:
    """What the header of that name tells the rest of, and which one says until when; None if it does not."""
    if _LEFT.fullmatch(name) is None:
        return None
    return "requests" if b"requests" in name else "tokens", name.replace(b"remaining", b"reset")


@lru_cache(maxsize=1024)
def _reset_s(told: bytes, date: bytes) -> float:
    """Seconds from an answer of that date until there is more; a provider says the same again and again."""
    value = told.decode("latin-1").strip()
    if not value:
        return WINDOW_S
    if "T" in value:  # RFC 3339
        try:
            now = parsedate_to_datetime(date.decode("latin-1"))
            seconds = (datetime.fromisoformat(value) - now).total_seconds()
        except (ValueError, TypeError):
            return WINDOW_S
        return min(max(seconds, 0.0), LONGEST_S)
    parts = _DURATION.findall(value.lower())  # "1s", "6m0s", "7.66s", "20ms"; a bare number is seconds
    if not parts or "".join(number + unit for number, unit in parts) != value.lower():
        return WINDOW_S
    return min(sum(float(number) * _UNITS_S[unit] for number, unit in parts), LONGEST_S)
