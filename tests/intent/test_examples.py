"""The prompts that the classifier learns from: drawn as the templates say, the same each time."""

from __future__ import annotations

import re
from random import Random

import pytest

from relay.intent import LABELS, classify
from scripts.intent_examples import grammar
from scripts.intent_examples.examples import LANGUAGES, own_examples

FILES = (*LANGUAGES, "requests")


@pytest.mark.parametrize("code", FILES)
def test_templates_have_labels(code: str):
    """Each template stands under a label there is, and a language has templates of all of them."""
    labels = {label for label, _ in grammar.language(code).templates}
    assert labels == set(LABELS)


@pytest.mark.parametrize("code", FILES)
def test_templates_are_expanded(code: str):
    """No choice is left open in a prompt."""
    slots, templates = grammar.language(code)
    slots = slots | grammar.language("requests").slots
    for number, (_, template) in enumerate(templates):
        text = grammar.expand(template, slots, Random(number))
        assert text
        assert not re.search(r"\((?:[^()\n]*\|)+[^()\n]*\)", text), template


def test_drawn_alike():
    """The same seed draws the same requests; another one draws others."""
    first, again, other = (own_examples(seed, ["pl"], drawn=2) for seed in ("a", "a", "b"))
    assert first == again
    assert first != other


def test_served_by_tools():
    """Requests for tools carry tools; of those that carry some, not all are for them."""
    with_tools = [example for example in own_examples("a", ["en"], drawn=1) if "tools" in example.request]
    assert {example.label for example in with_tools} > {"tool_use"}
    assert all("tools" in e.request for e in own_examples("a", ["en"], drawn=1) if e.label == "tool_use")


def test_learnt():
    """The weights were fitted to such prompts: most of new draws are read as they were meant."""
    drawn = own_examples("unseen", ["de", "zh"], drawn=1)
    right = [classify(example.request).label == example.label for example in drawn]
    assert sum(right) / len(right) > 0.8
