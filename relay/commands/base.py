"""What commands have in common: options, and a policy set that they are given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.errors import ConfigurationError, Finding
from relay.policy import load
from relay.runtimes.policy_files import read_folder
from relay.runtimes.prices import list_price

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.policy.compiled import Policy

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
"""A folder that is there."""

policy_option = click.option(
    "--policy", "folder", type=FOLDER, required=True, envvar="RELAY_POLICY", help="Folder of the policy set."
)

format_option = click.option(
    "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to answer."
)


class Refused(click.ClickException):
    """A configuration that does not hold: its findings, one a line, and exit code 1."""

    exit_code = 1

    def __init__(self, error: ConfigurationError) -> None:
        super().__init__("\n".join(map(str, error.findings)) or error.message)

    def show(self, file: Any = None) -> None:
        """To the standard error, without a prefix: each line names its own place."""
        click.echo(self.message, file=file, err=True)


def checked(folder: Path) -> tuple[Policy | None, Sequence[Finding]]:
    """The policy of a folder, None if it does not hold, and what there is to say of it."""
    try:
        files = read_folder(folder)
    except ConfigurationError as error:
        return None, [Finding(str(folder), 0, "", error.message)]
    return load.check(files, os.environ, price_of=list_price)


def held(folder: Path) -> Policy:
    """The policy of a folder.

    Raises:
        Refused: it does not hold.
    """
    policy, findings = checked(folder)
    if policy is None:
        raise Refused(ConfigurationError("The policy set does not hold.", findings))
    return policy
