"""The decision log: one JSON line per request that found a route, whole enough to decide it anew (`relay.replay`).

A line is a `RequestRecord`: what was asked of the candidates, who was chosen and why, how each attempt went, what it
used. There is no text in one; what a prompt begins with is there as fingerprints, which are keyed before they are
written, so that nobody can try out guesses on a log that was copied.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from relay.messages import RequestRecord
from relay.telemetry.events import FLUSH_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.clock import Clock

FLUSH_BYTES = 32 * 1024
"""Bytes that may wait to be written."""

_FINGERPRINT_BYTES = 8
_BY_APPLICATION = 2
"""Cells with longer names than this end with the fingerprint of an application, see `relay.limits.lengths.Place`."""

_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(RequestRecord)


def encode(record: RequestRecord, secret: bytes) -> bytes:
    """A record as a line, without its end.

    Args:
        record: what is known of the request.
        secret: keys the fingerprints, at most 64 bytes; the same one keeps equal beginnings equal.
    """
    wants = record.wants
    if wants is not None and wants.prefixes:
        keyed = tuple((_keyed(fingerprint, secret), tokens) for fingerprint, tokens in wants.prefixes)
        record = msgspec.structs.replace(record, wants=msgspec.structs.replace(wants, prefixes=keyed))
    budget = record.budget
    if budget is not None and len(budget.cell) > _BY_APPLICATION and budget.cell[-1]:
        cell = (*budget.cell[:-1], _keyed(budget.cell[-1].encode(), secret).hex())
        record = msgspec.structs.replace(record, budget=msgspec.structs.replace(budget, cell=cell))
    return _encoder.encode(record)


def _keyed(fingerprint: bytes, secret: bytes) -> bytes:
    return blake2b(fingerprint, key=secret, digest_size=_FINGERPRINT_BYTES).digest()


def decode(lines: Iterable[bytes]) -> tuple[list[RequestRecord], int]:
    """The records of some lines, and how many lines were none, for example because a full disk cut them short."""
    records, unreadable = [], 0
    for line in lines:
        try:
            if line.strip():
                records.append(_decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            unreadable += 1
    return records, unreadable


class DecisionLog:
    """Writes finished requests to the decision log. An observer of the pipeline.

    Args:
        write: takes some whole lines, and must neither raise nor wait for long.
        clock: times the flush, as the request log's.
        secret: keys the fingerprints of prompts, at most 64 bytes.
    """

    def __init__(self, write: Callable[[bytes], object], *, clock: Clock, secret: bytes) -> None:
        self._write = write
        self._clock = clock
        self._secret = secret
        self._buffer = bytearray()

    def record(self, record: RequestRecord) -> None:
        """Add a finished request's line; one that found no route had nothing to decide."""
        if not record.route:
            return
        if not self._buffer:
            self._clock.call_later(FLUSH_S, self.flush)
        self._buffer += encode(record, self._secret)
        self._buffer += b"\n"
        if len(self._buffer) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits, if anything does."""
        if self._buffer:
            lines = bytes(self._buffer)
            self._buffer.clear()
            self._write(lines)
