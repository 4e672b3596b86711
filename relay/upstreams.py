"""What the relay has seen of each model lately: its breaker, what is left of its limits, and how fast it answers.

Kept per model name across policy reloads; in memory, per process. Changed only in await-free code.
"""

from __future__ import annotations

from math import exp, inf
from typing import TYPE_CHECKING

from relay.errors import RelayError, UpstreamRefused
from relay.limits import breaker
from relay.limits.speed import Speed, SpeedSnapshot, deviations
from relay.policy.compiled import Expectation
from relay.policy.decide import Outlook
from relay.wire.rate_limits import rooms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.limits.hedging import Ledger
    from relay.messages import Headers, Wants
    from relay.policy.compiled import Breaker, Hedge, Price

MAX_LEFT_ALONE_S = 60.0
"""Longest time that a Retry-After, or a limit said to be used up, keeps all requests away from a model; a mistaken
header must not lose it."""

CACHE_S = 300.0
"""How long providers keep a prompt's beginning at least: five minutes (Anthropic), five to ten (OpenAI)."""

MAX_PREFIXES = 4096
"""Prompt beginnings remembered per model: what a busy provider is sent in five minutes, in half a megabyte."""

PASSING = ("retry_after", "breaker_open", "upstream_")
"""How reasons begin that time alone removes."""

_SCORED = 1.0
"""Standard deviations above the median at which TTFT is scored (p84): the tail counts, but does not rule."""
_P95 = deviations(0.95)
_YOUNG = 3
"""Observations that a model gets without waiting for its turn to be explored."""
_UNKNOWN = 0.6
"""How much lower (in log) the latency of a model may be that was never seen; less with each observation."""


class Upstream:
    """One model's live state.

    Args:
        expected: how fast it is taken to be before it was seen.
        watched: whether its speed matters to any route. If not, nothing of it is kept.

    Attributes:
        state: its circuit breaker.
        not_before: when it may be asked again after a Retry-After, seconds on the pipeline's clock.
        asked_at: when an attempt last began; minus infinity if none has.
        troubled: there may be a reason not to ask it; if not, there is none but its limits.
        speed: how fast and how surely it answers; None if that matters to no route.
        outlook: what was last expected of it, see `expect`.
    """

    __slots__ = (
        "_before",
        "_holds_until",
        "_prefixes",
        "_rooms",
        "asked_at",
        "not_before",
        "outlook",
        "speed",
        "state",
        "troubled",
    )

    def __init__(self, expected: Expectation | None = None, *, watched: bool = False) -> None:
        self.state = breaker.CLOSED
        self.not_before = 0.0
        self.troubled = False
        self.asked_at = float("-inf")
        self.speed: Speed | None = None
        self.outlook = _NO_OUTLOOK
        self._holds_until = inf  # the outlook, if nothing is told meanwhile
        self._before: SpeedSnapshot | None = None  # its speed when that mattered last, should it matter again
        self._rooms: dict[str, tuple[float, float]] = {}  # kind -> what is left, until when that holds
        self._prefixes: dict[bytes, float] = {}  # fingerprint -> when it was last sent, the oldest first
        if watched:
            self.watch(expected or Expectation())

    def watch(self, expected: Expectation) -> None:
        """From now on its speed matters."""
        if self.speed is None:
            unseen = Speed(ttft_s=expected.ttft_s, tokens_per_s=expected.tokens_per_s)
            self.speed = unseen if self._before is None else Speed.restore(self._before)
            self._holds_until = -inf

    # --- what decisions ask; see relay.policy.decide.Standing ---

    def unavailable(self, now: float) -> str | None:
        """Why it is not to be asked at `now`; None if it may be."""
        if now < self.not_before:
            return "retry_after"
        return None if breaker.allows(self.state, now) else "breaker_open"

    def refuses(self, tokens: float, now: float) -> str | None:
        """Why a request of that many tokens, answer included, is not to be sent at `now`; None if it may be."""
        if self.troubled and (reason := self.unavailable(now)):
            return reason
        for kind, (left, until) in self._rooms.items():
            if now < until and left < (1 if kind == "requests" else tokens):
                return f"upstream_{kind}"
        return None

    def expect(self, tokens: float, now: float) -> Outlook | str:
        """What to expect of it if it is sent such a request; or why it refuses.

        Attempts that wait too long for their first output count before they end.
        """
        if (self.troubled or self._rooms) and (reason := self.refuses(tokens, now)):
            return reason
        if now >= self._holds_until and self.speed is not None:
            self._holds_until = self.speed.look(now)
            self.outlook = outlook(self.speed)
        return self.outlook

    @property
    def strained(self) -> bool:
        """It is slower than usual, so what is not urgent had better not be sent to it."""
        return self.speed is not None and self.speed.ttft.strained()

    def cached_tokens(self, prefixes: Sequence[tuple[bytes, int]], now: float) -> int:
        """Tokens of the longest of these prompt beginnings that its provider is likely to have in its cache."""
        for fingerprint, tokens in prefixes:
            if now - self._prefixes.get(fingerprint, -CACHE_S) < CACHE_S:
                return tokens
        return 0

    def free_in_s(self, now: float) -> float:
        """Seconds until it may be asked again, as far as is known."""
        rooms_until = max((until for left, until in self._rooms.values() if left < 1), default=now)
        return max(0.0, self.not_before - now, (self.state.retry_at or now) - now, rooms_until - now)

    # --- what attempts tell ---

    def start(self, now: float, tokens: float = 0.0) -> bool:
        """An attempt begins. True if it is the one probe of a half-open breaker: say so when it ends.

        Args:
            now: seconds on the pipeline's clock.
            tokens: that its prompt and answer are expected to have.
        """
        self.asked_at = now
        for kind, (left, until) in self._rooms.items():
            self._rooms[kind] = (left - (1 if kind == "requests" else tokens), until)
        if not self.troubled:
            return False
        if now >= self.not_before:
            self.not_before = 0.0
        self._turn(breaker.on_start(self.state))
        return self.state.probing

    def answered(self, headers: Headers, now: float) -> None:
        """Its answer's headers are there: they may tell what is left of its limits."""
        told: dict[str, tuple[float, float]] = {}
        for room in rooms(headers):
            until = now + min(room.reset_s, MAX_LEFT_ALONE_S)
            if room.kind not in told or room.left < told[room.kind][0]:
                told[room.kind] = (room.left, until)
        self._rooms.update(told)

    def succeed(self, *, probe: bool) -> None:
        """It answered."""
        if self.troubled:
            self._turn(breaker.on_success(self.state, probe=probe))

    def give_up(self, *, probe: bool) -> None:
        """The attempt was dropped before it said anything about the upstream."""
        self._turn(breaker.on_cancel(self.state, probe=probe))

    def fail(self, error: RelayError, now: float, limits: Breaker, *, probe: bool) -> None:
        """It failed. A refusal that is the client's fault shows that it is well; a 429 only that it is busy."""
        status = error.upstream_status if isinstance(error, UpstreamRefused) else None
        wait_s = error.retry_after_s if isinstance(error, UpstreamRefused) else None
        if wait_s is not None:
            self.not_before = max(self.not_before, now + min(wait_s, MAX_LEFT_ALONE_S))
            self.troubled = True
        if isinstance(error, UpstreamRefused) and error.clients_fault:
            self.succeed(probe=probe)
        elif status == 429:  # noqa: PLR2004
            self.give_up(probe=probe)
        else:
            failed = breaker.on_failure(
                self.state,
                now,
                threshold=limits.failures,
                open_s=limits.open_s,
                probe=probe,
                retry_after_s=wait_s,
            )
            self._turn(failed)

    # --- what probes tell; see relay.probes ---

    def alive(self, now: float) -> None:
        """Its provider answers: one request may find out whether it does too, once its own Retry-After is over."""
        self._turn(breaker.on_life(self.state, max(now, self.not_before)))

    def dead(self, until: float) -> None:
        """Its provider does not answer: no request needs to try before `until`."""
        self._turn(breaker.on_death(self.state, until))

    def _turn(self, state: breaker.State) -> None:
        """From now on its breaker stands like this."""
        self.state = state
        self.troubled = state is not breaker.CLOSED or self.not_before > 0.0

    # --- speed; only for models that are watched ---

    def asked(self, now: float) -> None:
        """A stream's attempt begins. Its end is told with the same moment: `begun`, `wasted`, `refused` or `left`."""
        if self.speed is not None:
            self.speed.asked(now)
            self._holds_until = -inf

    def begun(self, asked_at: float, now: float) -> None:
        """A stream that was asked for at `asked_at` has its first output."""
        if self.speed is not None:
            self.speed.begun(asked_at, now)
            self._holds_until = -inf

    def left(self, asked_at: float, now: float) -> None:
        """A stream was given up while it waited for its first output."""
        if self.speed is not None:
            self.speed.left(asked_at, now)
            self._holds_until = -inf

    def refused(self, asked_at: float) -> None:
        """An attempt ended because its request is wrong."""
        if self.speed is not None:
            self.speed.refused(asked_at)

    def wasted(self, asked_at: float, now: float) -> None:
        """An attempt failed before its first output."""
        if self.speed is not None:
            self.speed.failed(asked_at, now)
            self._holds_until = -inf

    def ended(self, *, tokens: int, output_s: float, truncated: bool, now: float) -> None:
        """A stream is over: its `tokens` came within `output_s` seconds behind the first output."""
        if self.speed is not None:
            self.speed.ended(tokens=tokens, output_s=output_s, truncated=truncated, now=now)
            self._holds_until = -inf

    def whole(self, duration_s: float, *, tokens: int, now: float) -> None:
        """An answer that was no stream came after `duration_s` seconds."""
        if self.speed is not None:
            self.speed.whole(duration_s, tokens=tokens, now=now)
            self._holds_until = -inf

    def remember(self, prefixes: Sequence[tuple[bytes, int]], now: float) -> None:
        """It was sent a prompt that begins so; its provider may now have it in its cache."""
        kept = self._prefixes
        for fingerprint, _ in prefixes:
            kept.pop(fingerprint, None)
            kept[fingerprint] = now
        while len(kept) > MAX_PREFIXES:
            del kept[next(iter(kept))]

    def snapshot(self, now: float) -> SpeedSnapshot | None:
        """Its speed, to keep or to send; None if it was never seen: what is expected of it is the policy's to say."""
        return self.speed.snapshot(now) if self.speed is not None and self.speed.known() else self._before

    def restore(self, snapshot: SpeedSnapshot) -> None:
        """Go on from a snapshot, at once if it is watched, else when it is."""
        self._before = snapshot
        if self.speed is not None:
            self.speed = Speed.restore(snapshot)
            self._holds_until = -inf


def duplicate_usd(
    hedge: Hedge | None,
    ledger: Ledger,
    upstreams: Mapping[str, Upstream],
    prices: Mapping[str, Price],
    first: str,
    second: str,
    wants: Wants,
    now: float,
) -> float | None:
    """What a request may cost for being sent twice, USD; None if it must not be.

    Args:
        hedge: what the route allows; None is never.
        ledger: of the route.
        upstreams: by model name.
        prices: likewise.
        first: who was sent it.
        second: who would be sent it too.
        wants: what was decided on.
        now: seconds on the clock of ledger and upstreams.
    """
    rival = upstreams[second]
    if hedge is None or rival.strained or rival.refuses(wants.prompt_tokens + wants.output_tokens, now):
        return None
    usd = max(prices[name].of(wants.prompt_tokens, 0.0) for name in (first, second))  # either may be cancelled
    return usd if ledger.allows(usd, hedge.max_extra_cost, now, after=hedge.after) else None


def outlook(speed: Speed) -> Outlook:
    """What to expect of a model of that speed.

    The time that failures cost is spread over the attempts that succeed: of n attempts, n·failing end after some
    seconds with nothing, and are repeated elsewhere.
    """
    ttft, seen, passing = speed.ttft, speed.ttft.seen(), 1.0
    if speed.failing or speed.truncated:
        passing = max(1.0 - speed.failing - speed.truncated, 0.05)
    better = 1.0 / passing - 1.0
    if ttft.mean > ttft.usual:
        better += ttft.mean - ttft.usual
    return Outlook(  # by place: names cost more than all of this
        (ttft.quantile(_SCORED) + speed.wasted_s) / passing,
        ttft.quantile(_P95),
        exp(speed.per_token.mean),
        ttft.error(),
        better + _UNKNOWN / (1.0 + seen),
        seen < _YOUNG,
    )


_NO_OUTLOOK = outlook(Speed())
