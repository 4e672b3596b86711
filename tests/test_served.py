"""A policy ready to serve."""

from __future__ import annotations

import pytest

from relay.errors import ConnectFailed, RelayError, UpstreamRefused
from relay.limits.experience import Experience
from relay.policy.compiled import Breaker
from relay.served import Served
from relay.upstreams import Upstream
from tests.learned import set_of

WRITTEN = {"name": "auto", "candidates": ("first", "second"), "attempts": 2}
OPENS = Breaker(failures=1, open_s=10.0)


def busy(retry_after_s: float) -> UpstreamRefused:
    return UpstreamRefused("busy", upstream_status=429, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("first", "second", "asked", "left_out"),
    [
        (None, None, ["first", "second"], {}),
        (ConnectFailed(""), None, ["second", "second"], {"first": "breaker_open"}),
        (None, busy(60.0), ["first", "first"], {"second": "retry_after"}),
        (busy(60.0), busy(2.0), ["second", "second"], {"first": "retry_after"}),
        (ConnectFailed(""), busy(60.0), [], {"first": "breaker_open", "second": "retry_after"}),
    ],
    ids=["all well", "one is down", "one is busy", "one is free soon", "nobody is free soon"],
)
def test_who_cannot_be_asked_is_left_out(
    first: RelayError | None, second: RelayError | None, asked: list[str], left_out: dict[str, str]
) -> None:
    """Who cannot be asked now takes no attempt, and it is said why; if that is all, who is free soon is waited for."""
    upstreams = {"first": Upstream(), "second": Upstream()}
    for model, failure in (("first", first), ("second", second)):
        if failure is not None:
            upstreams[model].fail(failure, 0.0, OPENS, probe=False)
    policy = set_of(routes=[WRITTEN])
    planned, reasons = Served(policy, upstreams, {}, Experience()).as_written(policy.routes[0], 1.0)
    assert [attempt.model for attempt in planned] == asked
    assert reasons == left_out
