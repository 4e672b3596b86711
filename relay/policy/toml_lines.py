"""Which line a key of a TOML document stands on: tomllib tells what a document says, but not where.

Only for documents that tomllib has read: it checks nothing itself, so a scan needs no more than the shapes of
keys, strings, arrays, inline tables and "everything else up to a delimiter".
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]
"""Keys and array positions (counting from 0) from the top of a document."""

_BLANK = re.compile(r"(?: |\t|\r|\n|#[^\n]*)*+")
_KEY_PART = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|("(?:[^"\\]|\\.)*+"|'[^']*+'))[ \t]*""")
# A multi-line string may end with up to two quotation marks of its own before the closing three.
_STRING = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*+"{3,5}|\'\'\'(?:[^']|'(?!''))*+'{3,5}|"(?:[^"\\]|\\.)*+"|'[^']*+\'''', re.DOTALL
)
_PLAIN = re.compile(r"[^,\]}#\n]+")


def locate(text: str) -> dict[Path, int]:
    """Find where everything in a document first appears.

    Args:
        text: a document that `tomllib.loads` accepts.

    Returns:
        For each table, key and array item, a dotted key's and a header's inner tables included, its line, counting
        from 1. For a table that is opened in several places, the first one.

    Raises:
        RecursionError: arrays or inline tables are nested deeper than Python's stack; tomllib itself fails there.
    """
    return _Scan(text).lines


class _Scan:
    """One pass over one document; every method reads on from `self.at`."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line_starts = [match.end() for match in re.finditer("\n", text)]
        self._array_tables: dict[Path, int] = {}
        table: Path = ()
        self._skip(_BLANK)
        while self._at < len(text):
            if text[self._at] == "[":
                table = self._header()
            else:
                self._assignment(table)
            self._skip(_BLANK)

    def _header(self) -> Path:
        """`[a.b]` or `[[a.b]]`. A name on the way that is an array of tables stands for its latest one."""
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        keys = self._key()
        self._at += 2 if is_array else 1
        path: Path = ()
        for depth, key in enumerate(keys, 1):
            path = (*path, key)
            if is_array and depth == len(keys):
                self._array_tables[path] = self._array_tables.get(path, 0) + 1
            self.lines.setdefault(path, line)
            if path in self._array_tables:
                path = (*path, self._array_tables[path] - 1)
                self.lines.setdefault(path, line)
        return path

    def _assignment(self, table: Path) -> None:
        line = self._line()
        path = table
        for key in self._key():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._text[self._at] == "[":
            self._array(path)
        elif self._text[self._at] == "{":
            self._inline_table(path)
        elif self._text[self._at] in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_PLAIN)

    def _array(self, path: Path) -> None:
        index = 0
        while self._enter_item("]"):
            item = (*path, index)
            self.lines[item] = self._line()
            self._value(item)
            index += 1

    def _inline_table(self, path: Path) -> None:
        while self._enter_item("}"):
            self._assignment(path)

    def _enter_item(self, end: str) -> bool:
        """From an opening bracket or from behind an item: to the next item, or out behind the closing bracket."""
        self._skip(_BLANK)
        if self._text[self._at] != end:
            self._at += 1  # the opening bracket or a comma
            self._skip(_BLANK)
        if self._text[self._at] != end:
            return True
        self._at += 1
        return False

    def _key(self) -> list[str]:
        """A key's parts, the dots between them taken, quotation marks and escapes undone by tomllib."""
        parts = []
        while True:
            match = self._skip(_KEY_PART)
            bare, quoted = match.groups()
            parts.append(bare if quoted is None else tomllib.loads(f"key = {quoted}")["key"])
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        assert match is not None, "only for documents that tomllib accepts"  # noqa: S101
        self._at = match.end()
        return match

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at) + 1
