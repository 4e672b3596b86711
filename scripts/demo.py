"""What `make serve` runs: a small real model, and Relay in front of it, on loopback until Ctrl-C.

python scripts/demo.py [--port 8080] [--model-port 8081]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "policies" / "demo"
POLICY_MODEL_PORT = 8081
"""Where the demo policy expects the model."""

POLL_S = 0.1
STOP_TIMEOUT_S = 15.0

WELCOME = """\

Relay is up: {base_url}, policy {policy}, in front of a small real model.

Watch its tokens arrive, one by one (it rambles, but it is real):

  curl -N {base_url}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "auto", "stream": true, "max_tokens": 200,
    "messages": [{{"role": "user", "content": "Tell me about lighthouses."}}]}}'

Or with the OpenAI SDK, in .venv/bin/python:

  from openai import OpenAI
  client = OpenAI(base_url="{base_url}/v1", api_key="none-needed")
  ask = [{{"role": "user", "content": "Tell me about lighthouses."}}]
  for chunk in client.chat.completions.create(model="auto", messages=ask, stream=True, max_tokens=200):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

Ctrl-C stops both.
"""


class DemoError(Exception):
    """The demo cannot go on; the message is for the person who started it."""


class Child:
    """One program of the demo. Leaving it as a context stops it.

    Args:
        name: what its lines are marked with.
        command: program and arguments.
        env: environment variables on top of the demo's own.
    """

    def __init__(self, name: str, *command: str | Path, env: dict[str, str] | None = None) -> None:
        self._name = name
        self._command = command
        self._env = {**os.environ, **(env or {})}

    async def __aenter__(self) -> Self:
        # A group of its own: Ctrl-C reaches the demo alone, which then stops its children in order.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._echo = asyncio.create_task(self._print_lines())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except (TimeoutError, asyncio.CancelledError):  # it hangs, or Ctrl-C came again
            self._signal(signal.SIGKILL)
            await self._process.wait()
        await self._echo

    async def answers(self, url: str) -> None:
        """Wait until `url` answers 200, however long: the first time, the model must be fetched.

        Raises:
            DemoError: the program ended before.
        """
        while not await asyncio.to_thread(_is_ok, url):
            if self._process.returncode is not None:
                raise await self.ended()
            await asyncio.sleep(POLL_S)

    async def ended(self) -> DemoError:
        """Wait for the program's end: what to tell the person, who wanted it to run."""
        code = await self._process.wait()
        await self._echo
        return DemoError(f"The {self._name} has ended (exit code {code}); its last lines are above.")

    async def _print_lines(self) -> None:
        if self._process.stdout is None:
            return
        async for line in self._process.stdout:
            print(f"{self._name:>5} | {line.decode(errors='replace').rstrip()}", flush=True)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


async def demo(port: int, model_port: int) -> None:
    """Run both programs until this task is cancelled.

    Raises:
        DemoError: a port is taken, or one of them ended by itself.
    """
    for name, wanted, option in (("the model", model_port, "--model-port"), ("Relay", port, "--port")):
        if _is_taken(wanted):
            msg = f"Port {wanted}, meant for {name}, is taken. Choose another one: make serve ARGS='{option} PORT'"
            raise DemoError(msg)
    policy = POLICY if model_port == POLICY_MODEL_PORT else _policy_for(model_port)
    base_url = f"http://127.0.0.1:{port}"

    async with AsyncExitStack() as children:
        print("Starting the model ...", flush=True)
        smollm = ROOT / "scripts" / "smollm.py"
        model = await children.enter_async_context(Child("model", sys.executable, smollm, "--port", str(model_port)))
        await model.answers(f"http://127.0.0.1:{model_port}/health")

        print("Starting Relay ...", flush=True)
        settings = {
            "RELAY_HOST": "127.0.0.1",
            "RELAY_PORT": str(port),
            "RELAY_LOG_FORMAT": "console",
            "RELAY_SHUTDOWN_S": "2",  # Ctrl-C means now, also in the middle of a stream
        }
        program = Path(sys.executable).with_name("relay")
        relay = await children.enter_async_context(Child("relay", program, "serve", "--policy", policy, env=settings))
        await relay.answers(f"{base_url}/readyz")

        print(WELCOME.format(base_url=base_url, policy=policy.relative_to(ROOT)), flush=True)
        endings = [asyncio.create_task(child.ended()) for child in (model, relay)]
        done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        raise done.pop().result()


def _policy_for(model_port: int) -> Path:
    """A copy of the demo policy that expects the model on another port."""
    copy = ROOT / ".cache" / "demo-policy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for file in POLICY.glob("*.toml"):
        text = file.read_text().replace(f"127.0.0.1:{POLICY_MODEL_PORT}", f"127.0.0.1:{model_port}")
        (copy / file.name).write_text(text)
    return copy


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


async def _until_interrupted(port: int, model_port: int) -> None:
    running = asyncio.create_task(demo(port, model_port))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError):
        await running
    print("\nBoth have stopped.", flush=True)


def main() -> None:
    """Read the options and run; exit code 0 after Ctrl-C or SIGTERM, 1 if something failed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--port", type=int, default=os.environ.get("RELAY_PORT", "8080"), help="of Relay (8080)")
    options.add_argument("--model-port", type=int, default=POLICY_MODEL_PORT, help="of the model (8081)")
    chosen = options.parse_args()
    try:
        asyncio.run(_until_interrupted(chosen.port, chosen.model_port))
    except DemoError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
