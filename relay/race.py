"""An attempt, and perhaps another one beside it: the first real output wins, the other one is cancelled.

The second starts when the first has had no output for as long as nearly all of its kind take (the policy's quantile),
if the route's ledger allows the money and slowness is not everywhere; see `relay/limits/hedging.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from relay.errors import ClientGone, Superseded
from relay.stages import GIVEN_UP
from relay.upstreams import duplicate_usd

if TYPE_CHECKING:
    from relay.attempt import Attempt
    from relay.clock import Clock
    from relay.errors import RelayError
    from relay.messages import Attempt as Planned
    from relay.messages import Wants
    from relay.policy.compiled import Hedge, Model
    from relay.served import Served


class Runner(Protocol):
    """Who runs attempts: the exchange."""

    def begin(self, model: Model, *, hedge: bool = False) -> Attempt:
        """Prepare an attempt; unless it is a hedge, it is the one that the client's doings concern."""

    async def outcome(self, attempt: Attempt) -> RelayError | None:
        """Send an attempt's request and wait for its end. Returns what went wrong; None if the answer was served."""

    def lead(self, attempt: Attempt) -> None:
        """From now on the client's doings concern that one."""


class Race:
    """One request's.

    Args:
        runner: runs the attempts.
        served: the policy.
        route: its name.
        hedge: when the second attempt may start, and what it may cost.
        wants: what was decided on.
        clock: tells the time.

    Attributes:
        rival: the attempt that runs beside another one, before either has output.
    """

    __slots__ = (
        "_clock",
        "_first",
        "_hedge",
        "_ledger",
        "_overdue",
        "_pending_usd",
        "_prices",
        "_runner",
        "_served",
        "_stopped",
        "_wants",
        "rival",
    )

    def __init__(self, runner: Runner, served: Served, route: str, hedge: Hedge, wants: Wants, clock: Clock) -> None:
        self.rival: Attempt | None = None
        self._runner = runner
        self._served = served
        self._ledger = served.ledgers[route]
        self._prices = served.prices[route]
        self._hedge = hedge
        self._wants = wants
        self._clock = clock
        self._first: Attempt | None = None
        self._pending_usd = 0.0  # that a second attempt under way may cost
        self._overdue = False  # the first output was later than the route's quantile
        self._stopped = False  # no second attempt is to begin any more

    async def run(self, model: Model, queue: list[Planned], *, usual: Model) -> RelayError | None:
        """Ask a model, and perhaps the next one beside it. Returns as `Runner.outcome` does, for both together.

        Args:
            model: who is asked first.
            queue: what would be tried after it; the second is taken from its front.
            usual: whose TTFT says how long the first may take.
        """
        first = self._first = self._runner.begin(model)
        second: list[asyncio.Future[RelayError | None]] = []

        def start_second() -> None:
            if first.committed or first.ended.done() or (rival := self._rival_for(first, queue)) is None:
                return
            queue.pop(0)
            self.rival = self._runner.begin(rival, hedge=True)
            second.append(asyncio.ensure_future(self._runner.outcome(self.rival)))
            second[0].add_done_callback(self._release_pending)

        timer = self._clock.call_later(self._patience_s(usual), start_second)
        try:
            failure = await self._runner.outcome(first)
        except GIVEN_UP:
            self.stop(ClientGone("The server gave the request up."))
            raise
        finally:
            timer.cancel()
        if not second:
            return failure
        if not first.committed:
            self._release_pending()
            if failure is not None and self.rival is not None:
                self._runner.lead(self.rival)  # it runs on alone
                self.rival = None
        ended_by = await second[0]
        return failure if first.committed else ended_by

    def commit(self, winner: Attempt) -> None:
        """The first real output is there: the other attempt is cancelled, and so can send nothing to the client."""
        loser = self._first if winner is self.rival else self.rival
        if loser is None:
            if not self._overdue:
                self._ledger.waited(too_long=False)
            return
        self.rival = None
        if not loser.ended.done():
            loser.fail(Superseded("Another attempt had its first output earlier."))

    def stop(self, error: RelayError) -> None:
        """End the second attempt, or see to it that there is none; the first is the exchange's business."""
        self._stopped = True
        if self.rival is not None:
            self.rival.fail(error)

    def _patience_s(self, usual: Model) -> float:
        """How long the first may take."""
        speed = self._served.upstreams[usual.name].speed
        if speed is None:
            raise AssertionError("models of routes that hedge are watched")
        return speed.tail(self._hedge.after, self._clock.now())

    def _rival_for(self, first: Attempt, queue: list[Planned]) -> Model | None:
        """Who may start beside an attempt that takes too long; None if nobody should."""
        ledger = self._ledger
        if self._stopped:
            return None
        ledger.waited(too_long=True)
        self._overdue = True
        if not queue or queue[0].model == first.trial.model.name or queue[0].backoff_s:
            return None
        served, asked, rival = self._served, first.trial.model.name, queue[0].model
        now = self._clock.now()
        usd = duplicate_usd(self._hedge, ledger, served.upstreams, self._prices, asked, rival, self._wants, now)
        if usd is None:
            return None
        self._pending_usd = usd
        ledger.pending += usd
        return served.policy.models[rival]

    def _release_pending(self, _: object = None) -> None:
        """What the duplicate really cost is known, and in the ledger."""
        self._ledger.pending -= self._pending_usd
        self._pending_usd = 0.0
