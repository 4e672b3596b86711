"""What budgets have learned, as plain values. There is no text in it: of system prompts there are fingerprints."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any

from relay.limits import quantiles
from relay.limits.prompt_tokens import Calibration
from relay.limits.quantiles import Sketch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.limits.experience import ExperienceSnapshot
    from relay.limits.lengths import CellSnapshot

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

_PARTS = {
    0: (),
    1: ("intent",),
    2: ("intent", "model"),
    3: ("model", "key", "application"),
    4: ("intent", "model", "key", "application"),
}
"""What the names of cells consist of, by their length; see `relay.limits.lengths.Place.cells`."""


def reported(experience: ExperienceSnapshot, now: float) -> dict[str, Any]:
    """Everything that was learned, the cells with most answers first.

    Args:
        experience: what was learned.
        now: seconds since the Unix epoch; answers are counted by what they still weigh.

    Returns:
        `answers`, cells of visible answers; `reasoning`, cells of hidden reasoning, with `effort` for an intent;
        `prompts`, by model the factor on estimates. What a cell does not tell apart is None, and so is what it cannot
        know. Lengths are tokens, as quantiles of the cell's own answers.
    """
    calibration = Calibration(experience.prompts)
    return {
        "answers": _sorted({**_cell(cell, now), **_judged(cell)} for cell in experience.answers),
        "reasoning": _sorted(_by_effort(_cell(cell, now)) for cell in experience.reasoning),
        "prompts": [
            {"model": model, "factor": round(calibration.factor(model), 4), "estimated_tokens": round(estimated)}
            for model, (_, estimated) in sorted(experience.prompts.items())
        ],
    }


def _sorted(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: -row["answers"])


def _cell(cell: CellSnapshot, now: float) -> dict[str, Any]:
    named = dict(zip(_PARTS[len(cell.cell)], cell.cell, strict=True))
    sketch = Sketch.restore(cell.lengths)
    return {
        **{part: named.get(part) for part in _PARTS[4]},
        "answers": round(quantiles.weight(cell.lengths, now), 2),
        **{name: round(sketch.quantile(q) or 0.0) for name, q in QUANTILES.items()},
    }


def _judged(cell: CellSnapshot) -> dict[str, Any]:
    """How often budgets were too small, and by what factor the cell therefore lowers the share that may be."""
    if not cell.judged:
        return {"over_budget": None, "widening": None}
    return {"over_budget": round(cell.over / cell.judged, 4), "widening": round(exp(cell.widening), 4)}


def _by_effort(row: dict[str, Any]) -> dict[str, Any]:
    return {"effort": row.pop("intent"), **row}
