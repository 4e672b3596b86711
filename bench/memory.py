"""Memory: idle, with many slow streams, and against a client that does not read.

Resident memory is read from outside, four times a second, as the sum over the server's processes.
"""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import msgspec

from bench.programs import LARGE_PROMPT, SMALL_PROMPT, Answer, Sums, finish_load, start_load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.processes import ProcessTree
    from bench.programs import LoadReport, Mock
    from bench.servers import Server

A_THOUSAND, FIVE_THOUSAND = 1000, 5000
MANY_STREAMS = ((A_THOUSAND, SMALL_PROMPT), (FIVE_THOUSAND, SMALL_PROMPT), (100, LARGE_PROMPT))
"""(streams at once, bytes of each prompt)."""
_SAMPLE_EVERY_S = 0.25
_SLOW_STREAM = Answer(chunks=12, gap_us=1_000_000)
_ARRIVALS_PER_S = 1000
_LONG_STREAM = Answer(chunks=68_000, chunk_bytes=1000)
"""80 MB of body."""
_STALL_S = 1.5
_READ_BYTES_PER_S = 40_000_000


class ManyStreams(msgspec.Struct, frozen=True):
    """Many streams that get one small chunk a second.

    Attributes:
        streams: open at the same time.
        prompt_bytes: size of each request.
        completed: ended exactly right.
        idle_bytes: resident before.
        peak_bytes: resident at most while they ran.
        after_bytes: resident two seconds after the last one ended.
        per_stream_bytes: what each one added.
    """

    streams: int
    prompt_bytes: int
    completed: int
    idle_bytes: int
    peak_bytes: int
    after_bytes: int
    per_stream_bytes: float


class SlowReader(msgspec.Struct, frozen=True):
    """One long stream to a client that stops reading, then reads slowly.

    Attributes:
        bytes: of the stream.
        right: every byte arrived, and the end once.
        before_bytes: resident before.
        peak_bytes: resident at most while it ran.
        seconds: how long it took.
    """

    bytes: int
    right: bool
    before_bytes: int
    peak_bytes: int
    seconds: float


def load_arguments(server: Server, sums: Sums, *, stream: bool) -> list[str]:
    """What the load generator must be told to reach a server and to check its answers."""
    body = sums.stream_body_sum if stream else sums.json_body_sum
    content = sums.stream_content_sum if stream else sums.json_content_sum
    arguments = [
        "--port",
        str(server.port),
        "--path",
        server.path,
        "--model",
        server.model,
        "--expect-content",
        content,
    ]
    if stream:
        arguments.append("--stream")
    if server.exact:
        arguments += ["--expect-body", body]
    for header in server.headers:
        arguments += ["--header", header]
    return arguments


def measure_many_streams(
    server: Server, mock: Mock, streams: int, prompt_bytes: int = SMALL_PROMPT
) -> ManyStreams | None:
    """Open that many streams within a few seconds, let them run side by side, and end them; None without a process."""
    if server.process is None:
        return None
    sums = mock.set(Answer())
    finish_load(start_load([*load_arguments(server, sums, stream=True), "--requests", "200"]))
    idle = server.process.rss_bytes()
    sums = mock.set(_SLOW_STREAM)
    arguments = [
        *load_arguments(server, sums, stream=True),
        *("--requests", str(streams), "--connections", str(streams), "--rate", str(_ARRIVALS_PER_S)),
        *("--fixed-arrivals", "--prompt-bytes", str(prompt_bytes)),
    ]
    report, peak = _run_and_watch(server.process, arguments)
    time.sleep(2)
    return ManyStreams(
        streams=streams,
        prompt_bytes=prompt_bytes,
        completed=report.requests - report.errors,
        idle_bytes=idle,
        peak_bytes=peak,
        after_bytes=server.process.rss_bytes(),
        per_stream_bytes=(peak - idle) / streams,
    )


def measure_slow_reader(server: Server, mock: Mock) -> SlowReader | None:
    """Send 80 MB to a client that reads nothing for a while and then half as fast as it could."""
    if server.process is None:
        return None
    sums = mock.set(_LONG_STREAM)
    before = server.process.rss_bytes()
    arguments = [
        *load_arguments(server, sums, stream=True),
        *("--requests", "1", "--connections", "1"),
        *("--stall-ms", str(int(_STALL_S * 1000)), "--read-rate", str(_READ_BYTES_PER_S)),
    ]
    report, peak = _run_and_watch(server.process, arguments)
    return SlowReader(
        bytes=report.body_bytes,
        right=report.errors == 0 and report.requests == 1,
        before_bytes=before,
        peak_bytes=peak,
        seconds=report.seconds,
    )


def _run_and_watch(process: ProcessTree, arguments: Sequence[str]) -> tuple[LoadReport, int]:
    """The load's report, and the most memory the server had meanwhile."""
    load = start_load(arguments)
    peak = process.rss_bytes()
    while True:
        try:
            load.wait(_SAMPLE_EVERY_S)
        except subprocess.TimeoutExpired:
            peak = max(peak, process.rss_bytes())
        else:
            return finish_load(load), max(peak, process.rss_bytes())
