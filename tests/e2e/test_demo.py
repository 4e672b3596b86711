"""`make serve` as a newcomer meets it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import urllib.request
from contextlib import contextmanager
from socket import create_connection, create_server
from typing import TYPE_CHECKING

import pytest

from tests.e2e.real_model import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def demo(port: int, model_port: int) -> Iterator[subprocess.Popen[str]]:
    """Run the demo while the block runs."""
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--port", str(port), "--model-port", str(model_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            yield running
        finally:
            running.terminate()


def read_until(running: subprocess.Popen[str], last: str) -> str:
    """What the demo prints, up to a line; the end of its output before that fails the test."""
    assert running.stdout is not None
    lines = []
    for line in running.stdout:
        lines.append(line)
        if line.strip() == last:
            return "".join(lines)
    raise AssertionError("".join(lines))


def part(pattern: str, printed: str) -> str:
    """The part that fits the pattern."""
    found = re.search(pattern, printed, re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def test_demo() -> None:
    """What the demo prints to be pasted works as it is, and Ctrl-C stops both programs with exit code 0."""
    ports = (free_port(), free_port())
    with demo(*ports) as running:
        printed = read_until(running, "Ctrl-C stops both.")

        curl = shlex.split(part(r"^  curl .*?}'$", printed))
        url, body = curl[2], curl[-1].encode()
        assert curl == ["curl", "-N", url, "-H", "content-type: application/json", "-d", body.decode()]
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert json.loads(body)["stream"]

        snippet = textwrap.dedent(part(r"^  from openai .*?\n\n", printed))
        assert subprocess.run([sys.executable, "-c", snippet], check=True, capture_output=True).stdout

        running.send_signal(signal.SIGINT)
        read_until(running, "Both have stopped.")
        assert running.wait() == 0
    for port in ports:
        with pytest.raises(ConnectionRefusedError), create_connection(("127.0.0.1", port)):
            pass


def test_port_taken() -> None:
    """A taken port is named before anything is started, with the way to another one."""
    with create_server(("127.0.0.1", 0)) as taken, demo(taken.getsockname()[1], free_port()) as running:
        printed, _ = running.communicate()
    assert running.returncode == 1
    assert "make serve ARGS='--port PORT'" in printed
    assert "Starting" not in printed
