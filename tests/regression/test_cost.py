"""The hot path costs no more than was agreed in `budget.json`: counted, not timed."""

from __future__ import annotations

import pytest

from tests.regression import cost

TOLERANCE = 0.03
"""Growth that is let pass on the Python the budget was made on; counts are exact there, so this is for small mends."""

OTHER_PYTHON = 0.20
"""Other Pythons compile to other instructions, by so much at most."""

LEFT_BEHIND = 0.25
"""A budget that is this much too high would let the next growth pass unseen."""


@pytest.fixture(scope="module")
def found():
    """Counted once for all tests here."""
    return cost.measure()


@pytest.mark.parametrize("name", [name for name in cost.read_budget() if name != "python"])
def test_within_budget(found, name):
    """The cost is within its budget, and the budget not far above the cost."""
    budget = cost.read_budget()
    now, agreed = sum(found[name].values()), sum(budget[name].values())
    same_python = budget["python"] == cost.python_version()
    table = f"{name}, budget from Python {budget['python']}:\n{cost.compare(found[name], budget[name])}"
    renew = "python -m tests.regression.cost --renew"
    assert now <= agreed * (1 + (TOLERANCE if same_python else OTHER_PYTHON)), (
        f"The hot path got dearer; the stages that grew come first. If it is worth it, say so with: {renew}\n{table}"
    )
    if same_python:
        assert now >= agreed * (1 - LEFT_BEHIND), f"The hot path got cheaper. Keep it so with: {renew}\n{table}"


def test_every_cost_has_a_budget(found):
    """What is counted is agreed on, and the other way round."""
    assert set(found) == set(cost.read_budget()) - {"python"}
