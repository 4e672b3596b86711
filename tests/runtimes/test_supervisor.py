"""The parent alone, in a process of its own because of its signals, with workers that do what the test says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.servers.waiting import PATIENCE_S

PROGRAM = """
import os, signal, sys
from relay.runtimes import supervisor
from relay.telemetry import logs

logs.configure(sys.stdout, level="info", style="json", colour=False)
supervisor.FIRST_WAIT_S, supervisor.KILL_AFTER_S = 0.01, 0.01
is_ready, ready = os.pipe()
deaths = []

def on_sigterm(handler):
    signal.signal(signal.SIGTERM, handler)
    os.write(ready, b"!")
    while True:
        signal.pause()

def work(slot):
    {work}

def bury(slot):
    deaths.append(slot)
    if len(deaths) == 4:
        os.read(is_ready, 1)
        os.kill(os.getpid(), signal.SIGTERM)

sys.exit(supervisor.Supervisor(2, target=work, bury=bury, close_listener=lambda: None, shutdown_s=0).run())
"""
"""The worker in slot 0 dies, the other waits for SIGTERM; after four deaths the parent is told to stop."""


def supervised(work: str) -> tuple[int, list[dict[str, Any]]]:
    """Run a supervisor of two workers that do `work`; its exit code and its log."""
    program = PROGRAM.replace("{work}", work)
    ran = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False
    )
    return ran.returncode, [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_worker_that_keeps_dying_is_restarted_ever_more_slowly() -> None:
    """The first restart is immediate, each further one waits twice as long; the other worker is left alone."""
    code, log = supervised("return 7 if slot == 0 else on_sigterm(lambda *_: sys.exit(0))")
    assert [(line["event"], line["worker"], line["exit_code"], line["restart_in_s"]) for line in log] == [
        ("worker_died", 0, 7, wait_s) for wait_s in (0.0, 0.01, 0.02, 0.04)
    ]
    assert code == 0


def test_a_worker_that_cannot_start_ends_it_all() -> None:
    """Restarting would not help: the others are stopped, and the exit code is 1."""
    code, log = supervised("return supervisor.STARTUP_FAILED if slot == 0 else on_sigterm(lambda *_: sys.exit(0))")
    assert [(line["event"], line["worker"]) for line in log] == [("worker_failed", 0)]
    assert code == 1


def test_a_worker_that_does_not_stop_is_killed() -> None:
    """When the graceful period and some more are over, what still runs is killed, and the exit code is 1."""
    code, _ = supervised("return 7 if slot == 0 else on_sigterm(signal.SIG_IGN)")
    assert code == 1


def test_a_failed_stop_shows_in_the_exit_code() -> None:
    """A worker that ends badly after being told to stop makes the exit code 1."""
    code, _ = supervised("return 7 if slot == 0 else on_sigterm(lambda *_: sys.exit(5))")
    assert code == 1
