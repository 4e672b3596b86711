"""Plots of a run as SVG, for the docs: bars on a logarithmic scale, and lines on two of them.

    python -m bench.plots RESULTS.json FOLDER

Bars are drawn for runs with peers only. Colours are readable on a light and on a dark page; Relay's stands out.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bench import report
from bench.programs import LARGE_PROMPT, MEDIUM_PROMPT, SMALL_PROMPT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_INK = "#7d8590"
_OTHERS = "#8fa3bf"
_RELAY = "#e0672d"
_LINE_COLOURS = {"relay": _RELAY, "nginx": "#3f7fbf"}
_WHOLE_NUMBERS_FROM = 100
_ROW, _LINE_HEIGHT = 26, 15
_FONT = "font-family='system-ui, sans-serif' font-size='13'"

Points = list[tuple[float, float]]


def draw(results: report.Results, folder: Path) -> list[Path]:
    """Draw what the run has figures for, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, picture in _pictures(results):
        path = folder / f"{name}.svg"
        path.write_text(picture)
        drawn.append(path)
    return drawn


def _pictures(results: report.Results) -> Iterable[tuple[str, str]]:
    bars = (
        ("cpu-json", "CPU per non-stream request, µs"),
        ("cpu-stream-10", "CPU per 10-chunk stream, µs"),
        ("cpu-chunk-8", "CPU per chunk, 8 paced streams, µs"),
        ("cpu-chunk-64", "CPU per chunk, 64 paced streams, µs"),
        ("ttft-16-p50", "added TTFT, median, 16 paced streams, µs"),
        ("ttft-128-p99", "added TTFT, 99th percentile, 128 paced streams, µs"),
    )
    for figure, title in bars:
        values = {name: spread.median for name, spread in results.figures.get(figure, {}).items() if spread.median > 0}
        if not values.keys() <= report.OWN:
            yield figure, _bars(title, values)
    prompt = {SMALL_PROMPT: "cpu-json", MEDIUM_PROMPT: "cpu-json-32k", LARGE_PROMPT: "cpu-json-1m"}
    if lines := _series(results, prompt):
        yield "growth-prompt", _lines("CPU per request, µs, by size of the prompt", lines, _bytes)
    stream = {10: "cpu-stream-10", 200: "cpu-stream-200", 2000: "cpu-stream-2000"}
    if lines := _series(results, stream):
        yield "growth-stream", _lines("CPU per stream sent at once, µs, by number of chunks", lines, "{:,.0f}".format)
    memory = {
        server: [(float(run.streams), run.peak_bytes / 1e6) for run in runs if run.prompt_bytes == SMALL_PROMPT]
        for server, runs in results.streams.items()
    }
    if any(len(points) > 1 for points in memory.values()):
        yield "memory-streams", _lines("Resident memory, MB, by number of slow streams", memory, "{:,.0f}".format)


def _series(results: report.Results, figures: Mapping[int, str]) -> dict[str, Points]:
    series = {}
    for server in _LINE_COLOURS:
        points = [(float(at), value) for at, name in figures.items() if (value := results.median(name, server))]
        if len(points) > 1:
            series[server] = points
    return series


def _bytes(size: float) -> str:
    return f"{size / 2**20:g} MB" if size >= 2**20 else f"{size / 2**10:g} KB"


def _bars(title: str, values: Mapping[str, float]) -> str:
    left, width = 120, 420
    low = 10 ** math.floor(math.log10(min(values.values())))
    high = max(*values.values(), low * 10)
    parts = []
    for row, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        y = 40 + row * _ROW
        length = max(2.0, width * math.log(value / low) / math.log(high / low))
        colour = _RELAY if name.startswith("relay") else _OTHERS
        parts += [
            _text(left - 8, y + 14, name, anchor="end"),
            f"<rect x='{left}' y='{y + 2}' width='{length:.1f}' height='{_ROW - 8}' rx='2' fill='{colour}'/>",
            _text(left + length + 6, y + 14, f"{value:,.0f}" if value >= _WHOLE_NUMBERS_FROM else f"{value:.1f}"),
        ]
    return _picture(f"{title} (logarithmic, less is better)", left + width + 80, 50 + len(values) * _ROW, parts)


def _lines(title: str, series: Mapping[str, Points], label: Callable[[float], str]) -> str:
    left, top, width, height = 70, 40, 460, 220
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    floor, ceiling = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.0001))

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = math.log(y / floor) / math.log(ceiling / floor)
        return left + width * across, top + height * (1 - up)

    parts = []
    decade = floor
    while decade <= ceiling:
        _, y = place(xs[0], decade)
        parts.append(f"<line x1='{left}' x2='{left + width}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_INK}' opacity='.3'/>")
        parts.append(_text(left - 8, y + 4, f"{decade:,.0f}", anchor="end"))
        decade *= 10
    parts += [_text(place(x, floor)[0], top + height + 20, label(x), anchor="middle") for x in xs]
    label_y = -math.inf
    for name, points in sorted(series.items(), key=lambda line: -line[1][-1][1]):
        colour = _LINE_COLOURS.get(name, _OTHERS)
        placed = [place(x, y) for x, y in points]
        parts += [
            f"<line x1='{a:.1f}' y1='{b:.1f}' x2='{c:.1f}' y2='{d:.1f}' stroke='{colour}' stroke-width='2'/>"
            for (a, b), (c, d) in pairwise(placed)
        ]
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{colour}'/>" for x, y in placed]
        label_y = max(label_y + _LINE_HEIGHT, placed[-1][1] + 4)  # lines that end together would share a place
        parts.append(_text(placed[-1][0] + 8, label_y, name, colour=colour))
    return _picture(f"{title} (both logarithmic)", left + width + 110, top + height + 40, parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'>{escape(text)}</text>"


def _picture(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' {_FONT}>"
    heading = _text(8, 22, title).replace("<text", "<text font-weight='600'")
    return "\n".join([head, f"<title>{escape(title)}</title>", heading, *parts, "</svg>", ""])


if __name__ == "__main__":
    for drawn_file in draw(report.read(Path(sys.argv[1])), Path(sys.argv[2])):
        print(drawn_file)
