"""Every recorded chat stream read byte by byte, all of it: over sockets that would take hours, so the dialect alone."""

from __future__ import annotations

import pytest

from relay.dialects.openai_chat import OpenAIChat
from relay.errors import UpstreamRefused
from tests.servers.recordings import Recording, chat_streams

RECORDINGS = chat_streams()

pytestmark = pytest.mark.skipif(not RECORDINGS, reason="no ../shared/data here: recorded streams are read in place")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_each_byte_alone_says_the_same(recording: Recording) -> None:
    """The client's bytes, the usage and the end are the same as of the stream in one piece."""
    reader = OpenAIChat().stream_reader(choices=recording.choices(), hide_usage=True)
    sent = bytearray()
    for place in range(len(recording.body)):
        sent += reader.feed(recording.body[place : place + 1])
    if recording.outcome() == "upstream_error":
        assert isinstance(reader.failure, UpstreamRefused)
    else:
        sent += reader.end()
    assert bytes(sent) == recording.for_client(hide_usage=True)
    assert reader.finish_reason == recording.finish_reason()
    assert reader.usage == recording.usage()
