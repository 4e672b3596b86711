"""`relay budgets`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from relay.budget_report import reported
from relay.commands import tables
from relay.commands.base import FOLDER, Refused, format_option
from relay.errors import ConfigurationError
from relay.runtimes.state_folder import read

if TYPE_CHECKING:
    from pathlib import Path

SHOWN_CELLS = 40
"""Cells that a table lists, those with most answers; JSON has them all."""

ROOMY = 100
"""Columns from which on a terminal is shown all there is of a cell."""

LESS_WANTED = frozenset({"p90", "widening"})
"""What a narrower one is spared."""

PLACE = frozenset({"intent", "effort", "model", "key", "application"})
"""Columns that say which cell it is; all others are numbers."""

TITLES = {
    "answers": "Answers, tokens",
    "reasoning": "Hidden reasoning, tokens",
    "prompts": "Prompts, counted / estimated",
}


@click.command(
    epilog="\b\nExamples:\n"
    "  relay budgets /var/lib/relay\n"
    "  relay budgets --format json | jq '.answers[] | select(.key == \"team-a\")'\n\n"
    "docs/budgets.md says what a cell is. A relay that runs may do so: its workers write what they know every minute.",
)
@click.argument("folder", metavar="[DIR]", type=FOLDER, required=False, envvar="RELAY_STATE")
@format_option
def budgets(folder: Path | None, *, shape: str) -> None:
    """Say what was learned of lengths of answers, of hidden reasoning and of how models count prompts.

    DIR is the folder that a relay was given as RELAY_STATE; without it, RELAY_STATE.
    """
    if folder is None:
        raise click.UsageError("Missing argument '[DIR]': give the folder that a relay keeps its state in.")
    try:
        report = reported(read(folder).experience, time.time())
    except ConfigurationError as error:
        raise Refused(error) from None
    if shape == "json":
        click.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    console = tables.console()
    left_out = LESS_WANTED if console.width < ROOMY else frozenset()
    for title, rows in ((TITLES[name], rows) for name, rows in report.items()):
        if not rows:
            console.print(f"{title}: nothing yet.\n")
            continue
        place = [column for column in rows[0] if column in PLACE]
        numbers = [column for column in rows[0] if column not in PLACE and column not in left_out]
        heads = (column.replace("_", "\n") for column in numbers)
        table = tables.table([", ".join(place)], numbers=heads, title=title)
        for row in rows[:SHOWN_CELLS]:
            table.add_row(_place(row, place), *(_number(column, row[column]) for column in numbers))
        console.print(table)
        if len(rows) > SHOWN_CELLS:
            console.print(f"And {len(rows) - SHOWN_CELLS:,} cells more; --format json lists them.\n")


def _place(row: dict[str, Any], parts: list[str]) -> str:
    """What a cell tells apart; what it does not takes no room."""
    return ", ".join(row[part] or f"no {part}" for part in parts if row[part] is not None) or "all"


def _number(column: str, value: float | None) -> str:
    if value is None:
        return ""
    match column:
        case "over_budget":
            return f"{value:.1%}"
        case "widening" | "factor":
            return f"x {value:.2f}"
        case _:
            return f"{value:,.0f}"
