"""Reads the tables of a merged set through the schema, and notes what is wrong where."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from relay.errors import Finding
from relay.policy import schema
from relay.policy.json_schema import Node, json_schema, keys_of, node_at
from relay.policy.wording import allowed, dotted, found, listed, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

    from relay.policy.sources import Sources
    from relay.policy.toml_lines import Path

AnyTable = TypeVar("AnyTable", bound=schema.Table)

_KEY_STEP = "[key]"
_NOT_KEYS = {_KEY_STEP, schema.TEXT_TAG, schema.REFERENCE_TAG}
"""What pydantic puts into an error's path beside keys."""


@cache
def _schema() -> Node:
    return json_schema()


class Tables:
    """One merged set.

    A table that does not fit the schema is read again without the keys at fault, so that one run finds what is wrong
    everywhere; if it cannot do without them, it is passed over.

    Attributes:
        findings: what was found wrong so far, the sources' own findings first.
        complete: whether all files could be read; if not, an undefined name is no finding.
    """

    def __init__(self, sources: Sources) -> None:
        self.findings = sources.findings
        self.complete = sources.complete
        self._sources = sources
        self._raw = sources.raw

    # --- reading ---------------------------------------------------------------------------------------------

    def check_sections(self) -> None:
        """Find sections that no set has, sections of another type, and a version that this Relay does not know."""
        self._read((), {name: _hollow(name, value) for name, value in self._raw.items()}, schema.PolicySet)
        if "version" not in self._raw and self.complete:
            self.error(("version",), "missing; one file of the set has to say version = 1")

    def single(self, section: str, table: type[AnyTable]) -> AnyTable:
        """A table that a set has once; its defaults if it is absent or broken."""
        return self._read((section,), self._entries(section), table) or table()

    def has(self, section: str) -> bool:
        """Whether a set speaks of a section at all."""
        return section in self._raw

    def named(self, section: str, table: type[AnyTable]) -> Iterator[tuple[str, AnyTable]]:
        """The tables of a section, by name."""
        for name, raw in self._entries(section).items():
            if re.fullmatch(schema.NAME, name) is None:
                self.error((section, name), f"allowed is {schema.PATTERN_WORDS[schema.NAME]}")
            read = self._read((section, name), raw, table)
            if read is not None:
                yield name, read

    def routes(self) -> Iterator[tuple[Path, schema.Route]]:
        """The routes in order, each with its path."""
        first: dict[str, Path] = {}
        for position, raw in enumerate(self._raw_routes()):
            path: Path = ("routes", position)
            name = _name(raw)
            read = self._read(path, raw, schema.Route)
            if name is not None and first.setdefault(name, path) != path:
                self.error((*path, "name"), f"already defined at {self.place((*first[name], 'name'))}")
            elif read is not None:
                yield path, read

    def names(self, section: str) -> list[str]:
        """All names that a section defines, those of broken tables too."""
        if section == "routes":
            return [name for name in map(_name, self._raw_routes()) if name is not None]
        return list(self._entries(section))

    def _entries(self, section: str) -> dict[str, Any]:
        entries = self._raw.get(section)
        return entries if isinstance(entries, dict) else {}

    def _raw_routes(self) -> list[Any]:
        routes = self._raw.get("routes")
        return routes if isinstance(routes, list) else []

    def _read(self, path: Path, raw: Any, table: type[AnyTable]) -> AnyTable | None:
        try:
            return table.model_validate(raw)
        except ValidationError as error:
            at_fault = {self._explain(path, detail) for detail in error.errors(include_url=False)}
        rest = {key: value for key, value in raw.items() if key not in at_fault} if isinstance(raw, dict) else raw
        try:
            return table.model_validate(rest)
        except ValidationError:
            return None

    # --- noting ----------------------------------------------------------------------------------------------

    @property
    def broken(self) -> bool:
        """Whether an error was noted: the set does not load."""
        return any(finding.severity == "error" for finding in self.findings)

    def error(self, path: Path, message: str) -> None:
        """Note what keeps the set from loading."""
        self._note(path, message, "error")

    def warning(self, path: Path, message: str) -> None:
        """Note what is probably not meant."""
        self._note(path, message, "warning")

    def place(self, path: Path) -> str:
        """File and line of a part, for messages that point at a second place."""
        return str(self._sources.place(path))

    def refer(self, path: Path, name: str, *sections: str) -> None:
        """Note that a name is not defined in any of these sections, unless a file that may define it is unreadable."""
        known = [defined for section in sections for defined in self.names(section)]
        if name in known or not self.complete:
            return
        kinds = " or ".join(section.removesuffix("s") for section in sections)
        choice = f"allowed are {listed(known)}" if known else "none is defined"
        self.error(
            path, f"found {found(name, secret=False)}, but no {kinds} has that name{nearest(name, known)}; {choice}"
        )

    def _note(self, path: Path, message: str, severity: str) -> None:
        file, line = self._sources.place(path)
        self.findings.append(Finding(file, line, dotted(self._named(path)), message, severity))

    def _named(self, path: Path) -> Path:
        """A route's name in the place of its position, which means little once files are merged."""
        match path:
            case ("routes", int(position), *rest):
                name = _name(self._raw_routes()[position])
                return path if name is None else ("routes", name, *rest)
            case _:
                return path

    def _explain(self, path: Path, detail: ErrorDetails) -> str | int | None:
        """Note one of pydantic's errors in our own words; returns the key of the table that is at fault."""
        inside = _keys(detail)
        at = (*path, *inside)
        node = node_at(_schema(), at) or {}
        what = found(detail["input"], secret="writeOnly" in node)
        match detail["type"]:
            case "missing":
                self.error(at, f"missing; allowed is {allowed(node)}")
            case "extra_forbidden":
                known = keys_of(node_at(_schema(), at[:-1]) or {})
                self.error(at, f"unknown key{nearest(str(at[-1]), known)}; allowed are {listed(known)}")
            case "value_error":
                self.error(at, f"found {what}; {detail['ctx']['error']}")
            case "string_pattern_mismatch" if detail["loc"][-1] == _KEY_STEP:
                self.error(at, f"allowed is {schema.PATTERN_WORDS[detail['ctx']['pattern']]}")
            case _:
                self.error(at, f"found {what}; allowed is {allowed(node)}")
        return inside[0] if inside else None


def _keys(detail: ErrorDetails) -> list[str | int]:
    """The keys in the path of one of pydantic's errors. An unknown key is one whatever it looks like."""
    unknown = len(detail["loc"]) - 1 if detail["type"] == "extra_forbidden" else None
    return [step for depth, step in enumerate(detail["loc"]) if depth == unknown or step not in _NOT_KEYS]


def _name(route: Any) -> str | None:
    """A route's name as far as it has one."""
    name = route.get("name") if isinstance(route, dict) else None
    return name if isinstance(name, str) else None


def _hollow(section: str, value: Any) -> Any:
    """A section without its content, which is read table by table."""
    kind = list if section == "routes" else dict
    return kind() if isinstance(value, kind) else value
