from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from relay.cli import main
from relay.config import Settings
from tests.commands.running import relay

if TYPE_CHECKING:
    from pathlib import Path


def test_serve_says_what_keeps_it_from_serving(folder: Path) -> None:
    """Settings that do not hold, and a policy that does not, are findings on the standard error and exit code 1."""
    result = relay("serve")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("environment: error: RELAY_POLICY: not set; ")
    (folder / "policy.toml").write_text("version = 'one'\n")
    result = relay("serve", RELAY_POLICY=str(folder))
    assert result.exit_code == 1
    assert f"{folder / 'policy.toml'}:1: error: version: " in result.stderr


def test_every_setting_but_the_secret_is_a_flag() -> None:
    """`relay serve` can be told on the command line what variables tell it; secrets stay out of process lists."""
    flags = {parameter.name for parameter in main.commands["serve"].params}
    assert flags == set(Settings.model_fields) - {"admin_key"}


def test_who_serves_loads_what_serves() -> None:
    """`relay serve` holds in memory neither the other commands nor what only they use."""
    program = "import sys; from relay.cli import main; main.commands['serve']; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {*ran.stdout.split()}
    assert "relay.commands.serve" in loaded
    assert not loaded & {"relay.commands.check", "relay.replay", "relay.simulate", "rich", "httpx2", "genai_prices"}
