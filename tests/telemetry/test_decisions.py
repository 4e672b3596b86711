"""Lines of the decision log: whole, read back as written, and never with text in them."""

from __future__ import annotations

import json
import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from relay.messages import AttemptRecord, Budget, Decision, Outcome, RequestRecord, Usage, Wants, Weighed
from relay.telemetry.decisions import FLUSH_BYTES, DecisionLog, decode, encode
from relay.telemetry.events import FLUSH_S
from tests.fakes import FakeClock
from tests.telemetry.records import SERVED, record

SECRET = b"0123456789abcdef"

numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**53)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
wants = st.builds(
    Wants,
    features=st.frozensets(texts, max_size=3),
    prompt_tokens=counts,
    output_tokens=numbers,
    limit_tokens=counts,
    min_tier=counts,
    prefixes=st.just(()),
    prefer=texts,
)
weighed = st.builds(
    Weighed,
    model=texts,
    place=counts,
    left_out=texts,
    over=st.booleans(),
    score=numbers,
    ttft_s=numbers,
    latency_s=numbers,
    usd=numbers,
    cached_tokens=counts,
)
decisions = st.builds(
    Decision,
    route=texts,
    order=st.lists(texts, max_size=3).map(tuple),
    first_by=texts,
    candidates=st.lists(weighed, max_size=3).map(tuple),
)
attempts = st.builds(
    AttemptRecord,
    model=texts,
    provider=texts,
    error=st.none() | texts,
    upstream_status=st.none() | counts,
    ttft_s=st.none() | numbers,
    duration_s=numbers,
    hedge=st.booleans(),
)
records = st.builds(
    RequestRecord,
    id=texts,
    at=numbers,
    endpoint=texts,
    key=texts,
    route=texts,
    model=texts,
    provider=texts,
    upstream_model=texts,
    stream=st.booleans(),
    status=counts,
    outcome=st.sampled_from(Outcome),
    error=st.none() | texts,
    attempts=st.lists(attempts, max_size=3).map(tuple),
    usage=st.none() | st.builds(Usage, counts, counts, counts, counts, st.booleans()),
    finish_reason=st.none() | texts,
    ttft_s=st.none() | numbers,
    duration_s=numbers,
    policy=texts,
    decision=st.none() | decisions,
    wants=st.none() | wants,
    intent=texts,
    confidence=numbers,
    budget=st.none() | st.builds(Budget, counts, counts, counts, counts, st.just("cell"), cell=st.just(("code",))),
    param=st.none() | texts,
)


@given(records)
def test_what_is_written_is_read_back(one):
    """A line is one line, and its record the same."""
    line = encode(one, SECRET)
    assert b"\n" not in line
    assert decode([line]) == ([one], 0)


def test_fingerprints_are_keyed():
    """Equal beginnings stay equal, others differ, and none is the one that a guessed prompt would have."""
    here, there = (record(wants=Wants(prefixes=((print_, 1024),))) for print_ in (b"prefix_1", b"prefix_2"))
    lines = [encode(here, SECRET), encode(here, SECRET), encode(there, SECRET), encode(here, SECRET[::-1])]
    found = [one.wants.prefixes[0] for one in decode(lines)[0] if one.wants]
    assert found[0] == found[1]
    assert len({fingerprint for fingerprint, _ in found} | {b"prefix_1"}) == 4
    assert {tokens for _, tokens in found} == {1024}


def test_the_fingerprint_of_an_application_is_keyed():
    """A budget's cell names the application by another print than the one that a guessed system prompt would have."""
    cells = (
        ("small", "team", "print_1"),
        ("code", "small", "team", "print_1"),
        ("code", "small"),
        ("small", "team", ""),
    )
    found = []
    for cell in cells:
        line = encode(record(budget=Budget(1, 1, 0, 1, "cell", cell=cell)), SECRET)
        assert b"print_1" not in line
        (one,) = decode([line])[0]
        found.append(one.budget.cell if one.budget else ())
    assert [cell[:-1] for cell in found] == [cell[:-1] for cell in cells]
    assert found[0][-1] == found[1][-1]
    assert found[2:] == list(cells[2:])


@given(st.binary(max_size=60).filter(bytes.strip), st.integers(1, 300))
def test_lines_that_are_none_are_counted(garbage, length):
    """Neither garbage nor a line that was cut short keeps the others from being read."""
    whole = encode(SERVED, SECRET)
    lines = [whole, garbage.replace(b"\n", b"x"), whole[:length], b"\n", whole]
    assert decode(lines) == ([SERVED, SERVED], 2)


def test_a_line_says_what_is_documented():
    """A line has the fields of a record and of what was decided about, and no others that text could come in."""
    decided = msgspec.structs.replace(SERVED, decision=Decision("auto", ("small",), "score", ()), wants=Wants())
    line = json.loads(encode(decided, SECRET))
    assert set(line) == set(RequestRecord.__struct_fields__)
    assert set(line["wants"]) == set(Wants.__struct_fields__)


async def test_lines_gather_and_go_out_together():
    """One write when the flush period is over; what found no route is not there."""
    written: list[bytes] = []
    clock = FakeClock()
    log = DecisionLog(written.append, clock=clock, secret=SECRET)
    for number in range(3):
        log.record(record(id=str(number), route="auto" if number else ""))
    assert not written
    await clock.advance(FLUSH_S)
    (lines,) = written
    assert [one.id for one in decode(lines.splitlines())[0]] == ["1", "2"]
    await clock.advance(10 * FLUSH_S)
    assert len(written) == 1


def test_a_full_buffer_goes_out_at_once():
    """The bytes that wait are bounded; nothing is lost on the way."""
    written: list[bytes] = []
    log = DecisionLog(written.append, clock=FakeClock(), secret=random.Random(1).randbytes(16))
    for _ in range(500):
        log.record(SERVED)
    assert len(written) > 1
    assert all(len(lines) < FLUSH_BYTES + 2000 for lines in written)
    log.flush()
    assert decode(b"".join(written).splitlines()) == ([SERVED] * 500, 0)
