"""The portable core's environment under Pyodide: the wheels its bundle is built from, and what the tests need."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "pyodide"

PLATFORM = ["--platform", "pyemscripten_2026_0_wasm32", "--python-version", "3.14"]
ABI = ["--implementation", "cp", "--abi", "cp314", "--abi", "none"]
MARKERS = {
    "extra": "",
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "wasm32",
    "platform_python_implementation": "CPython",
    "platform_system": "Emscripten",
    "python_full_version": "3.14.2",
    "python_version": "3.14",
    "sys_platform": "emscripten",
}
"""What Pyodide 314 answers where a requirement asks about its platform (PEP 508)."""

TEST_REQUIREMENTS = ["h11", "hypothesis", "pytest", "pytest-asyncio"]
"""What the portable tests import beyond what they test."""


def site_packages() -> Path:
    """A folder with the locked version of each package, installed once per state of the lock file.

    Raises:
        CalledProcessError: a package has no wheel that Pyodide can load; pip names it.
    """
    names = _closure([*_project_dependencies(), *TEST_REQUIREMENTS])
    requirements = "".join(block for name, block in _locked().items() if name in names)
    folder = CACHE / f"site-packages-{hashlib.sha256(requirements.encode()).hexdigest()[:12]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        (CACHE / "requirements.txt").write_text(requirements)
        scratch = folder.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        wheels = ["--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:", *PLATFORM, *ABI]
        subprocess.run(
            [*pip, *wheels, "--target", scratch, "--requirement", CACHE / "requirements.txt"],
            check=True,
        )
        scratch.rename(folder)
    return folder


def _project_dependencies() -> list[str]:
    requirements: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return requirements


def _closure(requirements: list[str]) -> set[str]:
    """Names of these packages and of all they need on Pyodide."""
    names: set[str] = set()
    pending = requirements
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        if name not in names and (requirement.marker is None or requirement.marker.evaluate(MARKERS)):
            names.add(name)
            pending += metadata.requires(name) or []
    return names


def _locked() -> dict[str, str]:
    """Lines of the lock file by package: the pin without its marker, and its hashes."""
    blocks = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements-dev.lock").read_text(), flags=re.MULTILINE)[1:]
    return {block.split("==")[0]: re.sub(r" ;[^\n]*(?= \\\n)", "", block) for block in blocks}
