import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import UpstreamProtocolError
from relay.wire.sse import MAX_EVENT_BYTES, EventFramer, event_data, split_events

LINES = st.sampled_from([b"data: x", b"data:y", b": ping", b"event: e", b"data", b"id: 1", "data: é€😀".encode()])
ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def streams(draw):
    """Whole events, each with its own line ends."""
    events = []
    for lines in draw(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5)):
        end = draw(ENDS)
        events.append(b"".join(line + end for line in lines) + end)
    return events


@given(streams(), st.data())
def test_events_come_out_whole_wherever_the_stream_is_cut(events, data):
    """Every byte comes out once and in order, always ending at the end of an event, nothing is held at the end."""
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    framer = EventFramer()
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        whole = framer.feed(stream[start:end])
        out.append(whole)
        assert whole == b"" or re.search(rb"(\r\n|\n)(\r\n|\n)\Z", whole)
    assert b"".join(out) == stream
    assert framer.rest() == b""


@given(streams())
def test_splitting_loses_nothing(events):
    """The pieces are the events; put together they are the bytes."""
    assert split_events(b"".join(events)) == events


def test_every_byte_alone():
    """An event that comes byte by byte comes out with its last byte."""
    framer = EventFramer()
    event = 'data: {"c":"é"}\r\n\r\n'.encode()
    assert [framer.feed(bytes([byte])) for byte in event] == [b""] * (len(event) - 1) + [event]


def test_an_unfinished_event_is_held():
    """What is behind the last blank line waits, and is given up by `rest`."""
    framer = EventFramer()
    assert framer.feed(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert framer.rest() == b"data: b\n"
    assert framer.rest() == b""


def test_an_endless_event_is_refused():
    """An event over the bound is an error before it is held whole."""
    framer = EventFramer()
    for _ in range(MAX_EVENT_BYTES // 2**20):
        framer.feed(b"x" * 2**20)
    with pytest.raises(UpstreamProtocolError, match=str(MAX_EVENT_BYTES)):
        framer.feed(b"x")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  {}\n\n", b" {}"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b"event: error\ndata: {}\n\n", b"{}"),
        (b": ping\n\n", None),
        (b"event: ping\n\n", None),
        (b"data\n\n", b""),
        (b" data: a\n\n", None),
        (b"\n\n", None),
    ],
)
def test_data_of_an_event(event, data):
    """The data lines of an event, joined by LF, as the standard reads them; None if there are none."""
    assert event_data(event) == data
