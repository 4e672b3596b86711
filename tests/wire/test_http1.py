"""HTTP/1.1 as bytes."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.messages import Endpoint, Origin
from relay.wire import http1

TOKENS = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9a-z]+", fullmatch=True).map(str.encode)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1).map(str.encode)
CLEAN = st.lists(st.tuples(TOKENS.map(lambda name: b"x-" + name), VALUES), max_size=8)


def endpoint(*headers: tuple[bytes, bytes], origin: Origin = Origin("https", "api.example", 443)) -> Endpoint:  # noqa: B008
    return Endpoint(origin, "/v1/chat?x=1", headers)


def read_request(raw: bytes) -> tuple[h11.Request, bytes]:
    """What another implementation makes of a request."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(raw)
    head, body = server.next_event(), b""
    assert isinstance(head, h11.Request)
    while isinstance(event := server.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert server.next_event() is h11.NEED_DATA
    return head, body


# --- requests ----------------------------------------------------------------------------------------------


@given(fixed=CLEAN, own=CLEAN, body=st.binary())
def test_request_is_read_as_it_was_meant(fixed, own, body):
    """Any clean headers and any body arrive whole at a server that was written by others."""
    head = http1.request_head(endpoint(*fixed))
    request, received = read_request(http1.encode_request(head, own, body))
    assert request.method == b"POST"
    assert request.target == b"/v1/chat?x=1"
    assert list(request.headers) == [
        (b"host", b"api.example"),
        *fixed,
        (b"accept-encoding", b"identity"),
        *own,
        (b"content-length", b"%d" % len(body)),
    ]
    assert received == body


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin("http", "api.example", 80), b"api.example"),
        (Origin("https", "api.example", 443), b"api.example"),
        (Origin("https", "api.example", 80), b"api.example:80"),
        (Origin("http", "10.0.0.1", 8080), b"10.0.0.1:8080"),
        (Origin("http", "::1", 80), b"[::1]"),
        (Origin("https", "2001:db8::1", 8443), b"[2001:db8::1]:8443"),
    ],
)
def test_host_header(origin, host):
    """The port is named only if it is not the scheme's own; IPv6 addresses stand in brackets."""
    assert dict(http1.fixed_headers(endpoint(origin=origin)))[b"host"] == host


def test_host_outside_ascii_is_refused():
    """A name that would need IDNA is a ValueError: it is configured in its xn-- form."""
    with pytest.raises(ValueError, match="ascii"):
        http1.request_head(endpoint(origin=Origin("https", "bücher.example", 443)))


def test_given_host_and_accept_encoding_stay():
    """What the endpoint names itself is neither doubled nor replaced."""
    given_headers = [(b"accept-encoding", b"br"), (b"host", b"a")]
    assert http1.fixed_headers(endpoint(*given_headers)) == given_headers


@pytest.mark.parametrize("target", ["", "/a b", "/a\r\nx: y", "/é", "/\x7f"])
def test_target_that_breaks_the_request_line_is_refused(target):
    """A space, a control or a character outside ASCII in the target is a ValueError."""
    with pytest.raises(ValueError, match="percent-encoded"):
        http1.request_head(Endpoint(Origin("http", "a", 80), target, ()))


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"\xc3\xa9", b"a\r\nb", b"(a)"])
def test_fixed_header_name_must_be_a_token(name):
    """What RFC 9110 does not allow as a name is a ValueError."""
    with pytest.raises(ValueError, match="name"):
        http1.request_head(endpoint((name, b"1")))


@pytest.mark.parametrize("name", [b"content-length", b"transfer-encoding", b"connection", b"expect", b"te", b"upgrade"])
def test_framing_is_the_transports_business(name):
    """Neither an endpoint nor a request may set a header that frames the message or rules the connection."""
    with pytest.raises(ValueError, match=name.decode()):
        http1.request_head(endpoint((name, b"1")))
    with pytest.raises(ValueError, match=name.decode()):
        http1.encode_request(b"", [(name, b"1")], b"")


# --- answers -----------------------------------------------------------------------------------------------


@given(status=st.sampled_from([200, 201, 418, 429, 502, 529]), headers=CLEAN, chunks=st.lists(st.binary(min_size=1)))
def test_answer_is_read_as_it_was_meant(status, headers, chunks):
    """A head and chunks are what they should be to a client that was written by others."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    framed = [*headers, (b"transfer-encoding", b"chunked")]
    client.receive_data(http1.response_head(status, framed))
    head = client.next_event()
    assert isinstance(head, h11.Response)
    assert head.status_code == status
    assert list(head.headers) == framed
    for chunk in chunks:
        client.receive_data(http1.encode_chunk(chunk))
        received = b""
        while isinstance(event := client.next_event(), h11.Data):
            received += event.data
        assert event is h11.NEED_DATA
        assert received == chunk
    client.receive_data(http1.LAST_CHUNK)
    assert isinstance(client.next_event(), h11.EndOfMessage)


def test_status_line():
    """A known status has its reason phrase; a rare one has none, but the space that must be there."""
    assert http1.response_head(429, []) == b"HTTP/1.1 429 Too Many Requests\r\n\r\n"
    assert http1.response_head(599, []) == b"HTTP/1.1 599 \r\n\r\n"


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"\r\n"])
@pytest.mark.parametrize("position", ["name", "value"])
def test_line_break_or_nul_is_refused(bad, position):
    """CR, LF and NUL in a name or a value are a ValueError that does not quote them."""
    field = (b"a" + bad + b"b", b"secret") if position == "name" else (b"a", b"secret" + bad + b"b: c")
    with pytest.raises(ValueError, match="line break or a NUL") as caught:
        http1.response_head(200, [(b"ok", b"1"), field])
    assert "secret" not in str(caught.value)


@given(st.lists(st.tuples(st.binary(), st.binary()), max_size=4))
def test_no_header_becomes_two(headers):
    """Whatever bytes headers are made of, either they are refused or there are as many lines as headers."""
    try:
        block = http1.encode_headers(headers)
    except ValueError:
        return
    assert block.replace(b"\r", b"\n").count(b"\n") == 2 * len(headers)


@pytest.mark.parametrize(
    ("status", "headers", "word"),
    [
        (200, [], None),
        (599, [(b"content-encoding", b"")], None),
        (200, [(b"content-encoding", b" Identity "), (b"transfer-encoding", b"Chunked")], None),
        (200, [(b"content-encoding", b"identity"), (b"content-encoding", b"gzip")], "gzip"),
        (200, [(b"transfer-encoding", b"gzip, chunked")], "gzip, chunked"),
        (99, [], "99"),
        (101, [], "101"),
        (600, [], "600"),
        (200, [(b"content-encoding", b"x" * 10_000)], "xxx"),
        (200, [(b"a", b"x" * (http1.MAX_HEAD_BYTES - 5))], None),
        (200, [(b"a", b"x" * (http1.MAX_HEAD_BYTES - 4))], "a head of more than"),
    ],
)
def test_unusable(status, headers, word):
    """An answer that cannot be passed on is described by what is wrong with it, cut short."""
    problem = http1.unusable(status, headers)
    if word is None:
        assert problem is None
    else:
        assert problem is not None
        assert word in problem
        assert len(problem) < 200
