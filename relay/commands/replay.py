"""`relay replay`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from relay.commands import tables
from relay.commands.base import format_option, held, policy_option
from relay.replay import replay as decide_anew
from relay.telemetry.decisions import decode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from relay.replay import Figure, Report

SHOWN_STRANDED = 10
"""Requests without a candidate that a table lists; JSON has them all."""

TRUST_WORDS = {"firm": "firm", "loose": "to be taken with care", "guess": "hardly more than a guess"}


@click.command(
    epilog="\b\nExamples:\n"
    "  relay replay decisions.jsonl --policy policies/new\n"
    "  relay replay decisions.jsonl* --policy policies/new --route auto --format json | jq .expected\n\n"
    "docs/routing.md says what is estimated and how. The exit code is 1 if there are requests that nobody could be "
    "asked for.",
)
@click.argument("files", metavar="LOG...", type=click.File("rb"), nargs=-1, required=True)
@policy_option
@click.option("--route", "route_name", help="The route that all requests take.  [default: the one of their own name]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is left to chance.")
@format_option
def replay(files: Sequence[BinaryIO], folder: Path, route_name: str | None, seed: int, shape: str) -> None:
    """Decide recorded requests anew under another policy, and estimate what would have come of it.

    LOG is a decision log (RELAY_DECISION_LOG); - reads it from the standard input. Nothing is sent.
    """
    policy = held(folder)
    if route_name is not None and route_name not in {route.name for route in policy.routes}:
        raise click.BadParameter(f"the policy has no route {route_name!r}", param_hint="--route")
    records, unreadable = decode(line for file in files for line in file)
    if not records:
        raise click.ClickException(f"there is no decision in what was given ({unreadable} unreadable lines)")
    report = decide_anew(records, policy, route=route_name, seed=seed)
    if shape == "json":
        click.echo(json.dumps({"unreadable_lines": unreadable, **msgspec.to_builtins(report)}, indent=2))
    else:
        _print(report, unreadable)
    sys.exit(1 if report.stranded else 0)


def _print(report: Report, unreadable: int) -> None:
    console = tables.console()
    notes = [f"{report.compared:,} compared"]
    if report.sizes_guessed:
        notes.append(f"{report.sizes_guessed:,} with their usage for what was asked")
    if unreadable:
        notes.append(f"{unreadable:,} lines unreadable")
    console.print(f"{report.requests:,} requests decided anew: {', '.join(notes)}.")
    if report.recorded is not None and report.expected is not None:
        table = tables.table(("figure", "recorded", "", "expected", ""))
        for name in report.recorded.__struct_fields__:
            table.add_row(name, *_interval(getattr(report.recorded, name)), *_interval(getattr(report.expected, name)))
        for model, (then, now) in report.first.items():
            table.add_row(f"first asked {model}", f"{then:,}", "", f"{now:,}", "")
        console.print(table)
    _print_trust(console, report)
    if report.budgets is not None:
        was, would = report.budgets.recorded, report.budgets.expected
        console.print(
            f"\nOf {report.budgets.answers:,} answers with a budget {was.met:.1%} met it, and {would.met:.1%} would. "
            f"Reserved for each were {was.granted:,.0f} tokens, and {would.granted:,.0f} would be; used were "
            f"{was.used:,.0f}."
        )
    if report.stranded:
        console.print(f"\n{len(report.stranded):,} requests would have had nobody to ask:")
    for request in report.stranded[:SHOWN_STRANDED]:
        why = ", ".join(f"{model} ({reason})" for model, reason in request.reasons.items())
        too = " (then neither)" if request.recorded_too else ""
        console.print(f"  {request.id}  {request.route}: {why or 'no such route'}{too}")
    if len(report.stranded) > SHOWN_STRANDED:
        console.print(f"  and {len(report.stranded) - SHOWN_STRANDED:,} more; --format json lists them.")


def _print_trust(console: Console, report: Report) -> None:
    trust = report.trust
    console.print(
        f"The estimate is {TRUST_WORDS[trust.verdict]}. Of the first choices {trust.same:.0%} are what the request "
        f"really took, {trust.near:.0%} were observed near that time, {trust.far:.0%} only at others, "
        f"{trust.never:.0%} never. It is worth {trust.effective:,.0f} observations; {trust.cut_short:,} of those used "
        "were cut short by a hedge."
    )
    if trust.never_observed:
        console.print(f"Never observed: {', '.join(trust.never_observed)}. What `expected` says stands for them.")
    if report.unpriced:
        console.print(f"What {', '.join(report.unpriced)} cost is not known: the recorded cost lacks it.")


def _interval(figure: Figure | None) -> tuple[str, str]:
    """A figure and its interval, as a table has them."""
    if figure is None:
        return "", ""
    return f"{figure.value:,.4g}", f"{figure.low:,.4g} to {figure.high:,.4g}"
