from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from relay.messages import AttemptRecord, Wants
from relay.telemetry.decisions import encode
from tests.commands.running import relay
from tests.telemetry.records import record

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def replay(priced: Path, *arguments: str, stdin: str | None = None) -> Result:
    return relay("replay", *arguments, "--policy", priced, stdin=stdin)


def decided(tmp_path: Path, count: int = 5, **changes: Any) -> str:
    """A decision log of some requests that `dear` served."""
    log = tmp_path / "decisions.jsonl"
    served = (AttemptRecord("dear", "p", None, 200, 0.4, 2.0),)
    shown = {"model": "dear", "attempts": served, "wants": Wants(prompt_tokens=100, output_tokens=20.0), **changes}
    lines = (encode(record(id=f"req_{number}", at=1.8e9 + number, **shown), b"key") for number in range(count))
    log.write_bytes(b"\n".join([*lines, b"torn"]))
    return str(log)


def test_replay_says_what_would_have_come_of_it(tmp_path: Path, priced: Path) -> None:
    """As a table for people, as JSON for programs; a log can come from the standard input."""
    log = decided(tmp_path)
    result = replay(priced, log, "--format", "json")
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["requests"], shown["unreadable_lines"]) == (0, 5, 1)
    assert shown["first"] == {"cheap": [0, 5], "dear": [5, 0]}
    assert shown["expected"]["usd_per_1000"]["value"] < shown["recorded"]["usd_per_1000"]["value"]
    table = replay(priced, log).stdout
    for said in ("ttft_p95_ms", "1 lines unreadable", "hardly more than a guess", "Never observed: cheap"):
        assert said in " ".join(table.split())
    piped = replay(priced, "-", "--format", "json", stdin=(tmp_path / "decisions.jsonl").read_text())
    assert json.loads(piped.stdout) == shown


def test_replay_finds_requests_that_nobody_serves(tmp_path: Path, priced: Path) -> None:
    """They are listed with the reasons, and make the exit code 1."""
    log = decided(tmp_path, 12, wants=Wants(features=frozenset({"tools"})))
    result = replay(priced, log, "--route", "cheap")
    assert result.exit_code == 1
    assert "12 requests would have had nobody to ask" in result.stdout
    assert "req_0  cheap: cheap (features: tools)" in result.stdout
    assert "and 2 more" in result.stdout
    assert len(json.loads(replay(priced, log, "--route", "cheap", "--format", "json").stdout)["stranded"]) == 12
    assert "no such route" in replay(priced, decided(tmp_path, route="gone")).stdout


def test_replay_says_what_is_wrong(tmp_path: Path, priced: Path) -> None:
    """A route that is none, no log at all, and a log without a decision."""
    assert replay(priced, decided(tmp_path), "--route", "other").exit_code == 2
    assert replay(priced).exit_code == 2
    empty = replay(priced, decided(tmp_path, 0))
    assert (empty.exit_code, "no decision" in empty.output) == (1, True)
