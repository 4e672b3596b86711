"""What a request's head says. Requests whose heads are the same to the byte may share one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.messages import Headers
    from relay.policy.compiled import Key, Route

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_FRAMING = b"content-length"


class Head:
    """A request's path and headers, and who sent it.

    Args:
        path: of the URL, without a query.
        headers: names in lower case, repeats kept.

    Attributes:
        path: as given.
        headers: as given, without the body's length, which is the runtime's business.
        fields: the same by name, the last one of each.
        request_id: what the client calls the request; empty if it does not, or not in a way that can be used.
        key: whose it is; None if nobody's, or not looked at yet.
        routes: where requests with this head were found to go, by the model they ask for.
    """

    __slots__ = ("fields", "headers", "key", "path", "request_id", "routes")

    def __init__(self, path: str, headers: Headers) -> None:
        self.path = path
        self.headers = [field for field in headers if field[0] != _FRAMING]
        self.fields = dict(self.headers)
        given = self.fields.get(b"x-request-id", b"")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else b""
        self.key: Key | None = None
        self.routes: dict[str, Route] = {}
