"""How long an answer asks to be left alone."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.messages import Headers

MAX_RETRY_AFTER_S = 86_400.0
"""A day; more than that is taken for a mistake and cut."""


def retry_after_s(headers: Headers) -> float | None:
    """Seconds from `retry-after-ms` (OpenAI, Azure) or `retry-after` (RFC 9110 §10.2.3); None if neither holds.

    A date is counted from the answer's own `date`, so that no clock is needed; without one it is ignored.
    """
    fields = dict(headers)
    try:
        if b"retry-after-ms" in fields:
            seconds = float(fields[b"retry-after-ms"]) / 1000
        elif (value := fields.get(b"retry-after", b"").decode("latin-1"))[:1].isdigit():
            seconds = float(value)
        else:
            then = parsedate_to_datetime(value)
            seconds = (then - parsedate_to_datetime(fields[b"date"].decode("latin-1"))).total_seconds()
    except (ValueError, TypeError, KeyError):
        return None
    return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 else None
