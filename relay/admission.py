"""What must hold before anybody is asked for an answer: who asks, what the request says, and where it may go."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from relay.errors import (
    AuthenticationFailed,
    CrossSiteRequest,
    HeadersTooLarge,
    InvalidRequest,
    PermissionDenied,
    RequestTooLarge,
    UnknownModel,
)
from relay.wants import HEDGE, NEVER, SHOWN
from relay.wire.splice import is_deeper

if TYPE_CHECKING:
    from relay.dialects.base import Dialect
    from relay.head import Head
    from relay.messages import ChatRequest
    from relay.policy.compiled import Policy, RequestLimits, Route
    from relay.served import Served

KNOWN_ROUTES = 16
"""Models whose route a head remembers: clients ask for a few. A name that only a glob matches may be any."""


def check_head(head: Head, served: Served) -> None:
    """Whether this client may ask at all. Notes in the head whose the request is.

    Raises:
        RelayError: it may not.
    """
    policy = served.policy
    size = sum(map(len, chain.from_iterable(head.headers)))
    if size > policy.requests.max_header_bytes:
        raise HeadersTooLarge(
            f"The request's headers have {size} bytes; {policy.requests.max_header_bytes} are allowed."
        )
    scheme, _, presented = head.fields.get(b"authorization", b"").partition(b" ")
    if presented and scheme.lower() == b"bearer":
        head.key = served.key_for(presented.strip())
    if head.key is None and not policy.open:
        raise AuthenticationFailed(
            "The API key is not known here." if presented else "No API key: send `Authorization: Bearer KEY`."
        )
    if head.key is None and b"origin" in head.fields:
        _check_page(head)
    if head.fields.get(HEDGE, NEVER) != NEVER:
        shown = head.fields[HEDGE].decode("latin-1")[:SHOWN]
        raise InvalidRequest(f"x-relay-hedge is {shown!r}; allowed is never.", param=HEDGE.decode())


def _check_page(head: Head) -> None:
    """Browsers let any page send a form or plain text anywhere; JSON they send only after asking, and hear no."""
    if not head.fields.get(b"content-type", b"").startswith(b"application/json"):
        raise CrossSiteRequest("Without a key, a web page may ask only with `content-type: application/json`.")


def read_request(body: bytes, dialect: Dialect, limits: RequestLimits) -> ChatRequest:
    """The request of a body.

    Raises:
        RelayError: it is none, or larger than the policy allows.
    """
    if len(body) > limits.max_body_bytes:
        raise body_too_large(limits.max_body_bytes)
    request = dialect.parse_request(body)
    messages = len(request.turns)
    if messages > limits.max_messages:
        raise InvalidRequest(
            f"The request has {messages} messages; {limits.max_messages} are allowed.", param="messages"
        )
    if is_deeper(body, limits.max_json_depth):
        raise InvalidRequest(f"The request's JSON is nested deeper than {limits.max_json_depth} levels.")
    return request


def body_too_large(limit: int) -> RequestTooLarge:
    """For a body of more than `limit` bytes, however much of it was read."""
    return RequestTooLarge(f"The request's body is larger than {limit} bytes.")


def find_route(request: ChatRequest, head: Head, policy: Policy) -> Route:
    """Where a request goes.

    Raises:
        RelayError: nowhere, or its key may not use that route.
    """
    if request.model in head.routes:
        return head.routes[request.model]
    key = head.key
    route = policy.route_for(request.model, key.name if key else "", head.path, head.fields)
    if route is None:
        shown = request.model[:SHOWN]
        raise UnknownModel(f"No route serves the model {shown!r}; GET /v1/models lists what is.", param="model")
    if key is not None and not key.may_use(route.name):
        raise PermissionDenied(f"The key {key.name!r} may not use {route.name!r}.", param="model")
    if len(head.routes) < KNOWN_ROUTES:
        head.routes[request.model] = route
    return route
