"""Reads the project's own pages: tables, links and headings."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def rows(page: str, heading: str, *, table: int = 0) -> list[dict[str, str]]:
    """A table under a heading, each row by its columns' names.

    Args:
        page: path from the root.
        heading: without its `#`.
        table: which one, if there are several under this heading.
    """
    tables = re.findall(r"(?:^\|.*\n)+", sections(page)[heading], flags=re.MULTILINE)
    header, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in tables[table].splitlines())
    return [dict(zip(header, cells, strict=True)) for cells in body]


def sections(page: str) -> dict[str, str]:
    """The text under each heading, up to the next one of any level."""
    parts = re.split(r"^#+ (.+)$", without_code_blocks(ROOT / page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def first_code(cells: list[str]) -> set[str]:
    """The first thing in backticks of each cell, which every cell must have."""
    return {code(cell)[0] for cell in cells}


def links(page: Path) -> list[str]:
    """Targets of links that stay within the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(page))
    return [target for target in targets if not target.startswith(("https://", "http://"))]


def anchors(page: Path) -> set[str]:
    """What links may name behind `#`: headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code_blocks(page: Path) -> str:
    """The page's text outside ``` fences, in which `#` and `[` mean other things."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
