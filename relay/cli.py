"""The command line. Exit codes: 0 fine, 1 something found wrong (settings, policy, a port in use), 2 wrong usage."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = ("budgets", "check", "explain", "keys", "replay", "serve", "simulate", "version")
"""Each a module of `relay.commands`, with the command under the same name."""


class _Commands(Mapping[str, click.Command]):
    """The commands by name, each imported when it is looked at."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in COMMANDS:
            raise KeyError(name)
        command: click.Command = getattr(import_module(f"relay.commands.{name}"), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@click.group(
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    "  relay serve --policy policies/demo\n"
    "  relay check policies/default\n"
    "  relay keys new --name team-a",
)
def main() -> None:
    """Relay: a slim OpenAI-compatible streaming relay for LLMs."""
