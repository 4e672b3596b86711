"""An upstream that writes one given text, stops where its limit says, and goes on in a way of its own when asked to."""

from __future__ import annotations

import json
import re
from math import inf
from typing import TYPE_CHECKING, Any

from tests.servers import chat
from tests.servers.upstream import send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.servers.upstream import Answerer, Received, Step

STORY = " ".join(f"Sentence {number} says that {number * 7} is a num-ber, and no{number} more." for number in range(60))
"""Without the same words twice in a row; a token of it is a word and the space before it, or a part of a word."""

PROMPT_TOKENS = 10

_TOKEN = re.compile(r"\s*\w{1,4}|\s*\W")

Way = "Callable[[str], str]"
"""How it goes on: from what was written to what it says next, if nothing stops it."""


def tokens(text: str) -> list[str]:
    """As this model counts."""
    return _TOKEN.findall(text)


def exactly(written: str) -> str:
    """From the very place, as behind a beginning."""
    return STORY[len(written) :]


def with_last_words(written: str) -> str:
    """The last words again, behind a remark."""
    return f"Sure, here is the rest:\n\n{STORY[max(0, len(written) - 70) :].partition(' ')[2]}"


def from_the_start(_written: str) -> str:
    """All of it again."""
    return STORY


def author(way: Callable[[str], str] = exactly, *, last: Sequence[Step] = ()) -> Answerer:
    """Writes STORY.

    Args:
        way: how it goes on.
        last: steps in place of the end of each segment but the first.
    """

    def answer(received: Received) -> list[Step]:
        request = json.loads(received.body)
        limit = request.get("max_completion_tokens", request.get("max_tokens", inf))
        written = written_so_far(request)
        todo = tokens(STORY if written is None else way(written))
        said = todo[: int(min(limit, len(todo)))]
        reason = "stop" if len(said) == len(todo) else "length"
        usage = {"prompt_tokens": PROMPT_TOKENS + len(tokens(written or "")), "completion_tokens": len(said)}
        name = {"id": f"c{received.connection}-{len(written or '')}", "object": "chat.completion", "model": "author"}
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "".join(said)}, "finish_reason": reason}
            return [send(chat.whole(json.dumps({**name, "choices": [choice], "usage": usage}).encode()))]
        deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": piece}, None) for piece in said]
        events = [
            chat.event({**name, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]})
            for delta, end in (*deltas, ({}, reason))
        ]
        if written is not None and last:
            return [send(chat.stream_head(), *map(chat.framed, events[: len(events) // 2])), *last]
        events += [chat.event({**name, "choices": [], "usage": usage}), chat.DONE]
        return [send(chat.stream_head() + b"".join(map(chat.framed, events)) + chat.LAST_CHUNK)]

    return answer


def written_so_far(request: dict[str, Any]) -> str | None:
    """The text that it is to go on with; None if it is to begin."""
    said = [message["content"] for message in request["messages"] if message["role"] == "assistant"]
    return said[-1] if said else None
