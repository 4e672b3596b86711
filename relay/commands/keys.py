"""`relay keys`."""

from __future__ import annotations

import hashlib
import json
import re
import secrets

import click

from relay.policy.schema import NAME, PATTERN_WORDS

KEY_BYTES = 32
"""256 bits from the operating system: the policy keeps a bare SHA-256, safe only for what nobody can guess."""


@click.group()
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
