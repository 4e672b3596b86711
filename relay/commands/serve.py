"""`relay serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from relay.commands.base import FOLDER, Refused
from relay.config import load_settings
from relay.errors import ConfigurationError
from relay.runtimes import container


@click.command(
    epilog="\b\nExamples:\n"
    "  relay serve --policy policies/demo\n"
    "  relay serve --policy /etc/relay --host 0.0.0.0 --workers 4\n"
    "  RELAY_POLICY=policies/default RELAY_LOG_FORMAT=json relay serve\n\n"
    "\b\nEvery option has a variable: --shutdown-s is RELAY_SHUTDOWN_S. The admin key has only that: RELAY_ADMIN_KEY.\n"
    "SIGHUP reloads the policy, SIGTERM ends when running streams are done, a second one at once.",
)
@click.option("--policy", type=FOLDER, help="Folder of the policy set.")
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
    try:
        settings, warnings = load_settings(**flags)
        sys.exit(container.serve(settings, warnings))
    except ConfigurationError as error:
        raise Refused(error) from None
