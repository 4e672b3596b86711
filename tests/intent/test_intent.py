"""The intent classifier: right on what is plain in any language, unmoved by odd shapes, bounded, alike everywhere."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.intent import LABELS, classify, spoken
from relay.intent.features import MOST, features
from tests.vectors.intent import KEPT, WEATHER, asked, read

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts.jsonl.gz"

PLAIN = {
    "classify_extract": [
        "Classify the sentiment of this review as positive or negative: I would never stay in this hotel again.",
        "Extract all e-mail addresses from the following text: write to anna@example.com or to Ben.",
        "Ist diese Bewertung positiv oder negativ? Das Essen war kalt.",
        "判断下面这句话的情感是积极还是消极:服务太差了。",
    ],
    "factual_qa": [
        "What is the capital of Australia?",
        "¿Cuál es la capital de Perú?",
        "日本で一番高い山は何ですか?",
    ],
    "explain_advise": [
        "Explain how vaccines work.",
        "Comment puis-je mieux dormir ?",
        "Jakie są zalety i wady pracy zdalnej?",
        "Почему важно пить воду?",
    ],
    "summarize": [
        "Summarize the following article in two sentences: The council met on Monday and closed the bridge.",
        "Fasse den folgenden Text kurz zusammen: Der Rat tagte am Montag und schloss die Brücke.",
        "다음 기사를 요약해 주세요: 시의회는 월요일에 다리를 폐쇄하기로 했다.",
    ],
    "translate_rewrite": [
        "Translate into French: The train leaves at noon.",
        "Correct the grammar: She dont know nothing.",
        "Terjemahkan ke bahasa Inggris: Saya suka kopi.",
        "ترجم إلى الإنجليزية: القطار متأخر اليوم",
    ],
    "code": [
        "Write a Python function that removes duplicates from a list.",
        "TypeError: cannot read properties of undefined (reading 'map'). How do I fix this?",
        "Viết hàm Python để sắp xếp một danh sách.",
    ],
    "math_reasoning": [
        "A train travels 60 km in 45 minutes. What is its average speed in km/h?",
        "Solve for x: 3x + 5 = 20",
        "解方程:2x + 7 = 15",
    ],
    "creative": [
        "Write a short story about a dragon who is afraid of fire.",
        "Schreibe ein Gedicht über den Herbst.",
        "बारिश पर एक कविता लिखो।",
    ],
    "brainstorm_plan": [
        "Give me ten ideas for a birthday party.",
        "Plan a three-day trip to Rome.",
        "Dame diez ideas para regalos de Navidad.",
    ],
    "chat_roleplay": [
        "hi, how are you?",
        "You are a pirate. Stay in character and greet me.",
        "Привет, как дела?",
    ],
    "longform": [
        "Write an email to my landlord about the broken heating.",
        "Rédige une lettre de motivation pour un poste de vendeur.",
        "写一篇关于环境保护的演讲稿。",
    ],
}
"""Requests that nobody would call anything else. Those for tools need tools and stand below."""


@pytest.mark.parametrize(("label", "text"), [(label, text) for label, texts in PLAIN.items() for text in texts])
def test_plain_requests(label: str, text: str):
    """A request in so many words is read as what it is, whatever the language."""
    assert classify(asked(text)).label == label


def test_labels():
    """There are twelve labels, and each of them can be the answer."""
    assert len(LABELS) == 12
    assert {*PLAIN, "tool_use"} == set(LABELS)


def test_tools():
    """A request that an offered tool serves is for the tool; offered beside another request it changes nothing."""
    assert classify(asked("What's the weather forecast for Lisbon?", tools=[WEATHER])).label == "tool_use"
    assert classify(asked("Write a short story about a shy dragon.", tools=[WEATHER])).label == "creative"


def test_system_prompt():
    """An application that puts the task in the system prompt is understood."""
    text = "The meeting has been moved to Friday."
    assert classify(asked(text, "Translate everything the user writes into French.")).label == "translate_rewrite"
    assert classify(asked(text, "Summarize the text of the user in three bullet points.")).label == "summarize"


def test_task_at_either_end():
    """A long text is read at its two ends, where people put what they want."""
    text = "The council met on Monday. It closed the bridge. " * 4000
    assert classify(asked(f"Summarize the following text:\n\n{text}")).label == "summarize"
    assert classify(asked(f"{text}\n\nSummarize the text above.")).label == "summarize"


def test_last_turn_counts():
    """Of a conversation the last user turn is read, an answer or a tool's result behind it passed over."""
    turns = [
        {"role": "user", "content": "Write a Python function that reverses a string."},
        {"role": "assistant", "content": "def reverse(s): return s[::-1]"},
        {"role": "user", "content": "Translate this sentence into Spanish: good morning"},
    ]
    assert classify({"messages": turns}).label == "translate_rewrite"
    assert classify({"messages": [*turns, {"role": "tool", "content": "{}"}]}).label == "translate_rewrite"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Translate into German: good morning"}],
        [
            {"type": "image_url", "image_url": {"url": "data:,"}},
            {"type": "text", "text": "Translate the text to Greek"},
        ],
        ["Translate into German: good morning"],
    ],
)
def test_content_parts(content: Any):
    """Content in parts is read like content in one piece."""
    assert classify(asked(content)).label == "translate_rewrite"


def test_nothing_to_read():
    """A request without words has a label, and little confidence in it."""
    assert classify({}).label in LABELS
    assert classify({}).confidence < 0.5
    assert spoken({}) == []


def test_spoken():
    """What spoke for the label: greatest first, all of it in favour, as many as asked for."""
    request = asked("Please translate this letter into French: dear Anna, the parcel has arrived.")
    features_spoken = spoken(request, 5)
    weights = [weight for _, weight in features_spoken]
    assert {"transl", "transl this"} & {name for name, _ in features_spoken}
    assert len(weights) == 5
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] > 0
    assert features_spoken == spoken(request)[:5]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
odd_parts = st.fixed_dictionaries({}, optional={"type": json_values, "text": json_values})
odd_messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "system", "developer", "assistant"]) | json_values,
        "content": json_values | st.lists(odd_parts, max_size=4),
    },
)
odd_tools = st.fixed_dictionaries(
    {}, optional={"function": st.fixed_dictionaries({}, optional={"name": json_values, "description": json_values})}
)
odd_requests = st.fixed_dictionaries(
    {},
    optional={
        "messages": json_values | st.lists(odd_messages, max_size=4),
        "tools": json_values | st.lists(odd_tools, max_size=3),
        "functions": json_values,
        "response_format": json_values | st.fixed_dictionaries({"type": json_values}),
    },
)


@given(odd_requests | st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_anything_is_read(request_body: dict[str, Any]):
    """Any JSON object gets a label and a confidence; none raises."""
    intent = classify(request_body)
    assert intent.label in LABELS
    assert 1 / 12 <= intent.confidence + 0.001 <= 1.001
    spoken(request_body)


@pytest.mark.parametrize(
    "text", ["word {} " * 200_000, "字" * 400_000, "a" * 400_000, "\n" * 400_000, "a b " * 200_000]
)
def test_long_prompts_cost_what_short_ones_cost(text: str):
    """However long the texts and lists of a request are, the features read of it are bounded in number and length."""
    long = {
        "messages": [{"role": "system", "content": text}, *[{"role": "user", "content": [text] * 50}] * 50],
        "tools": [{"function": {"name": text, "description": text}}] * 500,
        "response_format": {"type": text},
    }
    found = features(long)
    assert len(found) <= MOST
    assert max(map(len, found)) <= 14


@given(st.text(st.characters(max_codepoint=127, exclude_characters="\x01\x02"), min_size=1, max_size=60))
def test_ascii_is_read_alike(text: str):
    """Short ASCII, whose words are found in a quicker way, is read as it is beside a character of another alphabet."""
    assert features(asked(text)) == features(asked(f"\u3000{text}"))


@given(st.text(max_size=3000), st.text(max_size=3000))
def test_bound_on_features(system: str, user: str):
    """No text has more features than the lanes of the weights have room for."""
    assert len(features(asked(user, system, tools=[WEATHER], response_format={"type": "json_object"}))) <= MOST


def test_every_python_reads_alike():
    """Labels, confidences and what spoke are as when they were kept, wherever this runs."""
    assert json.loads(json.dumps(read())) == json.loads(KEPT.read_text(encoding="utf-8"))


def evaluated() -> list[tuple[str, str, float]]:
    """True label, label and confidence of each labelled row that is never trained on."""
    if not PROMPTS.exists():
        pytest.skip(f"no shared data at {PROMPTS}")
    with gzip.open(PROMPTS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        (row["intent"], *classify({"messages": row.get("messages") or [{"role": "user", "content": row["prompt"]}]}))
        for row in rows
        if row["use"] == "evaluate" and row["intent"]
    ]


def test_real_prompts():
    """On prompts of sources it has not learnt from it is as good as docs/intent.md says, and knows when it is."""
    results = evaluated()
    right = [label == true for true, label, _ in results]
    surest = sorted(results, key=lambda result: -result[2])[: len(results) * 2 // 5]
    confidence = sum(confidence for *_, confidence in results) / len(results)
    assert sum(right) / len(right) >= 0.58
    assert sum(label == true for true, label, _ in surest) / len(surest) >= 0.80
    assert abs(confidence - sum(right) / len(right)) < 0.08
