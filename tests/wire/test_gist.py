"""The gist of a conversation: small, and to the classifier the same as the whole."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.dialects import DIALECTS
from relay.intent import classify
from relay.intent.features import features
from relay.limits.lengths import application
from relay.sizing import system_text
from relay.wire.gist import END_CHARS, PARTS, Gist, shortened

LONG = 3 * END_CHARS
SPICE = ["word ", "```\n", "\\", '"', "\n", "é", "中文", "😀", "\\u00e9", "안녕", "?", "\ud83d"]


def gist_of(body: dict[str, Any], *, ascii_only: bool) -> Gist:
    raw = json.dumps({"model": "m", **body}, ensure_ascii=ascii_only).encode()
    return DIALECTS["openai"].gist(DIALECTS["openai"].parse_request(raw))


def system_prompt_of(body: dict[str, Any]) -> str:
    match body["messages"]:
        case [{"role": "system" | "developer", "content": str(text)}, *_]:
            return text
        case [{"role": "system" | "developer", "content": list(parts)}, *_]:
            texts = [part.get("text") if isinstance(part, dict) else part for part in parts[:PARTS]]
            return "\n".join(text for text in texts if isinstance(text, str))
    return ""


texts = st.builds(
    lambda head, middle, count, tail: head + middle * count + tail,
    st.text(alphabet=st.characters(codec="utf-8"), max_size=40),
    st.sampled_from(SPICE[:-1]),
    st.integers(0, LONG * 12),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=40),
)
odd = st.sampled_from([None, 1, True, [], {}, [["a"]], {"type": "text"}])
parts = st.one_of(
    texts,
    odd,
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "file", 7])}, optional={"text": texts | odd}),
)
contents = st.one_of(texts, odd, st.lists(parts, max_size=11))
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", None, 3])
no_message = odd.filter(lambda value: value is not None)  # the classifier takes null for a missing user's message
messages = st.one_of(no_message, st.fixed_dictionaries({}, optional={"role": roles, "content": contents}))
functions = st.fixed_dictionaries({}, optional={"name": texts | odd, "description": texts | odd, "parameters": odd})
tools = st.one_of(
    odd, st.lists(st.one_of(odd, functions, st.fixed_dictionaries({"function": functions | odd})), max_size=10)
)
bodies = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=22)},
    optional={
        "tools": tools,
        "functions": tools,
        "response_format": st.one_of(odd, st.fixed_dictionaries({"type": st.sampled_from(["json_object", "text", 5])})),
    },
)


@given(body=bodies, ascii_only=st.booleans())
def test_classifies_like_the_whole(body, ascii_only):
    """What speaks of the intent is all in there, so the classifier cannot tell a gist from its request."""
    told = gist_of(body, ascii_only=ascii_only).body
    assert features(told) == features(body)
    assert classify(told) == classify(body)


@given(body=bodies, ascii_only=st.booleans())
@example(
    body={"messages": [{"role": "system", "content": ["", None, None, None, "word " * 498, "", None, None, ""]}]},
    ascii_only=False,
)
def test_tells_the_application(body, ascii_only):
    """An application's fingerprint can be told from the gist's system prompt."""
    assert application(system_text(gist_of(body, ascii_only=ascii_only).body)) == application(system_prompt_of(body))


@pytest.mark.parametrize(
    "content", ["x" * 1_000_000, "\u4e2d" * 200_000, [{"type": "text", "text": "x" * 20_000}] * 50]
)
def test_is_bounded(content):
    """However long a prompt is, the body of its gist has some ten thousand bytes."""
    body = {"messages": [{"role": "user", "content": content}] * 20, "tools": [{"function": {"name": "x" * 1000}}] * 99}
    assert len(json.dumps(gist_of(body, ascii_only=True).body)) < 100_000


@given(text=texts, ascii_only=st.booleans())
def test_keeps_both_ends(text, ascii_only):
    """A shortened string is a JSON string still, with the beginning and the end of the whole one."""
    raw = memoryview(json.dumps(text, ensure_ascii=ascii_only).encode())
    short = msgspec.json.decode(shortened(raw), type=str)
    assert short[:END_CHARS] == text[:END_CHARS]
    assert short[-END_CHARS:] == text[-END_CHARS:]
    assert len(shortened(raw)) <= len(raw)


def test_a_run_of_backslashes_stays_whole():
    """Where backslashes hide between which characters a cut would fall, nothing is cut."""
    raw = memoryview(json.dumps("\\" * 20_000).encode())
    assert shortened(raw) == raw
