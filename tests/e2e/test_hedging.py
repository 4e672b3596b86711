"""A second upstream asked while the first is silent, over real sockets; time stands still until a test moves it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from relay.errors import UpstreamRefused
from relay.messages import Outcome
from relay.policy.compiled import Breaker
from tests.fakes import FakeClock
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, LAST_CHUNK, ROLE, STOP, USAGE, WORLD, framed
from tests.servers.client import RawClient, ask, post
from tests.servers.policies import NAMES, policy
from tests.servers.relay import FRONTS, serve
from tests.servers.upstream import Upstream, always, close, send, stall, until
from tests.servers.waiting import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.servers.relay import Running
    from tests.servers.upstream import Step

WHOLE = send(chat.stream_head(), *map(framed, (ROLE, HELLO, WORLD, STOP, USAGE, DONE)), LAST_CHUNK)
SERVED = ROLE + HELLO + WORLD + STOP + DONE
BEGUN = send(chat.stream_head(), framed(ROLE), framed(b": ping\n\n"))
EXPECTED_MS = 100
P95_S = 0.1 * 2.69
"""Of a model that nobody has seen and that is expected to take 100 ms."""
PRICE = {"input": 1, "output": 1}
BUSY = UpstreamRefused("busy", upstream_status=429, retry_after_s=60.0)


async def comes_true(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


@pytest.fixture(params=FRONTS)
def front(request):
    return request.param


@dataclass
class Scene:
    relay: Running
    clock: FakeClock
    upstreams: list[Upstream]

    async def spend(self, usd: float = 1.0) -> None:
        """As if the route had spent that much already: a share of nothing allows no duplicate."""
        self.relay.pipeline.ledgers["auto"].spend(usd, self.clock.now(), twice=False)

    async def ask(self, *headers: tuple[str, str], **fields: Any) -> asyncio.Future[Any]:
        """A request that has reached the first upstream."""
        before = len(self.upstreams[0].received)
        body = chat.request_body(**{"stream": True, **fields})
        asking = asyncio.ensure_future(ask(self.relay.port, post(body, *headers)))
        await self.upstreams[0].received.at(before)
        return asking


@contextlib.asynccontextmanager
async def scene(front: str, *scripts: Sequence[Step], **of_route: Any) -> AsyncIterator[Scene]:
    clock = FakeClock()
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(always(*script))) for script in scripts]
        names = NAMES[: len(scripts)]
        text = policy(
            *(upstream.base_url for upstream in upstreams),
            models={name: {"provider": name, "price": PRICE, "expected": {"ttft_ms": EXPECTED_MS}} for name in names},
            routes=[
                {"name": "auto", "candidates": names, "attempts": 3, "hedge": {}, **of_route},
            ],
        )
        relay = await stack.enter_async_context(serve(text, front=front, clock=clock))
        yield Scene(relay, clock, upstreams)


@pytest.mark.parametrize("silent", [(stall,), (BEGUN, stall)], ids=["silent", "role and ping"])
async def test_the_second_answers_for_a_silent_first(front, silent):
    """After the first one's p95 the second is asked; it answers, and the first's connection is closed."""
    async with scene(front, silent, (WHOLE,)) as at:
        await at.spend()
        asking = await at.ask()
        await at.clock.advance(P95_S - 0.02)
        assert not at.upstreams[1].received
        await at.clock.advance(0.04)
        answer = await asking
        await (await at.upstreams[0].received.at(0)).gone.wait()
        record = await at.relay.only_record()
    assert bytes(answer.body) == SERVED
    assert (answer.header(b"x-relay-model"), answer.header(b"x-relay-attempts")) == (b"second", b"2")
    assert record.outcome is Outcome.COMPLETED
    tries = {attempt.model: (attempt.error, attempt.hedge) for attempt in record.attempts}
    assert tries == {"first": ("superseded", False), "second": (None, True)}


async def test_the_first_may_still_win(front):
    """If the first has output before the second, the second is cancelled and leaves no trace in the answer."""
    go = asyncio.Event()
    async with scene(
        front, (BEGUN, until(go), send(*map(framed, (HELLO, WORLD, STOP, USAGE, DONE)), LAST_CHUNK)), (BEGUN, stall)
    ) as at:
        await at.spend()
        asking = await at.ask()
        await at.clock.advance(P95_S + 0.02)
        await at.upstreams[1].received.at(0)
        go.set()
        answer = await asking
        await (await at.upstreams[1].received.at(0)).gone.wait()
        record = await at.relay.only_record()
    assert bytes(answer.body) == ROLE + b": ping\n\n" + HELLO + WORLD + STOP + DONE
    assert answer.header(b"x-relay-model") == b"first"
    assert {attempt.model: attempt.error for attempt in record.attempts} == {"first": None, "second": "superseded"}


async def test_an_error_of_the_second_is_no_output(front):
    """A second that fails leaves the first running; its failure is only noted."""
    go = asyncio.Event()
    refusing = (send(chat.whole(chat.error("overloaded"), 503)),)
    async with scene(front, (until(go), WHOLE), refusing) as at:
        await at.spend()
        asking = await at.ask()
        await at.clock.advance(P95_S + 0.02)
        await at.upstreams[1].received.at(0)
        await comes_true(lambda: at.relay.pipeline.upstreams["second"].state.failures == 1)
        go.set()
        answer = await asking
        record = await at.relay.only_record()
    assert bytes(answer.body) == SERVED
    assert {attempt.model: attempt.error for attempt in record.attempts} == {"first": None, "second": "upstream_error"}


async def test_a_first_that_fails_leaves_the_second_running(front):
    """The second goes on alone, without a third being asked."""
    go, stop = asyncio.Event(), asyncio.Event()
    async with scene(front, (until(stop), close), (until(go), WHOLE), (WHOLE,)) as at:
        await at.spend()
        asking = await at.ask()
        await at.clock.advance(P95_S + 0.02)
        await at.upstreams[1].received.at(0)
        stop.set()
        await comes_true(lambda: at.relay.pipeline.upstreams["first"].state.failures == 1)
        go.set()
        answer = await asking
        assert not at.upstreams[2].received
    assert bytes(answer.body) == SERVED
    assert answer.header(b"x-relay-model") == b"second"


async def test_both_fail_and_the_third_answers(front):
    """What a race lost is tried on with the candidates that are left."""
    stop = asyncio.Event()
    async with scene(front, (until(stop), close), (until(stop), close), (WHOLE,)) as at:
        await at.spend()
        asking = await at.ask()
        await at.clock.advance(P95_S + 0.02)
        await at.upstreams[1].received.at(0)
        stop.set()
        answer = await asking
    assert bytes(answer.body) == SERVED
    assert (answer.header(b"x-relay-model"), answer.header(b"x-relay-attempts")) == (b"third", b"3")


@pytest.mark.parametrize(
    "why", ["nothing spent", "header", "everything is slow", "no stream", "second cannot", "second is strained"]
)
async def test_not_hedged(front, why):
    """Beyond the cost, against the client's word, when all is slow, without a stream, or with nobody else."""
    go = asyncio.Event()
    whole = WHOLE if why != "no stream" else send(chat.whole(chat.completion()))
    async with scene(front, (until(go), whole), (WHOLE,)) as at:
        if why != "nothing spent":
            await at.spend()
        if why == "everything is slow":
            for _ in range(50):
                at.relay.pipeline.ledgers["auto"].waited(too_long=True)
        if why == "second cannot":
            at.relay.pipeline.upstreams["second"].fail(BUSY, at.clock.now(), Breaker(), probe=False)
        if why == "second is strained":
            speed = at.relay.pipeline.upstreams["second"].speed
            assert speed is not None
            speed.ttft.rise(30.0, at.clock.now())
        headers = [("x-relay-hedge", "never")] if why == "header" else []
        asking = await at.ask(*headers, stream=why != "no stream")
        await at.clock.advance(2.0)
        go.set()
        answer = await asking
        assert not at.upstreams[1].received
    assert answer.status == 200
    assert answer.header(b"x-relay-attempts") == b"1"


async def test_the_header_says_never_or_is_refused(front):
    """Whatever else `x-relay-hedge` says is a 400 that names the header and what it may say, each time it comes."""
    body = chat.request_body(stream=True)
    async with scene(front, (WHOLE,), (WHOLE,)) as at:
        for said in ("always", "always", "Never", ""):
            answer = await ask(at.relay.port, post(body, ("x-relay-hedge", said)))
            assert (answer.status, answer.error()["param"]) == (400, "x-relay-hedge")
            assert answer.error()["message"] == f"x-relay-hedge is {said!r}; allowed is never."
        assert (await ask(at.relay.port, post(body, ("x-relay-hedge", "never")))).status == 200
        assert len(at.upstreams[0].received) == 1


async def test_duplicates_stay_within_their_share(front):
    """Of many silent requests only so many are hedged as the share of the spend allows."""
    async with scene(front, (stall,), (WHOLE,), hedge={"after": "p95", "max_extra_cost": 0.1}) as at:
        ledger = at.relay.pipeline.ledgers["auto"]
        await at.spend(400e-6)
        asking = [await at.ask() for _ in range(4)]
        await at.clock.advance(P95_S + 0.02)
        await at.upstreams[1].received.at(0)
        hedged = len(at.upstreams[1].received)
        assert 0 < hedged < 4
        await at.clock.advance(20.0)
        answers = await asyncio.gather(*asking)
    assert all(bytes(answer.body) == SERVED for answer in answers)
    assert 0 < ledger.twice <= 0.1 * ledger.spent


async def test_a_client_that_leaves_ends_both(front):
    """Both upstreams are cancelled when the client goes."""
    async with scene(front, (stall,), (stall,)) as at:
        await at.spend()
        async with await RawClient.connect(at.relay.port) as client:
            await client.send(post(chat.request_body(stream=True)))
            await at.upstreams[0].received.at(0)
            await at.clock.advance(P95_S + 0.02)
            await at.upstreams[1].received.at(0)
        for upstream in at.upstreams:
            await (await upstream.received.at(0)).gone.wait()
        record = await at.relay.only_record()
    assert record.outcome is Outcome.CLIENT_GONE
    assert len(record.attempts) == 2
