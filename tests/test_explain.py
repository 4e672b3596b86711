"""Decisions as plain values, and a share of them in the log."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from relay.explain import DecisionSample, explained
from relay.messages import Decision, Wants, Weighed
from relay.telemetry.logs import JsonFormatter
from tests.telemetry.records import record

if TYPE_CHECKING:
    from relay.messages import RequestRecord

WANTS = Wants(features=frozenset({"tools"}), prompt_tokens=12, prefixes=((b"secret beginning", 1024),))
DECISION = Decision(
    "auto",
    order=("small",),
    first_by="score",
    candidates=(Weighed("large", 0, left_out="features: tools"), Weighed("small", 1, score=-0.5, ttft_s=0.25)),
)


def decided(number: int = 0) -> RequestRecord:
    """A finished request whose route left something to decide."""
    return record(id=f"req_{number}", decision=DECISION, wants=WANTS)


def logged(sample: DecisionSample, caplog: pytest.LogCaptureFixture, *records: RequestRecord) -> list[str]:
    """What the sample logs of these, as lines."""
    with caplog.at_level(logging.INFO):
        for each in records:
            sample.record(each)
    lines = [JsonFormatter().format(line) for line in caplog.records]
    caplog.clear()
    return lines


def test_a_line_says_what_explain_says(caplog: pytest.LogCaptureFixture) -> None:
    """Each candidate with its score or why it was left out, the order, and for which request; nothing of a prompt."""
    (line,) = logged(DecisionSample(1.0), caplog, decided())
    said = json.loads(line)
    assert said.items() >= {"event": "decision", "id": "req_0", **explained(DECISION, WANTS)}.items()
    assert [row["left_out"] for row in said["candidates"]] == ["features: tools", None]
    assert "secret" not in line


def test_the_share_is_kept_and_is_the_same_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """A tenth of the requests is logged; which ones, two relays agree on, and a larger share holds the smaller one."""
    records = [decided(number) for number in range(5000)]
    ids = [
        {json.loads(line)["id"] for line in logged(DecisionSample(share), caplog, *records)}
        for share in (0.1, 0.1, 0.2, 1.0)
    ]
    assert len(ids[0]) == pytest.approx(500, rel=0.2)
    assert ids[0] == ids[1]
    assert ids[0] < ids[2] < ids[3]
    assert len(ids[3]) == 5000


def test_where_nothing_was_decided_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Routes that leave nothing to decide, and requests without one, leave no line; having nobody to ask does."""
    nobody = record(decision=Decision("auto", (), "", DECISION.candidates[:1]), wants=WANTS)
    lines = logged(DecisionSample(1.0), caplog, record(), record(route=""), nobody)
    assert [json.loads(line)["message"] for line in lines] == ["nobody was to be asked first"]
