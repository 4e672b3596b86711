"""Server-Sent Events, sans-IO: cut a byte stream into whole events, read an event's data.

Nothing here rewrites: the pieces put together again are the bytes that came.
Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import re

from relay.errors import UpstreamProtocolError

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""An event may not be larger, since it is held until it is whole. Images and audio in base64 reach a few MB."""

_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\n\n", b"\r\r")
_OVERLAP = 3  # bytes of the longest blank line that may have come with an earlier read
_EVENT_WITH_CR = re.compile(rb".*?(?:\r\n\r\n|\n\n|\n\r\n|\r\n\n|\r\r)", re.DOTALL)
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventFramer:
    """Holds the event that is not yet whole, and nothing else.

    Fragments are joined once, and each byte is searched once, so an event that comes byte by byte costs linear
    time. A CR that ends a read may be half of a CRLF: the blank line is then seen with the next byte.
    """

    __slots__ = ("_held", "_held_bytes", "_overlap")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._overlap = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes, return every event that is now whole, as it came.

        Raises:
            UpstreamProtocolError: an event is larger than MAX_EVENT_BYTES.
        """
        if not self._held and data.endswith(b"\n\n"):  # nearly always: a read ends where an event ends
            return data
        window = self._overlap + data
        ends = [at + len(blank) for blank in _BLANK_LINES if (at := window.rfind(blank)) >= 0]
        end = max(ends, default=0) - len(self._overlap)
        if end <= 0:
            self._hold(data)
            return b""
        whole = self.rest() + data[:end]
        if end < len(data):
            self._hold(data[end:])
        return whole

    def rest(self) -> bytes:
        """Give up what is held."""
        rest = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        self._overlap = b""
        return rest

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_EVENT_BYTES:
            raise UpstreamProtocolError(f"The upstream sent an event of more than {MAX_EVENT_BYTES} bytes.")
        self._overlap = (self._overlap + data)[-_OVERLAP:]


def split_events(whole: bytes) -> list[bytes]:
    """The events of what `EventFramer.feed` returned, each with its blank line."""
    if b"\r" in whole:
        return _EVENT_WITH_CR.findall(whole)
    events = whole.split(b"\n\n")
    events.pop()  # what stands behind the last blank line: nothing
    return [event + b"\n\n" for event in events]


def event_data(event: bytes) -> bytes | None:
    """The event's data, its lines joined by LF; None if it has none (a comment, a ping, a bare name)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    data = None
    for line in _LINE_END.split(event.removeprefix(_BYTE_ORDER_MARK)):
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            data = value if data is None else data + b"\n" + value
    return data
