"""The parts that all requests of a process share; the story of one request is told in `exchange.py`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from relay.admission import check_head
from relay.client import Nobody
from relay.errors import ShuttingDown
from relay.exchange import Exchange
from relay.limits.experience import Experience
from relay.limits.hedging import Ledger
from relay.served import Served
from relay.stages import Stages
from relay.upstreams import Upstream

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from relay.client import Client
    from relay.clock import Clock, Timer
    from relay.head import Head
    from relay.messages import RequestRecord
    from relay.policy.compiled import Policy
    from relay.stores.base import Store
    from relay.transports.base import Transport

TICK_S = 0.25
"""How often timeouts and keep-alives are looked at, seconds: one timer for all requests instead of several each."""


class Observer(Protocol):
    """Who is told of finished requests."""

    def record(self, record: RequestRecord) -> None:
        """Take note. Called in the event loop: must neither wait nor raise."""


class Pipeline:
    """The parts that requests share.

    Args:
        policy: the set to begin with; assign `policy` to change it, requests under way keep theirs.
        transport: reaches the upstreams.
        store: keeps what keys have used.
        observers: told of each finished request.
        clock: tells the time.
        rng: draws waits and request ids.

    Attributes:
        active: requests that are not finished.
        draining: no new requests are taken.
        upstreams: live state by model name.
        retired: that of models that the policy has no more: it may have them again, and a name may be a slip.
        ledgers: what routes that hedge have spent, by name.
        experience: what budgets learn from; kept when the policy changes.
        stages: by which requests that no task runs go on.
        heads: of requests that were admitted under this policy; a runtime may remember some, by keys of its own.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        transport: Transport,
        store: Store,
        observers: Sequence[Observer],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.transport = transport
        self.store = store
        self.observers = tuple(observers)
        self.clock = clock
        self.rng = rng
        self.active: set[Exchange] = set()
        self.draining = False
        self.upstreams: dict[str, Upstream] = {}
        self.retired: dict[str, Upstream] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.experience = Experience()
        self.stages = Stages()
        self.heads: dict[object, Head | None] = {}
        self.policy = policy
        self._timer: Timer | None = None
        self._idle: asyncio.Future[None] | None = None

    @property
    def policy(self) -> Policy:
        """The set that new requests run under."""
        return self._served.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        known = self.retired | self.upstreams
        self.upstreams = {name: known.pop(name) if name in known else Upstream() for name in policy.models}
        self.retired = known
        for route in policy.routes:
            if route.judged:
                for model in route.candidates:
                    self.upstreams[model.name].watch(model.expected)
        self.ledgers = {
            route.name: self.ledgers.get(route.name) or Ledger() for route in policy.routes if route.hedge is not None
        }
        self._served = Served(policy, self.upstreams, self.ledgers, self.experience)
        self.heads = {}

    def open(self, client: Client, head: Head) -> Exchange:
        """Begin a request whose headers have arrived."""
        exchange = Exchange(self, self._served, client, head)
        self.active.add(exchange)
        if self._timer is None:
            self._timer = self.clock.call_later(TICK_S, self._tick)
        return exchange

    def check(self, head: Head) -> None:
        """Look at the headers of what is to be explained, before its body is read.

        Raises:
            RelayError: they are enough to refuse the request.
        """
        check_head(head, self._served)

    def explain(self, head: Head, body: bytes) -> dict[str, Any]:
        """What would be decided for a request; nothing is sent, and nothing is kept of it.

        Raises:
            RelayError: as the request would be refused before anything is decided.
        """
        return Exchange(self, self._served, Nobody(), head).explain(body)

    def close_exchange(self, exchange: Exchange, record: RequestRecord) -> None:
        """A request is over."""
        self.active.discard(exchange)
        for observer in self.observers:
            observer.record(record)
        if not self.active:
            self.experience.catch_up()
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, let the others finish for `timeout_s` seconds, then end them in band."""
        self.draining = True
        if self.active:
            self._idle = asyncio.get_running_loop().create_future()
            timer = self.clock.call_later(timeout_s, self._end_all)
            await self._idle
            timer.cancel()

    async def close(self) -> None:
        """Let go of connections and of the store. Call it after `drain`."""
        if self._timer is not None:
            self._timer.cancel()
        await self.transport.close()
        await self.store.close()

    def _end_all(self) -> None:
        for exchange in list(self.active):
            exchange.interrupt(ShuttingDown("The relay is shutting down and cannot finish this answer."))

    def _tick(self) -> None:
        now = self.clock.now()
        for exchange in list(self.active):
            exchange.tick(now)
        self.experience.catch_up()
        self._timer = self.clock.call_later(TICK_S, self._tick) if self.active else None
