"""Reads the files of a policy folder, and says plainly why it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


def read_folder(folder: Path) -> dict[str, str]:
    """Read a policy set.

    Args:
        folder: its `*.toml` files are the set; what lies in folders below, hidden files and other endings are not.

    Returns:
        Path (folder included) -> text, as `relay.policy.load` takes it.

    Raises:
        ConfigurationError: no such folder, no files in it, or a file that cannot be read or is not UTF-8.
    """
    if not folder.exists():
        raise ConfigurationError(f"There is no policy folder {folder}.")
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder; a policy set is a folder of *.toml files.")
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))
        files = {str(path): _read(path) for path in paths}
    except OSError as error:
        raise ConfigurationError(f"Cannot read {error.filename or folder}: {error.strerror}.") from error
    if not files:
        raise ConfigurationError(f"No *.toml files in the policy folder {folder}.")
    return files


def _read(path: Path) -> str:
    try:
        # Editors on Windows put a byte order mark before UTF-8; TOML does not know it.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line} is not UTF-8, which TOML files have to be.") from error
