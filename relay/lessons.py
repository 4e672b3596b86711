"""What a finished attempt teaches: the model's breaker and statistics, and what the route's money went for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.attempt import StreamAttempt
from relay.errors import DeadlineExceeded, Superseded, UpstreamFailure, UpstreamRefused
from relay.wants import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from relay.attempt import Attempt
    from relay.errors import RelayError
    from relay.limits.hedging import Ledger
    from relay.messages import Wants
    from relay.policy.compiled import Price
    from relay.upstreams import Upstream


def learn(upstream: Upstream, attempt: Attempt, failure: RelayError | None, wants: Wants | None, now: float) -> None:
    """What an attempt shows of a model: to its breaker, and, where they matter, of its speed and of what it has read.

    What ran out of the request's own time is not the upstream's fault. TTFT was noted at the commit.
    """
    trial = attempt.trial
    fault = failure if isinstance(failure, UpstreamFailure) and not isinstance(failure, DeadlineExceeded) else None
    if fault is not None:
        upstream.fail(fault, now, trial.model.provider.breaker, probe=trial.probe)
    elif attempt.committed:
        upstream.succeed(probe=trial.probe)
    else:
        upstream.give_up(probe=trial.probe)
    if upstream.speed is None:
        return
    if attempt.committed_at is None:
        _learn_from_silence(upstream, attempt, fault, now)
        return
    usage = attempt.usage
    tokens = usage.completion_tokens if usage else 0
    if isinstance(attempt, StreamAttempt):
        output_s = now - attempt.committed_at
        upstream.ended(tokens=tokens, output_s=output_s, truncated=fault is not None, now=now)
    else:
        upstream.whole(now - trial.started_at, tokens=tokens, now=now)
    if wants is not None and wants.prefixes:
        upstream.remember(wants.prefixes, now)


def _learn_from_silence(upstream: Upstream, attempt: Attempt, fault: UpstreamFailure | None, now: float) -> None:
    """Of an attempt that ended without any output."""
    started_at = attempt.trial.started_at
    if fault is not None:
        upstream.answered(attempt.head, now)
    if isinstance(fault, UpstreamRefused) and fault.clients_fault:
        upstream.refused(started_at)
    elif fault is not None:
        upstream.wasted(started_at, now)
    elif isinstance(attempt, StreamAttempt):
        upstream.left(started_at, now)


def account(
    ledger: Ledger, price: Price, attempt: Attempt, failure: RelayError | None, wants: Wants | None, now: float
) -> None:
    """What an attempt cost, and whether it was for nothing. One that wrote nothing was sent the prompt."""
    if isinstance(failure, UpstreamFailure) and not attempt.output_chars:
        return  # refused or broken: not charged
    usage = attempt.usage
    prompt_tokens = usage.prompt_tokens if usage else wants.prompt_tokens if wants else 0
    output_tokens = usage.completion_tokens if usage else attempt.output_chars / BYTES_PER_TOKEN
    usd = price.of(prompt_tokens, output_tokens, min(usage.cached_tokens, prompt_tokens) if usage else 0)
    ledger.spend(usd, now, twice=isinstance(failure, Superseded))
