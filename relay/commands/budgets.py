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
    for title, rows in ((TITLES[name], rows) for name, rows in report.items()):
        if not rows:
            console.print(f"{title}: nothing yet.\n")
            continue
        table = tables.table((column.replace("_", " ") for column in rows[0]), title=title)
        for row in rows[:SHOWN_CELLS]:
            table.add_row(*(_cell(column, value) for column, value in row.items()))
        console.print(table)
        if len(rows) > SHOWN_CELLS:
            console.print(f"And {len(rows) - SHOWN_CELLS:,} cells more; --format json lists them.\n")


def _cell(column: str, value: Any) -> str:
    match value:
        case None:
            return "" if column in {"over_budget", "widening"} else "all"
        case "":
            return "none"
        case str():
            return value
        case _ if column == "over_budget":
            return f"{value:.1%}"
        case _ if column in {"widening", "factor"}:
            return f"x {value:.2f}"
        case _:
            return f"{value:,.0f}"
