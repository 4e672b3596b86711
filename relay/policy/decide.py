"""Which models to try, in which order. Pure: facts come in, a plan goes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.messages import Attempt, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.policy.compiled import Retries, Route


def plan(route: Route, *, unavailable: Mapping[str, str], retries: Retries) -> Plan:
    """The attempts for one request: the route's candidates in their order, then round again.

    A candidate's first attempt starts at once; each further one waits up to twice as long as the last. The wait itself
    is drawn between zero and that when it comes to it (full jitter: Brooker, "Exponential Backoff and Jitter", AWS
    Architecture Blog, 2015).

    Args:
        route: candidates and how many attempts there may be.
        unavailable: model name -> why it is not to be tried now.
        retries: bounds of the waits.
    """
    usable = [model.name for model in route.candidates if model.name not in unavailable]
    left_out = tuple((model.name, unavailable[model.name]) for model in route.candidates if model.name in unavailable)
    attempts = []
    for index in range(route.attempts if usable else 0):
        lap, place = divmod(index, len(usable))
        backoff_s = min(retries.max_s, retries.base_s * 2 ** (lap - 1)) if lap else 0.0
        attempts.append(Attempt(usable[place], index + 1, backoff_s))
    return Plan(route.name, tuple(attempts), left_out)
