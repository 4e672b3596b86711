"""What the Dockerfile puts into the image, put into a folder instead: this needs no Docker engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.real_model import ROOT, free_port, wait_until_ready

if TYPE_CHECKING:
    from pathlib import Path

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def instruction(name: str) -> str:
    """The arguments of the last instruction of that name."""
    arguments: str = re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]
    return arguments


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's /opt/relay: the locked dependencies of a deployment and the built package, nothing else."""
    home = tmp_path_factory.mktemp("image") / "relay"
    wheels = home.with_name("wheels")
    pip = ["pip", "--python", str(home / "bin" / "python"), "install", "-qq", "--disable-pip-version-check"]
    locked = ["--only-binary=:all:", "--require-hashes", "-r", "requirements.lock"]
    for module, *arguments in (
        ["venv", "--without-pip", str(home)],
        [*pip, *locked],
        ["hatchling", "build", "--target", "wheel", "--directory", str(wheels)],
        [*pip, "--no-deps", "--no-index", "--find-links", str(wheels), "relay"],
    ):
        subprocess.run([sys.executable, "-m", module, *arguments], check=True, cwd=ROOT)
    return home


def test_serves(installed: Path, tmp_path: Path) -> None:
    """The entry point serves the mounted policy with the image's environment, and the health check tells."""
    settings = dict(pair.split("=", 1) for pair in instruction("ENV").split())
    assert settings["RELAY_POLICY"] == "/etc/relay/policy"
    environment = os.environ | settings
    environment |= {"PATH": f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"RELAY_PORT": str(free_port()), "RELAY_FORCE_OPEN": "true"}
    environment |= {"RELAY_POLICY": str(ROOT / "policies" / "demo"), "RELAY_HOST": "127.0.0.1"}
    entrypoint = json.loads(instruction("ENTRYPOINT"))
    check = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])

    def healthy() -> bool:
        return subprocess.run(check, check=False, env=environment, capture_output=True).returncode == 0

    log = tmp_path / "relay.log"
    assert not healthy()
    with (
        log.open("w") as output,
        subprocess.Popen(
            [shutil.which(entrypoint[0], path=environment["PATH"]) or "", *entrypoint[1:]],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        ) as server,
    ):
        try:
            wait_until_ready(f"http://127.0.0.1:{environment['RELAY_PORT']}/readyz", server, log)
            assert healthy()
        finally:
            server.terminate()
    assert server.returncode == 0


def test_nothing_else_installed(installed: Path) -> None:
    """No installer, build or test tool is in it."""
    packages = {path.name.split("-")[0] for path in installed.glob("lib/python*/site-packages/*.dist-info")}
    assert "relay" in packages
    assert not packages & {"pip", "hatchling", "pytest", "mypy", "ruff"}


def test_context_is_what_is_copied() -> None:
    """The build context holds what the Dockerfile copies, and no more."""
    copied = set(" ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)).split())
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_compose_hands_provider_keys_through() -> None:
    """Each secret that the default policy refers to reaches the container."""
    providers = tomllib.loads((ROOT / "policies" / "default" / "providers.toml").read_text())["providers"]
    wanted = {provider["api_key"]["env"] for provider in providers.values()}
    assert wanted == set(re.findall(r"^      (\w+_API_KEY):$", (ROOT / "compose.yaml").read_text(), re.MULTILINE))
