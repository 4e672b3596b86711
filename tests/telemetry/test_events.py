from __future__ import annotations

import json
import re
from typing import Any

import pytest

from relay.messages import AttemptRecord, Budget, Outcome, Usage
from relay.telemetry.events import FLUSH_S, LEVEL_OF, MAX_WAITING, EventLog, console_line
from tests.fakes import FakeClock
from tests.telemetry.records import SERVED, record


class Written(list[bytes]):
    """What the log wrote, one item per write."""

    def events(self) -> list[dict[str, Any]]:
        """Every line, read as JSON."""
        return [json.loads(line) for write in self for line in write.splitlines()]


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_an_event_has_every_fact_of_the_record(written: Written, clock: FakeClock) -> None:
    """The line is one flat JSON object; its time is the end of the request."""
    log = EventLog(written.append, clock=clock)
    log.record(SERVED)
    log.flush()
    assert written.events() == [
        {
            "ts": "2026-09-21T14:13:22.750000Z",
            "level": "info",
            "event": "request",
            "id": "req_1",
            "endpoint": "/v1/chat/completions",
            "status": 200,
            "outcome": "completed",
            "duration_s": 2.5,
            "attempts": 1,
            "stream": True,
            "policy": "0123456789ab",
            "key": "team-a",
            "route": "auto",
            "model": "small",
            "provider": "openai",
            "upstream_model": "gpt-4o-mini",
            "ttft_s": 0.5,
            "upstream_ttft_s": 0.25,
            "prompt_tokens": 100,
            "completion_tokens": 21,
            "cached_tokens": 64,
            "reasoning_tokens": 5,
            "finish_reason": "stop",
        }
    ]


def test_what_a_request_was_taken_for(written: Written, clock: FakeClock) -> None:
    """Where the policy asks, intent and budget are in the line."""
    log = EventLog(written.append, clock=clock)
    log.record(record(intent="code", confidence=0.5, budget=Budget(900, 800, 100, 900, "cell")))
    log.flush()
    (event,) = written.events()
    assert {name: event[name] for name in ("intent", "confidence", "budget", "budget_source")} == {
        "intent": "code",
        "confidence": 0.5,
        "budget": 900,
        "budget_source": "cell",
    }


def test_an_answer_of_several_segments_says_so(written: Written, clock: FakeClock) -> None:
    """How many there were, how many of them met a budget, and what was read again."""
    log = EventLog(written.append, clock=clock)
    log.record(record(segments=3, extensions=1, usage=Usage(100, 2000, continuation_prompt_tokens=950)))
    log.flush()
    (event,) = written.events()
    names = ("segments", "extensions", "continuation_prompt_tokens")
    assert [event[name] for name in names] == [3, 1, 950]


def test_what_says_nothing_is_left_out(written: Written, clock: FakeClock) -> None:
    """A request refused at the door has a short line."""
    log = EventLog(written.append, clock=clock)
    nameless = dict.fromkeys(("key", "route", "model", "provider", "upstream_model"), "")
    nothing = dict.fromkeys(("usage", "finish_reason", "ttft_s"))
    log.record(
        record(**nameless, **nothing, status=401, outcome=Outcome.REJECTED, error="invalid_api_key", attempts=())
    )
    log.flush()
    (event,) = written.events()
    assert set(event) == {
        *("ts", "level", "event", "id", "endpoint", "status", "outcome"),
        *("duration_s", "attempts", "stream", "policy", "error"),
    }


def test_a_refusal_names_the_field_at_fault(written: Written, clock: FakeClock) -> None:
    """What a request was refused for is in both kinds of line."""
    log = EventLog(written.append, clock=clock)
    refused = record(status=400, outcome=Outcome.REJECTED, param="messages")
    log.record(refused)
    log.flush()
    (event,) = written.events()
    assert event["param"] == "messages"
    assert "  param messages  " in console_line(refused, colour=False)


def test_several_attempts_are_listed(written: Written, clock: FakeClock) -> None:
    """What was tried before is in the line, in order, with how it ended."""
    log = EventLog(written.append, clock=clock)
    log.record(record(attempts=(AttemptRecord("large", "x", "upstream_stalled", 200, None, 1.0), *SERVED.attempts)))
    log.flush()
    (event,) = written.events()
    assert event["attempts"] == 2
    assert event["tried"] == ["large: upstream_stalled", "small: ok"]


async def test_lines_gather_and_go_out_together(written: Written, clock: FakeClock) -> None:
    """Nothing is written before the flush period is over; then everything is, in order, in one write."""
    log = EventLog(written.append, clock=clock)
    log.record(record(id="a"))
    log.record(record(id="b"))
    await clock.advance(FLUSH_S / 2)
    assert written == []
    await clock.advance(FLUSH_S)
    assert len(written) == 1
    assert [event["id"] for event in written.events()] == ["a", "b"]
    await clock.advance(10 * FLUSH_S)
    assert len(written) == 1


def test_many_lines_go_out_at_once(written: Written, clock: FakeClock) -> None:
    """The lines that wait are bounded."""
    log = EventLog(written.append, clock=clock)
    for _ in range(1000):
        log.record(SERVED)
    assert [len(write.splitlines()) for write in written] == [MAX_WAITING] * (1000 // MAX_WAITING)
    log.flush()
    assert len(written.events()) == 1000


def test_trouble_goes_out_at_once(written: Written, clock: FakeClock) -> None:
    """A warning is written without waiting, after the lines before it."""
    log = EventLog(written.append, clock=clock)
    log.record(record(id="fine"))
    log.record(record(id="bad", outcome=Outcome.STALLED))
    assert [event["id"] for event in written.events()] == ["fine", "bad"]


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        ("debug", {"completed", "stalled", "relay_error"}),
        ("info", {"completed", "stalled", "relay_error"}),
        ("warning", {"stalled", "relay_error"}),
        ("error", {"relay_error"}),
    ],
)
def test_quiet_levels_leave_lines_out(written: Written, clock: FakeClock, level: Any, kept: set[str]) -> None:
    """Lines below the level are not written at all."""
    log = EventLog(written.append, clock=clock, level=level)
    for outcome in (Outcome.COMPLETED, Outcome.STALLED, Outcome.RELAY_ERROR):
        log.record(record(outcome=outcome))
    log.flush()
    assert {event["outcome"] for event in written.events()} == kept


def test_every_outcome_has_a_level() -> None:
    """No outcome is without a level."""
    assert set(LEVEL_OF) == set(Outcome)


def test_people_get_one_short_line(written: Written, clock: FakeClock) -> None:
    """The console line names what served whom, how fast and how much; without a terminal it is plain text."""
    log = EventLog(written.append, clock=clock, style="console")
    log.record(record(error="upstream_stalled", attempts=SERVED.attempts * 2))
    log.flush()
    (line,) = written
    assert re.split(" {2,}", line.decode()) == [
        "14:13:22",
        "info",
        "200 completed",
        "auto -> small",
        "team-a",
        "ttft 0.500s",
        "2.500s",
        "100+21 tokens",
        "2 attempts",
        "upstream_stalled",
        "req_1\n",
    ]


def test_the_console_line_leaves_out_what_is_not_known() -> None:
    """A request that left before anything was chosen has neither route nor tokens nor a status."""
    gone = record(route="", model="", key="", usage=None, ttft_s=None, status=0, outcome=Outcome.CLIENT_GONE)
    assert console_line(gone, colour=False) == "14:13:22  info     --- client_gone  2.500s  req_1"
    assert "~3+4 tokens" in console_line(record(usage=Usage(3, 4, estimated=True)), colour=False)


def test_the_console_line_is_coloured_by_level() -> None:
    """On a terminal trouble is yellow or red."""
    assert "\x1b[33mwarning" in console_line(record(outcome=Outcome.STALLED), colour=True)
    assert "\x1b[31merror" in console_line(record(outcome=Outcome.RELAY_ERROR), colour=True)
