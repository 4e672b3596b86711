"""HTTP/1.1 as bytes (RFC 9112): what a client sends ahead of a body, and how a server frames an answer.

Nothing here reads: answers are parsed by llhttp (httptools) in the transport. What both transports must say about an
answer's head alike is here too (`unusable`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from relay.messages import Endpoint, Headers

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of an answer's head that are accepted. nginx takes 32 KB of headers by default, Node 16 KB, Envoy 60 KB."""

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a chunked body that has no trailers."""

DEFAULT_PORTS = {"http": 80, "https": 443}

_REASONS = {
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    206: b"Partial Content",
    304: b"Not Modified",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}

STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"")) for status in range(100, 600)}
"""Status line by code. Rare ones have no reason phrase: it is optional and read by no program (RFC 9112 §4)."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(r"[!-~]+")
_OWNED = frozenset(
    (b"connection", b"content-length", b"expect", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
"""Request headers that frame the message or rule the connection: the transport's business alone."""


# --- requests ----------------------------------------------------------------------------------------------


def host_header(scheme: str, host: str, port: int) -> bytes:
    """The `host` of RFC 9110 §7.2: IPv6 addresses in brackets, the port only if it is not the scheme's own.

    Raises:
        ValueError: the name is not ASCII; international names are configured in their `xn--` form.
    """
    name = f"[{host}]" if ":" in host else host
    return (name if port == DEFAULT_PORTS.get(scheme) else f"{name}:{port}").encode("ascii")


def fixed_headers(endpoint: Endpoint) -> Headers:
    """The headers that each request to an endpoint starts with.

    `host` is added if missing, and so is `accept-encoding: identity`: the relay reads what it passes on, and could read
    a compressed stream only by decompressing it.

    Raises:
        ValueError: a name is not a token, a header cannot be sent as it is or belongs to the transport, or the
            origin's host is not ASCII.
    """
    headers = list(endpoint.headers)
    names = {name for name, _ in headers}
    for name in names:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a header")
    if b"host" not in names:
        headers.insert(0, (b"host", host_header(*endpoint.origin)))
    if b"accept-encoding" not in names:
        headers.append((b"accept-encoding", b"identity"))
    check_request_headers(headers)
    return headers


def check_request_headers(headers: Collection[tuple[bytes, bytes]]) -> None:
    """Let pass what may be sent.

    Raises:
        ValueError: a header cannot be sent as it is, or belongs to the transport (`content-length` and its like).
    """
    for name, _ in headers:
        if name in _OWNED:
            raise ValueError(f"the header {name.decode()} is the transport's own business")
    encode_headers(headers)


def request_head(endpoint: Endpoint) -> bytes:
    """All of a head that is the same for each request to an endpoint; `encode_request` adds the rest.

    Raises:
        ValueError: the target has characters that must be percent-encoded, or as `fixed_headers`.
    """
    if not _TARGET.fullmatch(endpoint.target):
        raise ValueError("the request target has characters that must be percent-encoded")
    line = f"{endpoint.method} {endpoint.target} HTTP/1.1\r\n"
    return line.encode() + encode_headers(fixed_headers(endpoint))


def encode_request(head: bytes, headers: Collection[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A whole request in one piece, so that it leaves in one write.

    Args:
        head: from `request_head`.
        headers: of this request alone.
        body: may be empty.

    Raises:
        ValueError: as `check_request_headers`.
    """
    if not headers:
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
    check_request_headers(headers)
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, encode_headers(headers), len(body), body)


# --- answers -----------------------------------------------------------------------------------------------


def response_head(status: int, headers: Collection[tuple[bytes, bytes]]) -> bytes:
    """An answer's head, the empty line included. Framing headers are the caller's.

    Args:
        status: 100 to 599.
        headers: in order.

    Raises:
        ValueError: a header cannot be sent as it is.
    """
    return b"%b%b\r\n" % (STATUS_LINES[status], encode_headers(headers))


def encode_chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112 §7.1). `data` must not be empty: that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def unusable(status: int, headers: Collection[tuple[bytes, bytes]]) -> str | None:
    """What an answer has that cannot be passed on, for "…sent …"; None if it is fine.

    The relay asked for identity. A coded body would reach its readers as noise, so it is refused by name.
    """
    if not 200 <= status <= 599:  # noqa: PLR2004
        return f"status {status}, which no final answer has"
    if sum([len(name) + len(value) + 4 for name, value in headers]) > MAX_HEAD_BYTES:  # with separators and line ends
        return f"a head of more than {MAX_HEAD_BYTES} bytes"
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return f"content-encoding {value[:40]!r} where identity was asked for"
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            return f"transfer-encoding {value[:40]!r} where only chunked is known"
    return None


# --- both --------------------------------------------------------------------------------------------------


def encode_headers(headers: Collection[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each with its line end.

    Raises:
        ValueError: a CR, LF or NUL in a name or a value, which would let one header smuggle in another (RFC 9110 §5.5).
    """
    block = b"\r\n".join((*map(b": ".join, headers), b""))
    if block.count(b"\n") != len(headers) or block.count(b"\r") != len(headers) or 0 in block:
        raise ValueError("a header has a line break or a NUL in it")
    return block
