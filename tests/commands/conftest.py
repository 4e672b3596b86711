"""Policy folders that commands are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.commands.running import BASE_URL
from tests.servers.policies import policy

if TYPE_CHECKING:
    from pathlib import Path

PRICED = policy(
    providers={"p": {"dialect": "openai", "base_url": BASE_URL}},
    models={
        "dear": {"provider": "p", "price": {"input": 10, "output": 10}},
        "cheap": {"provider": "p", "price": {"input": 1, "output": 1}, "features": []},
    },
    routes=[{"name": "auto", "candidates": ["dear", "cheap"], "objective": {"cost": 1}}],
    keys={"team": {"sha256": "0" * 64, "prefer": True}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy folder that holds."""
    (tmp_path / "policy.toml").write_text(
        policy(BASE_URL, access={"open": False}, keys={"team-a": {"sha256": "0" * 64, "limits": {"streams": 1000}}})
    )
    return tmp_path


@pytest.fixture
def priced(tmp_path: Path) -> Path:
    """A policy folder whose route has two models, `dear` and `cheap`, and goes by what they cost."""
    folder = tmp_path / "priced"
    folder.mkdir()
    (folder / "policy.toml").write_text(PRICED)
    return folder
