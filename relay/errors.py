"""Every error the relay raises, as one tree.

RelayError
├── RequestRejected              the client's fault or its limits; nothing was sent upstream
│   ├── InvalidRequest           the body, a field or a header is not what the API takes
│   ├── RequestTooLarge          the body is over `requests.max_body_bytes`
│   ├── HeadersTooLarge          the headers are over `requests.max_header_bytes`
│   ├── AuthenticationFailed     no key, or one the policy does not know
│   ├── PermissionDenied         the key may not use this route
│   ├── CrossSiteRequest         a web page asks an open relay in a way that needs nobody's leave
│   ├── UnknownModel             no route matches the model asked for
│   ├── LimitExceeded            the key's requests, tokens or streams are used up
│   └── RequestTimeout           the body did not arrive in time
├── ClientGone                   the client left; nobody is there to be told
├── Superseded                   another attempt had its first output earlier; ends an attempt, never a request
├── Unavailable                  no upstream is left to try
│   └── ShuttingDown             the relay is about to stop
├── UpstreamFailure              the upstream's fault; before the first output another attempt may follow
│   ├── ConnectFailed            no connection: refused, DNS, TLS, proxy
│   ├── ConnectTimeout           no connection within `timeouts.connect_s`
│   ├── ConnectionLost           the connection ended before the answer did
│   ├── UpstreamProtocolError    what came back is not HTTP, not JSON, not SSE, or is over a bound
│   ├── UpstreamTruncated        the stream closed without a terminal event
│   ├── UpstreamRefused          an HTTP error answer, or an error event inside the stream
│   ├── FirstTokenTimeout        no output within `timeouts.first_token_s`
│   ├── SilenceTimeout           committed, then no byte for `timeouts.silence_s`
│   └── DeadlineExceeded         `timeouts.total_s` ran out
├── InternalError                a defect of the relay itself
└── ConfigurationError           found before serving: a policy set or a setting that does not hold

The class says whose fault it is. What a client sees of each one (status, type, code), how the request's record
calls it (outcome) and whether another attempt may follow is the class's own row: the attributes under its name.
"""

from __future__ import annotations

import re
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import msgspec

from relay.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FOREIGN_TEXT = 500
"""Characters of an upstream's own error text that are passed on; the rest is cut."""


class RelayError(Exception):
    """Root of the tree.

    Args:
        message: what was wrong, where, and what to do, in one or two sentences. Never prompt text or a secret.
        param: the field of the request's body, or the header, that is at fault, if it is one.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    outcome: ClassVar[Outcome] = Outcome.RELAY_ERROR
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def http_status(self) -> int:
        """The status a client gets if nothing was sent yet."""
        return self.status

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers that belong to this error (for example `retry-after`)."""
        return []


# --- the client's side -------------------------------------------------------------------------------------


class RequestRejected(RelayError):
    """The request is refused before anything is sent upstream."""

    status = 400
    type = "invalid_request_error"
    outcome = Outcome.REJECTED


class InvalidRequest(RequestRejected):
    """The body is not JSON, or a field or a header is not what the API takes."""


class RequestTooLarge(RequestRejected):
    """The body is larger than the policy allows."""

    status = 413
    code = "request_too_large"


class HeadersTooLarge(RequestRejected):
    """The request's headers are larger than the policy allows."""

    status = 431
    code = "headers_too_large"


class AuthenticationFailed(RequestRejected):
    """No key was sent, or the policy does not know it."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """RFC 9110 §11.6.1: a 401 names the scheme."""
        return [(b"www-authenticate", b"Bearer")]


class PermissionDenied(RequestRejected):
    """The key is known, but may not use this route."""

    status = 403
    type = "permission_error"
    code = "route_not_allowed"


class CrossSiteRequest(RequestRejected):
    """A web page asks an open relay without a preflight, so that any page could spend its owner's money."""

    status = 403
    type = "permission_error"
    code = "cross_site_request"


class UnknownModel(RequestRejected):
    """No route of the policy matches the model asked for."""

    status = 404
    code = "model_not_found"


class LimitExceeded(RequestRejected):
    """One of the key's limits is used up.

    Args:
        message: which limit, and how large it is.
        retry_after_s: seconds until the same request would pass.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def headers(self) -> list[tuple[bytes, bytes]]:
        """When to come back."""
        return _retry_after(self.retry_after_s)


class RequestTimeout(RequestRejected):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class ClientGone(RelayError):
    """The client closed the connection before its answer was complete."""

    status = 499
    code = "client_gone"
    outcome = Outcome.CLIENT_GONE


class Superseded(RelayError):
    """Another attempt at the same request had its first output earlier."""

    code = "superseded"


class Unavailable(RelayError):
    """No upstream is left to try now.

    Args:
        message: which route, and why each candidate was left out.
        retry_after_s: seconds until one may be tried again, if known.
    """

    status = 503
    code = "no_upstream_available"
    outcome = Outcome.UPSTREAM_ERROR

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`retry-after`, if it is known."""
        return _retry_after(self.retry_after_s)


class ShuttingDown(Unavailable):
    """The relay takes no new requests, or ended this one because its time to finish was up."""

    code = "shutting_down"
    outcome = Outcome.RELAY_ERROR


class InternalError(RelayError):
    """A defect of the relay. The message says nothing of its inside; the log does."""

    code = "relay_error"


# --- the upstream's side -----------------------------------------------------------------------------------


class UpstreamFailure(RelayError):
    """An attempt failed. Retryable ones may be followed by another attempt until the stream is committed."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    outcome = Outcome.UPSTREAM_ERROR
    retryable = True


class ConnectFailed(UpstreamFailure):
    """No connection: refused, name not found, TLS not trusted, proxy failed."""

    code = "upstream_unreachable"


class ConnectTimeout(UpstreamFailure):
    """No connection within `timeouts.connect_s`."""

    status = 504
    code = "upstream_connect_timeout"


class ConnectionLost(UpstreamFailure):
    """The connection ended before the answer was complete."""

    code = "upstream_connection_lost"


class UpstreamProtocolError(UpstreamFailure):
    """What came back is not HTTP/1.1, JSON or SSE, or is over one of the relay's bounds."""

    code = "upstream_protocol_error"


class UpstreamTruncated(UpstreamFailure):
    """The stream closed in good order but without a terminal event."""

    code = "upstream_truncated"
    outcome = Outcome.UPSTREAM_TRUNCATED


class FirstTokenTimeout(UpstreamFailure):
    """No real output of a stream within `timeouts.first_token_s`, or no whole answer within `timeouts.answer_s`."""

    status = 504
    code = "upstream_first_token_timeout"
    outcome = Outcome.TTFT_TIMEOUT


class SilenceTimeout(UpstreamFailure):
    """A committed stream went silent for `timeouts.silence_s`."""

    status = 504
    code = "upstream_stalled"
    outcome = Outcome.STALLED


class DeadlineExceeded(UpstreamFailure):
    """The request took longer than `timeouts.total_s`; no attempt may follow."""

    status = 504
    code = "deadline_exceeded"
    outcome = Outcome.DEADLINE
    retryable = False


RETRYABLE_STATUS = frozenset({401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Upstream statuses after which another candidate may succeed.

401, 403 and 404 speak of the relay's own credentials or model name at that provider, never of the client's
request, so another candidate is worth trying. 400, 413 and 422 would fail anywhere.
"""


_CLIENTS_FAULT = frozenset({400, 405, 406, 411, 413, 414, 415, 422})
_TOO_LONG_STATUS = frozenset({400, 413, 422})
_TOO_LONG = re.compile(
    r"context.?(length|window|size|limit)"  # OpenAI, vLLM, OpenRouter, Groq; llama.cpp; Anthropic with a limit set
    r"|prompt is too long"  # Anthropic
    r"|input (is too long|tokens exceeded|token count)",  # Bedrock, Gemini
    re.IGNORECASE,
)
"""How providers say that a prompt is longer than the model's context; only OpenAI's has a code."""


class UpstreamRefused(UpstreamFailure):
    """The upstream answered with an error, as a status or as an event in the stream.

    Args:
        message: the upstream's own message, cut to `MAX_FOREIGN_TEXT`.
        upstream_status: its HTTP status; None for an error event in a 200 stream.
        upstream_type: its own error type, if it gave one.
        upstream_code: its own error code, if it gave one.
        retry_after_s: how long it asked to be left alone, seconds.
        param: the request field it named.
    """

    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int | None = None,
        upstream_type: str | None = None,
        upstream_code: str | None = None,
        retry_after_s: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message[:MAX_FOREIGN_TEXT], param=param)
        self.upstream_status = upstream_status
        self.upstream_type = upstream_type
        self.upstream_code = upstream_code
        self.retry_after_s = retry_after_s

    @property
    def can_retry(self) -> bool:
        """Of error statuses, those in `RETRYABLE_STATUS`; error events, errors under a 200 and redirects always."""
        status = self.upstream_status
        return status is None or status < 400 or status in RETRYABLE_STATUS  # noqa: PLR2004

    @property
    def clients_fault(self) -> bool:
        """The upstream is well, and the request is not."""
        return self.upstream_status in _CLIENTS_FAULT

    @property
    def too_long(self) -> bool:
        """The prompt does not fit the model's context: one with a larger context may serve it."""
        return self.upstream_status in _TOO_LONG_STATUS and (
            self.upstream_code == "context_length_exceeded" or _TOO_LONG.search(self.message) is not None
        )

    @property
    def http_status(self) -> int:
        """The client's own faults and 429 keep their status; the relay's credentials are no client's business."""
        status = self.upstream_status
        if status is None or status < 400 or status in (401, 403, 404):  # noqa: PLR2004
            return self.status
        return status if status <= 599 else self.status  # noqa: PLR2004

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`retry-after` as the upstream gave it."""
        return _retry_after(self.retry_after_s)


def _retry_after(seconds: float | None) -> list[tuple[bytes, bytes]]:
    """Whole seconds, rounded up, at least one (RFC 9110 §10.2.3)."""
    return [] if seconds is None else [(b"retry-after", b"%d" % max(1, ceil(seconds)))]


def may_retry(error: RelayError) -> bool:
    """Whether another attempt may follow this error, before the stream is committed."""
    return error.can_retry if isinstance(error, UpstreamRefused) else error.retryable


# --- before serving ----------------------------------------------------------------------------------------


class Finding(msgspec.Struct, frozen=True):
    """One thing wrong with a policy set.

    Attributes:
        file: path of the file, as given.
        line: 1-based; 0 if the finding belongs to no line.
        key: dotted key path, for example `models.small.provider`.
        message: what was found and what is allowed.
        severity: `error` keeps the set from loading, `warning` does not.
    """

    file: str
    line: int
    key: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.severity}: {f'{self.key}: ' if self.key else ''}{self.message}"


class ConfigurationError(RelayError):
    """A policy set or a setting does not hold.

    Args:
        message: one line that says how many findings and where.
        findings: each of them, in file and line order.
    """

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)
