"""The upstream of `bench.budgets_live`: answers of recorded lengths, made up so that each of their characters is known.

It behaves as providers do where budgets meet them: it stops at the limit it is given, hidden reasoning first; it counts
what it wrote; and asked for the rest of an answer, it goes on in the way of the model it stands for.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from contextlib import suppress
from itertools import accumulate, cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.wire import read_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOOP_TOKENS = 16_384
"""What a model writes of a loop that nothing stops."""

_WORDS = re.findall(
    r" \w+",
    " the of and to in is that for it as was with be by on not he his but at are this have from or had an they which"
    " one you were all her she there would their we him been has when who will no more if out so up said what its about"
    " than into them can only other time new some could these two may first then do any like my now over such our man"
    " me even most made after also did many off before must well back through years much where your way down should",
)
_PIECES = (
    *_WORDS,
    *("ing", "ed", "ly", "-", "s", ",", ".", ":", " (", ")", "\n", ".\n\n", "\n\n- ", '"', "\\", "\t", "  "),
    *(" é", "ß", " Straße", "東", "京", "、", " мир", "🙂", " नम", "स्ते"),
)
"""Tokens: words with the space before them, parts of words, signs, white space, several scripts."""


class Kind(NamedTuple):
    """How a model behaves.

    Attributes:
        continuation: how the policy says it is asked for the rest.
        way: what it then says. `exact`: the rest alone. `echo`: the server sends all of the text again first, and
            does not count it. `words`: the last words again, as asked. `remark`: the same behind a remark. `anew`: all
            of it.
        features: in the policy; None says nothing of them.
        thinks: hidden tokens before an answer; None draws them, near 300 on average with a long tail.
    """

    continuation: str
    way: str
    features: list[str] | None = None
    thinks: int | None = 0


_SAID = ["tools", "json_schema"]

MODELS = {
    "prefix": Kind("prefix", "exact", _SAID),
    "prefix-echo": Kind("prefix", "echo", _SAID),
    "prefill": Kind("prefill", "exact", _SAID),
    "final-message": Kind("continue_final_message", "exact", _SAID),
    "instruction": Kind("instruction", "words", _SAID),
    "instruction-remark": Kind("instruction", "remark", _SAID),
    "instruction-anew": Kind("instruction", "anew", _SAID),
    "nothing-said": Kind("instruction", "words"),
    "reasoning": Kind("prefill", "exact", [*_SAID, "reasoning"], None),
    "reasoning-400": Kind("prefill", "exact", _SAID, 400),
    "reasoning-199": Kind("instruction", "words", _SAID, 199),
}
"""By name. The last two reason although the policy says that they do not: the failures that fixed limits are known
for, 400 tokens that all go into reasoning, and 199 of 200."""


class Question(NamedTuple):
    """One request of the traffic.

    Attributes:
        number: of it, which it names as its `user`.
        shape: `plain`, `limit` (the client's own), `tools`, `schema`, `two` (n = 2) or `loop`.
        model: asked for, one of MODELS.
        stream: or a whole answer.
        body: of the request.
        messages: in it.
        prompt_tokens: recorded.
        answer_tokens: recorded, of each answer.
        hidden: tokens of reasoning before it.
        limit: the client's; None if it set none.
    """

    number: int
    shape: str
    model: str
    stream: bool
    body: bytes
    messages: int
    prompt_tokens: int
    answer_tokens: int
    hidden: int
    limit: int | None

    @property
    def calls(self) -> bool:
        """The answer is a call of the tool offered."""
        return self.shape == "tools" and self.number % 2 == 0

    def answers(self) -> list[list[str]]:
        """The tokens of each answer that nothing stops."""
        rng = random.Random(self.number)
        if self.shape == "loop":
            return [list(islice(cycle(rng.choices(_PIECES, k=12)), LOOP_TOKENS))]
        return [rng.choices(_PIECES, k=self.answer_tokens) for _ in range(2 if self.shape == "two" else 1)]


class Segment(NamedTuple):
    """What one request to the upstream was given, and used.

    Attributes:
        limit: sent with it; None if none was.
        prompt_tokens: read.
        written: tokens, reasoning included, all choices together.
        hidden: the part of them that was reasoning.
        same: the text that was sent back is that of the answer.
    """

    limit: int | None
    prompt_tokens: int
    written: int
    hidden: int
    same: bool


class Upstream:
    """All models behind one port: `/MODEL/chat/completions`.

    Attributes:
        segments: by number of the question, in order.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.segments: dict[int, list[Segment]] = {question.number: [] for question in questions}
        self._questions = {question.number: question for question in questions}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its other end closes it."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                _, request = await read_request(reader)
                answer = self._answer(self._questions[int(request["user"])], request)
                cut = len(answer) * (1 + len(self.segments) % 3) // 4
                writer.write(answer[:cut])
                await asyncio.sleep(0)  # the rest comes apart from it
                writer.write(answer[cut:])
                await writer.drain()
        writer.close()

    def _answer(self, question: Question, request: dict[str, Any]) -> bytes:
        limit = request.get("max_completion_tokens", request.get("max_tokens"))
        more = request["messages"][question.messages :]
        answers = question.answers()
        same, echo = True, ""
        if more:
            written = more[0]["content"]
            same = "".join(answers[0]).startswith(written)
            way = MODELS[question.model].way
            answers = [list(_rest(answers[0], written, way, more[-1]))]
            echo = written if way == "echo" else ""
        most = LOOP_TOKENS if limit is None else limit
        thought = min(question.hidden, most)
        said = [answer[: most - thought] for answer in answers]
        ends = ["length" if thought + len(answer) > most else "stop" for answer in answers]
        read = question.prompt_tokens + sum(len(message["content"]) // 4 for message in more)
        count = sum(map(len, said)) + thought * len(said)
        self.segments[question.number].append(Segment(limit, read, count, thought * len(said), same))
        usage = {
            "prompt_tokens": read,
            "completion_tokens": count,
            "total_tokens": read + count,
            "completion_tokens_details": {"reasoning_tokens": thought * len(said)},
        }
        if question.calls:
            ends = ["tool_calls" if end == "stop" else end for end in ends]
        name = {"id": f"c{question.number}-{len(more)}", "created": 1, "model": question.model}
        if question.stream:
            return _stream(question, name, [[echo, *answer] for answer in said], ends, usage)
        return _whole(question, name, [echo + "".join(answer) for answer in said], ends, usage)


def _rest(answer: list[str], written: str, way: str, last: dict[str, str]) -> Iterator[str]:
    """The tokens that it goes on with."""
    if way == "anew":
        yield from answer
        return
    if way == "remark":
        yield from ("Sure", ",", " here", " is", " the", " rest", ":\n\n")
    if way in ("words", "remark"):
        words = last["content"].rpartition("The last words are:\n\n")[2]
        yield from (words[at : at + 4] for at in range(0, len(words), 4))
    for token, end in zip(answer, accumulate(map(len, answer)), strict=True):
        if end > len(written):
            yield token[max(0, len(token) - (end - len(written))) :]


def _whole(question: Question, name: dict[str, Any], texts: list[str], ends: list[str], usage: dict[str, Any]) -> bytes:
    choices = [
        {"index": index, "message": _message(question, text), "finish_reason": end}
        for index, (text, end) in enumerate(zip(texts, ends, strict=True))
    ]
    body = json.dumps({**name, "object": "chat.completion", "choices": choices, "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _message(question: Question, text: str) -> dict[str, Any]:
    if not question.calls:
        return {"role": "assistant", "content": text}
    call = {"id": "call", "type": "function", "function": {"name": "note", "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _stream(
    question: Question, name: dict[str, Any], answers: list[list[str]], ends: list[str], usage: dict[str, Any]
) -> bytes:
    """Up to two dozen tokens an event, several answers in turn."""
    rng = random.Random(question.number)
    choices: list[tuple[int, dict[str, Any], str | None]] = []
    for index, (answer, end) in enumerate(zip(answers, ends, strict=True)):
        choices.append((index, {"role": "assistant", "content": ""}, None))
        if question.hidden and question.number % 2:
            choices.append((index, {"reasoning_content": "Let me see."}, None))
        at = 0
        while at < len(answer):
            size = rng.randrange(1, 24)
            choices.append((index, _delta(question, "".join(answer[at : at + size]), first=not at), None))
            at += size
        choices.append((index, {}, end))
    marks = json.dumps({**name, "object": "chat.completion.chunk"})[:-1]
    events = [
        f'{marks}, "choices": [{json.dumps({"index": index, "delta": delta, "finish_reason": end})}]}}'
        for index, delta, end in choices
    ]
    events += [f'{marks}, "choices": [], "usage": {json.dumps(usage)}}}', "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def _delta(question: Question, text: str, *, first: bool) -> dict[str, Any]:
    if not question.calls:
        return {"content": text}
    named = {"id": "call", "type": "function", "function": {"name": "note", "arguments": text}}
    return {"tool_calls": [{"index": 0, **(named if first else {"function": {"arguments": text}})}]}
