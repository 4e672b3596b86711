"""A real model on llama.cpp's own server, the relay as a user starts it, and a tap to put between the two."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from socket import create_server
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"
START_S = 60.0
"""A program that does not answer after so long has failed to start."""

POLICY = """
version = 1
access = {{ open = true }}

[providers.local]
dialect = "openai"
base_url = "{model_url}/v1"
timeouts = {{ first_token_s = 120, silence_s = 60 }}

[models.{model}]
provider     = "local"
features     = []
continuation = "prefill"

[[routes]]
name = "auto"
candidates = ["{model}"]
"""


@contextlib.contextmanager
def model() -> Iterator[str]:
    """Run the model while the block runs; the value is its server's URL."""
    command = [sys.executable, str(ROOT / "scripts" / "smollm.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(line.split()[-1] for line in server.stdout if line.startswith("serving "))
        finally:
            server.terminate()


@contextlib.contextmanager
def relay(model_url: str, folder: Path, *, more: str = "") -> Iterator[str]:
    """Run `relay serve` in front of the model while the block runs; the value is its URL.

    Args:
        model_url: where the policy says the model is.
        folder: an empty one, for the policy and the log.
        more: further tables of the policy.
    """
    (folder / "policy.toml").write_text(POLICY.format(model_url=model_url, model=MODEL) + more)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = str(Path(sys.executable).with_name("relay"))
    command = [program, "serve", "--policy", str(folder), "--port", str(port)]
    log = folder / "relay.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            wait_until_ready(f"{url}/readyz", server, log)
            yield url
        finally:
            server.terminate()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the URL answers 200; a server that ends before fails the test with its log."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url):
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} does not answer:\n{log.read_text()}")


class Tap:
    """Lets the model's answer through to the relay one event at a time.

    Attributes:
        url: what the relay is told to be the model's; takes one request.
    """

    def __init__(self, port: int, answer: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._answer = answer

    async def events(self) -> AsyncIterator[bytes]:
        """The events of a streamed answer; each is sent on to the relay no sooner than it is asked for here."""
        from_model, to_relay = await self._answer
        event = b""
        while not event.endswith(b"[DONE]\n\n"):
            event = await from_model.readuntil(b"\n\n")
            to_relay.write(event)
            await to_relay.drain()
            yield event
        to_relay.write(await from_model.readuntil(b"0\r\n\r\n"))  # the end of the chunked body


@contextlib.asynccontextmanager
async def tap(model_url: str) -> AsyncIterator[Tap]:
    """A tap in front of the model while the block runs, in which the relay must have ended."""
    answer = asyncio.get_running_loop().create_future()
    closed = asyncio.Event()

    async def connected(from_relay: asyncio.StreamReader, to_relay: asyncio.StreamWriter) -> None:
        host, _, port = model_url.removeprefix("http://").partition(":")
        from_model, to_model = await asyncio.open_connection(host, int(port))
        answer.set_result((from_model, to_relay))
        while data := await from_relay.read(65536):
            to_model.write(data)
        for writer in (to_model, to_relay):
            writer.close()
            await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield Tap(server.sockets[0].getsockname()[1], answer)
        await closed.wait()
