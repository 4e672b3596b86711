"""`relay explain`."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from relay.commands import tables
from relay.commands.base import format_option, held, policy_option
from relay.dialects import DIALECTS
from relay.errors import RelayError, UnknownModel
from relay.explain import explained_to_sender
from relay.limits.experience import Experience
from relay.policy.decide import Chooser
from relay.sizing import Sizer
from relay.upstreams import Upstream
from relay.wants import wants_of

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from relay.policy.compiled import Key, Policy

CHAT_DIALECT, CHAT_PATH = "openai", "/v1/chat/completions"
"""Of requests that can be explained."""


@click.command(
    epilog="\b\nExamples:\n"
    "  relay explain request.json --policy policies/default\n"
    "  relay explain request.json --key team-a --header x-relay-prefer=cost --format json\n\n"
    "A model that nobody has asked yet is taken to be as its `expected` says; a running Relay, which knows better, is "
    "asked with POST /relay/explain.",
)
@click.argument("file", metavar="REQUEST.json", type=click.File("rb"))
@policy_option
@click.option("--key", "key_name", default="", help="Name of the key that the request comes under.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A request header; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws what is left to chance.")
@format_option
def explain(file: BinaryIO, folder: Path, key_name: str, headers: tuple[str, ...], seed: int, shape: str) -> None:
    """Say which model a chat request would go to, and why.

    REQUEST.json is its body; - reads it from the standard input. Nothing is sent.
    """
    policy = held(folder)
    key = next((key for keys in policy.keys.values() for key in keys if key.name == key_name), None)
    if key_name and key is None:
        raise click.BadParameter(f"the policy has no key {key_name!r}", param_hint="--key")
    if wrong := [text for text in headers if not text.partition("=")[1]]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param_hint="--header")
    fields = {name.lower().encode(): value.encode() for name, _, value in (text.partition("=") for text in headers)}
    try:
        shown = _explained(policy, key, fields, file.read(), random.Random(seed))  # noqa: S311 - nothing to guess
    except RelayError as error:
        raise click.ClickException(error.message) from None
    if shape == "json":
        click.echo(json.dumps(shown, indent=2))
    else:
        _print(shown)


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
    return explained_to_sender(decision, wants, sizing, route.candidates)


def _print(shown: dict[str, Any]) -> None:
    console = tables.console()
    asked = ", ".join(f"{name} {value}" for name, value in shown["request"].items() if value)
    console.print(f"Route {shown['route']}. Request: {asked.replace('_', ' ')}.")
    order = {name: place for place, name in enumerate(shown["order"], 1)}
    table = tables.table(("", "model", "score", "ttft", "latency", "usd", "cached", "left out"))
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
    quantiles = shown["budgets"][0]["expected"]
    table = tables.table(("model", "limit", "visible", "headroom", *quantiles, "source", "cell"))
    for row in shown["budgets"]:
        numbers = [str(row[name]) if row[name] is not None else "none" for name in ("limit", "visible", "headroom")]
        source = ", ".join((row["source"], *row["clamps"]))
        cell = " / ".join(part or "-" for part in row["cell"]) or "-"
        table.add_row(row["model"], *numbers, *map(str, row["expected"].values()), source, cell)
    console.print(table)
