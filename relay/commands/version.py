"""`relay version`."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import click

from relay import __version__


@click.command(epilog="\b\nExample:\n  relay version")
def version() -> None:
    """Say what is running."""
    libraries = ", ".join(f"{name} {version_of(name)}" for name in ("uvicorn", "uvloop", "httptools"))
    click.echo(f"relay {__version__} (Python {platform.python_version()}, {libraries})")
