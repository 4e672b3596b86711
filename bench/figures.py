"""What is measured: load scenarios, and the figures that follow from them.

A scenario is one run of the load generator against one server. A figure is a number that is worth a line in the
table: one value of one scenario, or a difference of two. Times are added ones: what the server adds to the same
scenario without it, in the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from bench.programs import LARGE_PROMPT, MEDIUM_PROMPT, SMALL_PROMPT, Answer, LoadReport

RATES = {"calm": 200, "busy": 1_000}
"""Requests per second at which servers are measured alike, however fast they could be: even slow ones nearly manage the
first, and all that are meant to be fast the second."""
_ALL_AT_ONCE = Answer()


@dataclass(frozen=True)
class Scenario:
    """One kind of load.

    Attributes:
        name: in files.
        answer: what the upstream sends.
        stream: ask for a stream.
        connections: closed loop with so many at once, begun one after the other over the length of a stream.
        rate: instead, an open loop with so many arrivals a second on that many connections at most; 0 for none.
        prompt_bytes: size of the request body.
        seconds: how long new requests are started, times the run's own factor.
        direct: also run without a server; the others' added time is against that.
    """

    name: str
    answer: Answer = _ALL_AT_ONCE
    stream: bool = False
    connections: int = 16
    rate: float = 0
    prompt_bytes: int = SMALL_PROMPT
    seconds: float = 2.0
    direct: bool = False

    @property
    def ramp_s(self) -> float:
        """Over how long the connections begin: one paced stream, half a second at most."""
        answer = self.answer
        return min(0.5, (answer.first_us + answer.gap_us * (answer.chunks - 2)) / 1e6)


class Sample(msgspec.Struct, frozen=True):
    """One scenario on one server in one round.

    Attributes:
        cpu_us: CPU time of the server per request, µs; 0 for the mock itself.
        busy: share of its CPU that the server used while the load ran.
        upstream_connections: that the server opened meanwhile.
        load: what the load generator saw.
    """

    cpu_us: float
    busy: float
    upstream_connections: int
    load: LoadReport


Samples = Mapping[str, Sample]
"""By name of the scenario, of one server in one round."""


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        name: in files.
        title: for people.
        unit: of its values.
        read: its value, from a server's samples and the direct ones of the same round.
        needs: names of the scenarios it is read from.
        better: which way is better: "less" or "more".
    """

    name: str
    title: str
    unit: str
    read: Callable[[Samples, Samples], float]
    needs: tuple[str, ...]
    better: str = "less"


def _paced(chunks: int, gap_us: int) -> Answer:
    return Answer(chunks=chunks, gap_us=gap_us)


_TTFT_ANSWERS = {
    1: Answer(chunks=10, gap_us=2_000, first_us=5_000),
    16: Answer(chunks=20, gap_us=10_000, first_us=5_000),
    128: Answer(chunks=20, gap_us=20_000, first_us=5_000),
}

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("json"),
        *(Scenario(f"json-{pace}", rate=rate, connections=64, seconds=3.0) for pace, rate in RATES.items()),
        Scenario("json-32k", prompt_bytes=MEDIUM_PROMPT),
        Scenario("json-1m", prompt_bytes=LARGE_PROMPT, connections=4),
        Scenario("stream-10", stream=True),
        *(
            Scenario(f"stream-10-{pace}", stream=True, rate=rate, connections=64, seconds=3.0)
            for pace, rate in RATES.items()
        ),
        Scenario("stream-200", Answer(chunks=200), stream=True),
        Scenario("stream-2000", Answer(chunks=2000), stream=True, connections=4),
        Scenario("paced-8x10", _paced(10, 5_000), stream=True, connections=8),
        Scenario("paced-8x200", _paced(200, 5_000), stream=True, connections=8),
        Scenario("paced-64x10", _paced(10, 10_000), stream=True, connections=64),
        Scenario("paced-64x200", _paced(200, 10_000), stream=True, connections=64),
        *(
            Scenario(f"ttft-{streams}", answer, stream=True, connections=streams, seconds=4.0, direct=True)
            for streams, answer in _TTFT_ANSWERS.items()
        ),
    )
}


def _cpu(scenario: str) -> Callable[[Samples, Samples], float]:
    return lambda samples, _: samples[scenario].cpu_us


def _slope(short: str, long: str) -> Callable[[Samples, Samples], float]:
    more = SCENARIOS[long].answer.chunks - SCENARIOS[short].answer.chunks
    return lambda samples, _: (samples[long].cpu_us - samples[short].cpu_us) / more


def _added_ttft(scenario: str, percentile: str) -> Callable[[Samples, Samples], float]:
    def read(samples: Samples, direct: Samples) -> float:
        through: float = getattr(samples[scenario].load.ttft_us, percentile)
        without: float = getattr(direct[scenario].load.ttft_us, percentile)
        return through - without

    return read


def _at_rates(name: str, scenario: str) -> Iterator[Figure]:
    for pace, rate in RATES.items():
        needed = f"{scenario}-{pace}"
        yield Figure(f"{name}-{pace}", f"… at {rate:,} requests/s", "µs", _cpu(needed), (needed,))


def _chunk(name: str, title: str, short: str, long: str) -> Figure:
    return Figure(name, title, "µs", _slope(short, long), (short, long))


FIGURES = (
    Figure("cpu-json", "CPU per non-stream request", "µs", _cpu("json"), ("json",)),
    *_at_rates("cpu-json", "json"),
    Figure("cpu-json-32k", "… with a prompt of 32 KB", "µs", _cpu("json-32k"), ("json-32k",)),
    Figure("cpu-json-1m", "… with a prompt of 1 MB", "µs", _cpu("json-1m"), ("json-1m",)),
    Figure("cpu-stream-10", "CPU per 10-chunk stream", "µs", _cpu("stream-10"), ("stream-10",)),
    *_at_rates("cpu-stream-10", "stream-10"),
    Figure("cpu-stream-200", "CPU per 200-chunk stream", "µs", _cpu("stream-200"), ("stream-200",)),
    Figure("cpu-stream-2000", "CPU per 2,000-chunk stream", "µs", _cpu("stream-2000"), ("stream-2000",)),
    _chunk("cpu-chunk", "CPU per chunk, all at once", "stream-10", "stream-200"),
    _chunk("cpu-chunk-8", "CPU per chunk, 8 paced streams", "paced-8x10", "paced-8x200"),
    _chunk("cpu-chunk-64", "CPU per chunk, 64 paced streams", "paced-64x10", "paced-64x200"),
    *(
        Figure(
            f"ttft-{streams}-{percentile}",
            f"added TTFT {percentile}, {streams} paced stream{'s' * (streams > 1)}",
            "µs",
            _added_ttft(f"ttft-{streams}", percentile),
            (f"ttft-{streams}",),
        )
        for streams in _TTFT_ANSWERS
        for percentile in ("p50", "p95", "p99")
    ),
    Figure(
        "per-second",
        "non-stream requests per second of CPU",
        "/s",
        lambda samples, _: 1e6 / samples["json"].cpu_us,
        ("json",),
        better="more",
    ),
)
