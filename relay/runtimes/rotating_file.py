"""A file that lines are added to, and that makes room for a fresh one when it is full."""

from __future__ import annotations

import logging
import os
from itertools import pairwise
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("relay")


class RotatingFile:
    """One process's file, open to its end; `PATH.1` is the latest of those before it.

    Args:
        path: where; only its owner may read what is new there.
        max_bytes: a write that would make it larger goes to a fresh file. One write is never divided.
        kept: full files that are kept beside it, at least one.

    Raises:
        ConfigurationError: it cannot be opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, kept: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._failing = False
        self._torn = False
        try:
            self._open()
        except OSError as error:
            raise ConfigurationError(f"The decision log {path} cannot be opened: {error.strerror}.") from None

    def write(self, lines: bytes) -> None:
        """Add whole lines. What cannot be written is lost, and said once until it goes well again."""
        try:
            if self._size and self._size + len(lines) > self._max_bytes:
                self._rotate()
            data = b"\n" + lines if self._torn else lines
            written = os.write(self._file, data)
            self._size += written
            self._torn = written < len(data)  # a full disk, say
        except OSError as error:
            self._fail(error.strerror or "")
        else:
            if self._torn:
                self._fail("there is no room")
            else:
                self._failing = False

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        names = [self._path, *(self._full(number) for number in range(1, self._kept + 1))]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():  # somebody may have taken it away
                newer.replace(older)
        full = self._file
        self._open()
        os.close(full)

    def _full(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            _log.warning("decisions are not logged: %s", reason, extra={"event": "decision_log_failed"})
