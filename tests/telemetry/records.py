"""Records of finished requests, as the pipeline would make them."""

from __future__ import annotations

from typing import Any

import msgspec

from relay.messages import AttemptRecord, Outcome, RequestRecord, Usage

SERVED = RequestRecord(
    id="req_1",
    at=1_790_000_000.25,
    endpoint="/v1/chat/completions",
    key="team-a",
    route="auto",
    model="small",
    provider="openai",
    upstream_model="gpt-4o-mini",
    stream=True,
    status=200,
    outcome=Outcome.COMPLETED,
    error=None,
    attempts=(AttemptRecord("small", "openai", None, 200, 0.25, 2.0),),
    usage=Usage(prompt_tokens=100, completion_tokens=21, cached_tokens=64, reasoning_tokens=5),
    finish_reason="stop",
    ttft_s=0.5,
    duration_s=2.5,
    policy="0123456789ab",
)
"""A stream that went well at the first attempt."""


def record(**changes: Any) -> RequestRecord:
    """`SERVED` with some fields changed."""
    return msgspec.structs.replace(SERVED, **changes)
