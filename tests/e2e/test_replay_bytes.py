"""Every recorded chat stream in small pieces, all of it: over sockets that would take hours, so the dialect alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from relay.dialects.openai_chat import OpenAIChat
from relay.errors import UpstreamRefused
from relay.messages import Usage
from tests.servers.recordings import Recording, chat_streams

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.dialects.base import StreamReader

RECORDINGS = chat_streams()

pytestmark = pytest.mark.skipif(not RECORDINGS, reason="no ../shared/data here: recorded streams are read in place")


def read(reader: StreamReader, pieces: Iterable[bytes], recording: Recording) -> bytes:
    """All that the client gets, if an error ends the stream where it did in the recording."""
    sent = b"".join(map(reader.feed, pieces))
    if recording.outcome() == "upstream_error":
        assert isinstance(reader.failure, UpstreamRefused)
        return sent
    return sent + reader.end()


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_each_byte_alone_says_the_same(recording: Recording) -> None:
    """The client's bytes, the usage and the end are the same as of the stream in one piece."""
    reader = OpenAIChat().stream_reader(choices=recording.choices(), hide_usage=True)
    pieces = (recording.body[start:end] for start, end in pairwise(range(len(recording.body) + 1)))
    assert read(reader, pieces, recording) == recording.for_client(hide_usage=True)
    assert reader.finish_reason == recording.finish_reason()
    assert reader.usage == recording.usage()


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_each_event_alone_says_the_same(recording: Recording) -> None:
    """Read one by one, where most are known by the one before, or many at a time: events say what they say."""
    alone, together = (OpenAIChat().stream_reader(choices=recording.choices(), hide_usage=True) for _ in range(2))
    assert read(alone, [event for event, _ in recording.events], recording) == recording.for_client(hide_usage=True)
    assert read(together, [recording.body], recording) == recording.for_client(hide_usage=True)
    for told in ("finish_reason", "usage", "output_chars", "reasoning_chars"):
        assert getattr(alone, told) == getattr(together, told)


@pytest.mark.parametrize("recording", [one for one in RECORDINGS if one.choices() == 1], ids=lambda one: one.name)
def test_text_of_a_first_segment_is_that_of_the_answer(recording: Recording) -> None:
    """What would be continued is what the client reads, however the events come; all but text is noticed."""
    segments = [OpenAIChat().segment_reader(None, "prefix", hide_usage=True, hold_length=False) for _ in range(2)]
    for segment, pieces in zip(segments, ([event for event, _ in recording.events], [recording.body]), strict=True):
        read(segment, pieces, recording)
    assert segments[0].plain == segments[1].plain
    deltas = [choice.get("delta") or {} for value in recording.values for choice in value.get("choices") or ()]
    if any(delta.get(name) for delta in deltas for name in ("tool_calls", "refusal", "annotations", "token_id")):
        assert not segments[0].plain
    if segments[0].plain:
        text = "".join(delta.get("content") or "" for delta in deltas)
        assert [segment.so_far(Usage(1, 1)).text for segment in segments] == [text, text]
