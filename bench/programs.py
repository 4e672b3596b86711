"""The bench's own two programs: the mock upstream and the load generator."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
SMALL_PROMPT, MEDIUM_PROMPT, LARGE_PROMPT = 1024, 32 * 1024, 1024 * 1024
"""Sizes of request bodies, bytes."""
CACHE = HERE.parent / ".cache" / "bench"


class Answer(msgspec.Struct, frozen=True):
    """What the mock sends, and where it puts its pauses.

    Attributes:
        chunks: events of a stream before `[DONE]`.
        gap_us: time between two of them, µs; 0 does not wait.
        separate: without a gap, write event by event instead of all at once.
        first_us: time from the request to the first byte of the answer, µs.
        chunk_bytes: content of one event.
    """

    chunks: int = 10
    gap_us: int = 0
    separate: bool = False
    first_us: int = 0
    chunk_bytes: int = 6


class Sums(msgspec.Struct, frozen=True):
    """Sums over what a client must receive; see `measure.h`."""

    stream_body_sum: str
    stream_content_sum: str
    usage_body_sum: str
    json_body_sum: str
    json_content_sum: str
    stream_bytes: int


class MockStats(msgspec.Struct, frozen=True):
    """Counters of the mock.

    Attributes:
        connections: that ever carried a completion.
        requests: completions.
        open: connections open now.
        streaming: streams running now.
        left_early: streams whose client went away before their end.
    """

    connections: int
    requests: int
    open: int
    streaming: int
    left_early: int


class Percentiles(msgspec.Struct, frozen=True):
    """Of one kind of time, µs."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class LoadReport(msgspec.Struct, frozen=True):
    """What the load generator saw.

    Attributes:
        requests: answered, well or not.
        errors: answers that were not exactly right; `error_kinds` says in what way.
        reconnects: connections that had to be opened anew.
        seconds: how long it ran.
        per_second: requests per second.
        timed: requests behind the percentiles.
        ttft_us: time to the first character of content.
        total_us: time to the end of the answer.
        body_bytes: received.
        own_cpu_s: CPU time of the load generator itself.
    """

    requests: int
    errors: int
    error_kinds: dict[str, int]
    reconnects: int
    seconds: float
    per_second: float
    timed: int
    ttft_us: Percentiles
    total_us: Percentiles
    body_bytes: int
    own_cpu_s: float


class LoadFailed(Exception):
    """The load generator could not do its work; the message is its own."""


def build(name: str) -> Path:
    """Compile one of the programs with the system's C compiler, unless its binary is newer than its sources."""
    source, binary = HERE / f"{name}.c", CACHE / name
    newest = max(source.stat().st_mtime, (HERE / "measure.h").stat().st_mtime)
    if not binary.exists() or binary.stat().st_mtime < newest:
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"{name}.{os.getpid()}"
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", partial, source, "-lm"], check=True)
        partial.replace(binary)
    return binary


class Mock:
    """The running mock upstream."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([build("mock"), "0"], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None  # noqa: S101 - narrows the type: PIPE was asked for
        self.port = int(self._process.stdout.readline())
        self._set: tuple[Answer, Sums] | None = None

    def set(self, answer: Answer) -> Sums:
        """From now on, answer like this."""
        if self._set is None or self._set[0] != answer:
            query = "&".join(f"{name}={int(value)}" for name, value in msgspec.structs.asdict(answer).items())
            self._set = answer, msgspec.json.decode(self._get(f"/__set?{query}"), type=Sums)
        return self._set[1]

    def stats(self) -> MockStats:
        """Its counters."""
        return msgspec.json.decode(self._get("/__stats"), type=MockStats)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _get(self, target: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{target}", timeout=30) as response:
            body: bytes = response.read()
            return body


def start_load(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start the load generator; `finish_load` waits for it."""
    return subprocess.Popen([build("load"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_load(process: subprocess.Popen[str]) -> LoadReport:
    """Wait for the load generator and read its report.

    Raises:
        LoadFailed: it ended without one.
    """
    output, complaint = process.communicate()
    if process.returncode != 0:
        raise LoadFailed(complaint.strip())
    report = msgspec.json.decode(output, type=LoadReport)
    if report.errors:
        print(f"    {report.errors} errors of {report.requests}: {report.error_kinds} {complaint.strip()[:400]}")
    return report
