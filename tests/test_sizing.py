"""Sizing: what is read of requests, remembered, and decided alike everywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from relay.dialects import DIALECTS
from relay.limits.experience import Experience
from relay.messages import Budget, BudgetRules, Usage
from relay.policy.load import load
from relay.sizing import REMEMBERED_BYTES, Sizer, Sizing, described, system_text
from tests.vectors import sizing as vectors

if TYPE_CHECKING:
    from relay.policy.compiled import Model, Policy

DIALECT = DIALECTS["openai"]


def a_policy(extra: str = "", model: str = "") -> Policy:
    text = f"""version = 1
access.open = true
[providers.p]
dialect = "openai"
base_url = "http://127.0.0.1:1/v1"
[models.m]
provider = "p"
{model}
[budgets]
extend = false
{extra}
"""
    return load({"p": text}, {})


def a_sizer(policy: Policy) -> Sizer:
    assert policy.intents is not None
    return Sizer(policy.intents, Experience())


def sized(sizer: Sizer, content: str = "Write a python function.", system: str = "", **fields: Any) -> Sizing:
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": content}]
    request = DIALECT.parse_request(json.dumps({"model": "m", "messages": messages, **fields}).encode())
    return sizer.size(request, DIALECT, "team")


def the_model(policy: Policy) -> Model:
    return policy.models["m"]


def test_decisions_are_the_same_everywhere() -> None:
    """Requests that teach each other's budgets are decided as the vectors say, on every Python."""
    assert json.loads(json.dumps(vectors.decided())) == json.loads(vectors.KEPT.read_text())


def test_a_prompt_that_comes_again_is_remembered() -> None:
    """From its second time on, whatever else the request says; another one, or one too long, is read anew."""
    sizer = a_sizer(a_policy())
    first, second = sized(sizer).intent, sized(sizer).intent
    assert second is not first
    assert sized(sizer, temperature=0.5, max_tokens=3).intent is second
    for fields in ({"tools": [{"type": "function"}]}, {"content": "Write a python function!"}):
        assert sized(sizer, **fields).intent is not second
    code, other = ("def f(): return 1; " * 99, "Lord, what fools these mortals be! " * 99)
    alike = [sized(sizer, start + "same end " * 99).intent for start in (code, other, code, other)]
    assert alike[:2] == alike[2:]
    assert alike[0] != alike[1]
    long = "word " * REMEMBERED_BYTES
    anew = [sized(sizer, long).intent for _ in range(3)]
    assert len({*map(id, anew)}) == len(anew)


def test_what_is_no_text_is_the_upstreams_to_judge() -> None:
    """A prompt that is not UTF-8 is sized like an empty one, whole or in parts."""
    sizer = a_sizer(a_policy())
    for content in (b'"\xff"', b'[{"type":"text","text":"\xff"}]', b'"%b"' % (b"\xff" * 9000)):
        body = b'{"model":"m","messages":[{"role":"user","content":%b}]}' % content
        sizing = sizer.size(DIALECT.parse_request(body), DIALECT, "team")
        assert sizing.intent == sized(sizer, "").intent


def test_what_is_remembered_changes_nothing() -> None:
    """A prompt that is remembered gets the budget that it would get anyway."""
    policy = a_policy()
    sizer, fresh = a_sizer(policy), a_sizer(policy)
    for _ in range(2):
        again = sized(sizer, system="You are terse.")
    once = sized(fresh, system="You are terse.")
    assert again.budget(the_model(policy)) == once.budget(the_model(policy))
    assert again.prompt_tokens("m") == once.prompt_tokens("m")


@pytest.mark.parametrize(("least", "label"), [(0.0, "code"), (1.0, "creative")])
def test_an_unsure_intent_is_the_default(least: float, label: str) -> None:
    """Below the policy's confidence the default's rules hold, and the header says so."""
    policy = a_policy(f'[classifier]\nmin_confidence = {least}\ndefault = "creative"\n[intents.creative]\nmin_tier = 3')
    sizing = sized(a_sizer(policy))
    assert sizing.intent.label == "code"
    assert (sizing.label, sizing.rules.min_tier) == (label, 3 if label == "creative" else 0)
    assert sizing.described().startswith(f"{label}; confidence=0.")
    assert sizing.described().endswith("; default") == (label == "creative")


def test_applications_are_told_apart_by_their_system_prompt() -> None:
    """Answers of one application teach nothing to another of the same model and key but what is common to all."""
    policy = a_policy(extra="[classifier]\nmin_confidence = 1.0")
    sizer, model = a_sizer(policy), the_model(policy)
    for system, tokens in (("You answer with one word.", 3), ("You write reports.", 3000)):
        for number in range(300):
            sizing = sized(sizer, f"number {number}", system)
            sizing.observe(model, sizing.budget(model), Usage(10, tokens), 1e9, cut=False)
            sizer.experience.catch_up()
    short, long = (sized(sizer, "again", system) for system in ("You answer with one word. 2", "You write reports."))
    assert short.budget(model).visible < 100
    assert long.budget(model).visible > 2500
    assert long.output_tokens("m") > 10 * short.output_tokens("m")


def test_expected_output_is_bounded_by_the_client() -> None:
    """What routing expects is never more than the client's own limit, and all its answers count."""
    sizer = a_sizer(a_policy())
    assert sized(sizer, max_tokens=7, n=3).output_tokens("m") == 21


@pytest.mark.parametrize(
    ("budget", "usage", "met"),
    [
        (Budget(100, 100, 0, 100, "cell"), Usage(1, 100), True),
        (Budget(100, 100, 0, 100, "cell"), Usage(1, 60), False),
        (Budget(100, 100, 0, 100, "cell"), Usage(1, 60, estimated=True), True),
        (Budget(100, 100, 0, 100, "cell", ("max_output",)), Usage(1, 100), False),
        (Budget(100, 100, 0, 100, "client"), Usage(1, 100), False),
        (Budget(None, 100, 0, 100, "off"), Usage(1, 100), False),
    ],
)
def test_whose_limit_was_met(budget: Budget, usage: Usage, met: bool) -> None:  # noqa: FBT001 - a case's expectation
    """Only the relay's own limit, only if the answer has that many tokens, and not if it is the model's anyway."""
    assert sized(a_sizer(a_policy())).met(budget, usage) is met


def test_thinking_has_to_fit_the_limit() -> None:
    """Anthropic's thinking is set only where the client's limit, or the model's, leaves more than it takes."""
    low = BudgetRules().headroom.low
    cases: tuple[tuple[dict[str, Any], int, str | None], ...] = (
        ({"max_tokens": low}, low * 9, None),
        ({"max_tokens": low + 1}, low * 9, "low"),
        ({}, low, None),
        ({}, low * 9, "low"),
    )
    for fields, own, effort in cases:
        model = f'features = ["reasoning"]\neffort = "thinking"\nmax_output = {own}'
        policy = a_policy('[intents.code]\neffort = "low"', model)
        assert sized(a_sizer(policy), **fields).shape(the_model(policy)).effort == effort


def test_an_effort_means_its_headroom() -> None:
    """What an intent sets as effort is what room is left for."""
    headroom = BudgetRules().headroom
    for effort in ("low", "medium", "high"):
        policy = a_policy(f'[intents.code]\neffort = "{effort}"', 'features = ["reasoning"]')
        assert sized(a_sizer(policy)).budget(the_model(policy)).headroom == getattr(headroom, effort)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(812, 812, 0, 812, "cell"), "812; source=cell"),
        (Budget(50, 50, 4096, 50, "client"), "50; source=client"),
        (Budget(None, 900, 0, 900, "off"), "none; source=off"),
        (
            Budget(900, 900, 4096, 900, "ceiling", ("ceiling", "context")),
            "900; source=ceiling; headroom=4096; clamps=ceiling+context",
        ),
    ],
)
def test_what_an_answer_says_of_its_budget(budget: Budget, said: str) -> None:
    """Limit, source, and what is in it and cut from it."""
    assert described(budget) == said


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "system", "content": "a"}, "a"),
        ({"role": "developer", "content": [{"type": "text", "text": "a"}, "b", {"type": "image_url"}]}, "a\nb"),
        ({"role": "user", "content": "a"}, ""),
        ({"role": "system", "content": 3}, ""),
        (3, ""),
    ],
)
def test_a_system_prompts_text(message: object, text: str) -> None:
    """Of whatever shape; a message of anybody else has none."""
    request = DIALECT.parse_request(json.dumps({"model": "m", "messages": [message]}).encode())
    assert system_text(DIALECT.gist(request).body) == text
