from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
import tomllib
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner, Result

from relay import __version__
from relay.cli import main
from relay.commands.budgets import SHOWN_CELLS
from relay.config import Settings
from relay.learned import Memory
from relay.messages import AttemptRecord, Wants
from relay.runtimes.state_folder import StateFolder
from relay.telemetry.decisions import encode
from tests.fakes import FakeClock
from tests.learned import pipeline, teach
from tests.servers.policies import ENVIRON, policy
from tests.telemetry.logging_kept import logging_kept
from tests.telemetry.records import record

if TYPE_CHECKING:
    from pathlib import Path

BASE_URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def _environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, and the secrets that the test policies refer to."""
    for setting in Settings.model_fields:
        monkeypatch.delenv(f"RELAY_{setting.upper()}", raising=False)
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy folder that holds."""
    (tmp_path / "policy.toml").write_text(
        policy(BASE_URL, access={"open": False}, keys={"team-a": {"sha256": "0" * 64, "limits": {"streams": 1000}}})
    )
    return tmp_path


def relay(*arguments: str | Path) -> Result:
    """`relay` with these arguments, in this process; a traceback fails the test."""
    with logging_kept():
        return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


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


def test_check_takes_the_folder_from_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the set that would be served is checked."""
    monkeypatch.setenv("RELAY_POLICY", str(folder))
    assert relay("check").exit_code == 0


def test_the_schema_is_printed() -> None:
    """`relay check --schema` prints JSON Schema that knows the tables of a policy."""
    schema = json.loads(relay("check", "--schema").stdout)
    assert {"providers", "models", "routes", "keys"} <= schema["properties"].keys()


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


def test_version_says_what_is_running() -> None:
    """The relay's version comes first."""
    assert relay("version").stdout.startswith(f"relay {__version__} (Python 3.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check",), "RELAY_POLICY"),
        (("check", "/nowhere"), "'/nowhere' does not exist"),
        (("check", "--format", "xml"), "'xml' is not one of 'table', 'json'"),
        (("keys", "new", "--name", "a b"), "'a b' is not a name"),
        (("serve", "--port", "70000"), "70000 is not in the range"),
        (("serve", "--policy", "/nowhere"), "'/nowhere' does not exist"),
        (("sreve",), "No such command 'sreve'"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], told: str) -> None:
    """The message says what was wrong."""
    result = relay(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_serve_says_what_keeps_it_from_serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that do not hold, and a policy that does not, are findings on the standard error and exit code 1."""
    result = relay("serve")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("environment: error: RELAY_POLICY: not set; ")
    (folder / "policy.toml").write_text("version = 'one'\n")
    monkeypatch.setenv("RELAY_POLICY", str(folder))
    result = relay("serve")
    assert result.exit_code == 1
    assert f"{folder / 'policy.toml'}:1: error: version: " in result.stderr


def commands(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    """Every command, by its path."""
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(found for name, child in inner for found in commands(child, *path, name))]


@pytest.mark.parametrize("path", commands(main), ids=" ".join)
def test_help_is_there_for_every_command(path: tuple[str, ...]) -> None:
    """Each command says what it does; each that does something shows an example that starts with `relay`."""
    result = relay(*path, "--help")
    assert result.exit_code == 0
    if path != ("keys",):
        assert re.search(r"^ +(RELAY_\w+=\S+ )*relay ", result.stdout.split("Example")[1], flags=re.MULTILINE)


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


def test_the_module_is_the_command() -> None:
    """`python -m relay` does what `relay` does."""
    ran = subprocess.run([sys.executable, "-m", "relay", "version"], capture_output=True, text=True, check=True)
    assert ran.stdout == relay("version").stdout


EXPLAINED = """\
version = 1
access.open = true
[providers.p]
dialect = "openai"
base_url = "http://127.0.0.1:1/v1"
[models.dear]
provider = "p"
price = { input = 10, output = 10 }
[models.cheap]
provider = "p"
price = { input = 1, output = 1 }
features = []
[[routes]]
name = "auto"
candidates = ["dear", "cheap"]
objective = { cost = 1 }
[keys.team]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
prefer = true
"""


def explain(tmp_path: Path, *flags: str, policy: str = EXPLAINED, **fields: Any) -> Any:
    (tmp_path / "p.toml").write_text(policy)
    request = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields})
    return CliRunner().invoke(main, ["explain", "-", "--policy", str(tmp_path), *flags], input=request)


def test_explain_says_who_is_asked_and_why(tmp_path) -> None:
    """The cheap one first; without tools it is left out for a request that uses them; a key may prefer."""
    shown = json.loads(explain(tmp_path, "--format", "json").stdout)
    assert (shown["order"], shown["first_by"]) == (["cheap", "dear"], "score")
    shown = json.loads(explain(tmp_path, "--format", "json", tools=[{"type": "function"}]).stdout)
    assert shown["candidates"][1] == {"model": "cheap", "left_out": "features: tools"}
    flags = ["--key", "team", "--header", "x-relay-prefer=dear", "--format", "json"]
    assert json.loads(explain(tmp_path, *flags).stdout)["order"][0] == "dear"


def test_explain_as_a_table(tmp_path) -> None:
    """People see the same in columns."""
    result = explain(tmp_path, tools=[{"type": "function"}])
    assert result.exit_code == 0
    assert "features: tools" in result.stdout
    assert "dear is first by score." in result.stdout


def test_explain_says_what_a_request_is_for(tmp_path) -> None:
    """With budgets, intent and what spoke for it, and for each model the limit and why it is that."""
    messages = [{"role": "user", "content": "Write a python function that sorts a list"}]
    policy = EXPLAINED + "[budgets]\nextend = false\n"
    shown = json.loads(explain(tmp_path, "--format", "json", policy=policy, messages=messages).stdout)
    assert shown["intent"]["label"] == shown["intent"]["treated_as"] == "code"
    assert "python" in [said["feature"] for said in shown["intent"]["spoke"]]
    assert [row["model"] for row in shown["budgets"]] == ["dear", "cheap"]
    row = shown["budgets"][0]
    assert row["limit"] == row["visible"] + row["headroom"]
    assert (row["source"], row["cell"], row["clamps"]) == ("prior", [], [])
    assert list(row["expected"]) == ["p50", "p90", "p95", "p99"]
    table = explain(tmp_path, policy=policy, messages=messages).stdout
    assert "Taken for code" in table
    assert "'python'" in table


def test_explain_says_what_is_wrong(tmp_path) -> None:
    """A request that no route serves, a body that is none, a key that is not there, and a header without a value."""
    assert "No route" in explain(tmp_path, model="other").output
    assert explain(tmp_path, messages=3).exit_code == 1
    assert explain(tmp_path, "--key", "nobody").exit_code == 2
    assert "'x-relay-prefer:cost' is not NAME=VALUE" in explain(tmp_path, "--header", "x-relay-prefer:cost").output


WORLD = """\
seconds = 300
per_s = 2
places = [
  { name = "dear", ttft_ms = [400, 900, 2500], tokens_per_s = 80, price = [10, 10] },
  { name = "cheap", ttft_ms = [500, 900, 2500], tokens_per_s = 80, price = [1, 1] },
]
"""


def test_simulate(tmp_path) -> None:
    """Says what a policy makes of a world; one with other places than the route's models, or misspelt, is refused."""
    (tmp_path / "p.toml").write_text(EXPLAINED)
    run = ["simulate", "-", "--policy", str(tmp_path), "--route"]
    shown = json.loads(CliRunner().invoke(main, [*run, "auto", "--format", "json"], input=WORLD).stdout)
    assert shown["failures"] == 0
    assert next(iter(shown["served_by"])) == "cheap"
    assert "served by cheap" in CliRunner().invoke(main, [*run, "auto"], input=WORLD).stdout
    assert CliRunner().invoke(main, [*run, "other"], input=WORLD).exit_code == 2
    assert CliRunner().invoke(main, [*run, "cheap"], input=WORLD).exit_code == 1
    (tmp_path / "short").write_text("seconds = 3")
    assert "`per_s`" in relay("simulate", tmp_path / "short", *run[2:], "auto").output
    storm = '[[weather]]\nplace = "chaep"\nkind = "slow"\nfrom_s = 0\nuntil_s = 9\nfactor = 2\n'
    assert (
        "weather at chaep, its places are cheap, dear"
        in CliRunner().invoke(main, [*run, "auto"], input=WORLD + storm).output
    )
    (tmp_path / "world").write_text(f"output_token = 9\n{WORLD}")
    assert "`output_token`" in relay("simulate", tmp_path / "world", *run[2:], "auto").output


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "ttft_ms = [400, 900, 2500]",
            "ttft_ms = [900, 500, 300]",
            "ttft_ms of 'dear' is p50, p95, p99",
        ),
        ("tokens_per_s = 80", "tokens_per_s = 80, errors = 5", "Expected `float` <= 1.0 - at `$.places[0].errors`"),
        ("tokens_per_s = 80", "tokens_per_s = nan", "Expected `float` >"),
        ("seconds = 300", "seconds = inf", "Expected `float` <= 1000000000.0 - at `$.seconds`"),
        ("seconds = 300", "seconds = -1", "Expected `float` > 0.0 - at `$.seconds`"),
    ],
)
def test_an_impossible_world_is_refused(tmp_path, right: str, wrong: str, said: str) -> None:
    """Numbers that cannot be are named instead of simulated."""
    (tmp_path / "p.toml").write_text(EXPLAINED)
    assert right in WORLD
    (tmp_path / "world").write_text(WORLD.replace(right, wrong, 1))
    result = relay("simulate", tmp_path / "world", "--policy", tmp_path, "--route", "auto")
    assert result.exit_code == 1
    assert f"world is no world: {said}" in re.sub(r"\s+", " ", result.output)


def decided(tmp_path: Path, count: int = 5, **changes: Any) -> str:
    """A decision log of some requests that `dear` served."""
    log = tmp_path / "decisions.jsonl"
    served = (AttemptRecord("dear", "p", None, 200, 0.4, 2.0),)
    shown = {"model": "dear", "attempts": served, "wants": Wants(prompt_tokens=100, output_tokens=20.0), **changes}
    lines = (encode(record(id=f"req_{number}", at=1.8e9 + number, **shown), b"key") for number in range(count))
    log.write_bytes(b"\n".join([*lines, b"torn"]))
    return str(log)


def replay(tmp_path: Path, *arguments: str, stdin: str | None = None) -> Result:
    folder = tmp_path / "policy"
    folder.mkdir(exist_ok=True)
    (folder / "p.toml").write_text(EXPLAINED)
    return CliRunner().invoke(main, ["replay", *arguments, "--policy", str(folder)], input=stdin)


def test_replay_says_what_would_have_come_of_it(tmp_path) -> None:
    """As a table for people, as JSON for programs; a log can come from the standard input."""
    log = decided(tmp_path)
    result = replay(tmp_path, log, "--format", "json")
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["requests"], shown["unreadable_lines"]) == (0, 5, 1)
    assert shown["first"] == {"cheap": [0, 5], "dear": [5, 0]}
    assert shown["expected"]["usd_per_1000"]["value"] < shown["recorded"]["usd_per_1000"]["value"]
    table = replay(tmp_path, log).stdout
    for said in ("ttft_p95_ms", "1 lines unreadable", "hardly more than a guess", "Never observed: cheap"):
        assert said in " ".join(table.split())
    piped = replay(tmp_path, "-", "--format", "json", stdin=(tmp_path / "decisions.jsonl").read_text())
    assert json.loads(piped.stdout) == shown


def test_replay_finds_requests_that_nobody_serves(tmp_path) -> None:
    """They are listed with the reasons, and make the exit code 1."""
    log = decided(tmp_path, 12, wants=Wants(features=frozenset({"tools"})))
    result = replay(tmp_path, log, "--route", "cheap")
    assert result.exit_code == 1
    assert "12 requests would have had nobody to ask" in result.stdout
    assert "req_0  cheap: cheap (features: tools)" in result.stdout
    assert "and 2 more" in result.stdout
    assert len(json.loads(replay(tmp_path, log, "--route", "cheap", "--format", "json").stdout)["stranded"]) == 12
    assert "no such route" in replay(tmp_path, decided(tmp_path, route="gone")).stdout


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of a relay that has learned something, more cells than a table shows."""
    folder, pupil = tmp_path / "state", pipeline(FakeClock(wall=time.time()))
    for number in range(SHOWN_CELLS):
        teach(pupil, answers=1 + number, key=f"team-{number}")
    kept = StateFolder(folder, 1)
    kept.begin(("first",), time.time())
    kept.leave(0, Memory(pupil, "").learned())
    return folder


def test_budgets_says_what_was_learned(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON whole, as a table the largest cells, also while the relay runs; the folder may come from RELAY_STATE."""
    shown = json.loads(relay("budgets", state, "--format", "json").stdout)
    assert shown["answers"][0]["answers"] == pytest.approx(SHOWN_CELLS * (SHOWN_CELLS + 1) / 2, rel=0.02)
    assert shown["prompts"][0]["model"] == "first"
    monkeypatch.setenv("RELAY_STATE", str(state))
    monkeypatch.setenv("COLUMNS", "160")
    table = relay("budgets").stdout
    assert "Answers, tokens" in table
    assert re.search(r"factual_qa +first +team-39 +f00d +40 +2\d\d ", table)
    assert "team-0 " not in table
    assert "cells more; --format json lists them" in table
    assert "Hidden reasoning, tokens: nothing yet." in table
    assert re.search(r"first +x 1\.\d\d ", table)


def test_a_table_for_a_pipe_is_not_folded(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `less` or a file is given has each cell on one line, as far as nobody says how wide it may be."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert re.search(r"factual_qa +first +team-39 +f00d +40 ", relay("budgets", state).stdout)


def test_budgets_says_what_is_wrong(state: Path, tmp_path: Path) -> None:
    """No folder is wrong usage; one without state, or with a damaged file, is a finding that says which and why."""
    assert relay("budgets").exit_code == 2
    empty = relay("budgets", tmp_path)
    assert (empty.exit_code, "Nothing is kept in" in empty.stderr) == (1, True)
    (state / "learned").write_bytes(b"\x00")
    damaged = relay("budgets", state)
    assert (damaged.exit_code, damaged.stderr) == (
        1,
        f"{state / 'learned'} cannot be used: it is damaged, or was not written by Relay.\n",
    )


def test_replay_says_what_is_wrong(tmp_path) -> None:
    """A route that is none, no log at all, and a log without a decision."""
    assert replay(tmp_path, decided(tmp_path), "--route", "other").exit_code == 2
    assert replay(tmp_path).exit_code == 2
    empty = replay(tmp_path, decided(tmp_path, 0))
    assert (empty.exit_code, "no decision" in empty.output) == (1, True)
