"""The memory store beyond the contract: it never suspends, and it forgets what no answer depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from relay.messages import KeyLimits
from relay.stores.base import Ask, Lease
from relay.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Coroutine

LIMITS = KeyLimits(requests_per_min=60, tokens_per_min=60_000, streams=5)


def step(verb: Coroutine[Any, Any, Any]) -> Any:
    """What a verb returns if it runs to its end without giving way to anyone."""
    with pytest.raises(StopIteration) as ended:
        verb.send(None)
    return ended.value.value


def reserve(store: MemoryStore, key: str, now: float, ttl_s: float = 600.0) -> Lease:
    lease = step(store.reserve(Ask(key, LIMITS, 100, ttl_s), now))
    assert isinstance(lease, Lease)
    return lease


def entries(store: MemoryStore) -> int:
    return len(store._used) + len(store._leases)


def test_no_verb_ever_suspends() -> None:
    """Each runs through in one step, so nothing can come between: that is what makes it atomic."""
    store = MemoryStore()
    lease = reserve(store, "a", 0.0)
    assert step(store.settle(lease, 5, 1.0)) is None
    assert step(store.ready()) is True
    assert step(store.close()) is None


def test_idle_keys_are_dropped() -> None:
    """A hundred thousand keys seen once each leave no more behind than those of the last minute."""
    store = MemoryStore()
    for number in range(100_000):
        now = number * 0.1
        step(store.settle(reserve(store, f"key-{number}", now), 100, now))
        assert len(store._used) < 200


def test_settled_leases_leave_nothing() -> None:
    """A busy key with leases that would live for ten minutes keeps no trace of those settled."""
    store = MemoryStore()
    for number in range(10_000):
        step(store.settle(reserve(store, "a", number * 1.0), 100, number * 1.0))
        assert entries(store) < 100


def test_abandoned_leases_leave_nothing() -> None:
    """Requests that crash without settling are cleared away as their time passes."""
    store = MemoryStore()
    for number in range(10_000):
        reserve(store, f"key-{number % 100}", number * 1.0, ttl_s=30.0)
        assert len(store._leases) <= 30
        assert entries(store) < 400


def test_a_key_in_use_is_never_dropped() -> None:
    """Sweeping spares a key whose streams are out, however long ago it asked."""
    store = MemoryStore()
    held = [reserve(store, "holder", 0.0, ttl_s=1e9) for _ in range(5)]
    for number in range(1_000):
        step(store.settle(reserve(store, f"key-{number}", number * 10.0), 0, number * 10.0))
    assert not isinstance(step(store.reserve(Ask("holder", LIMITS, 1, 1.0), 1e5)), Lease)
    step(store.settle(held[0], 0, 1e5))
    assert reserve(store, "holder", 1e5)
