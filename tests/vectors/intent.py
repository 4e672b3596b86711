"""Requests that every Python has to read alike.

python -m tests.vectors.intent    # write intent.json anew, after a change that is meant to read otherwise
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relay.intent import classify, spoken

KEPT = Path(__file__).with_suffix(".json")


def asked(text: Any, system: str = "", **fields: Any) -> dict[str, Any]:
    """A request with one question, and a system prompt if there is one."""
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": text}], **fields}


WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather forecast for a city"}}

REQUESTS: tuple[dict[str, Any], ...] = (
    {},
    asked(""),
    asked("Why is the sky blue?"),
    asked("écris un poème sur la pluie à Paris"),
    asked("Übersetze ins Englische: Der Zug hat Verspätung."),
    asked("Tóm tắt bài viết sau trong ba câu: Hội đồng thành phố đã bỏ phiếu đóng cửa cây cầu cũ."),
    asked("この文章を英語に翻訳してください。明日は雨です。"),
    asked("다음 글을 세 문장으로 요약해 줘. 시의회는 오래된 다리를 닫기로 했다."),
    asked("请写一封邮件给我的老板,说明我明天不能上班。"),
    asked("اكتب قصة قصيرة عن قطة تعيش في البحر"),
    asked("भारत की राजधानी क्या है?"),
    asked("Напиши функцию на Python, которая переворачивает строку."),
    asked("What is it like in Lisbon tomorrow, do I need the weather app?", tools=[WEATHER]),
    asked("The invoice of 3 May is still open.", "Extract date and subject.", response_format={"type": "json_object"}),
    asked([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
    asked("fix this\n```\ndef f(x):\n    retrun x\n```"),
    asked("word " * 20_000 + "\n\nSummarize the text above."),
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello! How can I help?"},
            {"role": "user", "content": "tell me a joke about cats"},
        ]
    },
)


def read() -> list[list[Any]]:
    """By request: label, confidence, the three features that spoke most and their weights."""
    return [[*classify(request), spoken(request, 3)] for request in REQUESTS]


if __name__ == "__main__":
    KEPT.write_text(json.dumps(read(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
