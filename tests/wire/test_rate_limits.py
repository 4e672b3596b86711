import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.rate_limits import LONGEST_S, WINDOW_S, Room, rooms

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "errors.jsonl.gz"


def told(**headers: str) -> list[Room]:
    return rooms([(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("7.66s", 7.66), ("1h2m3s", 3723), ("0s", 0), ("12", 12), ("1.5", 1.5)],
)
def test_durations(text, seconds):
    """OpenAI and its kin say when there is more in Go's way, others in bare seconds."""
    (room,) = told(x_ratelimit_remaining_tokens="5", x_ratelimit_reset_tokens=text)
    assert (room.kind, room.left, room.reset_s) == ("tokens", 5, pytest.approx(seconds))


def test_anthropic_says_dates():
    """A date is counted from the answer's own, and one that has passed is now."""
    found = told(
        date="Wed, 19 Aug 2026 14:00:00 GMT",
        anthropic_ratelimit_requests_remaining="0",
        anthropic_ratelimit_requests_reset="2026-08-19T14:00:30Z",
        anthropic_ratelimit_input_tokens_remaining="7",
        anthropic_ratelimit_input_tokens_reset="2026-08-19T13:59:00Z",
    )
    assert found == [Room("requests", 0, 30.0), Room("tokens", 7, 0.0)]


def test_azure_says_no_reset():
    """What comes without a reset holds for a short window; a count of -1 is none."""
    assert told(x_ratelimit_remaining_requests="0") == [Room("requests", 0, WINDOW_S)]
    assert told(x_ratelimit_remaining_tokens="-1", x_ratelimit_reset_tokens="0") == []


def test_named_windows():
    """Some count by minute and by day."""
    found = told(x_ratelimit_remaining_requests_day="3", x_ratelimit_reset_requests_day="3600.5")
    assert found == [Room("requests", 3, 3600.5)]


@given(st.text(max_size=30))
def test_nonsense_is_survived(text):
    """Whatever a server writes there, the answer is a window between none and a day."""
    value = text.encode("latin-1", "replace")
    headers = [(b"x-ratelimit-remaining-requests", b"1"), (b"x-ratelimit-reset-requests", value), (b"date", value)]
    (room,) = rooms(headers)
    assert 0.0 <= room.reset_s <= LONGEST_S


def test_recorded_headers():
    """Recorded answers with such headers are read."""
    if not RECORDED.exists():
        pytest.skip("the recorded error answers are not here")
    with gzip.open(RECORDED, "rt") as lines:
        answers = [json.loads(line)["headers"] for line in lines]
    limited = [headers for headers in answers if "x-ratelimit-remaining-requests" in headers]
    assert limited
    for headers in limited:
        found = rooms([(name.lower().encode(), str(value).encode()) for name, value in headers.items()])
        assert {room.kind for room in found} == {"requests", "tokens"}
        assert all(room.left > 1000 and room.reset_s < 1 for room in found)
