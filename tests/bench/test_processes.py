"""Weighing a process tree from outside."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.processes import NotReady, ProcessTree
from bench.servers import free_port

CPU = max(os.sched_getaffinity(0))
PARENT = """
import http.server, os, subprocess, sys
work = "import time\\nwhile time.process_time() < 0.2: pass\\ntime.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", work])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


class Stat(NamedTuple):
    """Of a process: its state and its group."""

    state: str
    group: int


def stats():
    """Of all processes."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
            yield Stat(state, int(group))


@pytest.fixture
def tree(tmp_path):
    """A server with a child that uses 0.2 s of CPU and then sleeps."""
    port = free_port()
    running = ProcessTree([sys.executable, "-c", PARENT, str(port)], cpu=CPU, log=tmp_path / "log", cwd=tmp_path)
    try:
        running.wait_until_ready(f"http://127.0.0.1:{port}/")
        yield running
    finally:
        running.stop()


def test_descendants_count(tree):
    """CPU time and memory are those of the whole tree."""
    while tree.cpu_ns() < 0.2e9:
        pass
    own = int(Path(f"/proc/{tree.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    assert tree.rss_bytes() > 1.2 * own


def test_the_tree_is_bound_to_its_cpu(tree):
    """The program and its children may use one CPU only."""
    assert os.sched_getaffinity(tree.pid) == {CPU}


def test_stop_ends_all_even_if_paused(tree):
    """Nothing is left of a tree that was stopped, whether or not it was paused."""
    tree.pause()
    tree.stop()
    assert not [stat for stat in stats() if stat.group == tree.pid and stat.state != "Z"]


def test_a_server_that_ends_is_not_ready(tmp_path):
    """A program that ends before it answers is reported with its last words."""
    program = [sys.executable, "-c", "raise SystemExit('no such colour')"]
    running = ProcessTree(program, cpu=CPU, log=tmp_path / "log")
    with pytest.raises(NotReady, match=r"ended with code 1: .*no such colour"):
        running.wait_until_ready(f"http://127.0.0.1:{free_port()}/")
    running.stop()
