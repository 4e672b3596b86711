"""What a request costs, counted instead of timed, so that the number is the same on every machine.

Counted are the bytecode instructions that the relay's own modules execute per request, per stream and per chunk of a
stream, and the bytes that they hold for each open stream. A real relay serves a real client over loopback in this
process; only frames of `relay/` count, so neither the event loop nor the test's servers are in the numbers. The clock
stands still: no timer adds to them. Sized requests have a prompt each, are told apart by intent, get a budget and are
routed by latency and cost, once some answers have taught how long they become.

    python -m tests.regression.cost               # what it costs now, against the budget
    python -m tests.regression.cost --renew       # and make that the budget
    python -m tests.regression.cost --functions   # what each function costs
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import platform
import random
import sys
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from relay.telemetry.metrics import MAX_WAITING
from tests.fakes import FakeClock
from tests.servers import chat
from tests.servers.client import RawClient, post
from tests.servers.policies import NAMES, policy
from tests.servers.relay import serve
from tests.servers.upstream import Upstream, always, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import CodeType, FrameType

    from tests.servers.upstream import Step, Turn

Cost: TypeAlias = "dict[str, float]"
"""By stage, which is a module of the relay: `exchange`, `transports/sockets`, …"""

BUDGET = Path(__file__).with_name("budget.json")
_RELAY = f"{Path(__file__).parents[2] / 'relay'}/"
_KEY = "sk-regression"
_LIMITS = {"requests_per_min": 10**9, "tokens_per_min": 10**12, "streams": 10**6}
_WARM_UP, _COUNTED = 20, MAX_WAITING  # so many that metrics count what waits exactly once
_LESSONS = 600
_FEW_CHUNKS, _MANY_CHUNKS = 5, 25
_OPEN_STREAMS = 50
_SIZING = {
    "models": {name: {"provider": name, "price": {"input": 1, "output": 4}} for name in NAMES},
    "routes": [{"name": "auto", "candidates": NAMES, "objective": {"latency": 1, "cost": 1}}],
    "budgets": {},
}
_WORDS = (__doc__ or "").split()
_PROMPT_WORDS = 150


def module_of(code: CodeType) -> str:
    """The stage that code belongs to."""
    return _stage(code.co_filename) or code.co_filename


def function_of(code: CodeType) -> str:
    """Finer than a stage."""
    return f"{module_of(code)}: {code.co_qualname}"


def measure(place: Callable[[CodeType], str] = module_of) -> dict[str, Cost]:
    """All costs, by what they are of and where they arise.

    Args:
        place: where instructions are counted: `module_of` or `function_of`.
    """
    whole = chat.whole(chat.completion())
    events = [chat.ROLE, *(chat.chunk({"content": f" word{i}"}) for i in range(8)), chat.STOP, chat.USAGE, chat.DONE]
    stream = chat.stream_head() + b"".join(map(chat.framed, events)) + chat.LAST_CHUNK
    few, many = (asyncio.run(_count_chunks(count, place)) for count in (_FEW_CHUNKS, _MANY_CHUNKS))
    stages = {*few, *many}
    return {
        "instructions per request": asyncio.run(_count_requests(whole, place, stream=False)),
        "instructions per stream of 10 chunks, sent at once": asyncio.run(_count_requests(stream, place, stream=True)),
        "instructions per sized request": asyncio.run(_count_requests(whole, place, stream=False, sized=True)),
        "instructions per sized stream of 10 chunks, sent at once": asyncio.run(
            _count_requests(stream, place, stream=True, sized=True)
        ),
        "instructions per chunk": {
            stage: (many.get(stage, 0) - few.get(stage, 0)) / (_MANY_CHUNKS - _FEW_CHUNKS) for stage in stages
        },
        "bytes per open stream": asyncio.run(_weigh_open_streams()),
    }


def read_budget() -> dict[str, Any]:
    """What was agreed, and on which Python."""
    budget: dict[str, Any] = json.loads(BUDGET.read_text())
    return budget


def write_budget(costs: dict[str, Cost]) -> None:
    """Agree on this."""
    rounded = {
        name: {stage: round(value, 1) for stage, value in sorted(cost.items()) if round(value, 1)}
        for name, cost in costs.items()
    }
    BUDGET.write_text(json.dumps({"python": python_version(), **rounded}, indent=2) + "\n")


def python_version() -> str:
    """Major and minor: the compiler makes other instructions in each."""
    return ".".join(platform.python_version_tuple()[:2])


def compare(now: Cost, before: Cost) -> str:
    """Both, stage by stage, what grew most first."""
    rows = [(stage, before.get(stage, 0), now.get(stage, 0)) for stage in {*now, *before}]
    rows = sorted((row for row in rows if any(row[1:])), key=lambda row: (row[1] - row[2], row[0]))
    rows.append(("all", sum(before.values()), sum(now.values())))
    return "\n".join(f"  {stage:<56}{was:>10.1f} -> {is_:>10.1f}  {is_ - was:>+9.1f}" for stage, was, is_ in rows)


# --- scenarios ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _client_of_relay(*steps: Step, **tables: Any) -> AsyncIterator[Callable[[], Awaitable[RawClient]]]:
    """A relay with three candidates, a key and all limits, in front of an upstream with that script; opens clients.

    Args:
        steps: the script.
        tables: further tables of the policy.
    """
    async with Upstream(always(*steps)) as upstream:
        text = policy(
            *[upstream.base_url] * 3,
            access={"open": False},
            keys={"team": {"sha256": hashlib.sha256(_KEY.encode()).hexdigest(), "limits": _LIMITS}},
            **tables,
        )
        async with serve(text, clock=FakeClock()) as relay:
            yield lambda: RawClient.connect(relay.port)


def _request(*, stream: bool, **fields: Any) -> bytes:
    return post(chat.request_body(stream=stream, temperature=0.7, **fields), ("authorization", f"Bearer {_KEY}"))


def _requests(*, stream: bool, sized: bool) -> Iterator[bytes]:
    rng = random.Random(0)
    while True:
        if not sized:
            yield _request(stream=stream, max_tokens=100)
            continue
        user = {"role": "user", "content": " ".join(rng.choices(_WORDS, k=_PROMPT_WORDS))}
        yield _request(stream=stream, messages=[{"role": "system", "content": "You are helpful."}, user])


async def _count_requests(
    answer: bytes, place: Callable[[CodeType], str], *, stream: bool, sized: bool = False
) -> Cost:
    """Requests one after the other on one connection, the answer sent in one piece."""
    requests = _requests(stream=stream, sized=sized)
    async with _client_of_relay(send(answer), **(_SIZING if sized else {})) as connect, await connect() as client:

        async def ask(times: int) -> None:
            for request in islice(requests, times):
                await client.send(request)
                assert (await client.whole()).complete

        await ask(_LESSONS if sized else _WARM_UP)
        with _instructions(place) as counts:
            await ask(_COUNTED)
    return {stage: count / _COUNTED for stage, count in counts.items()}


async def _count_chunks(chunks: int, place: Callable[[CodeType], str]) -> Cost:
    """One stream whose chunks come one by one, each after the client has the one before."""
    wanted = asyncio.Semaphore(0)

    async def step(turn: Turn) -> None:
        await turn.send(chat.stream_head() + chat.framed(chat.ROLE))
        for number in range(chunks):
            await wanted.acquire()
            await turn.send(chat.framed(chat.chunk({"content": f" word{number}"})))
        await wanted.acquire()
        await turn.send(chat.framed(chat.STOP + chat.USAGE + chat.DONE) + chat.LAST_CHUNK)

    async def ask(client: RawClient) -> None:
        await client.send(_request(stream=True, max_tokens=100))
        for number in range(chunks):
            wanted.release()
            await client.until_count(b" word", number + 1)
        wanted.release()
        await client.whole()

    async with _client_of_relay(step) as connect, await connect() as client:
        await ask(client)
        with _instructions(place) as counts:
            await ask(client)
    return dict(counts)


async def _weigh_open_streams() -> Cost:
    """Many streams, each after its first output."""
    forever = asyncio.Event()

    async def step(turn: Turn) -> None:
        await turn.send(chat.stream_head() + chat.framed(chat.ROLE + chat.HELLO))
        await forever.wait()

    async def open_stream() -> RawClient:
        client = await connect()
        await client.send(_request(stream=True, max_tokens=100))
        await client.until_count(b"hello", 1)
        return client

    async with _client_of_relay(step) as connect:
        clients = [await open_stream() for _ in range(_WARM_UP)]
        tracemalloc.start()
        try:
            clients += [await open_stream() for _ in range(_OPEN_STREAMS)]
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        for client in clients:
            client.close()
    held: Counter[str] = Counter()
    for statistic in snapshot.statistics("filename"):
        if (stage := _stage(statistic.traceback[0].filename)) is not None:
            held[stage] += statistic.size
    return {stage: size / _OPEN_STREAMS for stage, size in held.items()}


# --- counting ----------------------------------------------------------------------------------------------


def _stage(filename: str) -> str | None:
    return filename.removeprefix(_RELAY).removesuffix(".py") if filename.startswith(_RELAY) else None


@contextlib.contextmanager
def _instructions(place: Callable[[CodeType], str]) -> Iterator[Counter[str]]:
    """Count the instructions that the relay's modules execute meanwhile."""
    counts: Counter[str] = Counter()
    codes: Counter[CodeType] = Counter()

    def on_call(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(_RELAY):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return on_instruction

    def on_instruction(frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        if event == "opcode":
            codes[frame.f_code] += 1
        return on_instruction

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield counts
    finally:
        sys.settrace(before)
        for code, count in codes.items():
            counts[place(code)] += count


if __name__ == "__main__":
    by_function = "--functions" in sys.argv[1:]
    agreed = {} if by_function or not BUDGET.exists() else read_budget()
    found = measure(function_of if by_function else module_of)
    for name, cost in found.items():
        print(f"{name}\n{compare(cost, agreed.get(name, {}))}")  # noqa: T201 - a program
    if "--renew" in sys.argv[1:]:
        write_budget(found)
