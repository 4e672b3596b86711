from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.commands.running import relay

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


def explain(folder: Path, *flags: str, **fields: Any) -> Result:
    request = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields})
    return relay("explain", "-", "--policy", folder, *flags, stdin=request)


def test_explain_says_who_is_asked_and_why(priced: Path) -> None:
    """The cheap one first; without tools it is left out for a request that uses them; a key may prefer."""
    shown = json.loads(explain(priced, "--format", "json").stdout)
    assert (shown["order"], shown["first_by"]) == (["cheap", "dear"], "score")
    shown = json.loads(explain(priced, "--format", "json", tools=[{"type": "function"}]).stdout)
    assert shown["candidates"][1] == {"model": "cheap", "left_out": "features: tools"}
    flags = ["--key", "team", "--header", "x-relay-prefer=dear", "--format", "json"]
    assert json.loads(explain(priced, *flags).stdout)["order"][0] == "dear"


def test_explain_as_a_table(priced: Path) -> None:
    """People see the same in columns."""
    result = explain(priced, tools=[{"type": "function"}])
    assert result.exit_code == 0
    assert "features: tools" in result.stdout
    assert "dear is first by score." in result.stdout


def test_explain_says_what_a_request_is_for(priced: Path) -> None:
    """With budgets, intent and what spoke for it, and for each model the limit and why it is that."""
    messages = [{"role": "user", "content": "Write a python function that sorts a list"}]
    (priced / "budgets.toml").write_text("[budgets]\nextend = false\n")
    shown = json.loads(explain(priced, "--format", "json", messages=messages).stdout)
    assert shown["intent"]["label"] == shown["intent"]["treated_as"] == "code"
    assert "python" in [said["feature"] for said in shown["intent"]["spoke"]]
    assert [row["model"] for row in shown["budgets"]] == ["dear", "cheap"]
    row = shown["budgets"][0]
    assert row["limit"] == row["visible"] + row["headroom"]
    assert (row["source"], row["cell"], row["clamps"]) == ("prior", [], [])
    assert list(row["expected"]) == ["p50", "p90", "p95", "p99"]
    table = explain(priced, messages=messages).stdout
    assert "Taken for code" in table
    assert "'python'" in table


def test_explain_says_what_is_wrong(priced: Path) -> None:
    """A request that no route serves, a body that is none, a key that is not there, and a header without a value."""
    assert "No route" in explain(priced, model="other").output
    assert explain(priced, messages=3).exit_code == 1
    assert explain(priced, "--key", "nobody").exit_code == 2
    assert "'x-relay-prefer:cost' is not NAME=VALUE" in explain(priced, "--header", "x-relay-prefer:cost").output
