"""What of a request a decision looks at: read from its fields and headers, never from its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import InvalidRequest, PermissionDenied
from relay.messages import Wants
from relay.policy.decide import PREFERENCES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.dialects.base import Dialect
    from relay.messages import ChatRequest
    from relay.policy.compiled import Key, Route
    from relay.sizing import Sizing

PREFER = b"x-relay-prefer"
"""Header by which a client says what matters to it."""

HEDGE, NEVER = b"x-relay-hedge", b"never"
"""Header by which a client says that its request must not be sent twice at a time, and all that it may say there."""

BYTES_PER_TOKEN = 4
"""Of prompt JSON and of answer text: the rule of thumb where nobody counted."""

USUAL_ANSWER_TOKENS = 320
"""What an answer is expected to have when candidates are compared: the mean of some thousand answers."""

_NOTHING: frozenset[str] = frozenset()

SHOWN = 80
"""Characters of what a client sent that are repeated in an error."""


def wants_of(
    request: ChatRequest,
    route: Route,
    dialect: Dialect,
    headers: Mapping[bytes, bytes],
    key: Key | None,
    sizing: Sizing | None,
) -> Wants:
    """What a request asks of the candidates of its route; only what matters to one of them is looked at.

    Sizes are as the first candidate would have them. The tier that an intent wants is a guess, so it is never above the
    best one there is, and nothing to somebody who says what to prefer.

    Raises:
        PermissionDenied: it says what it prefers, and its key may not.
        InvalidRequest: what it says it prefers is nothing that can be preferred.
    """
    preference = _preference(route, headers, key) if PREFER in headers else ""
    if sizing is None:
        prompt_tokens = len(request.body) // BYTES_PER_TOKEN
        output_tokens = float(min(request.max_tokens or USUAL_ANSWER_TOKENS, USUAL_ANSWER_TOKENS) * request.choices)
    else:
        first = route.candidates[0].name
        prompt_tokens, output_tokens = sizing.prompt_tokens(first), sizing.output_tokens(first)
    return Wants(  # by place: what is named is looked for, field by field
        dialect.features(request) if route.wants_features else _NOTHING,
        prompt_tokens,
        output_tokens,
        request.max_tokens or 0,
        0 if sizing is None or preference else min(sizing.rules.min_tier, route.best_tier),
        dialect.prefixes(request) if route.wants_prefixes else (),
        preference,
    )


def _preference(route: Route, headers: Mapping[bytes, bytes], key: Key | None) -> str:
    if key is None or not key.prefer:
        raise PermissionDenied(
            "This key may not send x-relay-prefer; the policy allows it with `prefer = true`.", param=PREFER.decode()
        )
    preference = headers[PREFER].decode("latin-1").strip()
    names = [model.name for model in route.candidates]
    if preference not in PREFERENCES and preference not in names:
        allowed = ", ".join((*PREFERENCES, *names))
        raise InvalidRequest(f"x-relay-prefer is {preference[:SHOWN]!r}; allowed are {allowed}.", param=PREFER.decode())
    return preference
