"""Policy files as one raw document in which everything knows where it stands."""

from __future__ import annotations

import re
import tomllib
from ast import literal_eval
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from relay.errors import Finding
from relay.policy.toml_lines import Path, locate
from relay.policy.wording import dotted

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOML_ERROR = re.compile(
    r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.DOTALL
)
_DECLARED_TWICE = re.compile(r"Cannot declare (\(.*\)) twice")


class Place(NamedTuple):
    """A line of a file, counting from 1; 0 is the file as a whole."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Sources(msgspec.Struct):
    """All files of a set.

    Attributes:
        raw: the files' content, merged.
        places: where each part of `raw` stands, by its path in there.
        complete: whether every file was valid TOML; if not, names may be missing.
        findings: what was wrong so far.
    """

    raw: dict[str, Any]
    places: dict[Path, Place]
    complete: bool
    findings: list[Finding]

    def place(self, path: Path) -> Place:
        """Where a part stands, or the nearest thing around it that stands somewhere."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]


def read(files: Mapping[str, str]) -> Sources:
    """Read and merge files in the order of their names.

    Tables that are no entries themselves (`[requests]`, `[models]`, …) are merged key by key, arrays of tables
    (`[[routes]]`) put one behind the other. What two files both define is a finding that names both places; the first
    one stays.

    Args:
        files: path -> text, at least one.
    """
    sources = Sources(raw={}, places={(): Place(min(files), 0)}, complete=True, findings=[])
    for file in sorted(files):
        try:
            document = tomllib.loads(files[file])
            lines = locate(files[file])
        except (ValueError, RecursionError) as error:
            sources.complete = False
            sources.findings.append(_syntax_error(file, files[file], error))
        else:
            _merge(sources, document, {path: Place(file, line) for path, line in lines.items()})
    return sources


def _merge(sources: Sources, document: dict[str, Any], places: dict[Path, Place]) -> None:
    raw = sources.raw
    shift: dict[str, int] = {}
    for section, value in document.items():
        before = raw.get(section)
        if section not in raw:
            raw[section] = value.copy() if isinstance(value, dict | list) else value
        elif isinstance(before, dict) and isinstance(value, dict):
            for name in filter(before.__contains__, value):
                there = sources.places[section, name]
                _note(sources, places, (section, name), f"already defined at {there}; one file of a set may define it")
            raw[section] = value | before
        elif isinstance(before, list) and isinstance(value, list):
            shift[section] = len(before)
            before.extend(value)
        elif (type(before), before) != (type(value), value):
            _note(sources, places, (section,), f"differs from what {sources.places[section,]} says")
    for path, place in places.items():
        if len(path) > 1 and path[0] in shift and isinstance(path[1], int):
            path = (path[0], path[1] + shift[path[0]], *path[2:])  # noqa: PLW2901
        sources.places.setdefault(path, place)


def _note(sources: Sources, places: Mapping[Path, Place], path: Path, message: str) -> None:
    file, line = places[path]
    sources.findings.append(Finding(file, line, dotted(path), message))


def _syntax_error(file: str, text: str, error: ValueError | RecursionError) -> Finding:
    if isinstance(error, RecursionError):
        return Finding(file, 0, "", "arrays or tables are nested too deeply")
    match = _TOML_ERROR.fullmatch(str(error))
    if match is None:  # a number that Python refuses to read, for example
        return Finding(file, 0, "", f"not valid TOML: {str(error).partition(';')[0]}")
    what, column = match["what"], match["column"]
    line = int(match["line"]) if column else text.count("\n") + 1
    again = _DECLARED_TWICE.fullmatch(what)
    if again:
        path = literal_eval(again[1])
        return Finding(file, line, dotted(path), f"already defined at {Place(file, _line_before(text, line, path))}")
    where = f"column {column}" if column else "at the end of the file"
    return Finding(file, line, "", f"not valid TOML: {what} ({where})")


def _line_before(text: str, line: int, keys: tuple[str, ...]) -> int:
    """Where a table that is defined again on a line was defined; within an array of tables, in its latest one."""
    above = locate("\n".join(text.split("\n")[: line - 1]))
    return [at for path, at in above.items() if tuple(step for step in path if isinstance(step, str)) == keys][-1]
