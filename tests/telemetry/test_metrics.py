from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay import __version__
from relay.messages import AttemptRecord, Budget, Outcome, Usage
from relay.telemetry.metrics import (
    MAX_COUNTER_ROWS,
    MAX_HISTOGRAM_ROWS,
    MAX_WAITING,
    OVERFLOW,
    Family,
    Metrics,
    Snapshot,
    counts_only,
    decode,
    encode,
    merge,
)
from tests.telemetry.records import SERVED, record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.messages import RequestRecord

Samples = dict[str, list[tuple[dict[str, str], float]]]


def scraped(metrics: Metrics) -> Samples:
    """Every sample of a scrape, by its name."""
    body, _ = metrics.exposition()
    samples: Samples = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    """The one sample of that name with those labels."""
    (found,) = [number for have, number in samples[name] if labels.items() <= have.items()]
    return found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_requests_are_counted_by_what_the_policy_calls_them(metrics: Metrics) -> None:
    """Each finished request adds one to the row of its endpoint, route, model, provider, key, stream and outcome."""
    metrics.record(SERVED)
    metrics.record(SERVED)
    metrics.record(record(outcome=Outcome.STALLED, error="upstream_stalled", stream=False))
    samples = scraped(metrics)
    assert samples["relay_requests_total"] == [
        (
            {
                "endpoint": "/v1/chat/completions",
                "route": "auto",
                "model": "small",
                "provider": "openai",
                "key": "team-a",
                "stream": stream,
                "outcome": outcome,
            },
            count,
        )
        for stream, outcome, count in [("true", "completed", 2), ("false", "stalled", 1)]
    ]
    assert samples["relay_errors_total"] == [
        ({"code": "upstream_stalled", "route": "auto", "model": "small", "key": "team-a"}, 1)
    ]


def test_attempts_are_counted_by_result(metrics: Metrics) -> None:
    """An attempt that failed counts under its error's code, the one that served under ok."""
    failed = AttemptRecord("large", "anthropic", "upstream_unreachable", None, None, 0.1)
    metrics.record(record(attempts=(failed, *SERVED.attempts)))
    samples = scraped(metrics)
    assert value(samples, "relay_attempts_total", model="large", provider="anthropic", result="upstream_unreachable")
    assert value(samples, "relay_attempts_total", model="small", provider="openai", result="ok")
    assert [
        labels["gen_ai_request_model"] for labels, _ in samples["gen_ai_client_operation_time_to_first_chunk_sum"]
    ] == ["small"]


def test_times_go_into_the_buckets_of_the_conventions(metrics: Metrics) -> None:
    """A boundary is inclusive, buckets are cumulative, and the sum is of the very seconds observed."""
    metrics.record(SERVED)
    metrics.record(record(ttft_s=0.75, duration_s=100.0))
    samples = scraped(metrics)
    served = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": "small",
    }
    first = "gen_ai_server_time_to_first_token"
    assert [value(samples, f"{first}_bucket", le=le, **served) for le in ("0.25", "0.5", "0.75", "10.0", "+Inf")] == [
        0,
        1,
        2,
        2,
        2,
    ]
    assert value(samples, f"{first}_sum", **served) == 1.25
    duration = "gen_ai_server_request_duration"
    assert value(samples, f"{duration}_bucket", le="81.92", error_type="", **served) == 1
    assert value(samples, f"{duration}_count", error_type="", **served) == 2
    per_token = "gen_ai_server_time_per_output_token"
    assert value(samples, f"{per_token}_sum", **served) == pytest.approx((2.5 - 0.5) / 20 + (100 - 0.75) / 20)


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"stream": False}, "gen_ai_server_time_to_first_token_count"),
        ({"stream": False}, "gen_ai_client_operation_time_to_first_chunk_count"),
        ({"outcome": Outcome.STALLED}, "gen_ai_server_time_per_output_token_count"),
        ({"ttft_s": None}, "gen_ai_server_time_per_output_token_count"),
        ({"usage": Usage(10, 1)}, "gen_ai_server_time_per_output_token_count"),
        ({"usage": Usage(10, 20, estimated=True)}, "gen_ai_server_time_per_output_token_count"),
        ({"usage": Usage(10, 20, estimated=True)}, "gen_ai_client_token_usage_count"),
        ({"usage": None}, "relay_tokens_total"),
    ],
)
def test_what_was_not_measured_is_not_reported(metrics: Metrics, changes: dict[str, Any], absent: str) -> None:
    """A time or a count enters a metric only where it means what the metric says."""
    metrics.record(record(**changes))
    assert absent not in scraped(metrics)


def test_a_failure_has_its_outcome_as_error_type(metrics: Metrics) -> None:
    """Durations of requests that failed are kept apart from those that ended well."""
    metrics.record(record(outcome=Outcome.DEADLINE))
    assert value(scraped(metrics), "gen_ai_server_request_duration_count", error_type="deadline") == 1


def test_tokens_are_counted_by_type(metrics: Metrics) -> None:
    """Input and output are counted whole, cached and reasoning beside them as the parts they are."""
    metrics.record(SERVED)
    metrics.record(record(usage=Usage(7, 3, estimated=True)))
    samples = scraped(metrics)
    spent = {"key": "team-a", "route": "auto", "model": "small", "provider": "openai"}
    types = {
        kind: value(samples, "relay_tokens_total", type=kind, **spent)
        for kind in ("input", "output", "cached", "reasoning")
    }
    assert types == {"input": 107, "output": 24, "cached": 64, "reasoning": 5}
    assert value(samples, "relay_usage_estimated_total", model="small", provider="openai") == 1
    assert value(samples, "gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 21


def test_continuations_are_counted_by_cause(metrics: Metrics) -> None:
    """What was extended and what was recovered are told apart, and so is what was read again."""
    own = Budget(900, 800, 100, 900, "cell")
    used = Usage(100, 2000, continuation_prompt_tokens=950)
    metrics.record(record(intent="code", budget=own, segments=4, extensions=2, usage=used))
    metrics.record(record(intent="code", budget=own, segments=2, extensions=0))
    samples = scraped(metrics)
    assert value(samples, "relay_continuations_total", intent="code", model="small", cause="extension") == 2
    assert value(samples, "relay_continuations_total", intent="code", model="small", cause="recovery") == 2
    assert value(samples, "relay_budgets_total", intent="code", model="small", source="cell", result="extended") == 1
    assert value(samples, "relay_tokens_total", type="continuation") == 950


def test_budgets_are_counted_by_intent(metrics: Metrics) -> None:
    """Which budgets there were and whether they truncated; tokens granted and used only of the relay's own."""
    own, clients = Budget(900, 800, 100, 1800, "cell"), Budget(50, 50, 0, 50, "client")
    metrics.record(record(intent="code", budget=own))
    metrics.record(record(intent="code", budget=own, outcome=Outcome.BUDGET))
    metrics.record(record(intent="code", budget=clients, outcome=Outcome.LENGTH))
    samples = scraped(metrics)
    labels = {"intent": "code", "model": "small"}
    assert value(samples, "relay_budgets_total", **labels, source="cell", result="kept") == 1
    assert value(samples, "relay_budgets_total", **labels, source="cell", result="truncated") == 1
    assert value(samples, "relay_budgets_total", **labels, source="client", result="cut") == 1
    assert value(samples, "relay_budget_tokens_total", **labels, type="granted") == 3600
    assert value(samples, "relay_budget_tokens_total", **labels, type="used") == 42


def test_an_unknown_endpoint_is_an_operation_of_no_name(metrics: Metrics) -> None:
    """The operation is one of a closed set whatever path was called."""
    metrics.record(record(endpoint="/v1/moderations"))
    assert value(scraped(metrics), "gen_ai_server_request_duration_count", gen_ai_operation_name=OVERFLOW) == 1


def test_label_sets_are_bounded(metrics: Metrics) -> None:
    """However many names turn up, a family holds its bound of rows and one more, and loses no count."""
    requests = MAX_COUNTER_ROWS + 100
    for number in range(requests):
        metrics.record(record(model=f"m{number}", key=f"k{number}"))
    snapshot = metrics.snapshot()
    for name, bound in [
        ("relay_requests_total", MAX_COUNTER_ROWS),
        ("gen_ai_server_request_duration", MAX_HISTOGRAM_ROWS),
    ]:
        family = snapshot[name]
        assert len(family.rows) == bound + 1
        assert sum(sum(row[: len(family.bounds) + 1]) for row in family.rows.values()) == requests
        assert family.rows[(OVERFLOW,) * len(family.labels)][-1] > 0
    assert all(len(family.rows) <= family.max_rows + 1 for family in snapshot.values())


def test_gauges_are_read_when_scraped(metrics: Metrics) -> None:
    """A gauge shows what its callable says at that moment; a label set it no longer names is gone."""
    active: dict[tuple[str, ...], float] = {("a",): 3, ("b",): 4}
    metrics.gauge("relay_things", "Things.", ("kind",), active.items)
    assert scraped(metrics)["relay_things"] == [({"kind": "a"}, 3), ({"kind": "b"}, 4)]
    active[("a",)] = 1
    del active[("b",)]
    assert scraped(metrics)["relay_things"] == [({"kind": "a"}, 1)]


def test_counters_kept_elsewhere_carry_on_after_a_restart() -> None:
    """What such a counter says is added to what the worker before had reached, however often it is read."""
    spent = {(): 2.5}
    before, after = Metrics(), Metrics()
    before.counter("relay_cpu_seconds_total", "CPU.", (), spent.items)
    after.counter("relay_cpu_seconds_total", "CPU.", (), {(): 1.0}.items)
    before.snapshot()
    spent[()] = 4.0
    after.restore(before.snapshot())
    for _ in range(3):
        assert scraped(after)["relay_cpu_seconds_total"] == [({}, 5.0)]


def test_a_restart_keeps_counts_and_drops_gauges(metrics: Metrics) -> None:
    """A worker that takes a dead one's place carries its counters and histograms on, and none of its gauges."""
    metrics.record(SERVED)
    metrics.gauge("relay_things", "Things.", (), lambda: [((), 3)])
    heir = Metrics()
    heir.restore(decode(encode(metrics.snapshot())))
    heir.record(SERVED)
    samples = scraped(heir)
    assert value(samples, "relay_requests_total") == 2
    assert value(samples, "gen_ai_server_request_duration_count") == 2
    assert "relay_things" not in samples


def test_a_restart_respects_the_bound() -> None:
    """Rows carried on count against the family's bound like its own."""
    before, after = Metrics(), Metrics()
    before.record(SERVED)
    after._requests.max_rows = 1
    after.record(record(model="mine"))
    after.restore(before.snapshot())
    assert [labels[2] for labels in after.snapshot()["relay_requests_total"].rows] == ["mine", OVERFLOW]


def test_a_scrape_adds_the_other_workers() -> None:
    """The worker that is asked answers for all: counts are summed, gauges merged as they say."""
    workers: list[Metrics] = [
        Metrics(siblings=lambda: [decode(encode(workers[1].snapshot()))]),
        Metrics(),
    ]
    for number, worker in enumerate(workers, 1):
        worker.record(SERVED)
        worker.gauge("relay_active", "Summed.", (), {(): number}.items)
        worker.gauge("relay_state", "The worst.", (), {(): number}.items, merge="max")
    samples = scraped(workers[0])
    assert value(samples, "relay_requests_total") == 2
    assert value(samples, "gen_ai_server_request_duration_count") == 2
    assert value(samples, "relay_active") == 3
    assert value(samples, "relay_state") == 2
    assert value(samples, "relay_build_info", version=__version__) == 1
    assert workers[0].snapshot()["relay_requests_total"].rows != {}
    assert value(scraped(workers[0]), "relay_requests_total") == 2


def test_a_snapshot_stands_still(metrics: Metrics) -> None:
    """What is counted later does not change a snapshot taken before."""
    metrics.record(SERVED)
    before = metrics.snapshot()
    frozen = encode(before)
    metrics.record(SERVED)
    assert encode(before) == frozen != encode(metrics.snapshot())


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain; version=0.0.4", parse_text),
        (
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text; version=1.0.0",
            parse_openmetrics,
        ),
    ],
)
def test_both_formats_parse(
    metrics: Metrics, accept: str, content_type: str, parse: Callable[[str], Iterable[Any]]
) -> None:
    """Prometheus text by default, OpenMetrics where the scraper asks for it; label values are escaped."""
    metrics.record(record(route='a"b\\c\nd'))
    body, answered = metrics.exposition(accept)
    assert answered.startswith(content_type)
    routes = {s.labels["route"] for f in parse(body.decode()) for s in f.samples if s.name == "relay_requests_total"}
    assert routes == {'a"b\\c\nd'}


ENDED = st.builds(
    record,
    model=st.sampled_from(["small", "large"]),
    stream=st.booleans(),
    outcome=st.sampled_from(Outcome),
    error=st.sampled_from([None, "upstream_stalled"]),
    attempts=st.lists(
        st.builds(
            AttemptRecord,
            st.sampled_from(["small", "large"]),
            st.just("openai"),
            st.sampled_from([None, "upstream_stalled"]),
            st.just(200),
            st.sampled_from([None, 0.25, 4.0]),
            st.just(2.0),
        ),
        max_size=2,
    ).map(tuple),
    usage=st.none() | st.builds(Usage, st.just(8), st.sampled_from([0, 1, 5]), estimated=st.booleans()),
    ttft_s=st.sampled_from([None, 0.5, 2.5]),
    intent=st.sampled_from(["code", "creative"]),
    budget=st.none()
    | st.builds(Budget, st.just(8), st.just(8), st.just(0), st.just(8), st.sampled_from(["cell", "off"])),
)
"""Requests of few kinds, so that some are alike; their times are sums of powers of two, which floats add exactly."""


@given(st.lists(ENDED, max_size=2 * MAX_WAITING + 1))
def test_counting_together_counts_the_same(records: list[RequestRecord]) -> None:
    """The numbers do not depend on how many requests waited to be counted."""
    together, alone = Metrics(), Metrics()
    for ended in records:
        together.record(ended)
        alone.record(ended)
        alone.snapshot()
    left, right = together.snapshot(), alone.snapshot()
    assert {name: family.rows for name, family in left.items()} == {name: family.rows for name, family in right.items()}
    assert sum(row[0] for row in left["relay_requests_total"].rows.values()) == len(records)


def test_few_requests_wait(metrics: Metrics) -> None:
    """What waits to be counted is bounded without a scrape."""
    for _ in range(10 * MAX_WAITING):
        metrics.record(SERVED)
    assert len(metrics._waiting) < MAX_WAITING


# --- merging -------------------------------------------------------------------------------------------------

SHAPES: dict[str, Family] = {
    "counted": Family("counter", "Counted.", ("a", "b")),
    "timed": Family("histogram", "Timed.", ("a",), (1.0, 2.0)),
    "summed": Family("gauge", "Summed.", ("a",)),
    "worst": Family("gauge", "Worst.", (), merge="max"),
}
"""One family of each kind; whole numbers, because sums of floats depend on their order."""


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Snapshots with some of the families and a few rows in each."""
    taken: Snapshot = {}
    for name in draw(st.sets(st.sampled_from(sorted(SHAPES)))):
        shape = SHAPES[name]
        labels = st.tuples(*[st.sampled_from("xyz")] * len(shape.labels))
        width = len(shape.bounds) + 2 if shape.kind == "histogram" else 1
        row = st.lists(st.integers(0, 2**40).map(float), min_size=width, max_size=width)
        taken[name] = shape.with_rows(draw(st.dictionaries(labels, row, max_size=4)))
    return taken


@given(snapshots(), snapshots(), snapshots())
def test_merge_is_associative(a: Snapshot, b: Snapshot, c: Snapshot) -> None:
    """Snapshots may be merged in any grouping."""
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(snapshots(), snapshots())
def test_merge_is_commutative_and_has_a_zero(a: Snapshot, b: Snapshot) -> None:
    """The order of two snapshots does not matter, and the empty one changes nothing."""
    assert merge(a, b) == merge(b, a)
    assert merge(a, {}) == a == merge({}, a)


@given(snapshots(), snapshots())
def test_merge_loses_nothing(a: Snapshot, b: Snapshot) -> None:
    """Every count of either side is in the sum, row by row, and neither side is changed."""
    before = encode(a), encode(b)
    merged = merge(a, b)
    for name, shape in SHAPES.items():
        have, want = ({}, {}) if name not in merged else (merged[name].rows, expected(name, a, b, worst=shape.merge))
        assert have == want
    assert (encode(a), encode(b)) == before


def expected(name: str, a: Snapshot, b: Snapshot, *, worst: str) -> dict[tuple[str, ...], list[float]]:
    """The merged rows, worked out cell by cell."""
    rows = [side[name].rows for side in (a, b) if name in side]
    join: Callable[[list[float]], float] = max if worst == "max" else sum
    return {
        labels: [join(list(cells)) for cells in zip(*[r[labels] for r in rows if labels in r], strict=True)]
        for labels in {labels for r in rows for labels in r}
    }


@given(snapshots())
def test_snapshots_survive_the_disk(a: Snapshot) -> None:
    """What is written is read back, gauges and all; what outlives a process is the rest."""
    assert decode(encode(a)) == a
    assert set(counts_only(a)) == set(a) - {"summed", "worst"}


def test_a_damaged_snapshot_is_refused() -> None:
    """Bytes that are no snapshot raise instead of counting something else."""
    with pytest.raises(msgspec.DecodeError):
        decode(b"\x81\xa1x\x93")
