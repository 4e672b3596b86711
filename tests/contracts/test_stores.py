"""What every store promises: the contract of `relay.stores.base.Store`.

A store joins by an entry in `STORES`: a name and a factory of an empty one.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.messages import KeyLimits
from relay.stores.base import Ask, Lease, Refusal
from relay.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.stores.base import Store

STORES: dict[str, Callable[[], Store]] = {"memory": MemoryStore}

START = 1_000.0
TTL_S = 30.0


@pytest.fixture(params=list(STORES.values()), ids=list(STORES))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = request.param()
    yield store
    await store.close()


def ask(
    *,
    key: str = "team-a",
    tokens: int = 10,
    requests_per_min: int | None = None,
    tokens_per_min: int | None = None,
    streams: int | None = None,
    ttl_s: float = TTL_S,
) -> Ask:
    return Ask(key, KeyLimits(requests_per_min, tokens_per_min, streams), tokens, ttl_s)


async def granted(store: Store, wanted: Ask, now: float = START) -> Lease:
    answer = await store.reserve(wanted, now)
    assert isinstance(answer, Lease), answer
    return answer


async def refused(store: Store, wanted: Ask, now: float = START) -> Refusal:
    answer = await store.reserve(wanted, now)
    assert isinstance(answer, Refusal), answer
    return answer


async def test_a_key_without_limits_is_never_refused(store: Store) -> None:
    """None is no limit, in all three."""
    for _ in range(1000):
        await granted(store, ask(tokens=10**9))


async def test_a_lease_holds_its_ask_and_a_new_id(store: Store) -> None:
    """Ids are unique within the store, also across keys."""
    asks = [ask(key=f"team-{number % 3}") for number in range(100)]
    leases = [await granted(store, wanted) for wanted in asks]
    assert [lease.ask for lease in leases] == asks
    assert len({lease.id for lease in leases}) == 100


@pytest.mark.parametrize(
    ("wanted", "passes", "limit", "allowed"),
    [
        (ask(requests_per_min=3), 3, "requests_per_min", 3),
        (ask(tokens_per_min=35), 3, "tokens_per_min", 35),
        (ask(streams=3), 3, "streams", 3),
    ],
    ids=["requests", "tokens", "streams"],
)
async def test_each_limit_refuses_by_its_name(store: Store, wanted: Ask, passes: int, limit: str, allowed: int) -> None:
    """The refusal names the field of KeyLimits that is used up and how large it is."""
    for _ in range(passes):
        await granted(store, wanted)
    refusal = await refused(store, wanted)
    assert (refusal.limit, refusal.allowed) == (limit, allowed)
    assert refusal.retry_after_s > 0


async def test_keys_do_not_share(store: Store) -> None:
    """One key's use is nobody else's."""
    await granted(store, ask(key="a", streams=1))
    await granted(store, ask(key="b", streams=1))
    await refused(store, ask(key="a", streams=1))


@pytest.mark.parametrize("tokens", [1, 40, 100, 5_000])
async def test_retry_after_is_right(store: Store, tokens: int) -> None:
    """Waiting for it is enough, waiting less is not; also for asks that only a full bucket satisfies."""
    wanted = ask(tokens=tokens, tokens_per_min=100, requests_per_min=1000)
    await granted(store, ask(tokens=100, tokens_per_min=100))
    wait_s = (await refused(store, wanted)).retry_after_s
    assert wait_s == pytest.approx(min(tokens, 100) * 0.6)
    await refused(store, wanted, START + wait_s - 0.01)
    await granted(store, wanted, START + wait_s)


async def test_the_longest_wait_is_the_one_told(store: Store) -> None:
    """With two limits used up, waiting as told satisfies both."""
    wanted = ask(tokens=90, requests_per_min=60, tokens_per_min=100)
    await granted(store, wanted)
    for _ in range(59):
        await granted(store, ask(tokens=0, requests_per_min=60, tokens_per_min=100))
    refusal = await refused(store, wanted)
    assert refusal.limit == "tokens_per_min"
    await granted(store, wanted, START + refusal.retry_after_s)


@pytest.mark.parametrize(
    "hopeless",
    [
        ask(tokens=60, requests_per_min=2, tokens_per_min=100, streams=5),
        ask(tokens=1, requests_per_min=2, tokens_per_min=100, streams=1),
    ],
    ids=["tokens", "streams"],
)
async def test_a_refused_ask_takes_nothing(store: Store, hopeless: Ask) -> None:
    """However often it is refused, what fitted before fits after."""
    await granted(store, ask(tokens=50, requests_per_min=2, tokens_per_min=100, streams=5))
    for _ in range(20):
        await refused(store, hopeless)
    await granted(store, ask(tokens=50, requests_per_min=2, tokens_per_min=100, streams=2))


async def test_settling_frees_the_stream_at_once(store: Store) -> None:
    """The slot is free for the next request at the same moment."""
    lease = await granted(store, ask(streams=1))
    await refused(store, ask(streams=1))
    await store.settle(lease, 0, START)
    await granted(store, ask(streams=1))


async def test_settling_gives_unused_tokens_back(store: Store) -> None:
    """Of 100 reserved 30 were used: 70 are there, 71 are not."""
    lease = await granted(store, ask(tokens=100, tokens_per_min=100))
    await store.settle(lease, 30, START)
    await refused(store, ask(tokens=71, tokens_per_min=100))
    await granted(store, ask(tokens=70, tokens_per_min=100))


async def test_settling_charges_what_was_used_beyond_the_ask(store: Store) -> None:
    """Of 10 reserved 250 were used: the key is in debt by one and a half minutes."""
    lease = await granted(store, ask(tokens=10, tokens_per_min=100))
    await store.settle(lease, 250, START)
    assert (await refused(store, ask(tokens=1, tokens_per_min=100))).retry_after_s == pytest.approx(90.6)


async def test_an_ask_above_the_bucket_settles_right(store: Store) -> None:
    """It took a full bucket, so a use of half the bucket gives half back."""
    lease = await granted(store, ask(tokens=10_000, tokens_per_min=100))
    await store.settle(lease, 50, START)
    await refused(store, ask(tokens=51, tokens_per_min=100))
    await granted(store, ask(tokens=50, tokens_per_min=100))


async def test_settling_twice_is_settling_once(store: Store) -> None:
    """Neither the stream nor the tokens come back a second time."""
    first = await granted(store, ask(tokens=50, tokens_per_min=100, streams=2))
    await granted(store, ask(tokens=50, tokens_per_min=100, streams=2))
    await store.settle(first, 50, START)
    await store.settle(first, 0, START)
    await refused(store, ask(tokens=1, tokens_per_min=100))
    await granted(store, ask(streams=2))
    await refused(store, ask(streams=2))


async def test_a_lease_nobody_settles_expires(store: Store) -> None:
    """Its stream is free after `ttl_s` and not before; its tokens stay spent."""
    await granted(store, ask(tokens=100, tokens_per_min=100, streams=1, ttl_s=5.0))
    await refused(store, ask(streams=1), START + 4.99)
    await granted(store, ask(streams=1), START + 5.0)
    await refused(store, ask(tokens=50, tokens_per_min=100), START + 5.0)


async def test_settling_after_expiry_does_nothing(store: Store) -> None:
    """A late settle neither frees another's stream nor moves tokens."""
    late = await granted(store, ask(tokens=100, tokens_per_min=100, streams=1, ttl_s=5.0))
    await granted(store, ask(streams=1, tokens=0), START + 5.0)
    await store.settle(late, 0, START + 5.0)
    await refused(store, ask(streams=1), START + 5.0)
    await refused(store, ask(tokens=50, tokens_per_min=100), START + 5.0)


async def test_it_can_be_reached(store: Store) -> None:
    """A store that works says so."""
    assert await store.ready()


async def test_interleaved_tasks_never_get_more_than_the_limit(store: Store) -> None:
    """Two hundred tasks that reserve, pause and settle in random order: never more than four streams are out."""
    rng = random.Random(2)
    out = peak = grants = 0

    async def client() -> None:
        nonlocal out, peak, grants
        for _ in range(10):
            answer = await store.reserve(ask(streams=4), START)
            if isinstance(answer, Refusal):
                await pauses(rng)
                continue
            out, grants = out + 1, grants + 1
            peak = max(peak, out)
            await pauses(rng)
            out -= 1  # before the await: while it runs another may already be let in
            await store.settle(answer, 10, START)

    await asyncio.gather(*(client() for _ in range(200)))
    assert peak == 4
    assert grants > 50
    for _ in range(4):
        await granted(store, ask(streams=4))


async def test_simultaneous_asks_share_one_bucket(store: Store) -> None:
    """Of a hundred asks at the same moment exactly as many pass as there are tokens for."""
    answers = await asyncio.gather(*(store.reserve(ask(tokens=7, tokens_per_min=100), START) for _ in range(100)))
    assert sum(isinstance(answer, Lease) for answer in answers) == 14


async def pauses(rng: random.Random) -> None:
    """Give way to the other tasks a few times."""
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(0)


class AgainstAModel(RuleBasedStateMachine):
    """Any sequence of verbs gives the answers of a model too simple to be wrong: plain fractions, full scans.

    Times are multiples of a quarter second and limits divide a minute evenly, so the model's arithmetic is exact.
    """

    make: Callable[[], Store]

    @initialize(
        requests=st.sampled_from([None, 2, 60]),
        tokens=st.sampled_from([None, 60, 120]),
        streams=st.sampled_from([None, 1, 3]),
    )
    def start(self, requests: int | None, tokens: int | None, streams: int | None) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = self.make()
        self.limits = KeyLimits(requests, tokens, streams)
        self.now = START
        self.level = {"requests_per_min": float(requests or 0), "tokens_per_min": float(tokens or 0)}
        self.leases: list[tuple[Lease, float]] = []
        self.gone: list[Lease] = []

    def teardown(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.close()

    @rule(quarters=st.integers(1, 200))
    def wait(self, quarters: int) -> None:
        self.now += quarters / 4
        for name in self.level:
            limit = getattr(self.limits, name) or 0
            self.level[name] = min(limit, self.level[name] + limit * quarters / 240)
        self.gone += [lease for lease, ends in self.leases if ends <= self.now]
        self.leases = [(lease, ends) for lease, ends in self.leases if ends > self.now]

    @rule(tokens=st.integers(0, 150), ttl_quarters=st.integers(1, 100))
    def reserve(self, tokens: int, ttl_quarters: int) -> None:
        wanted = Ask("k", self.limits, tokens, ttl_quarters / 4)
        answer = self.loop.run_until_complete(self.store.reserve(wanted, self.now))
        costs = {"requests_per_min": 1, "tokens_per_min": min(tokens, self.limits.tokens_per_min or 0)}
        short = {name for name, cost in costs.items() if getattr(self.limits, name) and self.level[name] < cost - 1e-6}
        if self.limits.streams and len(self.leases) >= self.limits.streams:
            short.add("streams")
        if isinstance(answer, Refusal):
            assert answer.limit in short
            assert answer.allowed == getattr(self.limits, answer.limit)
            return
        assert not short
        self.leases.append((answer, self.now + wanted.ttl_s))
        for name, cost in costs.items():
            self.level[name] -= cost

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), used=st.integers(0, 300))
    def settle(self, data: st.DataObject, used: int) -> None:
        lease, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.loop.run_until_complete(self.store.settle(lease, used, self.now))
        self.gone.append(lease)
        limit = self.limits.tokens_per_min or 0
        self.level["tokens_per_min"] = min(limit, self.level["tokens_per_min"] + min(lease.ask.tokens, limit) - used)

    @precondition(lambda self: self.gone)
    @rule(data=st.data(), used=st.integers(0, 300))
    def settle_again(self, data: st.DataObject, used: int) -> None:
        self.loop.run_until_complete(self.store.settle(data.draw(st.sampled_from(self.gone)), used, self.now))

    @invariant()
    def reachable(self) -> None:
        assert self.loop.run_until_complete(self.store.ready())


@pytest.mark.parametrize("make", STORES.values(), ids=STORES.keys())
def test_any_sequence_of_verbs_agrees_with_a_naive_model(make: Callable[[], Store]) -> None:
    """Grants, refusals and their reasons are those of the model, whatever the order of calls."""
    machine = type("Machine", (AgainstAModel,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30))
