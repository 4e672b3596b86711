from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from relay.cli import main
from tests.commands.running import relay


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check",), "RELAY_POLICY"),
        (("check", "/nowhere"), "'/nowhere' does not exist"),
        (("check", "--format", "xml"), "'xml' is not one of 'table', 'json'"),
        (("keys", "new", "--name", "a b"), "'a b' is not a name"),
        (("serve", "--port", "70000"), "70000 is not in the range"),
        (("serve", "--policy", "/nowhere"), "'/nowhere' does not exist"),
        (("sreve",), "No such command 'sreve'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], told: str) -> None:
    """The message says what was wrong."""
    result = relay(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def commands(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    """Every command, by its path."""
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(found for name, child in inner for found in commands(child, *path, name))]


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_help_is_there_for_every_command(path: tuple[str, ...]) -> None:
    """Each command says what it does; each that does something shows an example that starts with `relay`."""
    result = relay(*path, "--help")
    assert result.exit_code == 0
    if path != ("keys",):
        assert re.search(r"^ +(RELAY_\w+=\S+ )*relay ", result.stdout.split("Example")[1], flags=re.MULTILINE)


def test_the_module_is_the_command() -> None:
    """`python -m relay` does what `relay` does."""
    ran = subprocess.run([sys.executable, "-m", "relay", "version"], capture_output=True, text=True, check=True)
    assert ran.stdout == relay("version").stdout
