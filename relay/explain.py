"""A decision as plain values, for people and programs that ask why, and for the log, which asks now and then."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from relay.messages import Decision, RequestRecord, Wants, Weighed

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
            "output_tokens": wants.output_tokens,
            "limit_tokens": wants.limit_tokens,
            "min_tier": wants.min_tier,
            "prefer": wants.prefer,
        },
        "candidates": [_candidate(weighed) for weighed in decision.candidates],
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
