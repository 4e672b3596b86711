"""An upstream that behaves like a model: it thinks, it writes, and it stops at the limit that it was given."""

from __future__ import annotations

import json
from math import inf
from typing import TYPE_CHECKING, Any

from tests.servers import chat
from tests.servers.upstream import send

if TYPE_CHECKING:
    from tests.servers.upstream import Answerer, Received, Step

PROMPT_TOKENS = 100


def model(*, words: int, hidden: int = 0) -> Answerer:
    """Answers of so many one-token words, behind so many tokens of hidden reasoning.

    Reasoning comes first, so a limit cuts the words before it cuts the reasoning, as with real models.
    """

    def answer(received: Received) -> list[Step]:
        request = json.loads(received.body)
        limit = request.get("max_completion_tokens", request.get("max_tokens", inf))
        thought = min(hidden, limit)
        written = int(min(words, limit - thought))
        reason = "stop" if thought + written == words + hidden else "length"
        choices = request.get("n", 1)
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": choices * (thought + written),
            "completion_tokens_details": {"reasoning_tokens": choices * thought},
        }
        write = _stream if request.get("stream") else _whole
        return [send(write(choices, "word " * written, reason, usage))]

    return answer


def _whole(choices: int, text: str, reason: str, usage: dict[str, Any]) -> bytes:
    message = {"role": "assistant", "content": text}
    listed = [{"index": index, "message": message, "finish_reason": reason} for index in range(choices)]
    return chat.whole(json.dumps({"id": "c1", "choices": listed, "usage": usage}).encode())


def _stream(choices: int, text: str, reason: str, usage: dict[str, Any]) -> bytes:
    events = [chat.ROLE]
    for index in range(choices):
        for delta, end in (({"content": text}, None), ({}, reason)):
            events.append(chat.event({"id": "c1", "choices": [{"index": index, "delta": delta, "finish_reason": end}]}))
    events += [chat.event({"id": "c1", "choices": [], "usage": usage}), chat.DONE]
    return chat.stream_head() + b"".join(map(chat.framed, events)) + chat.LAST_CHUNK
