"""Prometheus metrics: requests that ended are counted some at a time, and text is made only when somebody asks.

A finished request is put aside, because 64 of them together cost a fraction of what each costs alone: nearly all
have the same labels. Whoever asks for the numbers has what waits counted first, so none is ever missing in them.

A family is a table of rows: label values -> numbers. A counter's row is one number; a histogram's is one count per
bucket and, last, the sum of what was observed. Two rows of the same labels are therefore merged number by number,
and so are whole snapshots: several workers add up to one relay, and a worker that takes a dead one's place carries
its counts on. prometheus-client writes the text; it is not on the path of a request.

Label values are names from the policy or one of a closed set. Should they grow without end all the same (a policy
reloaded with ever new names), a family stops at its bound and counts the rest in one row of `other`.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from operator import add, attrgetter
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay import __version__
from relay.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.messages import RequestRecord, Usage

Labels = tuple[str, ...]
"""Label values, in the order of the family's label names."""

OVERFLOW = "other"
"""What each label says in the row that counts what is over a family's bound."""

MAX_COUNTER_ROWS = 10_000
"""Label sets of one counter: 20 keys x 50 models x 10 outcomes. At some 200 bytes each a scrape stays near 2 MB."""

MAX_HISTOGRAM_ROWS = 500
"""Label sets of one histogram, each of about 17 lines: 250 models that succeed and fail."""

MAX_WAITING = 64
"""Finished requests that wait to be counted. More would share the work no better and hold up the event loop longer: 64
take some 0.2 ms."""

# Bucket boundaries are those that the OpenTelemetry GenAI conventions (1.41) ask for, so that panels made for model
# servers fit. They end early (82 s, 10 s): what is above is in `+Inf`, and in the log with its exact time.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**power) for power in range(14))

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""`gen_ai.operation.name` by the endpoint called."""

Read = Callable[[], Iterable[tuple[Labels, float]]]
"""Gives the values of a metric that is kept elsewhere, by label values."""

_SUCCEEDED = (Outcome.COMPLETED, Outcome.LENGTH, Outcome.BUDGET)
_kind = attrgetter("endpoint", "route", "model", "provider", "key", "stream", "outcome", "error")
_attempts, _usage, _duration_s = attrgetter("attempts"), attrgetter("usage"), attrgetter("duration_s")
_attempt_kind = attrgetter("model", "provider", "error")
_budget_kind = attrgetter("intent", "budget.source", "extensions")
_TOKEN_TYPES = (
    ("input", attrgetter("prompt_tokens")),
    ("output", attrgetter("completion_tokens")),
    ("cached", attrgetter("cached_tokens")),
    ("reasoning", attrgetter("reasoning_tokens")),
    ("continuation", attrgetter("continuation_prompt_tokens")),
)


class Family(msgspec.Struct):
    """One metric and its rows.

    Attributes:
        kind: what Prometheus calls its type.
        help: one line for the reader of the scrape.
        labels: label names.
        bounds: upper bounds of a histogram's buckets, inclusive, ascending, without +Inf.
        merge: how rows of several workers become one. Counters and histograms are always summed.
        max_rows: label sets kept apart; the row of `other` comes on top.
        rows: by label values.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels
    bounds: tuple[float, ...] = ()
    merge: Literal["sum", "max"] = "sum"
    max_rows: int = MAX_COUNTER_ROWS
    rows: dict[Labels, list[float]] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Add to a counter."""
        row = self.rows.get(labels) or self._new_row(labels)
        row[0] += amount

    def observe(self, labels: Labels, values: Sequence[float]) -> None:
        """Put values into a histogram."""
        if not values:
            return
        row = self.rows.get(labels) or self._new_row(labels)
        for bucket, count in Counter(map(bisect_left, repeat(self.bounds), values)).items():
            row[bucket] += count
        row[-1] += sum(values)

    def absorb(self, rows: dict[Labels, list[float]]) -> None:
        """Add another process's rows to a counter or histogram."""
        for labels, theirs in rows.items():
            row = self.rows.get(labels) or self._new_row(labels)
            row[:] = map(add, row, theirs)

    def _new_row(self, labels: Labels) -> list[float]:
        if len(self.rows) >= self.max_rows:
            labels = (OVERFLOW,) * len(self.labels)
        width = len(self.bounds) + 2 if self.kind == "histogram" else 1
        return self.rows.setdefault(labels, [0] * width)

    def with_rows(self, rows: dict[Labels, list[float]]) -> Family:
        """The same metric over other rows."""
        return msgspec.structs.replace(self, rows=rows)


Snapshot = dict[str, Family]
"""Metrics by name, as they were at one moment."""


def merge(left: Snapshot, right: Snapshot) -> Snapshot:
    """Both together, neither changed. Associative and commutative; the empty snapshot changes nothing."""
    merged = dict(left)
    for name, family in right.items():
        merged[name] = _merge_families(merged[name], family) if name in merged else family
    return merged


def _merge_families(left: Family, right: Family) -> Family:
    combine = max if left.merge == "max" else add
    rows = left.rows | right.rows
    for labels in left.rows.keys() & right.rows.keys():
        rows[labels] = list(map(combine, left.rows[labels], right.rows[labels]))
    return left.with_rows(rows)


def counts_only(snapshot: Snapshot) -> Snapshot:
    """What outlives its process: everything but gauges."""
    return {name: family for name, family in snapshot.items() if family.kind != "gauge"}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as msgpack."""
    return _encoder.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """Read what `encode` wrote.

    Raises:
        msgspec.DecodeError: it did not.
    """
    return _decoder.decode(data)


class Metrics:
    """Counts finished requests and answers scrapes. An observer of the pipeline.

    Args:
        siblings: snapshots of the other workers, read anew for each scrape.
    """

    def __init__(self, *, siblings: Callable[[], Iterable[Snapshot]] = tuple) -> None:
        self._siblings = siblings
        self._families: Snapshot = {}
        self._reads: list[tuple[Family, Read, dict[Labels, float]]] = []
        self._waiting: list[RequestRecord] = []

        self._requests = self._counter(
            "relay_requests_total",
            "Requests that ended, by outcome.",
            ("endpoint", "route", "model", "provider", "key", "stream", "outcome"),
        )
        self._errors = self._counter(
            "relay_errors_total",
            "Requests that ended with an error, by its code.",
            ("code", "route", "model", "key"),
        )
        self._attempts = self._counter(
            "relay_attempts_total",
            "Attempts on upstreams, by result: ok or the code of the error that ended it.",
            ("model", "provider", "result"),
        )
        self._tokens = self._counter(
            "relay_tokens_total",
            "Tokens used: input and output, of these cached and reasoning, and what continuations read again.",
            ("key", "route", "model", "provider", "type"),
        )
        self._estimated = self._counter(
            "relay_usage_estimated_total",
            "Requests whose upstream sent no usage, so that the relay counted by itself.",
            ("model", "provider"),
        )
        self._budgets = self._counter(
            "relay_budgets_total",
            "Answers with a budget, by where it came from, and whether it was extended or truncated them.",
            ("intent", "model", "source", "result"),
        )
        self._budget_tokens = self._counter(
            "relay_budget_tokens_total",
            "Output tokens granted by budgets of the relay's own, and used of them.",
            ("intent", "model", "type"),
        )
        self._continuations = self._counter(
            "relay_continuations_total",
            "Segments of answers behind their first, by why they followed: extension or recovery.",
            ("intent", "model", "cause"),
        )
        self._reloads = self._counter(
            "relay_policy_reloads_total",
            "Reloads of the policy set, by result: loaded, unchanged or refused. Each worker counts its own.",
            ("result",),
        )
        operation = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self._duration = self._histogram(
            "gen_ai_server_request_duration",
            "Seconds from a request's arrival to the end of its answer.",
            (*operation, "error_type"),
            DURATION_S,
        )
        self._first_token = self._histogram(
            "gen_ai_server_time_to_first_token",
            "Seconds from a streaming request's arrival to the first output sent to the client.",
            operation,
            FIRST_TOKEN_S,
        )
        self._per_token = self._histogram(
            "gen_ai_server_time_per_output_token",
            "Seconds per output token after the first, of streams that ended well.",
            operation,
            PER_TOKEN_S,
        )
        self._upstream_first_token = self._histogram(
            "gen_ai_client_operation_time_to_first_chunk",
            "Seconds from the start of a streaming attempt to the upstream's first output.",
            operation,
            FIRST_TOKEN_S,
        )
        self._usage = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens per request, input and output, as the upstream counted them.",
            (*operation, "gen_ai_token_type"),
            TOKENS,
        )
        self.gauge(
            "relay_build_info",
            "Always 1; the labels say what is running.",
            ("version", "python"),
            lambda: [((__version__, platform.python_version()), 1)],
            merge="max",
        )

    def _counter(self, name: str, text: str, labels: Labels) -> Family:
        return self._families.setdefault(name, Family("counter", text, labels))

    def _histogram(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> Family:
        return self._families.setdefault(name, Family("histogram", text, labels, bounds, max_rows=MAX_HISTOGRAM_ROWS))

    def gauge(
        self,
        name: str,
        text: str,
        labels: Labels,
        read: Read,
        *,
        merge: Literal["sum", "max"] = "sum",
    ) -> None:
        """Register a value that goes up and down.

        Args:
            name: of the metric.
            text: one line of help.
            labels: names of its labels.
            read: called for each scrape and each snapshot.
            merge: what several workers' values become.
        """
        family = self._families.setdefault(name, Family("gauge", text, labels, merge=merge))
        self._reads.append((family, read, {}))

    def counter(self, name: str, text: str, labels: Labels, read: Read) -> None:
        """Register a value that only grows and is counted elsewhere. Arguments as for `gauge`."""
        self._reads.append((self._counter(name, text, labels), read, {}))

    def record(self, record: RequestRecord) -> None:
        """Count a finished request, now or with those that follow."""
        self._waiting.append(record)
        if len(self._waiting) >= MAX_WAITING:
            self._count_waiting()

    def _count_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for records in _grouped(waiting, _kind):
            self._count(records)

    def _count(self, records: Sequence[RequestRecord]) -> None:
        """Count requests that differ in nothing that becomes a label."""
        one = records[0]
        outcome, stream, served_by = one.outcome, one.stream, (one.model, one.provider)
        stream_label = "true" if stream else "false"
        self._requests.add((one.endpoint, one.route, *served_by, one.key, stream_label, outcome.value), len(records))
        if one.error is not None:
            self._errors.add((one.error, one.route, one.model, one.key), len(records))
        operation = OPERATIONS.get(one.endpoint, OVERFLOW)
        for tries in _grouped(chain.from_iterable(map(_attempts, records)), _attempt_kind):
            model, provider = tries[0].model, tries[0].provider
            self._attempts.add((model, provider, tries[0].error or "ok"), len(tries))
            if stream:
                times = [attempt.ttft_s for attempt in tries if attempt.ttft_s is not None]
                self._upstream_first_token.observe((operation, provider, model), times)

        served = (operation, one.provider, one.model)
        succeeded = outcome in _SUCCEEDED
        error_type = "" if succeeded else outcome.value
        self._duration.observe((*served, error_type), list(map(_duration_s, records)))
        if stream:
            self._first_token.observe(served, [record.ttft_s for record in records if record.ttft_s is not None])
            if succeeded:
                paces = [pace for record in records if (pace := _per_token_s(record)) is not None]
                self._per_token.observe(served, paces)
        sized = [record for record in records if record.budget is not None]
        for alike in _grouped(sized, _budget_kind):
            self._count_budgets(alike)
        for record in records:
            if record.segments > 1:
                self._count_continuations(record)
        usages: list[Usage] = list(filter(None, map(_usage, records)))
        if usages:
            self._count_tokens((one.key, one.route, *served_by), served, usages)

    def _count_budgets(self, records: Sequence[RequestRecord]) -> None:
        one = records[0]
        if one.budget is None or not one.model:
            return
        if one.outcome is Outcome.COMPLETED:
            result = "extended" if one.extensions else "kept"
        else:
            result = "truncated" if one.outcome is Outcome.BUDGET else "cut"
        self._budgets.add((one.intent, one.model, one.budget.source, result), len(records))
        if one.budget.own:
            granted = sum([record.budget.reserve for record in records if record.budget])
            used = sum([record.usage.completion_tokens for record in records if record.usage])
            self._budget_tokens.add((one.intent, one.model, "granted"), granted)
            self._budget_tokens.add((one.intent, one.model, "used"), used)

    def _count_continuations(self, record: RequestRecord) -> None:
        recoveries = record.segments - 1 - record.extensions
        for cause, count in (("extension", record.extensions), ("recovery", recoveries)):
            if count:
                self._continuations.add((record.intent, record.model, cause), count)

    def _count_tokens(self, spent: Labels, served: Labels, usages: Sequence[Usage]) -> None:
        for name, tokens in _TOKEN_TYPES:
            amount = sum(map(tokens, usages))
            if amount or name in ("input", "output"):
                self._tokens.add((*spent, name), amount)
        told = [usage for usage in usages if not usage.estimated]
        if len(told) < len(usages):
            self._estimated.add(spent[2:], len(usages) - len(told))
        for name, tokens in _TOKEN_TYPES[:2]:
            self._usage.observe((*served, name), list(map(tokens, told)))

    def policy_reloaded(self, result: Literal["loaded", "unchanged", "refused"]) -> None:
        """Count a reload of the policy set."""
        self._reloads.add((result,))

    def snapshot(self) -> Snapshot:
        """Everything as it is now, what was restored included. Later counting does not change it."""
        self._count_waiting()
        for family, read, last in self._reads:
            if family.kind == "gauge":
                family.rows = {}
            for labels, value in read():
                family.add(labels, value - last.get(labels, 0))
                if family.kind == "counter":
                    last[labels] = value
        return {
            name: family.with_rows({labels: row.copy() for labels, row in family.rows.items()})
            for name, family in self._families.items()
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Carry on the counts of a process that is no more; its gauges died with it."""
        self._count_waiting()
        for name, family in counts_only(snapshot).items():
            self._families.setdefault(name, family.with_rows({})).absorb(family.rows)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The answer to a scrape.

        Args:
            accept: the request's Accept header; Prometheus text unless it asks for OpenMetrics.

        Returns:
            The body and its content type.
        """
        snapshot = self.snapshot()
        for sibling in self._siblings():
            snapshot = merge(snapshot, sibling)
        write, content_type = choose_encoder(accept)
        return write(_Rows(snapshot)), content_type


_T = TypeVar("_T")


def _grouped(items: Iterable[_T], kind: Callable[[_T], object]) -> Iterable[list[_T]]:
    """Those of one kind together, in the order of their first."""
    groups: dict[object, list[_T]] = {}
    for item in items:
        groups.setdefault(kind(item), []).append(item)
    return groups.values()


def _per_token_s(record: RequestRecord) -> float | None:
    """Seconds per output token after the first; None if they were not measured."""
    usage = record.usage
    if usage is None or usage.estimated or usage.completion_tokens < 2 or record.ttft_s is None:  # noqa: PLR2004
        return None
    return (record.duration_s - record.ttft_s) / (usage.completion_tokens - 1)


class _Rows(Collector):
    """A snapshot as prometheus-client wants to read it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        for name, family in self._snapshot.items():
            if family.kind == "histogram":
                yield _histogram(name, family)
                continue
            shape = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = shape(name, family.help, labels=family.labels)
            for labels, (value,) in family.rows.items():
                metric.add_metric(labels, value)
            yield metric


def _histogram(name: str, family: Family) -> Metric:
    metric = HistogramMetricFamily(name, family.help, labels=family.labels)
    bounds = [*map(floatToGoString, family.bounds), "+Inf"]
    for labels, (*counts, total) in family.rows.items():
        seen: float = 0
        buckets = [(bound, seen := seen + count) for bound, count in zip(bounds, counts, strict=True)]
        metric.add_metric(labels, buckets, total)
    return metric
