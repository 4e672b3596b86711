"""LiteLLM's own streaming bench: how many streams a second one CPU carries before they get late.

The upstream sends the head's first byte after 10 ms and then 31 events without a pause, each in a write of its own.
Streams arrive at random (Poisson), whether or not earlier ones are done. A rate holds if the 95th percentile of the
time to the first byte is at most 100 ms, that of the whole stream at most 200 ms, and every stream is right to the last
byte. Looked for is the highest rate that holds, by doubling until one fails and halving the interval after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bench.memory import load_arguments
from bench.programs import Answer, LoadReport, finish_load, start_load

if TYPE_CHECKING:
    from bench.programs import Mock
    from bench.servers import Server

_ANSWER = Answer(chunks=31, separate=True, first_us=10_000)
_TTFB_P95_US = 100_000
_TOTAL_P95_US = 200_000
_CONNECTIONS = 4096
_FIRST_RATE = 64.0
_PRECISION = 0.05
_WARMUP_S = 0.5


class Trial(msgspec.Struct, frozen=True):
    """One rate that was tried.

    Attributes:
        rate: streams per second.
        holds: whether it met the conditions.
        busy: share of its CPU that the server used.
        ttft_p95_ms: 95th percentile of the time to the first content.
        total_p95_ms: likewise, to the end.
        errors: streams that were not right.
    """

    rate: float
    holds: bool
    busy: float
    ttft_p95_ms: float
    total_p95_ms: float
    errors: int


class Capacity(msgspec.Struct, frozen=True):
    """Attributes: streams_per_s: the highest rate that held; trials: all that were tried, in order."""

    streams_per_s: float
    trials: tuple[Trial, ...]


def measure_capacity(server: Server, mock: Mock, seconds: float) -> Capacity:
    """Find the highest rate that holds.

    Args:
        server: what to load.
        mock: its upstream.
        seconds: how long each rate is tried.
    """
    trials: list[Trial] = []

    def holds(rate: float) -> bool:
        trials.append(_try(server, mock, seconds, rate))
        return trials[-1].holds

    low, high = 0.0, _FIRST_RATE
    while holds(high):
        low, high = high, high * 2
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return Capacity(streams_per_s=low, trials=tuple(trials))


def _try(server: Server, mock: Mock, seconds: float, rate: float) -> Trial:
    sums = mock.set(_ANSWER)
    before = server.cpu_ns()
    report: LoadReport = finish_load(
        start_load(
            [
                *load_arguments(server, sums, stream=True),
                *("--connections", str(_CONNECTIONS), "--rate", str(rate), "--seconds", str(_WARMUP_S + seconds)),
                *("--warmup-s", str(_WARMUP_S)),
            ]
        )
    )
    used = server.cpu_ns() - before
    in_time = report.ttft_us.p95 <= _TTFB_P95_US and report.total_us.p95 <= _TOTAL_P95_US
    return Trial(
        rate=rate,
        holds=in_time and report.errors == 0 and report.timed > 0,
        busy=used / 1e9 / report.seconds,
        ttft_p95_ms=report.ttft_us.p95 / 1000,
        total_p95_ms=report.total_us.p95 / 1000,
        errors=report.errors,
    )
