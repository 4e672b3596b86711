"""Run the bench: every server in turn, scenario by scenario, for several rounds.

The server under test has one CPU to itself, the mock upstream and the load generator share another; servers that are
not under test are stopped (SIGSTOP) meanwhile. Rounds are interleaved: each scenario runs on one server right after the
other, so that what else the machine does meets all of them alike, and each round begins with another server.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fnmatch
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from bench import interpreter, report
from bench.capacity import measure_capacity
from bench.environments import NotInstalled
from bench.figures import FIGURES, SCENARIOS, Sample, Scenario
from bench.memory import MANY_STREAMS, load_arguments, measure_many_streams, measure_slow_reader
from bench.peers import PEERS
from bench.processes import NotReady, share_cpu
from bench.programs import Answer, LoadReport, Mock, finish_load, start_load
from bench.servers import SERVERS, Ground, Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.processes import ProcessTree

_CAPACITY_S = 4.0
_CAPACITY_ROUNDS = 2
_PARTS = ("memory", "slow-reader", "capacity")
"""What can be measured besides the figures."""
_WIDTH = 200
"""Columns when the output is no terminal."""


class Bench:
    """Servers that are up, one of them at a time under test.

    Args:
        mock: their upstream.
        servers: all of them, in the order of the tables.
    """

    def __init__(self, mock: Mock, servers: Sequence[Server]) -> None:
        self.mock = mock
        self.servers = list(servers)
        self._processes: set[ProcessTree] = {server.process for server in servers if server.process is not None}

    def in_turn(self, first: int = 0) -> Iterator[Server]:
        """Each server, alone on its CPU while the caller has it."""
        shift = first % len(self.servers)
        for server in self.servers[shift:] + self.servers[:shift]:
            others = self._processes - {server.process}
            for process in others:
                process.pause()
            try:
                yield server
            finally:
                for process in others:
                    process.resume()

    def measure(self, server: Server, scenario: Scenario, factor: float) -> Sample:
        """Run one scenario on one server, after a short warm-up that fills its connection pools."""
        warm_up = ["--requests", str(4 * scenario.connections), "--seed", "7"]
        self._load(server, scenario, Answer(), warm_up)
        connections, cpu_ns = self.mock.stats().connections, server.cpu_ns()
        seconds = scenario.ramp_s + scenario.seconds * factor
        timing = ["--ramp-s", str(scenario.ramp_s), "--warmup-s", str(scenario.ramp_s), "--seconds", str(seconds)]
        timing += ["--rate", str(scenario.rate)]
        seen = self._load(server, scenario, scenario.answer, timing)
        used_ns = server.cpu_ns() - cpu_ns
        return Sample(
            cpu_us=used_ns / 1000 / max(1, seen.requests),
            busy=used_ns / 1e9 / seen.seconds,
            upstream_connections=self.mock.stats().connections - connections,
            load=seen,
        )

    def _load(self, server: Server, scenario: Scenario, answer: Answer, extra: Sequence[str]) -> LoadReport:
        sums = self.mock.set(answer)
        arguments = load_arguments(server, sums, stream=scenario.stream)
        arguments += ["--connections", str(scenario.connections), "--prompt-bytes", str(scenario.prompt_bytes)]
        return finish_load(start_load([*arguments, *extra]))


@contextlib.contextmanager
def _running(names: Sequence[str], ground: Ground, skipped: dict[str, str]) -> Iterator[list[Server]]:
    """Start the servers; what cannot be installed or started is left out and noted in `skipped`."""
    servers: list[Server] = []
    try:
        for name in names:
            try:
                servers += {**SERVERS, **PEERS}[name](ground)
            except (NotInstalled, NotReady) as error:
                skipped[name] = str(error)
        yield servers
    finally:
        for process in {server.process for server in servers if server.process is not None}:
            process.stop()


@dataclass(frozen=True)
class _Wanted:
    """What of the bench is to run: scenarios, scaled by a factor; parts; how often the slow reader."""

    scenarios: list[Scenario]
    parts: list[str]
    factor: float
    times: int


def _wanted(only: Sequence[str], factor: float, times: int) -> _Wanted:
    """All of it, or what `--only` names."""
    patterns = [name for name in only if name not in _PARTS]
    names: set[str] = set()
    for pattern in patterns if only else ["*"]:
        matched = {
            need
            for figure in FIGURES
            for need in figure.needs
            if any(fnmatch.fnmatch(name, pattern) for name in (figure.name, need))
        }
        if not matched:
            raise click.UsageError(f"--only {pattern}: no figure, scenario or part has that name")
        names |= matched
    return _Wanted(
        scenarios=[scenario for scenario in SCENARIOS.values() if scenario.name in names],
        parts=[part for part in _PARTS if not only or part in only],
        factor=factor,
        times=times,
    )


def _measure(
    wanted: _Wanted, names: Sequence[str], ground: Ground, mock: Mock, results: report.Results, console: Console
) -> None:
    skipped = results.context.skipped
    if wanted.scenarios or "capacity" in wanted.parts:
        with _running(names, ground, skipped) as servers:
            results.context.versions.update({server.name: server.version for server in servers if server.version})
            bench = Bench(mock, servers)
            _run_figures(bench, results, wanted, console)
            if "capacity" in wanted.parts:
                _run_capacity(bench, results, console)
    able = [name for name in names if name not in skipped]
    if "memory" in wanted.parts:
        _run_memory(able, ground, mock, results, console)
    if "slow-reader" in wanted.parts:
        _run_slow_reader(able, ground, mock, results, wanted.times, console)


def _run_figures(bench: Bench, results: report.Results, wanted: _Wanted, console: Console) -> None:
    for number in range(results.context.rounds):
        samples: dict[str, dict[str, Sample]] = {server.name: {} for server in bench.servers}
        for scenario in wanted.scenarios:
            line = []
            for server in bench.in_turn(first=number):
                if server.process is None and not scenario.direct:
                    continue
                sample = bench.measure(server, scenario, wanted.factor)
                samples[server.name][scenario.name] = sample
                value = sample.load.ttft_us.p50 if scenario.direct else sample.cpu_us
                line.append(f"{server.name} {value:,.0f}")
            console.print(f"  round {number + 1}, {scenario.name}: {', '.join(line)} µs", highlight=False)
        results.rounds.append(samples)
    results.sum_up()


def _run_memory(names: Sequence[str], ground: Ground, mock: Mock, results: report.Results, console: Console) -> None:
    """Each on a server just started: memory once taken is seldom given back and would hide what came after."""
    for streams, prompt_bytes in MANY_STREAMS:
        for name in names:
            with _running([name], ground, results.context.skipped) as servers:
                run = measure_many_streams(servers[0], mock, streams, prompt_bytes) if servers else None
            if run is not None:
                results.streams.setdefault(name, []).append(run)
                console.print(
                    f"  {streams:,} slow streams, {prompt_bytes // 1024:,} KB each, {name}: "
                    f"{run.idle_bytes / 1e6:.1f} to {run.peak_bytes / 1e6:.1f} MB",
                    highlight=False,
                )


def _run_slow_reader(
    names: Sequence[str], ground: Ground, mock: Mock, results: report.Results, times: int, console: Console
) -> None:
    """All on one server just started, so that a leak adds up."""
    for name in names:
        with _running([name], ground, results.context.skipped) as servers:
            for number in range(times):
                run = measure_slow_reader(servers[0], mock) if servers else None
                if run is not None:
                    results.slow_readers.setdefault(name, []).append(run)
                    console.print(
                        f"  slow reader {number + 1}, {name}: {'right' if run.right else 'WRONG'}, "
                        f"{run.before_bytes / 1e6:.1f} to {run.peak_bytes / 1e6:.1f} MB",
                        highlight=False,
                    )


def _run_capacity(bench: Bench, results: report.Results, console: Console) -> None:
    """For each process once: a second route of the same server has the same streams."""
    first_of = {server.process: server for server in reversed(bench.servers)}
    for number in range(min(results.context.rounds, _CAPACITY_ROUNDS)):
        for server in bench.in_turn(first=number):
            if server.process is not None and first_of[server.process] is server:
                run = measure_capacity(server, bench.mock, _CAPACITY_S)
                results.capacity.setdefault(server.name, []).append(run)
                console.print(
                    f"  capacity {number + 1}, {server.name}: {run.streams_per_s:,.0f} streams/s", highlight=False
                )


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds of the figures.")
@click.option("--factor", default=1.0, show_default=True, help="Scales how long each scenario runs.")
@click.option(
    "--only", multiple=True, help="Figures, scenarios (globs) or parts: memory, slow-reader, capacity. Repeatable."
)
@click.option("--servers", help=f"Comma-separated, of {', '.join([*SERVERS, *PEERS])}. Default: {','.join(SERVERS)}.")
@click.option("--peers", is_flag=True, help="Every peer too; each is installed first, into .cache/bench.")
@click.option("--times", default=5, show_default=True, help="Runs of the slow reader.")
@click.option(
    "--python", help="Interpreter for servers in Python: a path, 3.13 or 3.14 (Debian's, fetched). Default: a PGO one."
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the results here, as JSON.")
def main(
    rounds: int,
    factor: float,
    only: tuple[str, ...],
    servers: str | None,
    *,
    peers: bool,
    times: int,
    python: str | None,
    output: Path | None,
) -> None:
    """Measure what Relay costs, against nginx and against other gateways."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if servers and peers:
        raise click.UsageError("--servers names all servers, peers too; --peers is for when it is absent")
    names = servers.split(",") if servers else [*SERVERS, *(PEERS if peers else ())]
    if unknown := set(names) - {*SERVERS, *PEERS}:
        raise click.UsageError(f"unknown servers: {', '.join(sorted(unknown))}; known: {', '.join([*SERVERS, *PEERS])}")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        raise click.UsageError("needs two CPUs: one for the server under test, one for the load")
    wanted = _wanted(only, factor, times)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    share_cpu(cpus[0])

    chosen = interpreter.choose(python)
    about = interpreter.describe(chosen)
    console.print(f"{about}, {len(wanted.scenarios)} scenarios, {rounds} rounds", highlight=False)
    when = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    results = report.Results(report.context_of(about, rounds, when))
    mock = Mock()
    try:
        _measure(wanted, names, Ground(cpu=cpus[-1], upstream=mock.port, python=chosen), mock, results, console)
    finally:
        mock.stop()
    for grid in report.grids(results):
        console.print(grid.for_terminal())
    for name, reason in results.context.skipped.items():
        console.print(f"without {name}: {reason}", style="red", highlight=False)
    if output:
        report.write(results, output)


if __name__ == "__main__":
    main()
