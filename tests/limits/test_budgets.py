"""Budgets: modes, clamps, headroom, continuations."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits.budgets import Request, budget, extension
from relay.limits.lengths import Expectation
from relay.messages import BudgetRules, Headroom

CELL = ("code", "small", "team-a", "f00d")
RULES = BudgetRules(floor=64, ceiling=4096, headroom=Headroom(1000, 4000, 16_000))


def expected(tokens: float, *, cell: tuple[str, ...] = CELL) -> Expectation:
    return Expectation(tokens, 0.95, 0.05, cell)


# --- where the number comes from ----------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "source"), [(CELL, "cell"), ((), "prior")])
def test_a_budget_is_the_expected_quantile(cell: tuple[str, ...], source: str) -> None:
    """Without limits of anyone's it is the quantile, rounded up, and says whether a cell or the prior gave it."""
    given_ = budget(RULES, Request(100), expected(500.2, cell=cell))
    assert (given_.limit, given_.visible, given_.headroom, given_.reserve) == (501, 501, 0, 501)
    assert (given_.source, given_.clamps, given_.cell) == (source, (), cell)
    assert (given_.quantile, given_.allowed) == (0.95, 0.05)


@pytest.mark.parametrize(
    ("tokens", "limit", "source", "clamps"),
    [
        (5, 64, "cell", ("floor",)),
        (9000, 4096, "ceiling", ("ceiling",)),
        (64, 64, "cell", ()),
        (4096, 4096, "cell", ()),
    ],
)
def test_floor_and_ceiling(tokens: float, limit: int, source: str, clamps: tuple[str, ...]) -> None:
    """What is outside is moved to the border, and the clamp is named."""
    result = budget(RULES, Request(100), expected(tokens))
    assert (result.limit, result.source, result.clamps) == (limit, source, clamps)


def test_what_cannot_be_continued_gets_all_up_to_the_ceiling() -> None:
    """A tool call or a JSON answer must not end early, because nothing may be put behind it."""
    result = budget(RULES, Request(100, extendable=False), expected(200))
    assert (result.limit, result.source) == (4096, "ceiling")


def test_without_extension_the_policys_quantile_is_the_policys_choice() -> None:
    """A policy that does not extend gets its quantile for every answer."""
    rules = msgspec.structs.replace(RULES, extend=False)
    assert budget(rules, Request(100, extendable=False), expected(200)).limit == 200


@pytest.mark.parametrize(
    ("request_", "limit", "clamps"),
    [
        (Request(100, max_output=300), 300, ("max_output",)),
        (Request(1000, context=1500), 400, ("context",)),
        (Request(1000, context=1500, max_output=450), 400, ("max_output", "context")),
        (Request(1000, context=1500, max_output=350), 350, ("max_output",)),
        (Request(2000, context=1500), 1, ("context",)),
        (Request(100, context=128_000, max_output=16_384), 500, ()),
    ],
)
def test_room_of_the_model(request_: Request, limit: int, clamps: tuple[str, ...]) -> None:
    """Never more than the model can write, nor than the prompt, taken with a margin, leaves of its context."""
    result = budget(RULES, request_, expected(500))
    assert (result.limit, result.clamps) == (limit, clamps)
    assert result.visible <= limit


# --- the client's own limit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "client", "limit", "source"),
    [
        ("fill", None, 500, "cell"),
        ("fill", 100, 100, "client"),
        ("fill", 100_000, 100_000, "client"),
        ("cap", None, 500, "cell"),
        ("cap", 100, 100, "client"),
        ("cap", 500, 500, "client"),
        ("cap", 100_000, 500, "cell"),
        ("off", None, None, "off"),
        ("off", 100, 100, "client"),
    ],
)
def test_modes(mode: str, client: int | None, limit: int | None, source: str) -> None:
    """`fill` and `off` never touch what the client set; `cap` takes the lesser; `off` sets nothing itself."""
    rules = msgspec.structs.replace(RULES, mode=mode)
    result = budget(rules, Request(100, client_limit=client), expected(500))
    assert (result.limit, result.source) == (limit, source)
    assert result.reserve == (limit or 500)


def test_a_clients_limit_is_not_clamped() -> None:
    """Above ceiling and context it is the upstream that says no, in its own words."""
    result = budget(RULES, Request(1000, client_limit=50_000, context=2000, max_output=300), expected(500))
    assert (result.limit, result.clamps) == (50_000, ())


@pytest.mark.parametrize(
    ("max_output", "context", "possible"), [(None, None, 10**12), (300, None, 300), (3000, 2100, 1000)]
)
def test_what_no_model_can_write_is_not_expected(max_output: int | None, context: int | None, possible: int) -> None:
    """Of a client's limit beyond all measure, no more is reserved of its key's tokens than the model has room for."""
    request = Request(1000, client_limit=10**12, choices=2, max_output=max_output, context=context)
    result = budget(RULES, request, expected(500))
    assert (result.limit, result.visible, result.reserve) == (10**12, possible, 2 * possible)


def test_what_cannot_be_continued_reserves_what_is_expected() -> None:
    """It may write up to the ceiling; to reserve that would use a key's tokens up for nothing."""
    result = budget(RULES, Request(prompt_tokens=100, extendable=False), expected(500))
    assert (result.limit, result.source, result.reserve) == (RULES.ceiling, "ceiling", 500)


def test_each_choice_is_reserved() -> None:
    """Three answers asked for take three times the tokens; the limit is per answer."""
    result = budget(RULES, Request(100, choices=3), expected(500))
    assert (result.limit, result.reserve) == (500, 1500)


# --- headroom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effort", "headroom"),
    [
        ("none", 0),
        ("minimal", 1000),
        ("low", 1000),
        (None, 4000),
        ("medium", 4000),
        ("high", 16_000),
        ("xhigh", 32_000),
    ],
)
def test_headroom_follows_the_effort(effort: str | None, headroom: int) -> None:
    """It comes on top of what the client sees, and an unknown effort is a great one."""
    result = budget(RULES, Request(100, reasons=True, effort=effort), expected(500))
    assert (result.limit, result.visible, result.headroom) == (500 + headroom, 500, headroom)


def test_models_that_do_not_reason_get_none() -> None:
    """An effort that such a model ignores costs nothing."""
    assert budget(RULES, Request(100, effort="high"), expected(500)).limit == 500


@pytest.mark.parametrize("reasons", [True, False])
def test_experience_raises_the_headroom(*, reasons: bool) -> None:
    """A model seen to think more than the policy foresaw gets what it needed, whatever the policy says of it."""
    result = budget(RULES, Request(100, reasons=reasons, effort="low"), expected(500), hidden=7000.5)
    assert result.headroom == 7001


def test_experience_never_lowers_the_policys_headroom() -> None:
    """Short thinking so far is no promise."""
    assert budget(RULES, Request(100, reasons=True, effort="low"), expected(500), hidden=30).headroom == 1000


def test_a_clients_own_thinking_budget_fits_in() -> None:
    """The limit leaves the whole of it and the visible answer besides."""
    result = budget(RULES, Request(100, client_thinking=20_000), expected(500))
    assert (result.headroom, result.limit) == (20_000, 20_500)


def test_the_ceiling_bounds_what_is_seen_not_what_is_thought() -> None:
    """A ceiling below the headroom does not eat it."""
    rules = msgspec.structs.replace(RULES, ceiling=200)
    assert budget(rules, Request(100, reasons=True, effort="high"), expected(500)).limit == 16_200


@given(
    tokens=st.floats(1, 1e6),
    request_=st.builds(
        Request,
        prompt_tokens=st.integers(0, 300_000),
        client_limit=st.none() | st.integers(1, 200_000),
        client_thinking=st.sampled_from([0, 1024, 32_000]),
        choices=st.integers(1, 8),
        effort=st.sampled_from([None, "none", "low", "high", "max"]),
        reasons=st.none() | st.booleans(),
        extendable=st.booleans(),
        context=st.none() | st.integers(1000, 200_000),
        max_output=st.none() | st.integers(256, 65_536),
    ),
    mode=st.sampled_from(["fill", "cap", "off"]),
)
def test_promises_hold_for_any_request(tokens: float, request_: Request, mode: str) -> None:
    """A limit is at least one, a client's is lowered only by `cap`, and ours keeps to the model's room."""
    result = budget(msgspec.structs.replace(RULES, mode=mode), request_, expected(tokens))
    if request_.client_limit is not None and mode != "cap":
        assert result.limit == request_.client_limit
        assert 1 <= result.visible <= min(request_.client_limit, request_.max_output or 10**9)
        return
    if mode == "off":
        assert result.limit is None
        return
    assert result.limit is not None
    assert 1 <= result.limit <= (request_.client_limit or 10**9)
    assert 1 <= result.reserve <= result.limit * request_.choices
    if request_.extendable:
        assert result.reserve == result.limit * request_.choices
    if result.source != "client":
        assert result.limit <= (request_.max_output or 10**9)
        assert result.visible <= RULES.ceiling


# --- continuations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "written", "number", "tokens"),
    [
        (300.5, 500, 1, 301),
        (5, 500, 1, 64),
        (9000, 500, 1, 500),
        (9000, 2500, 1, 1596),
        (300, 4080, 1, 16),
        (300, 500, 4, 3596),
        (300, 500, 5, 0),
        (300, 4096, 2, 0),
    ],
    ids=["expected", "floor", "doubled", "ceiling", "rest", "last takes all", "too many", "at the ceiling"],
)
def test_continuations(more: float, written: int, number: int, tokens: int) -> None:
    """Each is given what is expected to finish it; the last one all that is left; none goes past the ceiling."""
    assert extension(RULES, more, written=written, number=number) == tokens


def test_a_continuation_thinks_again() -> None:
    """Its limit leaves the headroom of the first segment too."""
    assert extension(RULES, 300, written=500, number=1, headroom=4000) == 4300


def test_a_capped_clients_limit_ends_continuations() -> None:
    """What the client allowed is never exceeded, all segments together."""
    assert extension(RULES, 300, written=500, number=1, client_limit=600) == 100
    assert extension(RULES, 300, written=600, number=1, client_limit=600) == 0


def test_without_extension_there_are_none() -> None:
    """The policy says no."""
    assert extension(msgspec.structs.replace(RULES, extend=False), 300, written=500, number=1) == 0
