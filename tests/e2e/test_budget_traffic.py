"""The shared prompts as traffic on a relay that runs: budgets cost no answer, and nobody sees a seam.

The traffic and what every answer is held against are those of `bench.budgets_live`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.budgets_live import ask_all, faults, kind_of, policy, questions, read_rows, request_id
from bench.budgets_upstream import MODELS, Upstream
from tests.servers.relay import serve

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "prompts.jsonl.gz"
PATIENCE_S = 60.0
REQUESTS = 400


@pytest.mark.skipif(not PROMPTS.exists(), reason="the shared prompts are not beside this checkout")
async def test_no_answer_is_cut_below_the_ceiling(front):
    """At half the answers over budget each comes whole and once, whatever model gives it, with its usage summed."""
    asked = questions(read_rows(PROMPTS), REQUESTS, seed=3)
    upstream = Upstream(asked)
    async with await asyncio.start_server(upstream.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with serve(policy(port, quantile=0.5), front=front) as relay:
            replies = await ask_all(relay.port, asked, seconds=PATIENCE_S)
            records = {question.number: await relay.record(request_id(question).encode()) for question in asked}
    found = {}
    for question in asked:
        number = question.number
        found[number] = faults(question, replies[number], upstream.segments[number], records[number])
    assert {number: wrong for number, wrong in found.items() if wrong} == {}
    continued = [question for question in asked if len(upstream.segments[question.number]) > 1]
    assert len(continued) > 0.05 * REQUESTS
    assert {MODELS[question.model].way for question in continued} == {kind.way for kind in MODELS.values()}
    kinds = {kind_of(question) for question in asked}
    assert kinds >= {"tools offered", "JSON schema", "n = 2", "client's own limit", "loops"}
    assert kinds >= {"reasoning denied, 400 hidden", "reasoning denied, 199 hidden"}
