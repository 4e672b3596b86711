from __future__ import annotations

import hashlib
import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.commands.running import BASE_URL, relay
from tests.servers.policies import policy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["team-a", "team.a@example"])
def test_a_new_key_is_let_in_by_its_lines(name: str, folder: Path) -> None:
    """What is printed for the policy is TOML that holds and has the SHA-256 of the key that is printed."""
    result = relay("keys", "new", "--name", name)
    (key,) = re.findall(r"^rk-[A-Za-z0-9_-]{43}$", result.stdout, flags=re.MULTILINE)
    lines = result.stdout[result.stdout.index("[keys.") :]
    assert tomllib.loads(lines) == {"keys": {name: {"sha256": hashlib.sha256(key.encode()).hexdigest()}}}
    (folder / "policy.toml").write_text(policy(BASE_URL, access={"open": False}))
    (folder / "keys.toml").write_text(lines)
    assert relay("check", folder).exit_code == 0


def test_keys_differ() -> None:
    """No two keys are the same."""
    assert len({relay("keys", "new").stdout for _ in range(20)}) == 20
