"""Several workers on one port: a process each, started by a parent that does nothing but look after them.

Each worker has a slot, from 0. One that dies is replaced in its slot, at once the first time, then with growing
waits. SIGHUP is passed on. SIGTERM and SIGINT end all gracefully: the parent passes them on as SIGTERM, a second one as
SIGQUIT (at once). Workers ignore SIGINT, and SIGTERM twice is no hurry to them, because a terminal and systemd signal
the whole group: each worker then gets the signal from them and from the parent.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import ForkProcess

STARTUP_FAILED = 3
"""A worker's exit code if it could not begin to serve; restarting it would not help."""

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
"""Waits between restarts of a worker that keeps dying double from the first to the longest."""

HEALTHY_S = 60.0
"""A worker that lived this long has its deaths forgiven."""

KILL_AFTER_S = 15.0
"""Seconds beyond the graceful period after which a worker that still runs is killed."""

_FORWARDED = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("relay.supervisor")
# Fork: workers share the memory of what is imported, and start in milliseconds. The parent has no threads.
_fork = multiprocessing.get_context("fork")


@dataclass
class _Slot:
    number: int
    process: ForkProcess | None = None
    started_at: float = 0.0
    deaths: int = 0
    restart_at: float = 0.0


class Supervisor:
    """The parent.

    Args:
        workers: how many.
        target: what a worker does, given its slot; returns its exit code.
        bury: called with the slot of a worker that died.
        close_listener: called once when no more connections are to be accepted.
        shutdown_s: seconds that workers get to finish.
    """

    def __init__(
        self,
        workers: int,
        *,
        target: Callable[[int], int],
        bury: Callable[[int], None],
        close_listener: Callable[[], None],
        shutdown_s: float,
    ) -> None:
        self._slots = [_Slot(number) for number in range(workers)]
        self._target = target
        self._bury = bury
        self._close_listener = close_listener
        self._shutdown_s = shutdown_s
        self._signals: list[int] = []
        self._stopping = False
        self._kill_at = float("inf")
        self._exit_code = 0

    def run(self) -> int:
        """Keep the workers running until told to stop. Returns the exit code."""
        with self._listening() as wakeup:
            while True:
                self._start_due()
                living = [slot.process.sentinel for slot in self._slots if slot.process is not None]
                if self._stopping and not living:
                    return self._exit_code
                for ready in wait([wakeup, *living], self._idle_s()):
                    if ready is wakeup:
                        wakeup.recv(4096)
                self._pass_signals_on()
                self._reap()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        """Signals end a wait by a byte on a socket, and are noted in order."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.settimeout(0)
        before = {
            number: signal.signal(number, lambda number, _: self._signals.append(number)) for number in _FORWARDED
        }
        signal.set_wakeup_fd(writer.fileno())
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def _idle_s(self) -> float | None:
        """Seconds until something is due; None if only a signal or a death can be next."""
        due = [slot.restart_at for slot in self._slots if slot.process is None and not self._stopping]
        if self._stopping:
            due.append(self._kill_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.process is None and not self._stopping and slot.restart_at <= time.monotonic():
                # No signal may come between the fork and the child's own handlers.
                signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
                slot.process = _fork.Process(target=self._work, args=(slot.number,), name=f"relay-{slot.number}")
                slot.process.start()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
                slot.started_at = time.monotonic()

    def _work(self, slot: int) -> None:
        """In the child. SIGHUP stays blocked until the worker can reload: one that comes before is not lost."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        sys.exit(self._target(slot))

    def _pass_signals_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP:
                self._send(signal.SIGHUP)
            else:
                self._stop()
        if time.monotonic() >= self._kill_at:
            self._send(signal.SIGKILL)

    def _stop(self) -> None:
        """Gracefully the first time, at once the second."""
        self._send(signal.SIGQUIT if self._stopping else signal.SIGTERM)
        if not self._stopping:
            self._stopping = True
            self._kill_at = time.monotonic() + self._shutdown_s + KILL_AFTER_S
            self._close_listener()

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process is not None and slot.process.pid is not None:
                os.kill(slot.process.pid, number)

    def _reap(self) -> None:
        for slot in self._slots:
            process = slot.process
            if process is None or process.is_alive():
                continue
            slot.process = None
            code = process.exitcode or 0
            if self._stopping:
                # SIGTERM itself ends a worker that had not yet begun to serve.
                self._exit_code = self._exit_code or int(code not in {0, -signal.SIGTERM})
                continue
            fields: dict[str, Any] = {"worker": slot.number, "worker_pid": process.pid, "exit_code": code}
            if code == STARTUP_FAILED and slot.deaths == 0:
                _log.error("worker could not start", extra={"event": "worker_failed", "fields": fields})
                self._exit_code = 1
                self._stop()
                continue
            self._bury(slot.number)
            self._schedule_restart(slot, fields)

    def _schedule_restart(self, slot: _Slot, fields: dict[str, Any]) -> None:
        now = time.monotonic()
        slot.deaths = 1 if now - slot.started_at >= HEALTHY_S else slot.deaths + 1
        wait_s = 0.0 if slot.deaths == 1 else min(FIRST_WAIT_S * 2.0 ** (slot.deaths - 2), LONGEST_WAIT_S)
        slot.restart_at = now + wait_s
        _log.error(
            "worker died, another takes its place",
            extra={"event": "worker_died", "fields": {**fields, "restart_in_s": wait_s}},
        )
