"""Plots of learned budgets as SVG, for docs/budgets.md.

python -m bench.budget_plots bench/results/budgets.json docs/img
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

import msgspec

from bench.budgets import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_INK = "#7d8590"
_COLOURS = ("#8fa3bf", "#e0672d", "#3f7fbf")  # readable on a light and on a dark page
_FONT = "font-family='system-ui, sans-serif' font-size='13'"
_LEFT, _TOP, _WIDTH, _HEIGHT = 60, 40, 460, 240

Points = list[tuple[float, float]]


class Axis(NamedTuple):
    """From where to where, in how many steps, and how a value is written."""

    name: str
    low: float
    high: float
    steps: int
    label: Callable[[float], str]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def main() -> None:
    """Draw what a run found."""
    results = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Results)
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(results):
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def pictures(results: Results) -> Iterator[tuple[str, str]]:
    """Names of files and what belongs into them."""
    extended = Axis("answers continued", 0.0, 0.16, 8, "{:.0%}".format)
    reserved = Axis("reserved, against a fixed limit that truncates 1 %", 0.2, 0.8, 6, "{:.0%}".format)
    for number, report in enumerate(results.reports, 1):
        lines = {name: report.frontier[name] for name in ("best constant", "learned from all")}
        yield f"budgets-frontier-{number}", chart(report.name, extended, reserved, lines)
    points = [(float(index), reserved) for index, (_, _, reserved) in enumerate(results.convergence)]
    starts = [start for start, _, _ in results.convergence]
    first = Axis(
        "request of its application", 0, len(starts) - 1, len(starts) - 1, lambda index: str(starts[round(index)])
    )
    constant = results.reports[-1].figures["best constant, extended"].reserved / results.reports[-1].baseline
    lines = {"best constant": [(0.0, constant), (float(len(starts) - 1), constant)], "learned from all": points}
    yield (
        "budgets-convergence",
        chart("How fast an application is learned", first, reserved._replace(high=0.6, steps=4), lines),
    )


def chart(title: str, across: Axis, up: Axis, lines: Mapping[str, Points]) -> str:
    """Lines on two linear axes."""
    parts = [text(_LEFT, 20, title)]
    for axis, draw in ((across, vertical), (up, horizontal)):
        for step in range(axis.steps + 1):
            value = axis.low + step * (axis.high - axis.low) / axis.steps
            parts += draw(axis.place(value), axis.label(value))
    parts.append(text(_LEFT + _WIDTH, _TOP + _HEIGHT + 38, across.name, anchor="end"))
    parts.append(text(_LEFT + 4, _TOP + 14, up.name))
    for (name, points), colour in zip(lines.items(), _COLOURS, strict=False):
        inside = [(x, y) for x, y in points if across.low <= x <= across.high and up.low <= y <= up.high]
        spots = [(_LEFT + _WIDTH * across.place(x), _TOP + _HEIGHT * (1 - up.place(y))) for x, y in inside]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts.append(text(_LEFT + _WIDTH + 8, spots[-1][1] + 4, name, colour=colour))
    width, height = _LEFT + _WIDTH + 160, _TOP + _HEIGHT + 50
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>"
    return "\n".join([head, *parts, "</svg>", ""])


def vertical(at: float, label: str) -> Sequence[str]:
    """A mark below the axis."""
    return [text(_LEFT + _WIDTH * at, _TOP + _HEIGHT + 18, label, anchor="middle")]


def horizontal(at: float, label: str) -> Sequence[str]:
    """A line across, and its value."""
    y = _TOP + _HEIGHT * (1 - at)
    line = f"<line x1='{_LEFT}' x2='{_LEFT + _WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_INK}' opacity='.3'/>"
    return [line, text(_LEFT - 8, y + 4, label, anchor="end")]


def text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = _INK) -> str:
    """Words at a place."""
    return f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' text-anchor='{anchor}' {_FONT}>{escape(words)}</text>"


if __name__ == "__main__":
    main()
