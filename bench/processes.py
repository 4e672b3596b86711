"""Processes under measurement: started on a chosen CPU, weighed from outside, stopped as a whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PROC = Path("/proc")
_DEAD = ("Z", "X")
"""States of a process that has ended but has not been waited for."""
_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0


class NotReady(Exception):
    """A server did not come up; the message ends with what it last said."""


def share_cpu(cpu: int) -> None:
    """Bind the bench itself to that CPU and let it open as many files as it may; programs it starts inherit both."""
    os.sched_setaffinity(0, {cpu})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ProcessTree:
    """A program and its descendants, bound to one CPU.

    Args:
        command: what to run.
        cpu: the CPU that it and its descendants may use.
        log: where its output goes.
        env: added to the bench's own environment.
        cwd: where it runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cpu: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", str(cpu), *command],  # execs the program: one process, one id
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the program itself."""
        return self._process.pid

    def wait_until_ready(self, url: str) -> None:
        """Wait until `url` answers with anything but a server error.

        Raises:
            NotReady: the program ended, or took longer than two minutes.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NotReady(f"ended with code {self._process.returncode}: {self.last_words()}")
            if _answers(url):
                return
            time.sleep(0.1)
        raise NotReady(f"no answer from {url} for {_READY_TIMEOUT_S:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its output, in one line."""
        return " | ".join(self._log.read_text(errors="replace").split("\n")[-8:])[-800:]

    def cpu_ns(self) -> int:
        """CPU time that the whole tree has used: what the scheduler counted for each thread, to the nanosecond.

        `times(2)` and `/proc/PID/stat` count in ticks of 10 ms, too coarse for what is measured here.
        """
        total = 0
        for pid in self._pids():
            for schedstat in (_PROC / str(pid) / "task").glob("*/schedstat"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    total += int(schedstat.read_text().split()[0])
        return total

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree; what two of its processes share counts twice."""
        return sum(_rss_bytes(pid) for pid in self._pids())

    def pause(self) -> None:
        """Stop all of it, so that its timers and threads cannot disturb another server's turn on the CPU."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.killpg(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End all of it, politely or not, and wait until nothing is left."""
        with suppress(ProcessLookupError):
            self.resume()
            os.killpg(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        while any(self._pids()):  # a killed process is not gone at once
            time.sleep(0.01)

    def _pids(self) -> Iterator[int]:
        """Its processes that are not dead: those of its process group, which descendants inherit."""
        for stat in _PROC.glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state, _, group, *_ = stat.read_text().rpartition(")")[2].split()
                if int(group) == self.pid and state not in _DEAD:
                    yield int(stat.parent.name)


def _rss_bytes(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < HTTPStatus.INTERNAL_SERVER_ERROR
    except OSError:
        return False
