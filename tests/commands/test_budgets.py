from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest

from relay.commands.budgets import SHOWN_CELLS
from relay.learned import Memory
from relay.runtimes.state_folder import StateFolder
from tests.commands.running import relay
from tests.fakes import FakeClock
from tests.learned import pipeline, teach

if TYPE_CHECKING:
    from pathlib import Path

    from relay.pipeline import Pipeline


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of a relay that has learned something, more cells than a table shows."""
    folder, pupil = tmp_path / "state", pipeline(FakeClock(wall=time.time()))
    for number in range(SHOWN_CELLS):
        teach(pupil, answers=1 + number, key=f"team-{number}")
    keep(folder, pupil)
    return folder


def keep(folder: Path, pupil: Pipeline) -> None:
    """Write what a pipeline has learned, as its relay's only worker would."""
    kept = StateFolder(folder, 1)
    kept.begin(("first",), time.time())
    kept.leave(0, Memory(pupil, "").learned())


def test_budgets_says_what_was_learned(state: Path) -> None:
    """As JSON whole, as a table the largest cells, also while the relay runs; the folder may come from RELAY_STATE."""
    shown = json.loads(relay("budgets", state, "--format", "json").stdout)
    assert shown["answers"][0]["answers"] == pytest.approx(SHOWN_CELLS * (SHOWN_CELLS + 1) / 2, rel=0.02)
    assert shown["prompts"][0]["model"] == "first"
    table = relay("budgets", RELAY_STATE=str(state), COLUMNS="160").stdout
    assert "Answers, tokens" in table
    assert re.search(r"factual_qa, first, team-39, f00d +40 +2\d\d ", table)
    assert "team-0 " not in table
    assert "cells more; --format json lists them" in table
    assert "Hidden reasoning, tokens: nothing yet." in table
    assert re.search(r"first +x 1\.\d\d ", table)


def test_a_table_for_a_pipe_is_not_folded(state: Path) -> None:
    """What `less` or a file is given has each cell on one line, as far as nobody says how wide it may be."""
    assert re.search(r"factual_qa, first, team-39, f00d +40 ", relay("budgets", state, COLUMNS=None).stdout)


def test_budgets_fit_a_narrow_terminal(tmp_path: Path) -> None:
    """On 80 columns only names of cells are folded, between their parts; numbers stay whole, the lesser ones go."""
    folder, pupil = tmp_path / "state", pipeline(FakeClock(wall=time.time()))
    teach(pupil, answers=100, tokens=3000, key="the-key-of-a-large-team")
    keep(folder, pupil)
    table = relay("budgets", folder, COLUMNS="80").stdout
    assert max(map(len, table.splitlines())) <= 80
    assert re.search(r"answers +p50 +p95 +p99 +budget *\n", table)
    number = r" +\d,\d{3}"
    assert re.search(rf"factual_qa, first, +100{number * 3} +\d\.\d% *\n +the-key-of-a-large-team, f00d *\n", table)


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
