"""What the operating system knows of this process, under the names that every Prometheus client uses."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.telemetry.metrics import Labels, Metrics

_STATM = Path("/proc/self/statm")
_OPEN_FILES = Path("/proc/self/fd")


def register(metrics: Metrics) -> None:
    """Add the `process_*` metrics. Those that only Linux tells have no value elsewhere. Several workers are summed."""
    started_at = time.time()
    metrics.counter(
        "process_cpu_seconds_total", "CPU time spent, user and system, seconds.", (), _one(lambda: sum(os.times()[:2]))
    )
    metrics.gauge("process_resident_memory_bytes", "Resident memory.", (), _one(_resident_bytes))
    metrics.gauge("process_open_fds", "Open file descriptors.", (), _one(_open_files))
    metrics.gauge(
        "process_max_fds",
        "File descriptors that may be open.",
        (),
        _one(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    )
    metrics.gauge(
        "process_start_time_seconds",
        "When the process started, seconds since the Unix epoch; of several the latest.",
        (),
        _one(lambda: started_at),
        merge="max",
    )


def _one(read: Callable[[], float | None]) -> Callable[[], Iterable[tuple[Labels, float]]]:
    def values() -> Iterable[tuple[Labels, float]]:
        value = read()
        return () if value is None else [((), value)]

    return values


def _resident_bytes() -> float | None:
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def _open_files() -> float | None:
    if not _OPEN_FILES.exists():
        return None
    # Linux since 6.2 tells the number as the folder's size; before, it has to be counted.
    return _OPEN_FILES.stat().st_size or sum(1 for _ in _OPEN_FILES.iterdir())
