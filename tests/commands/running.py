"""Commands as the shell starts them, in the tests' own process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from relay.cli import main
from relay.config import Settings
from tests.servers.policies import ENVIRON
from tests.telemetry.logging_kept import logging_kept

if TYPE_CHECKING:
    from pathlib import Path

BASE_URL = "http://127.0.0.1:9/v1"
"""Where the test policies say that an upstream is; no command asks it."""


def relay(*arguments: str | Path, stdin: str | None = None, **environ: str | None) -> Result:
    """`relay` with these arguments; a traceback fails the test.

    Args:
        arguments: of the command line.
        stdin: what the standard input has.
        environ: variables, None to have one unset. Without them there are the secrets that the test policies refer
            to, and no settings.
    """
    unset = {f"RELAY_{setting.upper()}": None for setting in Settings.model_fields}
    runner = CliRunner(env={**unset, **ENVIRON, **environ})
    with logging_kept():
        return runner.invoke(main, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)
