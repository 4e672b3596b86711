"""`relay simulate`."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from relay.commands import tables
from relay.commands.base import format_option, held, policy_option
from relay.simulate import Relay, World, figures
from relay.simulate import simulate as run_world

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    epilog="\b\nExample:\n  relay simulate world.toml --policy policies/mine --route auto --seed 7\n\n"
    "docs/routing.md says what a world consists of. A day takes seconds.",
)
@click.argument("file", metavar="WORLD.toml", type=click.File("rb"))
@policy_option
@click.option("--route", "route_name", required=True, help="Which of its routes the requests take.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is left to chance.")
@format_option
def simulate(file: BinaryIO, folder: Path, route_name: str, seed: int, shape: str) -> None:
    """Send generated requests through a route's decisions, in a world of paced upstreams on a virtual clock.

    WORLD.toml says how fast and sure the route's models are and what happens to them.
    """
    policy = held(folder)
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
    if nowhere := {weather.place for weather in world.weather} - places:
        raise click.ClickException(
            f"the world has weather at {', '.join(sorted(nowhere))}, its places are {', '.join(sorted(places))}"
        )
    results = run_world(world, seed, lambda upstreams: Relay(route, upstreams, seed), attempts=route.attempts)
    served = Counter(result.place or "nobody" for result in results)
    shown = {**figures(results), "served_by": dict(served.most_common())}
    if shape == "json":
        click.echo(json.dumps(shown, indent=2))
        return
    table = tables.table(("figure", "value"))
    for name, value in figures(results).items():
        table.add_row(name, f"{value:,.4g}" if name in ("usd_per_1000", "duplicate_spend") else f"{value:,.0f}")
    for name, count in served.most_common():
        table.add_row(f"served by {name}", f"{count:,}")
    tables.console().print(table)
