"""What a request takes of its key's limits, and gives back."""

from __future__ import annotations

import pytest

from relay.errors import LimitExceeded
from relay.messages import KeyLimits
from relay.policy.compiled import Key
from relay.reservation import Reservation
from relay.stores.memory import MemoryStore
from tests.fakes import FakeClock

TEAM = Key("team", bytes(32), None, KeyLimits(tokens_per_min=1000, streams=1))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def a_reservation(store: MemoryStore, key: Key = TEAM) -> Reservation:
    return Reservation(key, store, FakeClock(), longest_s=60.0)


async def test_all_that_a_request_took_is_corrected_to_what_it_used(store: MemoryStore) -> None:
    """Tokens of continuations go back with those of the beginning, and the stream is free again."""
    first = a_reservation(store)
    await first.take(600)
    assert await first.take_more(300)
    await first.settle(500)
    second = a_reservation(store)
    with pytest.raises(LimitExceeded):
        await second.take(501)
    await second.take(500)


async def test_more_than_is_left_is_not_taken(store: MemoryStore) -> None:
    """A continuation that the key's limits do not allow is not made; nothing is taken for it."""
    reservation = a_reservation(store)
    await reservation.take(600)
    assert not await reservation.take_more(401)
    assert await reservation.take_more(400)


async def test_where_tokens_have_no_limit_more_is_free(store: MemoryStore) -> None:
    """A key that is limited in streams alone may always continue, though the one stream is in use."""
    reservation = a_reservation(store, Key("team", bytes(32), None, KeyLimits(streams=1)))
    await reservation.take(10**9)
    assert await reservation.take_more(10**9)
    with pytest.raises(LimitExceeded, match="streams"):
        await a_reservation(store, Key("team", bytes(32), None, KeyLimits(streams=1))).take(1)
