"""What the relay says of itself (start, reload, shutdown, trouble), through the standard `logging`.

Two formatters that match the request lines of `events.py`. A message names its event and carries its facts as fields:

    logger.info("policy loaded", extra={"event": "policy_loaded", "fields": {"version": "0123456789ab"}})
"""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from relay.errors import RelayError
from relay.telemetry.events import COLOURS, Level, Style, painted

if TYPE_CHECKING:
    from typing import TextIO

QUIET_LOGGERS = ("uvicorn",)
"""Libraries whose information is either said by the relay already or of no use; their warnings are passed on."""

EXPLAINED_ERRORS = (RelayError, OSError)
"""Errors whose message is logged. That of any other may quote what it choked on: a prompt, an answer, a secret."""


def configure(stream: TextIO, *, level: Level, style: Style, colour: bool) -> None:
    """Send the log of this process, libraries included, to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter(colour=colour))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def level_of(record: logging.LogRecord) -> Level:
    """The relay's own name for the record's level."""
    if record.levelno >= logging.ERROR:
        return "error"
    if record.levelno >= logging.WARNING:
        return "warning"
    return "info" if record.levelno >= logging.INFO else "debug"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The facts a message carries; those of an exception are its stack and, if it may be told, what it says."""
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    if record.exc_info is not None and record.exc_info[1] is not None:
        fields["exception"] = describe(record.exc_info[1])
    return fields


def describe(error: BaseException) -> str:
    """An exception with its stack and its causes, the first one first."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    chain = f"{describe(before)}\n" if before is not None else ""
    told = str(error) if isinstance(error, EXPLAINED_ERRORS) else "(message withheld: it may quote a request)"
    return f"{chain}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}: {told}"


class JsonFormatter(logging.Formatter):
    """`ts`, `level`, `event` (`log` if it has no name of its own), `logger`, `message`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object on one line."""
        event = {
            "ts": datetime.fromtimestamp(record.created, UTC),
            "level": level_of(record),
            "event": getattr(record, "event", "log"),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **fields_of(record),
        }
        return msgspec.json.encode(event, enc_hook=str).decode()


class ConsoleFormatter(logging.Formatter):
    """Time, level, message, `field=value` …; a stack follows on lines of its own."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The line, coloured by level."""
        level, fields = level_of(record), fields_of(record)
        exception = fields.pop("exception", None)
        at = datetime.fromtimestamp(record.created, UTC)
        line = "  ".join(
            [
                painted(f"{at:%H:%M:%S}", "2", colour=self._colour),
                painted(f"{level:<7}", COLOURS[level], colour=self._colour),
                record.getMessage(),
                *(painted(f"{name}={value}", "2", colour=self._colour) for name, value in fields.items()),
            ]
        )
        return line if exception is None else f"{line}\n{exception}"
