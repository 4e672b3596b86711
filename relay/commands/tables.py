"""Tables, as every command prints them: plain, and wrapped rather than cut where a terminal is narrow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable


WIDE = 200
"""Columns of what is no terminal: a table that goes to a file or a pipe is not to be folded for a screen."""


def console() -> Console:
    """The standard output, where text means itself: names may have brackets."""
    made = Console(highlight=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDE
    return made


def table(columns: Iterable[str], *, numbers: Iterable[str] = (), title: str | None = None) -> Table:
    """A table without rows.

    Args:
        columns: their heads.
        numbers: heads of columns that follow, of numbers: they stand on the right and are never folded.
        title: stands above them.
    """
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column, overflow="fold")
    for column in numbers:
        made.add_column(column, justify="right", no_wrap=True)
    return made
