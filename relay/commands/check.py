"""`relay check`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from relay.commands import tables
from relay.commands.base import FOLDER, checked, format_option
from relay.policy.json_schema import json_schema

if TYPE_CHECKING:
    from pathlib import Path

    from relay.policy.compiled import Policy


@click.command(
    epilog="\b\nExamples:\n"
    "  relay check policies/default\n"
    "  relay check --format json | jq .findings\n"
    "  relay check --schema > relay-policy.schema.json",
)
@click.argument("folder", metavar="[DIR]", type=FOLDER, required=False, envvar="RELAY_POLICY")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of policy files, for editors, and check nothing.")
@format_option
def check(folder: Path | None, *, schema: bool, shape: str) -> None:
    """Check a policy set and say what it makes of it.

    DIR is its folder; without it, RELAY_POLICY. What is wrong comes as FILE:LINE, one finding a line, and makes the
    exit code 1; warnings do not.
    """
    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    if folder is None:
        raise click.UsageError("Missing argument '[DIR]': give the folder of a policy set, or set RELAY_POLICY.")
    policy, findings = checked(folder)
    if shape == "json":
        shown = {"findings": [asdict(finding) for finding in findings], "policy": policy and _summary(policy)}
        click.echo(json.dumps(shown, indent=2))
    else:
        for finding in findings:
            click.echo(finding)
        if policy is not None:
            _print(_summary(policy))
    sys.exit(1 if policy is None else 0)


def _summary(policy: Policy) -> dict[str, Any]:
    """A policy as plain values, without secrets and digests."""
    return {
        "version": policy.version,
        "open": policy.open,
        "providers": [
            {"name": provider.name, "dialect": provider.dialect, "base_url": provider.base_url}
            for provider in policy.providers.values()
        ],
        "skipped": [{"name": name, "reason": reason} for name, reason in policy.skipped],
        "models": [
            {"name": model.name, "provider": model.provider.name, "upstream": model.upstream}
            for model in policy.models.values()
        ],
        "routes": [
            {"name": route.name, "candidates": [model.name for model in route.candidates], "attempts": route.attempts}
            for route in policy.routes
        ],
        "keys": [
            {
                "name": key.name,
                "routes": ["(all)"] if key.routes is None else sorted(key.routes),
                "limits": {name: limit for name, limit in asdict(key.limits).items() if limit is not None},
            }
            for keys in policy.keys.values()
            for key in keys
        ],
    }


def _print(summary: dict[str, Any]) -> None:
    console = tables.console()
    console.print(f"Policy {summary['version']}, {'open: no key needed' if summary['open'] else 'keys needed'}.")
    for title, rows in summary.items():
        if isinstance(rows, list) and rows:
            table = tables.table(rows[0], title=title.capitalize())
            for row in rows:
                table.add_row(*map(_cell, row.values()))
            console.print(table)


def _cell(value: Any) -> str:
    match value:
        case list():
            return ", ".join(value)
        case dict():
            return ", ".join(f"{name} {number:,}" for name, number in value.items())
        case _:
            return str(value)
