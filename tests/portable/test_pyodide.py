"""The portable core under Pyodide 314, the Python of the edge runtime, in Node."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.node.runtime import node
from tests.portable.environment import ROOT, site_packages

CONTAINER_ONLY = [
    "relay.__main__",
    "relay.cli",
    "relay.commands.base",
    "relay.commands.budgets",
    "relay.commands.check",
    "relay.commands.explain",
    "relay.commands.keys",
    "relay.commands.replay",
    "relay.commands.serve",
    "relay.commands.simulate",
    "relay.commands.tables",
    "relay.commands.version",
    "relay.runtimes.container",
    "relay.runtimes.fast_lane",
    "relay.runtimes.http_server",
    "relay.runtimes.policy_reload",
    "relay.runtimes.process_metrics",
    "relay.transports.http",
    "relay.transports.sockets",
]
"""Modules that need what only a container has. Every other one, also one that is new, must import under Pyodide."""

CONTAINER_ONLY_TESTS = [
    "tests/bench",
    "tests/commands",
    "tests/contracts/test_transports.py",
    "tests/docs",
    "tests/e2e",
    "tests/portable",
    "tests/regression",
    "tests/runtimes",
    "tests/servers",
    "tests/test_cli.py",
    "tests/transports",
]
"""Folders and files of tests that need sockets or processes; single tests elsewhere carry the mark `container`."""

SHARED_DATA = ROOT.parent / "shared" / "data"


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this folder under Pyodide, at the same paths as here."""
    mounts = ":".join(str(folder) for folder in (ROOT, SHARED_DATA) if folder.exists())
    path = f"{site_packages()}:{ROOT}"
    tests = ROOT / "tests"
    command = [node(), tests / "node" / "pyodide.mjs", mounts, path, tests / "portable" / program]
    return subprocess.run([*map(str, command), *args], check=False, capture_output=True, text=True)


def modules() -> list[str]:
    """Every module of the package, by its dotted name."""
    paths = sorted((ROOT / "relay").rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def test_portable_modules_import() -> None:
    """Every module outside the container-only list imports, a new one included."""
    finished = run("import_all.py", *(name for name in modules() if name not in CONTAINER_ONLY))
    if finished.returncode:
        pytest.fail(finished.stdout + finished.stderr, pytrace=False)
    failures = json.loads(finished.stdout)
    if failures:
        pytest.fail("\n".join(f"{name}:\n{trace}" for name, trace in failures.items()), pytrace=False)


def test_container_only_lists_are_current() -> None:
    """The lists name modules and tests that are there."""
    assert set(CONTAINER_ONLY) <= set(modules())
    assert all((ROOT / path).exists() for path in CONTAINER_ONLY_TESTS)


def test_portable_tests_pass(pytestconfig: pytest.Config) -> None:
    """The tests of everything portable pass there too."""
    options = [f"--ignore={path}" for path in CONTAINER_ONLY_TESTS]
    options += ["--no-skips"] if pytestconfig.getoption("no_skips") else []
    finished = run("run_pytest.py", "tests", "-m", "not container", *options)
    if finished.returncode:
        pytest.fail(finished.stdout + finished.stderr, pytrace=False)
