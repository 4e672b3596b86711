"""Whether budgets cost an answer on a relay that runs: the shared prompts as traffic, over sockets.

    python -m bench.budgets_live --prompts ../shared/data/prompts.jsonl.gz --output bench/results/budgets_live.json

`bench.budgets` does the arithmetic of far more traffic; this shows that what it promises comes true. A `relay serve`
process stands between clients and an upstream (`bench.budgets_upstream`) whose models answer each prompt with as many
tokens as were recorded, stop at the limit they are given, and go on in several ways, some of which say again what was
said. Each source of prompts is an application with a system prompt of its own; streams and whole answers, limits of
clients, tools, JSON schemas, two answers at a time, hidden reasoning and loops are mixed in.

Every answer is held against the one that nothing stops, character by character, and its usage and its record against
what the upstream counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import httpx2
import msgspec

from bench.budgets import quantile_of
from bench.budgets_upstream import MODELS, Question, Segment, Upstream
from bench.processes import ProcessTree
from bench.programs import CACHE
from bench.servers import REPOSITORY, free_port
from relay.messages import BudgetRules, Outcome, RequestRecord
from relay.telemetry.decisions import decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CEILING = BudgetRules().ceiling

CLIENTS = 24
"""Connections that ask at a time."""

SHAPES = {"limit": 0.06, "tools": 0.04, "schema": 0.04, "two": 0.03, "loop": 0.005}
"""Shares of requests; all others are plain."""

LIFTED = {"tools", "schema", "two"}
"""Shapes of answers that cannot be continued, and therefore get the ceiling at once."""

_SHAPES_SAID = {
    "limit": "client's own limit",
    "tools": "tools offered",
    "schema": "JSON schema",
    "two": "n = 2",
    "loop": "loops",
}

_OK = 200

_THOUGHT = (5.2, 1.0)
"""Of the logarithm of hidden tokens: mean and deviation."""

_TOOL = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "note", "schema": {"type": "object"}}}

# --- the traffic ---


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The shared prompts that have answers."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["responses"]]


def questions(rows: Sequence[dict[str, Any]], count: int, seed: int) -> list[Question]:
    """So many of the rows, in seeded order, each with one of its answers. Who gave it decides which model is asked."""
    rng = random.Random(seed)
    return [_question(rng, number, row) for number, row in enumerate(rng.sample(rows, min(count, len(rows))))]


def _question(rng: random.Random, number: int, row: dict[str, Any]) -> Question:
    answer = rng.choice(row["responses"])
    tokens = max(answer["tokens"], 1)
    names = list(MODELS)
    model = names[crc32(f"{row['source']}/{answer['model']}".encode()) % len(names)]
    if answer["model"] == "human":  # half of all: not to be one model's alone
        model = names[crc32(row["id"].encode()) % len(names)]
    thinks = MODELS[model].thinks
    hidden = round(rng.lognormvariate(*_THOUGHT)) if thinks is None else thinks
    shape = rng.choices(["plain", *SHAPES], [1.0 - sum(SHAPES.values()), *SHAPES.values()])[0]
    stream = rng.random() < 0.6  # noqa: PLR2004 - a few more than half
    said = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    system = {"role": "system", "content": f"You work for {row['source']}. Answer as its users expect."}
    messages = [system, *(message for message in said if message["role"] != "system")]
    fields: dict[str, Any] = {"model": model, "user": str(number), "messages": messages, "stream": stream}
    limit = None
    match shape:
        case "limit":
            limit = hidden + rng.choice([1, 16, tokens // 2 + 1, 2 * tokens])
            fields[rng.choice(["max_tokens", "max_completion_tokens"])] = limit
        case "tools":
            fields["tools"] = [_TOOL]
        case "schema":
            fields["response_format"] = _SCHEMA
        case "two":
            fields["n"] = 2
        case _:
            pass
    if stream and rng.random() < 0.5:  # noqa: PLR2004 - half of them
        fields["stream_options"] = {"include_usage": True}
    return Question(
        number=number,
        shape=shape,
        model=model,
        stream=stream,
        body=json.dumps(fields).encode(),
        messages=len(messages),
        prompt_tokens=row["prompt_tokens"],
        answer_tokens=tokens,
        hidden=hidden,
        limit=limit,
    )


def policy(port: int, *, quantile: float = BudgetRules().quantile) -> str:
    """All models behind that port, each with a route of its own; budgets are those of that quantile."""
    lines = ["version = 1", "access = { open = true }", f"budgets = {{ quantile = {quantile} }}"]
    for number, (name, kind) in enumerate(MODELS.items()):
        lines += [
            f'[providers.{name}]\ndialect = "openai"\nbase_url = "http://127.0.0.1:{port}/{name}"',
            f'[models.{name}]\nprovider = "{name}"\ncontinuation = "{kind.continuation}"',
            'max_tokens_field = "max_completion_tokens"' if number % 2 else "",
        ]
        if kind.features is not None:
            lines.append(f"features = {json.dumps(kind.features)}")
    return "\n".join([*lines, ""])


# --- asking ---


class Reply(msgspec.Struct):
    """What a client got.

    Attributes:
        status: HTTP.
        texts: of each choice; the arguments of a tool call count as its text.
        ends: finish reasons of each choice, in order: of a sound answer one.
        roles: how often each choice was begun.
        ids: of the chunks; of a sound answer one.
        done: how often `[DONE]` came, and whether it came last.
        usage: as told; None if it was not.
        usages: how often.
    """

    status: int
    texts: dict[int, str] = msgspec.field(default_factory=lambda: defaultdict(str))
    ends: dict[int, list[str]] = msgspec.field(default_factory=lambda: defaultdict(list))
    roles: Counter[int] = msgspec.field(default_factory=Counter)
    ids: set[str] = msgspec.field(default_factory=set)
    done: tuple[int, bool] = (0, False)
    usage: dict[str, Any] | None = None
    usages: int = 0


def read_reply(question: Question, status: int, body: bytes) -> Reply:
    """An answer's body as a client understands it."""
    reply = Reply(status)
    if status != _OK:
        return reply
    if question.stream:
        events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
        reply.done = (events.count(b"[DONE]"), body.endswith(b"data: [DONE]\n\n"))
        for event in events:
            if event != b"[DONE]":
                _read_chunk(reply, json.loads(event), "delta")
    else:
        _read_chunk(reply, json.loads(body), "message")
    return reply


def _read_chunk(reply: Reply, chunk: dict[str, Any], part: str) -> None:
    reply.ids.add(chunk.get("id", ""))
    for choice in chunk.get("choices", []):
        said, index = choice[part], choice["index"]
        calls = said.get("tool_calls") or []
        reply.texts[index] += (said.get("content") or "") + "".join(call["function"]["arguments"] for call in calls)
        reply.roles[index] += "role" in said
        if choice["finish_reason"]:
            reply.ends[index].append(choice["finish_reason"])
    if chunk.get("usage"):
        reply.usage = chunk["usage"]
        reply.usages += 1


async def ask_all(port: int, asked: Sequence[Question], *, seconds: float) -> dict[int, Reply]:
    """Ask them in order, `CLIENTS` at a time; beyond those seconds nothing more is begun."""
    over_at = time.monotonic() + seconds
    waiting, replies = iter(asked), {}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False) as client:

        async def work() -> None:
            for question in waiting:
                headers = {"content-type": "application/json", "x-request-id": request_id(question)}
                answer = await client.post("/v1/chat/completions", content=question.body, headers=headers)
                replies[question.number] = read_reply(question, answer.status_code, answer.content)
                if time.monotonic() > over_at:
                    return

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return replies


def request_id(question: Question) -> str:
    """By which its record is found."""
    return f"live-{question.number}"


# --- judging ---


def expected(question: Question) -> tuple[list[str], str]:
    """The text of each answer if only the client's own limit stops it, and its finish reason."""
    answers = question.answers()
    most = max(map(len, answers)) if question.limit is None else question.limit - question.hidden
    end = "tool_calls" if question.calls else "stop"
    if question.shape == "loop" or any(len(answer) > most for answer in answers):
        end = "length"
    return ["".join(answer[:most]) for answer in answers], end


def faults(question: Question, reply: Reply, segments: Sequence[Segment], record: RequestRecord) -> list[str]:
    """All that is wrong with one answer; nothing with a sound one."""
    budget, used = record.budget, record.usage
    if reply.status != _OK or not segments or budget is None or used is None:
        return [f"status {reply.status}, error {record.error}"]
    answers, end = expected(question)
    loops = question.shape == "loop"
    choices = range(len(answers))
    texts = [reply.texts[index] for index in choices]
    limits = [part.limit for part in segments]
    first, *others = segments
    written, hidden = (sum(part.written for part in segments), sum(part.hidden for part in segments))
    told = reply.usage or {}
    tells = not question.stream or b"include_usage" in question.body
    outcome = {"length": Outcome.BUDGET if loops else Outcome.LENGTH}.get(end, Outcome.COMPLETED)
    holds = {
        "empty": all(texts),
        "text": all(map(str.startswith, answers, texts)) if loops else texts == answers,
        "choices": set(reply.texts) == set(choices),
        "finish reason": all(reply.ends[index] == [end] for index in choices),
        "role": all(reply.roles[index] == 1 for index in choices),
        "id": len(reply.ids) == 1,
        "[DONE]": reply.done == ((1, True) if question.stream else (0, False)),
        "usage told": reply.usages == tells
        and (not tells or (told["prompt_tokens"], told["completion_tokens"]) == (first.prompt_tokens, written)),
        "usage recorded": (used.prompt_tokens, used.completion_tokens, used.reasoning_tokens, used.estimated)
        == (first.prompt_tokens, written, hidden, False),
        "continuations recorded": used.continuation_prompt_tokens == sum(part.prompt_tokens for part in others),
        "outcome": (record.outcome, record.finish_reason) == (outcome, end),
        "segments": (record.segments, record.extensions) == (len(segments), len(others)),
        "text sent back": all(part.same for part in segments),
        "limit": limits[0] == (budget.limit if question.limit is None else question.limit),
        "client's limit": question.limit is None or not others,
        "lifted": question.shape not in LIFTED or (not others and budget.visible == CEILING),
        "ceiling": not loops or CEILING <= written - hidden <= CEILING + budget.headroom,
    }
    return [name for name, held in holds.items() if not held]


# --- what is reported ---


class Figures(msgspec.Struct):
    """Of one kind of requests.

    Attributes:
        requests: in it.
        faulty: those with something wrong.
        extended: share that was continued.
        continuations: per continued answer.
        answer: tokens, mean; what the client's own limit or the ceiling kept of it.
        reserved: tokens that the upstream was allowed per request, all segments together, mean.
        fixed: the limit that truncates 1 % of them, tokens.
        read_again: prompt tokens of continuations per request.
    """

    requests: int
    faulty: int
    extended: float
    continuations: float
    answer: float
    reserved: float
    fixed: float
    read_again: float


def kind_of(question: Question) -> str:
    """By which figures are told apart."""
    if question.shape != "plain":
        return _SHAPES_SAID[question.shape]
    kind = MODELS[question.model]
    if question.hidden:
        return "reasoning" if kind.thinks is None else f"reasoning denied, {kind.thinks} hidden"
    return f"plain, {kind.continuation}" + ("" if kind.way == "exact" else f" ({kind.way})")


def figures(asked: Sequence[Question], segments: dict[int, list[Segment]], faulty: set[int]) -> Figures:
    """Of these requests."""
    parts = [segments[question.number] for question in asked]
    continued = [len(each) - 1 for each in parts if len(each) > 1]
    whole = [question.hidden + question.answer_tokens for question in asked]
    return Figures(
        requests=len(asked),
        faulty=sum(question.number in faulty for question in asked),
        extended=len(continued) / len(asked),
        continuations=statistics.fmean(continued) if continued else 0.0,
        answer=statistics.fmean(whole),
        reserved=statistics.fmean(sum(part.limit or 0 for part in each) for each in parts),
        fixed=quantile_of(whole, 0.99),
        read_again=statistics.fmean(sum(part.prompt_tokens for part in each[1:]) for each in parts),
    )


class Results(msgspec.Struct):
    """All that a run found.

    Attributes:
        requests: asked.
        seconds: it took.
        figures: by kind; `all plain` are those whose budgets are learned and that do not reason.
        faults: how often each was found.
        examples: number of a request, and its faults; of some.
    """

    requests: int
    seconds: float
    figures: dict[str, Figures]
    faults: dict[str, int]
    examples: list[tuple[int, list[str]]]


def results(
    asked: Sequence[Question],
    replies: dict[int, Reply],
    segments: dict[int, list[Segment]],
    records: dict[str, RequestRecord],
    seconds: float,
) -> Results:
    """Judge every answer that was asked for."""
    answered = [question for question in asked if question.number in replies]
    wrong = {}
    for question in answered:
        number = question.number
        found = faults(question, replies[number], segments[number], records[request_id(question)])
        if found:
            wrong[number] = found
    kinds = defaultdict(list)
    for question in answered:
        kinds[kind_of(question)].append(question)
        if question.shape == "plain" and not question.hidden:
            kinds["all plain"].append(question)
    return Results(
        requests=len(answered),
        seconds=seconds,
        figures={kind: figures(of_kind, segments, set(wrong)) for kind, of_kind in sorted(kinds.items())},
        faults=dict(Counter(fault for found in wrong.values() for fault in found)),
        examples=list(wrong.items())[:20],
    )


def table(found: Results) -> Iterator[str]:
    """As Markdown."""
    yield f"{found.requests:,} requests in {found.seconds:.0f} s; faults: {found.faults or 'none'}\n"
    yield "| requests | | faulty | extended | continuations each | answer | reserved | of fixed | read again |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for kind, each in found.figures.items():
        yield (
            f"| {kind} | {each.requests:,} | {each.faulty} | {each.extended:.1%} | {each.continuations:.2f} | "
            f"{each.answer:,.0f} | {each.reserved:,.0f} | {each.reserved / each.fixed:.0%} | {each.read_again:,.0f} |"
        )


async def run(asked: Sequence[Question], seconds: float) -> Results:
    """A relay of its own, all requests, and what came of them."""
    upstream = Upstream(asked)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    folder = CACHE / "run" / "budgets"
    (folder / "policy").mkdir(parents=True, exist_ok=True)
    (folder / "policy" / "policy.toml").write_text(policy(server.sockets[0].getsockname()[1]))
    decisions, port = folder / "decisions.jsonl", free_port()
    decisions.unlink(missing_ok=True)
    process = ProcessTree(
        [sys.executable, "-m", "relay", "serve", "--policy", str(folder / "policy"), "--port", str(port)],
        cpu=0,
        log=folder / "output.log",
        env={
            "PYTHONPATH": str(REPOSITORY),
            "RELAY_LOG_LEVEL": "warning",
            "RELAY_DECISION_LOG": str(decisions),
            "RELAY_DECISION_LOG_BYTES": str(2**30),
        },
    )
    try:
        await asyncio.to_thread(process.wait_until_ready, f"http://127.0.0.1:{port}/readyz")
        began_at = time.monotonic()
        replies = await ask_all(port, asked, seconds=seconds)
        took_s = time.monotonic() - began_at
    finally:
        await asyncio.to_thread(process.stop)
        server.close()
    with decisions.open("rb") as lines:
        records, _ = decode(lines)
    return results(asked, replies, upstream.segments, {record.id: record for record in records}, took_s)


def main() -> None:
    """Ask, judge, print, write; exit code 1 if any answer was not as it should be."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--prompts", type=Path, required=True)
    arguments.add_argument("--requests", type=int, default=20_000, help="at most, each prompt once")
    arguments.add_argument("--seconds", type=float, default=120.0, help="beyond which nothing more is asked")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    asked = questions(read_rows(given.prompts), given.requests, given.seed)
    found = asyncio.run(run(asked, given.seconds))
    print("\n".join(table(found)))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    sys.exit(bool(found.faults))


if __name__ == "__main__":
    main()
