"""What the intent classifier learns from: labelled requests, drawn from templates and read from the shared prompts."""

from __future__ import annotations

import gzip
import json
import re
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.intent_examples import grammar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LANGUAGES = ("en", "de", "fr", "es", "pl", "id", "vi", "ru", "zh", "ja", "ko", "ar", "hi")

DRAWN = 12
"""Prompts drawn of each template."""

SHORT = 3
"""Letters of words that say nothing of a tool."""

IN_PARTS, LATER, SYSTEM, TOOLS, JSON = 0.03, 0.08, 0.12, 0.05, 0.05
"""Shares of own prompts with content in parts, as a later turn, with a system prompt that says nothing, with tools, and
of `classify_extract` with a JSON schema (of others a tenth of that)."""

SERVED, SERVABLE, BRIEF = {"factual_qa", "math_reasoning", "explain_advise", "code"}, 0.15, 250
"""What a tool could answer too: of prompts of these labels, shorter than this, this share is repeated with a tool made
for it, and then is `tool_use`."""

PARTIAL = ("dolly-no-context", "p3-t0", "gpteacher-roleplay", "gpteacher-codegen", "gsm8k", "bfcl")
"""Sources (by how their names begin) by which nothing is chosen. They have few labels each, and label by task, not by
prompt; Dolly's prompts lack the text they speak of."""


class Example(NamedTuple):
    """A request with its intent.

    Attributes:
        request: a Chat Completions body.
        label: the intent.
        source: where it is from; `own` if written for this.
        language: ISO 639-1.
        weight: how much it counts.
        template: number of the template it was drawn from, in its language's file.
    """

    request: dict[str, Any]
    label: str
    source: str
    language: str
    weight: float = 1.0
    template: int = 0


def own_examples(seed: str, languages: Iterable[str] = LANGUAGES, drawn: int = DRAWN) -> list[Example]:
    """Prompts of the grammar, dressed as requests."""
    examples = []
    english = grammar.language("en").slots | grammar.language("requests").slots
    for code in languages:
        for number, (label, variety, prompts) in enumerate(grammar.prompts(code, drawn, seed, Random)):
            random = Random(f"{seed} {code} {number} dress")
            weight = variety**0.5 / len(prompts)
            for prompt in prompts:
                request = _dressed(prompt, label, english, random)
                examples.append(Example(request, label, "own", code, weight, number))
                if len(prompt) < BRIEF and label in SERVED and random.random() < SERVABLE:
                    request = _served(prompt, english["tool"], random)
                    examples.append(Example(request, "tool_use", "own", code, weight, number))
    for number, (label, template) in enumerate(grammar.language("requests").templates):
        random = Random(f"{seed} requests {number}")
        texts = sorted({grammar.expand(template, english, random) for _ in range(drawn)})
        weight = len(texts) ** 0.5 / len(texts)
        examples += [Example(_special(text, label, english, random), label, "own", "en", weight) for text in texts]
    return examples


def _dressed(prompt: str, label: str, slots: dict[str, list[str]], random: Random) -> dict[str, Any]:
    """A request with that prompt: some with a system prompt that says nothing, tools, earlier turns, content parts."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    if random.random() < IN_PARTS:
        messages[0]["content"] = [{"type": "text", "text": prompt}]
    if random.random() < LATER:
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, *messages]
    if random.random() < SYSTEM:
        messages.insert(0, {"role": "system", "content": grammar.expand("{system}", slots, random)})
    request: dict[str, Any] = {"messages": messages}
    if label == "tool_use" or random.random() < TOOLS:
        request["tools"] = _tools(prompt if label == "tool_use" else "", slots["tool"], random)
    if random.random() < (JSON if label == "classify_extract" else JSON / 10):
        request["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}}
    return request


def _special(text: str, label: str, slots: dict[str, list[str]], random: Random) -> dict[str, Any]:
    """A request whose shape says something: `system || user`, `>> follow-up`, `json prompt`, `image prompt`."""
    request: dict[str, Any] = {}
    system, _, user = text.rpartition(" || ")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    if user.startswith(">> "):
        messages += [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
        user = user.removeprefix(">> ")
    content: Any = user
    if user.startswith("json "):
        content = user.removeprefix("json ")
        request["response_format"] = {"type": "json_object"}
    elif user.startswith("image "):
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
        content = [{"type": "text", "text": user.removeprefix("image ")}, image]
    if label == "tool_use":
        request["tools"] = _tools(text, slots["tool"], random)
    return {"messages": [*messages, {"role": "user", "content": content}], **request}


def _served(prompt: str, known: Sequence[str], random: Random) -> dict[str, Any]:
    """A request with a tool made for it, described in some of its own words, among others."""
    words = [word for word in re.findall(r"[^\W\d_]+", prompt.lower()) if len(word) > SHORT] or ["look"]
    described = random.sample(words, -(-len(words) * random.choice((3, 5, 7)) // 10))
    verb = random.choice(("get", "calculate", "find", "search", "fetch", "retrieve", "compute", "lookup"))
    name = random.choice("_.").join([verb, *described[:2]])
    made = f"{name}: {verb} the {' '.join(described)} with the given parameters"
    tools = [_tool(made), *map(_tool, random.sample(known, random.choice((0, 0, 1, 3))))]
    random.shuffle(tools)
    return {"messages": [{"role": "user", "content": prompt}], "tools": tools}


def _tools(prompt: str, known: Sequence[str], random: Random) -> list[dict[str, Any]]:
    """Some tools; the one that shares most words with the prompt is among them."""
    words = set(prompt.lower().split())
    fitting = max(known, key=lambda tool: len(words & set(tool.lower().split())))
    chosen = [*random.sample(known, random.choice((0, 1, 2, 4, 7))), fitting if prompt else random.choice(known)]
    return [_tool(tool) for tool in chosen]


def _tool(described: str) -> dict[str, Any]:
    name, text = described.split(": ", 1)
    return {"type": "function", "function": {"name": name, "description": text}}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The shared prompts, labelled where `labels.tsv` has a label."""
    labels = dict(line.split("\t") for line in (grammar.FOLDER / "labels.tsv").read_text().splitlines())
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        row["intent"] = labels.get(row["id"]) or row["intent"]
    return rows


def examples_of(rows: Iterable[dict[str, Any]], use: str) -> list[Example]:
    """Labelled rows of that use. Sources are cut finer where the data says how."""
    found = []
    for row in rows:
        if row["use"] == use and row["intent"]:
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            request = {"messages": messages} | ({"tools": row["tools"]} if row.get("tools") else {})
            source = f"alpaca_eval {row['category']}" if row["source"] == "alpaca_eval" else row["source"]
            found.append(Example(request, row["intent"], source, row["lang"]))
    return found
