"""Put results into pages: a table between two markers is replaced by what was measured last.

    python -m bench.pages RESULTS.json PAGE.md...

A page has the markers `<!-- bench NAME -->` and `<!-- /bench -->` on lines of their own, where NAME is one of those in
`BLOCKS`. What the results do not hold stays as it is.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import report

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = re.compile(r"(?P<start><!-- bench (?P<name>[a-z-]+) -->\n).*?(?P<end><!-- /bench -->)", re.DOTALL)


def _context(results: report.Results) -> str:
    context = results.context
    return (
        f"{context.when[:10]}, commit {context.commit}, {context.interpreter}, {context.machine}, "
        f"{context.rounds} round(s).\n"
    )


def _table(grid: report.Grid) -> str:
    return f"{grid.markdown()}\n" if grid.rows else ""


BLOCKS: dict[str, Callable[[report.Results], str]] = {
    "context": _context,
    "targets": lambda results: _table(report.targets_grid(results)),
    "figures": lambda results: _table(report.figures_grid(results)),
    "memory": lambda results: _table(report.memory_grid(results)),
    "capacity": lambda results: _table(report.capacity_grid(results)),
    "peers-context": _context,
    "peers": lambda results: _table(report.headline_grid(results)),
    "peers-figures": lambda results: _table(report.figures_grid(results)),
}
"""Those that begin with `peers` are filled from runs with peers alone, the others from runs without."""


def fill(page: str, results: report.Results) -> str:
    """The page with its blocks replaced.

    Raises:
        KeyError: a block of an unknown name.
    """
    with_peers = any(name not in report.OWN for name in results.context.versions)

    def replace(block: re.Match[str]) -> str:
        text = BLOCKS[block["name"]](results)
        fits = block["name"].startswith("peers") == with_peers
        return f"{block['start']}{text}{block['end']}" if text and fits else block[0]

    return _BLOCK.sub(replace, page)


if __name__ == "__main__":
    found = report.read(Path(sys.argv[1]))
    for path in map(Path, sys.argv[2:]):
        path.write_text(fill(path.read_text(), found))
