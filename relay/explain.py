"""A decision as plain values, for people and programs that ask why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.messages import Decision, Wants, Weighed


def explained(decision: Decision, wants: Wants) -> dict[str, Any]:
    """Everything that decided: what was asked for, who was left out and why, and the parts of each score.

    Times are seconds, cost is USD. Nothing of a prompt is in it, not even its fingerprints.
    """
    return {
        "route": decision.route,
        "order": list(decision.order),
        "first_by": decision.first_by,
        "request": {
            "features": sorted(wants.features),
            "prompt_tokens": wants.prompt_tokens,
            "output_tokens": wants.output_tokens,
            "limit_tokens": wants.limit_tokens,
            "min_tier": wants.min_tier,
            "prefer": wants.prefer,
        },
        "candidates": [_candidate(weighed) for weighed in decision.candidates],
    }


def _candidate(weighed: Weighed) -> dict[str, Any]:
    if weighed.left_out:
        return {"model": weighed.model, "left_out": weighed.left_out}
    return {
        "model": weighed.model,
        "left_out": None,
        "score": round(weighed.score, 4),
        "ttft_s": round(weighed.ttft_s, 4),
        "latency_s": round(weighed.latency_s, 4),
        "usd": round(weighed.usd, 9),
        "cached_tokens": weighed.cached_tokens,
        "over_ceiling": weighed.over,
    }
