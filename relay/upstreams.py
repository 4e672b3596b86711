"""What the relay has seen of each model lately: its breaker, and how fast it answers.

Kept per model name across policy reloads; in memory, per process. Changed only in await-free code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import RelayError, UpstreamRefused
from relay.limits import breaker
from relay.limits.quantiles import Sketch

if TYPE_CHECKING:
    from relay.policy.compiled import Breaker

STATISTICS_HALF_LIFE_S = 300.0
"""Providers' speed changes within minutes: after five of them an observation counts half."""

MAX_LEFT_ALONE_S = 60.0
"""Longest time that a Retry-After keeps all requests away from a model; a mistaken header must not lose it."""

_CLIENTS_FAULT = frozenset({400, 405, 406, 411, 413, 414, 415, 422})
"""Upstream statuses that say that the upstream is well and the request is not."""


class Upstream:
    """One model's live state.

    Attributes:
        state: its circuit breaker.
        not_before: when it may be asked again after a Retry-After, seconds on the pipeline's clock.
        ttft_s: seconds from an attempt's start to its first real output, streams only.
        tokens_per_s: completion tokens per second behind the first output, streams only.
    """

    __slots__ = ("not_before", "state", "tokens_per_s", "ttft_s")

    def __init__(self) -> None:
        self.state = breaker.CLOSED
        self.not_before = 0.0
        self.ttft_s = Sketch(half_life_s=STATISTICS_HALF_LIFE_S)
        self.tokens_per_s = Sketch(half_life_s=STATISTICS_HALF_LIFE_S)

    def unavailable(self, now: float) -> str | None:
        """Why it is not to be asked at `now`; None if it may be."""
        if now < self.not_before:
            return "retry_after"
        return None if breaker.allows(self.state, now) else "breaker_open"

    def free_in_s(self, now: float) -> float:
        """Seconds until it may be asked again, as far as is known."""
        return max(0.0, self.not_before - now, (self.state.retry_at or now) - now)

    def start(self) -> bool:
        """An attempt begins. True if it is the one probe of a half-open breaker: say so when it ends."""
        self.state = breaker.on_start(self.state)
        return self.state.probing

    def succeed(self, *, probe: bool) -> None:
        """It answered."""
        self.state = breaker.on_success(self.state, probe=probe)

    def give_up(self, *, probe: bool) -> None:
        """The attempt was dropped before it said anything about the upstream."""
        self.state = breaker.on_cancel(self.state, probe=probe)

    def fail(self, error: RelayError, now: float, limits: Breaker, *, probe: bool) -> None:
        """It failed. A refusal that is the client's fault shows that it is well; a 429 only that it is busy."""
        status = error.upstream_status if isinstance(error, UpstreamRefused) else None
        wait_s = error.retry_after_s if isinstance(error, UpstreamRefused) else None
        if wait_s is not None:
            self.not_before = max(self.not_before, now + min(wait_s, MAX_LEFT_ALONE_S))
        if status in _CLIENTS_FAULT:
            self.succeed(probe=probe)
        elif status == 429:  # noqa: PLR2004
            self.give_up(probe=probe)
        else:
            self.state = breaker.on_failure(
                self.state,
                now,
                threshold=limits.failures,
                open_s=limits.open_s,
                probe=probe,
                retry_after_s=wait_s,
            )

    def observe(self, *, ttft_s: float, tokens: int, output_s: float, now: float) -> None:
        """A stream was served: its first output came after `ttft_s`, all its `tokens` within `output_s` more."""
        self.ttft_s.add(ttft_s, now)
        if tokens > 1 and output_s > 0:
            self.tokens_per_s.add((tokens - 1) / output_s, now)
