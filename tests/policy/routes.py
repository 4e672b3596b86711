"""Routes made without files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from relay.policy.compiled import Breaker, Match, Model, Objective, Price, Provider, Route, Timeouts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.policy.compiled import Hedge
    from relay.simulate import Place

PROVIDER = Provider(
    name="p",
    dialect="openai",
    base_url="http://127.0.0.1/v1",
    api_key=None,
    headers=(),
    forward_headers=frozenset(),
    timeouts=Timeouts(),
    breaker=Breaker(),
    max_connections=10,
    proxy=None,
    http2=False,
)


def usd(price_in: float, price_out: float | None = None, cached: float | None = None) -> Price:
    """USD per million, as a policy says it."""
    per_million = (price_in, price_in if cached is None else cached, price_in if price_out is None else price_out)
    return Price(*(price / 1e6 for price in per_million))


def route_over(places: Sequence[Place], *, hedge: Hedge | None = None, **weights: float) -> Route:
    """A route over all of a world's places, by TTFT unless there are weights."""
    models = tuple(
        Model(place.name, PROVIDER, place.name, None, Timeouts(), price=usd(*place.price)) for place in places
    )
    objective = Objective(**(weights or {"ttft": 1.0}))
    return Route("auto", Match(re.compile("auto")), models, 3, objective=objective, hedge=hedge)
