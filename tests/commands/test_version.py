from __future__ import annotations

from relay import __version__
from tests.commands.running import relay


def test_version_says_what_is_running() -> None:
    """The relay's version comes first."""
    assert relay("version").stdout.startswith(f"relay {__version__} (Python 3.")
