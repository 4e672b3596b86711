"""What an answer may take: a learned quantile, the policy's rules, and the room there is.

    visible   quantile of the expected length, within floor and ceiling
    headroom  for hidden reasoning: the policy's by effort, what this model was seen to need, what the client set aside
    limit     their sum, within the model's output limit and what the prompt leaves of its context

A budget never eats the headroom: reasoning is paid first, so a limit without it returns empty answers.
A client's own limit is left alone unless the policy caps.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

import msgspec

from relay.messages import Budget

if TYPE_CHECKING:
    from relay.limits.lengths import Expectation
    from relay.messages import BudgetRules, Headroom

HEADROOM_QUANTILE = 0.99
"""Share of answers whose hidden reasoning shall fit the headroom: what does not fit has cost an answer."""

EXTENSION_QUANTILE = 0.9
"""Share of answers over budget that one continuation shall finish, where doubling the answer allows it. At the median
no less is reserved, because more answers come to the last continuation, and each seam is a risk."""

PROMPT_MARGIN = 1.1
"""How far the estimate of a prompt is trusted when its context is nearly full."""

NOISE = 2.0
"""Hidden tokens not worth a headroom: a cell that never saw any expects about one."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """What the budget depends on besides the policy and the lengths learned.

    Attributes:
        prompt_tokens: estimate, calibrated.
        client_limit: the client's limit on the answer; None if it set none.
        client_thinking: what the client itself set aside for reasoning within it, for example Anthropic's
            `thinking.budget_tokens`.
        choices: answers asked for.
        effort: reasoning effort in force, the client's or the policy's; None if neither says.
        reasons: whether the model reasons, by the policy's word; None if it says nothing, which counts as yes.
        extendable: an answer that meets its budget can be continued: no tool call, no JSON schema, a dialect that can.
        context: of the model; None if the policy does not say.
        max_output: of the model; None likewise.
    """

    prompt_tokens: int
    client_limit: int | None = None
    client_thinking: int = 0
    choices: int = 1
    effort: str | None = None
    reasons: bool | None = False
    extendable: bool = True
    context: int | None = None
    max_output: int | None = None


def budget(
    rules: BudgetRules, request: Request, expected: Expectation, *, hidden: float = 0.0, trusted: bool = False
) -> Budget:
    """Set the limit of an answer.

    Args:
        rules: the policy's, for the request's intent.
        request: what is asked.
        expected: of `Lengths.expect` for `rules.quantile`.
        hidden: reasoning tokens that this model was seen to need at `HEADROOM_QUANTILE`; 0 if not known.
        trusted: a model of which the policy says nothing was seen often enough for `hidden` to stand alone.

    Returns:
        The budget. Its limit is at least 1, even if the prompt leaves no room: routing has to see to that.
    """
    reasons = not trusted if request.reasons is None else request.reasons
    headroom = _headroom(rules.headroom, request, hidden, reasons=reasons)
    visible = ceil(expected.tokens)
    held = max(visible, rules.floor)
    source: Literal["cell", "prior", "client", "ceiling", "off"] = "cell" if expected.cell else "prior"
    clamps: list[str] = []
    if rules.extend and not request.extendable:  # it could not be continued, so it must not end early
        visible, source = rules.ceiling, "ceiling"
    if visible < rules.floor:
        visible = rules.floor
        clamps.append("floor")
    if visible > rules.ceiling:
        visible, source = rules.ceiling, "ceiling"
        clamps.append("ceiling")

    limit = _within_room(visible + headroom, request, clamps)
    asked = request.client_limit
    if asked is not None and (rules.mode != "cap" or asked <= limit):
        possible = _within_room(asked, request, [])  # clients name any number; it goes on as it came
        return Budget(asked, possible, headroom, possible * request.choices, "client")
    if rules.mode == "off":
        return Budget(None, min(visible, limit), headroom, min(held + headroom, limit) * request.choices, "off")
    return Budget(
        limit,
        min(visible, limit),
        headroom,
        min(held + headroom, limit) * request.choices,
        source,
        tuple(clamps),
        expected.cell,
        expected.quantile,
        expected.allowed,
    )


def _within_room(tokens: int, request: Request, clamps: list[str]) -> int:
    """What of these tokens the model can write; which bounds they met is added to the clamps."""
    if request.max_output is not None and tokens > request.max_output:
        tokens = max(request.max_output, 1)
        clamps.append("max_output")
    if request.context is not None:
        room = request.context - ceil(request.prompt_tokens * PROMPT_MARGIN)
        if tokens > room:
            tokens = max(room, 1)
            clamps.append("context")
    return tokens


def extension(
    rules: BudgetRules,
    more: float,
    *,
    written: int,
    number: int,
    headroom: int = 0,
    client_limit: int | None = None,
) -> int:
    """Set the limit of a continuation.

    Args:
        rules: the policy's, for the request's intent.
        more: of `Lengths.expect_more` at `EXTENSION_QUANTILE`.
        written: tokens that the client has seen so far.
        number: which continuation of the answer it is, from 1.
        headroom: what the first segment had for hidden reasoning; the model will think again.
        client_limit: the client's limit, where the policy capped it; None if it set none.

    Returns:
        The limit, hidden reasoning included; 0 if the answer ends here. A continuation doubles the answer at most,
        so that what loops for ever is not taken for what answers of this length need; the last one is given all up
        to the ceiling.
    """
    room = (rules.ceiling if client_limit is None else min(rules.ceiling, client_limit)) - written
    if not rules.extend or number > rules.max_extensions or room <= 0:
        return 0
    wanted = room if number == rules.max_extensions else max(min(ceil(more), written), rules.floor)
    return min(wanted, room) + headroom


def thinking_tokens(policy: Headroom, effort: str | None) -> int:
    """What an effort is in tokens; without one, medium counts.

    Providers know more efforts than policies: below low counts as low, above high (xhigh, max) as twice high.
    """
    match effort:
        case "none":
            return 0
        case "minimal" | "low":
            return policy.low
        case "medium" | None:
            return policy.medium
        case "high":
            return policy.high
        case _:
            return 2 * policy.high


def _headroom(policy: Headroom, request: Request, hidden: float, *, reasons: bool) -> int:
    """The most that policy, client or experience ask for. A model that never reasoned needs none."""
    needed = max(request.client_thinking, ceil(hidden)) if hidden > NOISE else request.client_thinking
    return max(needed, thinking_tokens(policy, request.effort)) if reasons else needed
