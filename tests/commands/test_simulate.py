from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.commands.running import relay

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


WORLD = """\
seconds = 300
per_s = 2
places = [
  { name = "dear", ttft_ms = [400, 900, 2500], tokens_per_s = 80, price = [10, 10] },
  { name = "cheap", ttft_ms = [500, 900, 2500], tokens_per_s = 80, price = [1, 1] },
]
"""


def simulate(priced: Path, world: str | Path, *flags: str, route: str = "auto") -> Result:
    """A world is a file, or the text that the standard input has."""
    file, stdin = ("-", world) if isinstance(world, str) else (world, None)
    return relay("simulate", file, "--policy", priced, "--route", route, *flags, stdin=stdin)


def test_simulate(priced: Path) -> None:
    """Says what a policy makes of a world; one with other places than the route's models is refused."""
    shown = json.loads(simulate(priced, WORLD, "--format", "json").stdout)
    assert shown["failures"] == 0
    assert next(iter(shown["served_by"])) == "cheap"
    assert "served by cheap" in simulate(priced, WORLD).stdout
    assert simulate(priced, WORLD, route="other").exit_code == 2
    assert simulate(priced, WORLD, route="cheap").exit_code == 1
    storm = '[[weather]]\nplace = "chaep"\nkind = "slow"\nfrom_s = 0\nuntil_s = 9\nfactor = 2\n'
    assert "weather at chaep, its places are cheap, dear" in simulate(priced, WORLD + storm).output


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
        ("per_s = 2", "", "Object missing required field `per_s`"),
        ("per_s = 2", "per_s = 2\noutput_token = 9", "Object contains unknown field `output_token`"),
    ],
)
def test_an_impossible_world_is_refused(tmp_path: Path, priced: Path, right: str, wrong: str, said: str) -> None:
    """Numbers that cannot be, and fields that are missing or misspelt, are named instead of simulated."""
    assert right in WORLD
    world = tmp_path / "world"
    world.write_text(WORLD.replace(right, wrong, 1))
    result = simulate(priced, world)
    assert result.exit_code == 1
    assert f"world is no world: {said}" in re.sub(r"\s+", " ", result.output)
