"""Tests that configure the log of this process give it back as it was."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from relay.telemetry.logs import QUIET_LOGGERS

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Levels and handlers are the same after the block as before it."""
    loggers = [logging.getLogger(name) for name in (None, *QUIET_LOGGERS)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
