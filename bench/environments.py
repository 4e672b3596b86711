"""Pinned environments for what the bench runs, each in a folder of its own below `.cache/bench`.

A folder is made anew when its pins change. What cannot be installed raises `NotInstalled`, so that one missing peer
does not end a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.programs import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_INSTALL_TIMEOUT_S = 900
_ENVIRONMENTS = CACHE / "environments"


class NotInstalled(Exception):
    """Something the bench wanted could not be installed; the message says what and why."""


def python_environment(name: str, packages: Sequence[str], *, python: Path) -> Path:
    """A virtual environment with exactly these packages.

    Args:
        name: of its folder.
        packages: arguments of `pip install`; a list of requirements among them counts with what is in it.
        python: the interpreter it is made from; needs neither pip nor ensurepip.

    Returns:
        Its `bin` folder.

    Raises:
        NotInstalled: pip could not.
    """

    def install(folder: Path) -> None:
        _run([str(python), "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
        _run([*pip, "install", "--quiet", "--disable-pip-version-check", *packages])

    lists = [path.read_text() for package in packages if (path := Path(package)).is_file()]
    pins = [str(python.resolve()), *packages, *lists]
    return _made(name, pins, install) / "bin"


def node_environment(name: str, package: Mapping[str, object]) -> Path:
    """A folder with a `package.json` and what it asks for, installed without running any package's scripts.

    Raises:
        NotInstalled: there is no npm, or it could not.
    """
    if shutil.which("npm") is None:
        raise NotInstalled(f"{name}: there is no npm on this machine")

    def install(folder: Path) -> None:
        (folder / "package.json").write_text(json.dumps(package))
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)

    return _made(name, [json.dumps(package)], install)


def _made(name: str, pins: Sequence[str], install: Callable[[Path], None]) -> Path:
    folder = _ENVIRONMENTS / name
    stamp = folder / ".pins"
    wanted = hashlib.sha256("\n".join(pins).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    print(f"  installing {name} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    install(folder)
    stamp.write_text(wanted)
    return folder


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        complaint = f"{error.stdout}{error.stderr}".strip()
        raise NotInstalled(f"{command[0]} failed: {complaint[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{command[0]} took longer than {_INSTALL_TIMEOUT_S} s") from error
