"""What a run found: summed up, held against the targets, printed and written."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from rich.table import Table

from bench.capacity import Capacity
from bench.figures import FIGURES, RATES, SCENARIOS, Figure, Sample
from bench.interpreter import Interpreter
from bench.memory import A_THOUSAND, FIVE_THOUSAND, ManyStreams, SlowReader
from bench.programs import SMALL_PROMPT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

OWN = frozenset({"direct", "nginx", "relay", "relay-single"})
"""Servers of every run; all others are peers."""
_WHOLE_NUMBERS_FROM = 1000
"""Values this large are shown without a fraction."""


class Spread(msgspec.Struct, frozen=True):
    """A figure over the rounds."""

    median: float
    low: float
    high: float


class Context(msgspec.Struct, frozen=True):
    """Where and on what a run was made.

    Attributes:
        when: UTC, ISO 8601.
        commit: of Relay; `+` if the working tree had changes.
        machine: CPU, cores, kernel.
        interpreter: that ran Relay and other servers in Python.
        rounds: how often each scenario ran.
        versions: server -> version.
        skipped: server -> why it could not run.
    """

    when: str
    commit: str
    machine: str
    interpreter: Interpreter
    rounds: int
    versions: dict[str, str]
    skipped: dict[str, str]


class Results(msgspec.Struct):
    """All of a run.

    Attributes:
        context: where and on what.
        rounds: one per round: server -> scenario -> sample.
        figures: figure -> server -> its spread over the rounds.
        streams: server -> runs with many slow streams.
        slow_readers: server -> runs with a slow reader.
        capacity: server -> its capacity in each round.
    """

    context: Context
    rounds: list[dict[str, dict[str, Sample]]] = msgspec.field(default_factory=list)
    figures: dict[str, dict[str, Spread]] = msgspec.field(default_factory=dict)
    streams: dict[str, list[ManyStreams]] = msgspec.field(default_factory=dict)
    slow_readers: dict[str, list[SlowReader]] = msgspec.field(default_factory=dict)
    capacity: dict[str, list[Capacity]] = msgspec.field(default_factory=dict)

    def median(self, figure: str, server: str) -> float | None:
        """Of a figure over the rounds, if it was measured."""
        spread = self.figures.get(figure, {}).get(server)
        return spread.median if spread else None

    def sum_up(self) -> None:
        """Fill `figures` from `rounds`."""
        self.figures = {figure.name: spreads for figure in FIGURES if (spreads := self._spreads(figure))}

    def _spreads(self, figure: Figure) -> dict[str, Spread]:
        values: dict[str, list[float]] = {}
        for servers in self.rounds:
            direct = servers.get("direct", {})
            for server, samples in servers.items():
                have_direct = not any(SCENARIOS[need].direct for need in figure.needs) or all(
                    need in direct for need in figure.needs
                )
                if server != "direct" and have_direct and all(need in samples for need in figure.needs):
                    values.setdefault(server, []).append(figure.read(samples, direct))
        return {server: Spread(statistics.median(seen), min(seen), max(seen)) for server, seen in values.items()}


@dataclass(frozen=True)
class Target:
    """A line of the promise.

    Attributes:
        title: what is promised.
        read: its value, None if it was not measured.
        bar: what it must reach.
        stretch: what it would be good to reach; None if the bar is all that is asked.
        show: how a value is written.
        better: "less" or "more".
    """

    title: str
    read: Callable[[Results], float | None]
    bar: float
    stretch: float | None
    show: str = "{:.2f} x nginx"
    better: str = "less"

    def met(self, value: float, wanted: float) -> bool:
        """Whether that value is at least as good as wanted."""
        return value <= wanted if self.better == "less" else value >= wanted


def _ratio(figure: str, server: str = "relay") -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        mine, nginx = results.median(figure, server), results.median(figure, "nginx")
        # What is added to nothing is no multiple of it: nginx's percentiles may lie below those without any server.
        return mine / nginx if mine is not None and nginx is not None and nginx > 0 else None

    return read


def _cpu_targets(title: str, figure: str, server: str, bar: float, stretch: float) -> Iterator[Target]:
    """Of one cost: as fast as 16 requests in flight are answered, and at rates that are the same for all servers."""
    yield Target(title, _ratio(figure, server), bar, stretch)
    for pace, rate in RATES.items():
        yield Target(f"… at {rate:,} requests/s", _ratio(f"{figure}-{pace}", server), bar, stretch)


def _streams(count: int, value: Callable[[ManyStreams], float]) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        runs = [
            run for run in results.streams.get("relay", []) if run.streams == count and run.prompt_bytes == SMALL_PROMPT
        ]
        return statistics.median(map(value, runs)) if runs else None

    return read


def _capacity(results: Results) -> float | None:
    runs = results.capacity.get("relay")
    return statistics.median(run.streams_per_s for run in runs) if runs else None


def _slow_readers_right(results: Results) -> float | None:
    runs = results.slow_readers.get("relay")
    return sum(run.right for run in runs) / len(runs) if runs else None


def _slow_readers_grow(results: Results) -> float | None:
    runs = results.slow_readers.get("relay")
    return max(run.peak_bytes - runs[0].before_bytes for run in runs) / 1e6 if runs else None


TARGETS = (
    *_cpu_targets("CPU per non-stream request", "cpu-json", "relay", 5, 3),
    *_cpu_targets("CPU per request, one candidate, budgets off", "cpu-json", "relay-single", 2.5, 1.6),
    *_cpu_targets("CPU per 10-chunk stream", "cpu-stream-10", "relay", 4, 2.5),
    Target("CPU per paced chunk, 8 streams", _ratio("cpu-chunk-8"), 1.4, 1.15),
    Target("CPU per paced chunk, 64 streams", _ratio("cpu-chunk-64"), 1.4, 1.15),
    *(
        Target(f"added TTFT {percentile}, {streams} paced", _ratio(f"ttft-{streams}-{percentile}"), 2, 1.3)
        for streams in (1, 16, 128)
        for percentile in ("p50", "p99")
    ),
    Target("streams/s on one CPU (LiteLLM's bench)", _capacity, 600, 1500, "{:,.0f}", "more"),
    Target("memory per slow stream", _streams(A_THOUSAND, lambda run: run.per_stream_bytes / 1e3), 40, 20, "{:.1f} KB"),
    Target(
        "worker with 1,000 slow streams", _streams(A_THOUSAND, lambda run: run.peak_bytes / 1e6), 80, 60, "{:.1f} MB"
    ),
    Target(
        "5,000 slow streams: complete",
        _streams(FIVE_THOUSAND, lambda run: run.completed),
        5000,
        None,
        "{:,.0f}",
        "more",
    ),
    Target("80 MB to a slow reader: right", _slow_readers_right, 1, None, "{:.0%}", "more"),
    Target("80 MB to a slow reader: memory grows by", _slow_readers_grow, 5, None, "{:.1f} MB"),
)
_PEERS_TO_BEAT = (
    ("ferrogw", "bar"),
    ("portkey", "bar"),
    ("litellm", "bar"),
    ("vllm-router", "stretch"),
    ("sglang-router", "stretch"),
)


class Grid(NamedTuple):
    """A table, however it is shown: the first column names the row, the others are numbers or verdicts."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def for_terminal(self) -> Table:
        """With rich, verdicts in colour."""
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(_COLOURS.get(cell, "{}").format(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """As a GitHub table."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [self.columns, rule, *self.rows])


_MISSED, _BAR, _STRETCH = "missed", "bar", "stretch"
_COLOURS = {_MISSED: "[red]{}[/]", _BAR: "[yellow]{}[/]", _STRETCH: "[green]{}[/]"}
"""How far a target is reached."""


def figures_grid(results: Results) -> Grid:
    """Figures by server: medians over the rounds, and how many times nginx's."""
    servers = list(dict.fromkeys(server for spreads in results.figures.values() for server in spreads))
    rows = [
        [f"{figure.title}, {figure.unit}", *(_cell(spreads, server) for server in servers)]
        for figure in FIGURES
        if (spreads := results.figures.get(figure.name))
    ]
    return Grid("Medians over the rounds, and how many times nginx's", ["figure", *servers], rows)


def _cell(spreads: Mapping[str, Spread], server: str) -> str:
    if server not in spreads:
        return ""
    value = spreads[server].median
    nginx = spreads.get("nginx")
    ratio = f" ({value / nginx.median:,.2f})" if nginx and nginx.median > 0 and server != "nginx" else ""
    return f"{_number(value)}{ratio}"


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < _WHOLE_NUMBERS_FROM else f"{value:,.0f}"


def targets_grid(results: Results) -> Grid:
    """Relay against what it promises."""
    rows = []
    for target in TARGETS:
        value = target.read(results)
        if value is not None:
            stretch = "" if target.stretch is None else target.show.format(target.stretch)
            rows.append([target.title, target.show.format(value), target.show.format(target.bar), stretch])
            rows[-1].append(_reached(target, value))
    for peer, level in _PEERS_TO_BEAT:
        mine, theirs = results.median("cpu-json", "relay"), results.median("cpu-json", peer)
        if mine is not None and theirs is not None:
            reached = level if mine < theirs else _MISSED
            rows.append([f"CPU per request below {peer}", f"{mine:,.0f} µs", f"{theirs:,.0f} µs", "", reached])
    return Grid("Targets", ["target", "Relay", "bar", "stretch", "reached"], rows)


def _reached(target: Target, value: float) -> str:
    if not target.met(value, target.bar):
        return _MISSED
    return _STRETCH if target.stretch is not None and target.met(value, target.stretch) else _BAR


def memory_grid(results: Results) -> Grid:
    """Memory by server."""
    rows = [
        [
            f"{server}, {run.streams:,} streams, prompts of {run.prompt_bytes // 1024:,} KB",
            f"{run.completed:,}",
            *(f"{size / 1e6:.1f}" for size in (run.idle_bytes, run.peak_bytes, run.after_bytes)),
            f"{run.per_stream_bytes / 1e3:,.1f}",
        ]
        for server, runs in results.streams.items()
        for run in runs
    ]
    columns = ["slow streams", "completed", "idle, MB", "peak, MB", "2 s after, MB", "per stream, KB"]
    return Grid("Resident memory", columns, rows)


def capacity_grid(results: Results) -> Grid:
    """Streams per second by server: medians over the rounds."""
    rows = [
        [server, f"{statistics.median(run.streams_per_s for run in runs):,.0f}"]
        for server, runs in results.capacity.items()
    ]
    return Grid("LiteLLM's streaming bench", ["server", "streams/s on one CPU"], rows)


_HEADLINE = (
    ("cpu-json", "CPU per request, µs"),
    ("cpu-stream-10", "CPU per 10-chunk stream, µs"),
    ("cpu-chunk-8", "CPU per paced chunk, µs"),
    ("ttft-16-p50", "added TTFT p50, µs"),
)


def headline_grid(results: Results) -> Grid:
    """A few figures, one server a line, the cheapest first."""
    servers = sorted(
        results.figures.get("cpu-json", {}),
        key=lambda server: results.median("cpu-json", server) or 0,
    )
    rows = []
    for server in servers:
        values = [results.median(figure, server) for figure, _ in _HEADLINE]
        runs = results.capacity.get(server)
        streams = f"{statistics.median(run.streams_per_s for run in runs):,.0f}" if runs else ""
        version = results.context.versions.get(server, "")
        name = f"**{server}**" if server.startswith("relay") else f"{server} {version}".strip()
        rows.append([name, *("" if value is None else _number(value) for value in values), streams])
    return Grid("At a glance", ["gateway", *(title for _, title in _HEADLINE), "streams/s per CPU"], rows)


def grids(results: Results) -> list[Grid]:
    """All tables that have rows."""
    makers = (figures_grid, memory_grid, capacity_grid, targets_grid)
    return [grid for maker in makers if (grid := maker(results)).rows]


def context_of(interpreter: Interpreter, rounds: int, when: str) -> Context:
    """Describe this machine and this working tree."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return Context(
        when=when,
        commit=_commit(),
        machine=f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}",
        interpreter=msgspec.structs.replace(interpreter, path=Path(interpreter.path).name),
        rounds=rounds,
        versions={},
        skipped={},
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "relay")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def write(results: Results, path: Path) -> None:
    """As JSON, for the record and for the plots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def read(path: Path) -> Results:
    """What `write` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
