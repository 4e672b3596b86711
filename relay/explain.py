"""A decision as plain values, for people and programs that ask why, and for the log, which asks now and then."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.messages import Decision, RequestRecord, Wants, Weighed
    from relay.policy.compiled import Model
    from relay.sizing import Sizing

QUANTILES = (0.5, 0.9, 0.95, 0.99)
"""Of expected lengths that are shown."""

_log = logging.getLogger("relay.decisions")


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
            "output_tokens": round(wants.output_tokens, 1),
            "limit_tokens": wants.limit_tokens,
            "min_tier": wants.min_tier,
            "prefer": wants.prefer,
        },
        "candidates": [_candidate(weighed) for weighed in decision.candidates],
    }


def explained_to_sender(
    decision: Decision, wants: Wants, sizing: Sizing | None, models: Sequence[Model]
) -> dict[str, Any]:
    """As `explained`; and what the request was taken for, and what each model's answer would be given, in tokens.

    The features that spoke are pieces of the prompt, and cells name its application: for its sender alone.

    Args:
        decision: to explain.
        wants: what was decided on.
        sizing: of the request; None where the policy neither tells intents nor sets budgets.
        models: candidates of its route.
    """
    shown = explained(decision, wants)
    if sizing is None:
        return shown
    return shown | {
        "intent": {
            "label": sizing.intent.label,
            "confidence": sizing.intent.confidence,
            "treated_as": sizing.label,
            "spoke": [{"feature": feature, "weight": weight} for feature, weight in sizing.spoken()],
        },
        "budgets": [_budget(sizing, model) for model in models],
    }


def _budget(sizing: Sizing, model: Model) -> dict[str, Any]:
    budget, shape = sizing.budget(model), sizing.shape(model)
    expected = sizing.expected(model, QUANTILES)
    return {
        "model": model.name,
        "limit": budget.limit,
        "visible": budget.visible,
        "headroom": budget.headroom,
        "reserve": budget.reserve,
        "source": budget.source,
        "clamps": list(budget.clamps),
        "cell": list(budget.cell),
        "quantile": round(budget.quantile, 4),
        "expected": {f"p{round(100 * q)}": round(tokens) for q, tokens in zip(QUANTILES, expected, strict=True)},
        "prompt_tokens": sizing.prompt_tokens(model.name),
        "effort": shape.effort,
        "verbosity": shape.verbosity,
    }


class DecisionSample:
    """Logs the decisions of a share of requests. An observer of the pipeline.

    Which requests these are follows from their ids alone, so that several relays that are given one id agree.

    Args:
        share: of requests, from 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._below = share * 2.0**32

    def record(self, record: RequestRecord) -> None:
        """Log the decision of a finished request, if it is one of the share and there was something to decide."""
        if record.decision is not None and record.wants is not None and crc32(record.id.encode()) < self._below:
            fields = {"id": record.id, **explained(record.decision, record.wants)}
            first = record.decision.order[0] if record.decision.order else "nobody"
            _log.info("%s was to be asked first", first, extra={"event": "decision", "fields": fields})


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
