"""The container runtime: choose the parts, serve with uvicorn, decide nothing.

`serve` runs in the parent: it reads the policy, opens the port, says what is served, and then either serves by
itself or has a supervisor start workers that do. `_serve` is one serving process from its first to its last breath.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop

from relay import __version__
from relay.app import create_app
from relay.clock import LoopClock
from relay.errors import ConfigurationError
from relay.explain import DecisionSample
from relay.learned import Memory
from relay.pipeline import Pipeline
from relay.policy.load import load
from relay.probes import Probes
from relay.runtimes import process_metrics
from relay.runtimes.fast_lane import FastLane
from relay.runtimes.http_server import BACKLOG, KEEP_ALIVE_S, LINGER_S, Server
from relay.runtimes.policy_files import read_folder
from relay.runtimes.policy_reload import PolicyReload, compiled
from relay.runtimes.prices import list_price
from relay.runtimes.rotating_file import RotatingFile
from relay.runtimes.run_folder import RunFolder
from relay.runtimes.state_folder import StateFolder
from relay.runtimes.supervisor import STARTUP_FAILED, Supervisor
from relay.stores.memory import MemoryStore
from relay.telemetry import logs
from relay.telemetry.decisions import DecisionLog
from relay.telemetry.events import EventLog
from relay.telemetry.metrics import Metrics
from relay.transports.select import Split
from relay.transports.sockets import SocketsTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from relay.clock import Clock
    from relay.config import Settings
    from relay.errors import Finding
    from relay.policy.compiled import Policy
    from relay.telemetry.events import Style
    from relay.telemetry.metrics import Labels
    from relay.transports.base import Transport

SNAPSHOT_S = 1.0
"""Seconds between a worker's snapshots: how old another worker's numbers may be in a scrape."""

KEEP_S = 60.0
"""Seconds between looks at what was learned: what the end of a process without warning costs at most."""

BREAKER_PHASES = {"closed": 0, "half_open": 1, "open": 2}
"""`relay_breaker_state`, so that the larger is the worse."""

_log = logging.getLogger("relay")


def serve(settings: Settings, findings: Sequence[Finding] = ()) -> int:
    """Serve until told to stop.

    Args:
        settings: where, what and how.
        findings: warnings about the settings, to be logged.

    Returns:
        The exit code: 0 after a graceful stop.

    Raises:
        ConfigurationError: the policy does not hold or may not be served here, or the port cannot be had.
    """
    logs.configure(sys.stdout, level=settings.log_level, style=_style(settings), colour=sys.stdout.isatty())
    for finding in findings:
        _log.warning("%s", finding, extra={"event": "setting"})
    files = read_folder(settings.policy)
    policy = compiled(files)
    _refuse_open(policy, settings)
    with contextlib.ExitStack() as cleanup:
        listener = cleanup.enter_context(_listen(settings))
        _announce(settings, policy, listener)
        state = _state(settings, policy)
        if state is not None:
            cleanup.callback(state.end)
        if settings.workers == 1:
            code = _run(settings, listener, files, state)
        else:
            run_path = tempfile.mkdtemp(prefix="relay-")
            cleanup.callback(shutil.rmtree, run_path, ignore_errors=True)
            run_folder = RunFolder(Path(run_path), settings.workers)
            run_folder.keep_policy(files)
            code = Supervisor(
                settings.workers,
                target=lambda slot: _run(settings, listener, run_folder.kept_policy(), state, run_folder, slot),
                bury=run_folder.bury,
                close_listener=listener.close,
                shutdown_s=settings.shutdown_s,
            ).run()
    _log.info("stopped", extra={"event": "stopped", "fields": {"exit_code": code}})
    return code


def _style(settings: Settings) -> Style:
    return settings.log_format or ("console" if sys.stdout.isatty() else "json")


def _refuse_open(policy: Policy, settings: Settings) -> None:
    """An open policy is for this machine alone, unless somebody says that the network around it is safe."""
    if policy.open and not settings.force_open and not _is_loopback(settings.host):
        raise ConfigurationError(
            f"The policy is open (access.open = true: no key is needed), but {settings.host} is not a loopback "
            "address, so that everybody who reaches it could spend your money. Give the policy keys (`relay keys "
            "new`), listen on 127.0.0.1, or set RELAY_FORCE_OPEN=true if something in front checks who calls."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _state(settings: Settings, policy: Policy) -> StateFolder | None:
    """Where what is learned is kept, if it is to be kept, with what earlier runs have left taken over."""
    if settings.state is None:
        return None
    state = StateFolder(settings.state, settings.workers)
    state.begin(policy.models, time.time())
    return state


def _listen(settings: Settings) -> socket.socket:
    """Open the port. Connections queue from here on, whoever accepts them."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}.") from None


def _announce(settings: Settings, policy: Policy, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    for name, reason in policy.skipped:
        skipped = {"provider": name, "reason": reason}
        _log.info("provider %s left out: %s", name, reason, extra={"event": "provider_skipped", "fields": skipped})
    if settings.workers > 1 and any(_has_limits(policy)):
        _log.warning(
            "keys have limits, and each of the %d workers counts them for itself: the store is in its memory",
            settings.workers,
            extra={"event": "limits_per_worker"},
        )
    fields = {
        "version": __version__,
        "address": address,
        "policy": str(settings.policy),
        "policy_version": policy.version,
        "workers": settings.workers,
        "providers": sorted(policy.providers),
        "open": policy.open,
    }
    _log.info("relay listens on %s", address, extra={"event": "started", "fields": fields})


def _has_limits(policy: Policy) -> Iterable[bool]:
    for keys in policy.keys.values():
        for key in keys:
            yield any(getattr(key.limits, name) is not None for name in key.limits.__struct_fields__)


# --- one serving process -----------------------------------------------------------------------------------


def _run(
    settings: Settings,
    listener: socket.socket,
    files: dict[str, str],
    state: StateFolder | None,
    run_folder: RunFolder | None = None,
    slot: int = 0,
) -> int:
    """Serve in this process, at first the policy of these files. `run_folder` is there if it is one of several."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_serve(settings, listener, files, state, run_folder, slot))
        except ConfigurationError as error:
            _log.error("%s", error, extra={"event": "worker_failed"})
            return STARTUP_FAILED


async def _serve(
    settings: Settings,
    listener: socket.socket,
    files: dict[str, str],
    state: StateFolder | None,
    run_folder: RunFolder | None,
    slot: int,
) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_unhandled)
    clock = LoopClock()
    metrics = Metrics() if run_folder is None else Metrics(siblings=lambda: run_folder.siblings(slot))
    events = EventLog(
        _write_lines,
        clock=clock,
        level=settings.log_level,
        style=_style(settings),
        colour=sys.stdout.isatty(),
    )
    decisions = _decision_log(settings, clock, None if run_folder is None else slot)
    samples = (DecisionSample(settings.decision_sample),) if settings.decision_sample else ()
    pipeline = Pipeline(
        load(files, os.environ, price_of=list_price),
        transport=Split(SocketsTransport(clock=clock), lambda: _full_transport(clock)),
        store=MemoryStore(),
        observers=(metrics, events, *decisions, *samples),
        clock=clock,
        rng=random.Random(),  # noqa: S311 - draws waits and request ids, no secrets
    )
    probes = Probes(pipeline)
    register_gauges(metrics, pipeline, probes)
    reload = PolicyReload(
        settings.policy,
        pipeline,
        metrics,
        seen=files,
        admit=lambda policy: _refuse_open(policy, settings),
        keep=run_folder.keep_policy if run_folder is not None else lambda _: None,
    )
    server = _server(settings, pipeline, metrics)
    _handle_signals(server, reload, supervised=run_folder is not None)
    tasks = [asyncio.ensure_future(reload.run())]
    if run_folder is not None:
        metrics.restore(run_folder.snapshot(slot))
        tasks.append(asyncio.ensure_future(_leave_snapshots(metrics, run_folder, slot, server.stop)))
    memory = Memory(pipeline, settings.region or "")
    if state is not None:
        memory.recall(state.share(slot))
        tasks.append(asyncio.ensure_future(_keep_learned(memory, state, slot)))
    probes.start()
    try:
        await server.serve(sockets=[listener])
    finally:
        probes.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pipeline.close()
        if state is not None:
            state.leave(slot, memory.learned())
        events.flush()
        for decision_log in decisions:
            decision_log.flush()
        if run_folder is not None:
            run_folder.write_snapshot(slot, metrics.snapshot())
    return int(server.force_exit)


def _full_transport(clock: Clock) -> Transport:
    """For proxies and HTTP/2. Few want them, and httpx2 takes 3 MB, so it is loaded when a request does."""
    from relay.transports.http import HttpTransport  # noqa: PLC0415

    return HttpTransport(clock=clock)


def _decision_log(settings: Settings, clock: Clock, slot: int | None) -> tuple[DecisionLog, ...]:
    """The decision log, if there is to be one; of several workers each has its number in the file's name."""
    path = settings.decision_log
    if path is None:
        return ()
    if slot is not None:
        path = path.with_name(f"{path.stem}.{slot}{path.suffix}")
    file = RotatingFile(path, max_bytes=settings.decision_log_bytes, kept=settings.decision_log_files)
    return (DecisionLog(file.write, clock=clock, secret=secrets.token_bytes(16)),)


def _server(settings: Settings, pipeline: Pipeline, metrics: Metrics) -> Server:
    admin_key = settings.admin_key
    app = create_app(pipeline, metrics=metrics, admin_key=None if admin_key is None else admin_key.get_secret_value())
    config = uvicorn.Config(
        app,
        http=FastLane.for_pipeline(pipeline),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(LINGER_S),
    )
    return Server(config, pipeline=pipeline, shutdown_s=settings.shutdown_s, on_started=_quieten_gc)


def _handle_signals(server: Server, reload: PolicyReload, *, supervised: bool) -> None:
    """See `supervisor` for what the parent sends to a worker."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    if supervised:
        loop.add_signal_handler(signal.SIGTERM, server.stop)
        loop.add_signal_handler(signal.SIGQUIT, server.hurry)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    else:
        loop.add_signal_handler(signal.SIGTERM, server.stop_or_hurry)
        loop.add_signal_handler(signal.SIGINT, server.stop_or_hurry)


def _quieten_gc() -> None:
    """Keep the collector's pauses short: while it looks, no stream moves.

    What is alive now lives as long as the process, so it is taken out of sight (`freeze`), and a full collection looks
    at no more than what requests have made. The young generation is collected after 5,000 new containers instead of
    700 (2,000 from Python 3.13 on), some two hundred requests' worth, and the older ones less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 50)


async def _leave_snapshots(metrics: Metrics, run_folder: RunFolder, slot: int, stop: Callable[[], None]) -> None:
    """Leave this worker's numbers for the others, and stop if the parent is no more."""
    parent = os.getppid()
    while True:
        try:
            run_folder.write_snapshot(slot, metrics.snapshot())
        except OSError as error:  # a full disk, say: the next one may succeed
            _log.warning("metrics cannot be shared: %s", error, extra={"event": "snapshot_failed"})
        await asyncio.sleep(SNAPSHOT_S)
        if os.getppid() != parent:
            _log.error("the parent process is gone: stopping", extra={"event": "orphaned"})
            stop()
            return


async def _keep_learned(memory: Memory, state: StateFolder, slot: int) -> None:
    """Leave what this process has learned where the next one finds it, in case that this one ends without warning."""
    while True:
        await asyncio.sleep(KEEP_S)
        await asyncio.to_thread(state.leave, slot, memory.learned())  # a slow disk would hold up streams


def register_gauges(metrics: Metrics, pipeline: Pipeline, probes: Probes) -> None:
    """What is read from the process, its pipeline and its probes when somebody asks."""
    process_metrics.register(metrics)
    metrics.gauge(
        "relay_active_requests", "Requests that are being answered.", (), lambda: [((), len(pipeline.active))]
    )
    metrics.gauge(
        "relay_active_streams",
        "Streaming requests that are being answered.",
        (),
        lambda: [((), sum(exchange.streaming for exchange in pipeline.active))],
    )
    metrics.gauge("relay_workers", "Processes that serve.", (), lambda: [((), 1)])
    metrics.gauge(
        "relay_policy_info",
        "Always 1; the label says which policy set is live.",
        ("version",),
        lambda: [((pipeline.policy.version,), 1)],
        merge="max",
    )

    metrics.counter(
        "relay_upstream_probes_total",
        "Health probes of providers that are over.",
        ("provider", "result"),
        lambda: list(probes.counts.items()),
    )

    def breakers() -> Iterable[tuple[Labels, float]]:
        now = pipeline.clock.now()
        return [((name,), BREAKER_PHASES[state.state.phase(now)]) for name, state in pipeline.upstreams.items()]

    metrics.gauge(
        "relay_breaker_state",
        "Circuit breaker of each model: 0 closed, 1 half open, 2 open; the worst of all workers.",
        ("model",),
        breakers,
        merge="max",
    )


def _write_lines(lines: bytes) -> None:
    """Request lines go where the log goes. If nobody reads it any more, requests are served all the same."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()


def _log_unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio has nobody to tell. Its own handler would print the objects concerned, request text included."""
    _log.error("%s", context.get("message"), exc_info=context.get("exception"), extra={"event": "unhandled"})
