"""The command line. Exit codes: 0 fine, 1 something found wrong (settings, policy, a port in use), 2 wrong usage."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import re
import secrets
import sys
import time
from collections import Counter
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec
from msgspec.structs import asdict
from rich import box
from rich.console import Console
from rich.table import Table

from relay import __version__
from relay.budget_report import reported
from relay.config import load_settings
from relay.dialects import DIALECTS
from relay.errors import ConfigurationError, Finding, RelayError, UnknownModel
from relay.explain import explained, sized
from relay.limits.experience import Experience
from relay.policy import load
from relay.policy.decide import Chooser
from relay.policy.json_schema import json_schema
from relay.policy.schema import NAME, PATTERN_WORDS
from relay.replay import replay as decide_anew
from relay.runtimes.policy_files import read_folder
from relay.runtimes.prices import list_price
from relay.runtimes.state_folder import read as read_state
from relay.simulate import Relay as SimulatedRelay
from relay.simulate import World, figures
from relay.simulate import simulate as run_world
from relay.sizing import Sizer
from relay.telemetry.decisions import decode
from relay.upstreams import Upstream
from relay.wants import wants_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.policy.compiled import Key, Policy
    from relay.replay import Figure, Report

CHAT_DIALECT, CHAT_PATH = "openai", "/v1/chat/completions"
"""Of requests that can be explained."""

KEY_BYTES = 32
"""256 bits from the operating system: the policy keeps a bare SHA-256, safe only for what nobody can guess."""

_folder = click.Path(exists=True, file_okay=False, path_type=Path)


_policy_option = click.option(
    "--policy", "folder", type=_folder, required=True, envvar="RELAY_POLICY", help="Folder of the policy set."
)


class Refused(click.ClickException):
    """A configuration that does not hold: its findings, one a line, and exit code 1."""

    exit_code = 1

    def __init__(self, error: ConfigurationError) -> None:
        super().__init__("\n".join(map(str, error.findings)) or error.message)

    def show(self, file: Any = None) -> None:
        """To the standard error, without a prefix: each line names its own place."""
        click.echo(self.message, file=file, err=True)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  relay serve --policy policies/demo\n"
    "  relay check policies/default\n"
    "  relay keys new --name team-a",
)
def main() -> None:
    """Relay: a slim OpenAI-compatible streaming relay for LLMs."""


@main.command(
    epilog="\b\nExamples:\n"
    "  relay serve --policy policies/demo\n"
    "  relay serve --policy /etc/relay --host 0.0.0.0 --workers 4\n"
    "  RELAY_POLICY=policies/default RELAY_LOG_FORMAT=json relay serve\n\n"
    "\b\nEvery option has a variable: --shutdown-s is RELAY_SHUTDOWN_S. The admin key has only that: RELAY_ADMIN_KEY.\n"
    "SIGHUP reloads the policy, SIGTERM ends when running streams are done, a second one at once.",
)
@click.option("--policy", type=_folder, help="Folder of the policy set.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on; 0 takes a free one.  [default: 8080]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that serve, on one port.  [default: 1]")
@click.option("--store", type=click.Choice(["memory"]), help="Where the use of keys is kept.  [default: memory]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option(
    "--log-format", type=click.Choice(["json", "console"]), help="[default: console on a terminal, else json]"
)
@click.option(
    "--shutdown-s",
    type=click.FloatRange(0, 3600),
    help="Seconds that running requests get to finish.  [default: 30]",
)
@click.option("--region", help="Where this relay stands; the speed of models is known by region.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder in which what was learned outlives the process.  [default: none]",
)
@click.option(
    "--decision-log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write decisions to, for `relay replay`; metadata only.  [default: none]",
)
@click.option(
    "--decision-log-bytes",
    type=click.IntRange(65_536, 2**40),
    help="Size from which on a fresh one is begun.  [default: 67108864]",
)
@click.option("--decision-log-files", type=click.IntRange(1, 1000), help="Full ones that are kept.  [default: 4]")
@click.option(
    "--decision-sample",
    type=click.FloatRange(0, 1),
    help="Share of requests whose decision goes to the log.  [default: 0]",
)
@click.option(
    "--force-open/--no-force-open",
    default=None,
    help="Serve a policy that needs no keys on an address that is not loopback.",
)
def serve(**flags: Any) -> None:
    """Serve a policy set."""
    from relay.runtimes import container  # noqa: PLC0415 - the other commands need no server

    try:
        settings, warnings = load_settings(**flags)
        sys.exit(container.serve(settings, warnings))
    except ConfigurationError as error:
        raise Refused(error) from None


@main.command(
    epilog="\b\nExamples:\n"
    "  relay check policies/default\n"
    "  relay check --format json | jq .findings\n"
    "  relay check --schema > relay-policy.schema.json",
)
@click.argument("folder", metavar="[DIR]", type=_folder, required=False, envvar="RELAY_POLICY")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of policy files, for editors, and check nothing.")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to answer."
)
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
    policy, findings = _checked(folder)
    if shape == "json":
        shown = {"findings": [asdict(finding) for finding in findings], "policy": policy and _summary(policy)}
        click.echo(json.dumps(shown, indent=2))
    else:
        for finding in findings:
            click.echo(finding)
        if policy is not None:
            _print_tables(_summary(policy))
    sys.exit(1 if policy is None else 0)


@main.command(
    epilog="\b\nExamples:\n"
    "  relay explain request.json --policy policies/default\n"
    "  relay explain request.json --key team-a --header x-relay-prefer=cost --format json\n\n"
    "A model that nobody has asked yet is taken to be as its `expected` says; a running Relay, which knows better, is "
    "asked with POST /relay/explain.",
)
@click.argument("file", metavar="REQUEST.json", type=click.File("rb"))
@click.option(
    "--policy", "folder", type=_folder, required=True, envvar="RELAY_POLICY", help="Folder of the policy set."
)
@click.option("--key", "key_name", default="", help="Name of the key that the request comes under.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A request header; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws what is left to chance.")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to answer."
)
def explain(file: BinaryIO, folder: Path, key_name: str, headers: tuple[str, ...], seed: int, shape: str) -> None:
    """Say which model a chat request would go to, and why.

    REQUEST.json is its body; - reads it from the standard input. Nothing is sent.
    """
    policy, findings = _checked(folder)
    if policy is None:
        raise Refused(ConfigurationError("The policy set does not hold.", findings))
    key = next((key for keys in policy.keys.values() for key in keys if key.name == key_name), None)
    if key_name and key is None:
        raise click.BadParameter(f"the policy has no key {key_name!r}", param_hint="--key")
    fields = {name.lower().encode(): value.encode() for name, _, value in (text.partition("=") for text in headers)}
    try:
        shown = _explained(policy, key, fields, file.read(), random.Random(seed))  # noqa: S311 - nothing to guess
    except RelayError as error:
        raise click.ClickException(error.message) from None
    if shape == "json":
        click.echo(json.dumps(shown, indent=2))
    else:
        _print_decision(shown)


@main.command(
    epilog="\b\nExample:\n  relay simulate world.toml --policy policies/mine --route auto --seed 7\n\n"
    "docs/routing.md says what a world consists of. A day takes seconds.",
)
@click.argument("file", metavar="WORLD.toml", type=click.File("rb"))
@click.option(
    "--policy", "folder", type=_folder, required=True, envvar="RELAY_POLICY", help="Folder of the policy set."
)
@click.option("--route", "route_name", required=True, help="Which of its routes the requests take.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is left to chance.")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to answer."
)
def simulate(file: BinaryIO, folder: Path, route_name: str, seed: int, shape: str) -> None:
    """Send generated requests through a route's decisions, in a world of paced upstreams on a virtual clock.

    WORLD.toml says how fast and sure the route's models are and what happens to them.
    """
    policy, findings = _checked(folder)
    if policy is None:
        raise Refused(ConfigurationError("The policy set does not hold.", findings))
    route = next((route for route in policy.routes if route.name == route_name), None)
    if route is None:
        raise click.BadParameter(f"the policy has no route {route_name!r}", param_hint="--route")
    try:
        world = msgspec.toml.decode(file.read(), type=World)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"{file.name} is no world: {error}.") from None
    models, places = {model.name for model in route.candidates}, {place.name for place in world.places}
    if models != places:
        raise click.ClickException(
            f"the route's models are {', '.join(sorted(models))}, the world's places {', '.join(sorted(places))}"
        )
    results = run_world(world, seed, lambda upstreams: SimulatedRelay(route, upstreams, seed), attempts=route.attempts)
    served = Counter(result.place or "nobody" for result in results)
    shown = {**figures(results), "served_by": dict(served.most_common())}
    if shape == "json":
        click.echo(json.dumps(shown, indent=2))
        return
    table = Table("figure", "value", box=box.SIMPLE_HEAD)
    for name, value in figures(results).items():
        table.add_row(name, f"{value:,.4g}" if name in ("usd_per_1000", "duplicate_spend") else f"{value:,.0f}")
    for name, count in served.most_common():
        table.add_row(f"served by {name}", f"{count:,}")
    Console(highlight=False, markup=False).print(table)


@main.command(
    epilog="\b\nExamples:\n"
    "  relay replay decisions.jsonl --policy policies/new\n"
    "  relay replay decisions.jsonl* --policy policies/new --route auto --format json | jq .expected\n\n"
    "docs/routing.md says what is estimated and how. The exit code is 1 if there are requests that nobody could be "
    "asked for.",
)
@click.argument("files", metavar="LOG...", type=click.File("rb"), nargs=-1, required=True)
@_policy_option
@click.option("--route", "route_name", help="The route that all requests take.  [default: the one of their own name]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is left to chance.")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to answer."
)
def replay(files: Sequence[BinaryIO], folder: Path, route_name: str | None, seed: int, shape: str) -> None:
    """Decide recorded requests anew under another policy, and estimate what would have come of it.

    LOG is a decision log (RELAY_DECISION_LOG); - reads it from the standard input. Nothing is sent.
    """
    policy, findings = _checked(folder)
    if policy is None:
        raise Refused(ConfigurationError("The policy set does not hold.", findings))
    if route_name is not None and route_name not in {route.name for route in policy.routes}:
        raise click.BadParameter(f"the policy has no route {route_name!r}", param_hint="--route")
    records, unreadable = decode(line for file in files for line in file)
    if not records:
        raise click.ClickException(f"there is no decision in what was given ({unreadable} unreadable lines)")
    report = decide_anew(records, policy, route=route_name, seed=seed)
    if shape == "json":
        click.echo(json.dumps({"unreadable_lines": unreadable, **msgspec.to_builtins(report)}, indent=2))
    else:
        _print_replay(report, unreadable)
    sys.exit(1 if report.stranded else 0)


@main.command(
    epilog="\b\nExamples:\n"
    "  relay budgets /var/lib/relay\n"
    "  relay budgets --format json | jq '.answers[] | select(.key == \"team-a\")'\n\n"
    "docs/budgets.md says what a cell is. A relay that runs may do so: its workers write what they know every minute.",
)
@click.argument("folder", metavar="[DIR]", type=_folder, required=False, envvar="RELAY_STATE")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to answer."
)
def budgets(folder: Path | None, *, shape: str) -> None:
    """Say what was learned of lengths of answers, of hidden reasoning and of how models count prompts.

    DIR is the folder that a relay was given as RELAY_STATE; without it, RELAY_STATE.
    """
    if folder is None:
        raise click.UsageError("Missing argument '[DIR]': give the folder that a relay keeps its state in.")
    try:
        report = reported(read_state(folder).experience, time.time())
    except ConfigurationError as error:
        raise Refused(error) from None
    if shape == "json":
        click.echo(json.dumps(report, indent=2))
    else:
        _print_budgets(report)


SHOWN_CELLS = 40
"""Cells that a table lists, those with most answers; JSON has them all."""

BUDGET_TITLES = {
    "answers": "Answers, tokens",
    "reasoning": "Hidden reasoning, tokens",
    "prompts": "Prompts, counted / estimated",
}


def _print_budgets(report: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    for title, rows in ((BUDGET_TITLES[name], rows) for name, rows in report.items()):
        if not rows:
            console.print(f"{title}: nothing yet.\n")
            continue
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in rows[0]:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in rows[:SHOWN_CELLS]:
            table.add_row(*(_learned_cell(column, value) for column, value in row.items()))
        console.print(table)
        if len(rows) > SHOWN_CELLS:
            console.print(f"And {len(rows) - SHOWN_CELLS:,} cells more; --format json lists them.\n")


def _learned_cell(column: str, value: Any) -> str:
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


SHOWN_STRANDED = 10
"""Requests without a candidate that a table lists; JSON has them all."""


def _print_replay(report: Report, unreadable: int) -> None:
    console = Console(highlight=False, markup=False)
    notes = [f"{report.compared:,} compared"]
    if report.sizes_guessed:
        notes.append(f"{report.sizes_guessed:,} with their usage for what was asked")
    if unreadable:
        notes.append(f"{unreadable:,} lines unreadable")
    console.print(f"{report.requests:,} requests decided anew: {', '.join(notes)}.")
    if report.recorded is not None and report.expected is not None:
        table = Table("figure", "recorded", "", "expected", "", box=box.SIMPLE_HEAD)
        for name in report.recorded.__struct_fields__:
            table.add_row(name, *_interval(getattr(report.recorded, name)), *_interval(getattr(report.expected, name)))
        for model, (then, now) in report.first.items():
            table.add_row(f"first asked {model}", f"{then:,}", "", f"{now:,}", "")
        console.print(table)
    _print_trust(console, report)
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


TRUST_WORDS = {"firm": "firm", "loose": "to be taken with care", "guess": "hardly more than a guess"}


def _interval(figure: Figure | None) -> tuple[str, str]:
    """A figure and its interval, as a table has them."""
    if figure is None:
        return "", ""
    return f"{figure.value:,.4g}", f"{figure.low:,.4g} to {figure.high:,.4g}"


def _explained(
    policy: Policy, key: Key | None, headers: dict[bytes, bytes], body: bytes, rng: random.Random
) -> dict[str, Any]:
    """A decision under this policy with nothing known of any model."""
    dialect = DIALECTS[CHAT_DIALECT]
    request = dialect.parse_request(body)
    route = policy.route_for(request.model, key.name if key else "", CHAT_PATH, headers)
    if route is None:
        raise UnknownModel(f"No route of the policy serves the model {request.model!r}.")
    upstreams = {model.name: Upstream(model.expected, watched=True) for model in route.candidates}
    sizer = None if policy.intents is None else Sizer(policy.intents, Experience())
    sizing = None if sizer is None else sizer.size(request, dialect, key.name if key else "")
    wants = wants_of(request, route, dialect, headers, key, sizing)
    decision = Chooser(route, upstreams).decide(wants, 0.0, rng)
    return explained(decision, wants) | (sized(sizing, route.candidates) if sizing else {})


def _print_decision(shown: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    asked = ", ".join(f"{name} {value}" for name, value in shown["request"].items() if value)
    console.print(f"Route {shown['route']}. Request: {asked.replace('_', ' ')}.")
    order = {name: place for place, name in enumerate(shown["order"], 1)}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "model", "score", "ttft", "latency", "usd", "cached", "left out"):
        table.add_column(column, overflow="fold")
    for row in sorted(shown["candidates"], key=lambda row: order.get(row["model"], len(order) + 1)):
        if row["left_out"]:
            table.add_row("", row["model"], "", "", "", "", "", row["left_out"])
            continue
        numbers = (f"{row['score']:.3f}", f"{row['ttft_s']:.2f} s", f"{row['latency_s']:.2f} s", f"{row['usd']:.6f}")
        over = " over the ceiling" if row["over_ceiling"] else ""
        table.add_row(str(order[row["model"]]), row["model"], *numbers, str(row["cached_tokens"] or ""), over)
    console.print(table)
    if shown["order"]:
        console.print(f"{shown['order'][0]} is first by {shown['first_by']}.")
    if "intent" in shown:
        _print_sizes(shown, console)


def _print_sizes(shown: dict[str, Any], console: Console) -> None:
    intent = shown["intent"]
    console.print(f"\nTaken for {intent['label']}, confidence {intent['confidence']:g}", end="")
    console.print("." if intent["treated_as"] == intent["label"] else f"; treated as {intent['treated_as']}.")
    said = ", ".join(f"{said['feature']!r} {said['weight']:+.2f}" for said in intent["spoke"])
    console.print(f"What spoke: {said or 'nothing'}.")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "limit", "visible", "headroom", *shown["budgets"][0]["expected"], "source", "cell"):
        table.add_column(column, overflow="fold")
    for row in shown["budgets"]:
        numbers = [str(row[name]) if row[name] is not None else "none" for name in ("limit", "visible", "headroom")]
        source = ", ".join((row["source"], *row["clamps"]))
        cell = " / ".join(part or "-" for part in row["cell"]) or "-"
        table.add_row(row["model"], *numbers, *map(str, row["expected"].values()), source, cell)
    console.print(table)


def _checked(folder: Path) -> tuple[Policy | None, Sequence[Finding]]:
    try:
        files = read_folder(folder)
    except ConfigurationError as error:
        return None, [Finding(str(folder), 0, "", error.message)]
    return load.check(files, os.environ, price_of=list_price)


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


def _print_tables(summary: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"Policy {summary['version']}, {'open: no key needed' if summary['open'] else 'keys needed'}.")
    for title, rows in summary.items():
        if isinstance(rows, list) and rows:
            table = Table(title=title.capitalize(), title_justify="left", box=box.SIMPLE_HEAD)
            for column in rows[0]:
                table.add_column(column, overflow="fold")
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


@main.group()
def keys() -> None:
    """Make keys for callers."""


@keys.command(
    "new", epilog="\b\nExamples:\n  relay keys new --name team-a\n  relay keys new --name ci >> notes-for-ci.txt"
)
@click.option("--name", default="new-key", show_default=True, help="What logs and metrics will call it.")
def new_key(name: str) -> None:
    """Make a key, and the lines of the policy that let it in.

    The key is shown only this once: the policy holds its SHA-256.
    """
    if re.fullmatch(NAME, name) is None:
        raise click.BadParameter(f"{name!r} is not {PATTERN_WORDS[NAME]}", param_hint="--name")
    key = f"rk-{secrets.token_urlsafe(KEY_BYTES)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    table = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    click.echo(f"# For the caller; it cannot be shown again:\n{key}\n")
    click.echo(f'# For a file of the policy set:\n[keys.{table}]\nsha256 = "{digest}"')


@main.command(epilog="\b\nExample:\n  relay version")
def version() -> None:
    """Say what is running."""
    libraries = ", ".join(f"{name} {version_of(name)}" for name in ("uvicorn", "uvloop", "httptools"))
    click.echo(f"relay {__version__} (Python {platform.python_version()}, {libraries})")
