from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.commands.running import BASE_URL, relay
from tests.servers.policies import ENVIRON

if TYPE_CHECKING:
    from pathlib import Path


def test_a_set_that_holds_is_shown(folder: Path) -> None:
    """`relay check` shows what the set contains and exits with 0."""
    result = relay("check", folder)
    assert result.exit_code == 0
    for shown in ("keys needed", "Providers", BASE_URL, "first-upstream", "auto", "team-a", "streams 1,000", "(all)"):
        assert shown in result.stdout


def test_a_set_that_holds_as_json(folder: Path) -> None:
    """For programs the same is one JSON object, without secrets and digests."""
    result = relay("check", folder, "--format", "json")
    shown = json.loads(result.stdout)
    assert shown["findings"] == []
    assert shown["policy"]["keys"] == [{"name": "team-a", "routes": ["(all)"], "limits": {"streams": 1000}}]
    assert shown["policy"]["routes"][0] == {"name": "auto", "candidates": ["first"], "attempts": 1}
    assert "0" * 64 not in result.stdout
    assert ENVIRON["UPSTREAM_KEY"] not in result.stdout


def test_findings_name_file_and_line(folder: Path) -> None:
    """What is wrong comes one a line, as FILE:LINE, and makes the exit code 1."""
    (folder / "broken.toml").write_text("version = 1\n\n[models.x]\nprovider = 'nobody'\n")
    result = relay("check", folder)
    assert result.exit_code == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{folder / 'broken.toml'}:4: error: models.x.provider: ")
    finding = json.loads(relay("check", folder, "--format", "json").stdout)["findings"][0]
    assert (finding["file"], finding["line"], finding["key"]) == (str(folder / "broken.toml"), 4, "models.x.provider")


def test_a_folder_without_a_set_is_a_finding(tmp_path: Path) -> None:
    """An empty folder is no policy set, and the message says so."""
    result = relay("check", tmp_path)
    assert (result.exit_code, result.stdout) == (
        1,
        f"{tmp_path}: error: No *.toml files in the policy folder {tmp_path}.\n",
    )


def test_check_takes_the_folder_from_the_variable(folder: Path) -> None:
    """Without an argument the set that would be served is checked."""
    assert relay("check", RELAY_POLICY=str(folder)).exit_code == 0


def test_the_schema_is_printed() -> None:
    """`relay check --schema` prints JSON Schema that knows the tables of a policy."""
    schema = json.loads(relay("check", "--schema").stdout)
    assert {"providers", "models", "routes", "keys"} <= schema["properties"].keys()
