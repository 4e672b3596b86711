"""What a finished attempt teaches: the model's breaker and statistics, and what the route's money went for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

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


def _is_its_fault(failure: RelayError | None) -> TypeGuard[UpstreamFailure]:
    """Whether the upstream failed; what ran out of the request's own time is not its fault."""
    return isinstance(failure, UpstreamFailure) and not isinstance(failure, DeadlineExceeded)


def judge(upstream: Upstream, attempt: Attempt, failure: RelayError | None, now: float) -> None:
    """Let the model's breaker know how an attempt went."""
    trial = attempt.trial
    if _is_its_fault(failure):
        upstream.fail(failure, now, trial.model.provider.breaker, probe=trial.probe)
    elif attempt.committed:
        upstream.succeed(probe=trial.probe)
    else:
        upstream.give_up(probe=trial.probe)


def learn(upstream: Upstream, attempt: Attempt, failure: RelayError | None, wants: Wants | None, now: float) -> None:
    """What an attempt shows of a model's speed and of what it has read; its TTFT was noted at the commit."""
    failed = _is_its_fault(failure)
    started_at = attempt.trial.started_at
    if attempt.committed_at is None:
        if failed:
            upstream.answered(attempt.head, now)
        if isinstance(failure, UpstreamRefused) and failure.clients_fault:
            upstream.refused(started_at)
        elif failed:
            upstream.wasted(started_at, now)
        elif isinstance(attempt, StreamAttempt):
            upstream.left(started_at, now)
        return
    tokens = attempt.usage.completion_tokens if attempt.usage else 0
    if isinstance(attempt, StreamAttempt):
        upstream.ended(tokens=tokens, output_s=now - attempt.committed_at, truncated=failed, now=now)
    else:
        upstream.whole(now - started_at, tokens=tokens, now=now)
    if wants is not None and wants.prefixes:
        upstream.remember(wants.prefixes, now)


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
