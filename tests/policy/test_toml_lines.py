"""The locator: every path that tomllib reads has the line on which it stands."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.toml_lines import Path, locate

CASES = {
    "tables": ("[a]\nx = 1\n\n[b.c]\ny = 2", {("a",): 1, ("a", "x"): 2, ("b",): 4, ("b", "c"): 4, ("b", "c", "y"): 5}),
    "no table": ("# first\n\nx = 1", {("x",): 3}),
    "dotted keys": ("a . b.c = 1\na.d = 2", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "d"): 2}),
    "quoted keys": (
        '\'a.b\' = 1\n"c#\\u0064" = 2\n[\'e]\'."f.g"]\n"" = 3',
        {("a.b",): 1, ("c#d",): 2, ("e]",): 3, ("e]", "f.g"): 3, ("e]", "f.g", ""): 4},
    ),
    "arrays of tables": (
        "[[r]]\nx = 1\n[[r]]\n[r.m]\ny = 2\n[[r.s]]\n[[r.s]]\nz = 3",
        {
            ("r",): 1,
            ("r", 0): 1,
            ("r", 0, "x"): 2,
            ("r", 1): 3,
            ("r", 1, "m"): 4,
            ("r", 1, "m", "y"): 5,
            ("r", 1, "s"): 6,
            ("r", 1, "s", 0): 6,
            ("r", 1, "s", 1): 7,
            ("r", 1, "s", 1, "z"): 8,
        },
    ),
    "inline tables": (
        "a = { b = 1, c.d = { e = 2 } }\nf = {}",
        {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1, ("a", "c", "d", "e"): 1, ("f",): 2},
    ),
    "arrays over lines": (
        "a = [ # one ]\n  1,\n\n  [2,\n  3], # ,\n  { b = 4 },\n]\nc = []",
        {
            ("a",): 1,
            ("a", 0): 2,
            ("a", 1): 4,
            ("a", 1, 0): 4,
            ("a", 1, 1): 5,
            ("a", 2): 6,
            ("a", 2, "b"): 6,
            ("c",): 8,
        },
    ),
    "strings over lines": (
        'a = """\n[x]\ny = 1 \\\n""""" # end\nb = \'\'\'\n\\\'\'\'\'\nc = "\\"#" # x = 1\nd = \'\\\'',
        {("a",): 1, ("b",): 5, ("c",): 7, ("d",): 8},
    ),
    "scalars": (
        "a = 1979-05-27 07:32:00Z # x\nb = [1e3,inf,true]\nc = 07:32:00",
        {("a",): 1, ("b",): 2, ("b", 0): 2, ("b", 1): 2, ("b", 2): 2, ("c",): 3},
    ),
    "line ends of Windows": (
        "[a]\r\nx = 1\r\ny = [\r\n2]\r\n",
        {("a",): 1, ("a", "x"): 2, ("a", "y"): 3, ("a", "y", 0): 4},
    ),
    "a table opened twice": ("[a.b]\n[a]\nx = 1", {("a",): 1, ("a", "b"): 1, ("a", "x"): 3}),
}


@pytest.mark.parametrize(("text", "lines"), CASES.values(), ids=CASES)
def test_lines(text: str, lines: dict[Path, int]) -> None:
    """Each shape of a key is found on its line, and nothing else is."""
    tomllib.loads(text)
    assert locate(text) == lines


def parts(value: Any) -> list[tuple[str | int, Any]]:
    """What a table or an array holds, by key or position."""
    return list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())


def paths(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Everything that tomllib read, by its path."""
    return {
        inside: part
        for key, inner in parts(value)
        for inside, part in {(*path, key): inner, **paths(inner, (*path, key))}.items()
    }


class Writer:
    """Draws a valid document. Every key and number is used once, so a line can be told by what stands on it."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.count = 0

    def number(self) -> int:
        self.count += 1
        return 1_000_000 + self.count

    def key_part(self) -> str:
        name = f"k{self.number()}"
        return self.draw(st.sampled_from([name, f"'{name}.[#'", json.dumps(f'{name}"]= é\t')]))

    def key(self) -> str:
        dot = self.draw(st.sampled_from([".", " . ", ".\t"]))
        return dot.join(self.key_part() for _ in range(self.draw(st.integers(1, 3))))

    def blank(self, *, lines: bool) -> str:
        gaps = ["", " ", "\t"] + ["\n", " # ] } , ' \"\n", "\r\n"] * lines
        return self.draw(st.sampled_from(gaps))

    def value(self, depth: int = 0) -> str:
        kinds = ["number", "string", "text"] + ["array", "table"] * (depth < 3)
        match self.draw(st.sampled_from(kinds)):
            case "number":
                return str(self.number())
            case "string":
                mark = self.number()
                return self.draw(
                    st.sampled_from([f'"{mark} \\" # ]"', f"'{mark} \\'", f'"""{mark}"""""', f"'''{mark}''''"])
                )
            case "text":
                mark = self.number()
                return self.draw(
                    st.sampled_from([f'"""{mark}\n[a]\n\\"""\nb = ""c""""', f"'''{mark}\n[[a]]\n''b = {{'''"])
                )
            case "array":
                gap = self.blank(lines=True)
                items = [
                    f"{gap}{self.value(depth + 1)}{self.blank(lines=True)}" for _ in range(self.draw(st.integers(0, 3)))
                ]
                comma = "," if items != [] and self.draw(st.booleans()) else ""
                return f"[{','.join(items)}{comma}{gap}]"
            case _:
                pairs = [
                    f"{self.blank(lines=False)}{self.pair(depth + 1)}" for _ in range(self.draw(st.integers(0, 3)))
                ]
                return f"{{{','.join(pairs)} }}"

    def pair(self, depth: int = 0) -> str:
        return f"{self.key()}={self.blank(lines=False)}{self.value(depth)}"

    def document(self) -> str:
        statements = []
        arrays: list[str] = []
        for _ in range(self.draw(st.integers(0, 8))):
            kind = self.draw(st.sampled_from(["pair", "pair", "table", "array", "again", "inside"]))
            known = self.draw(st.sampled_from(arrays)) if arrays else None
            if kind == "table":
                statements.append(f"[{self.key()}]")
            elif kind == "again" and known:
                statements.append(f"[[{known}]]")
            elif kind == "inside" and known:
                statements.append(f"[{known}.{self.key()}]")
            elif kind == "array":
                arrays.append(self.key())
                statements.append(f"[[ {arrays[-1]} ]]")
            else:
                statements.append(self.pair())
            statements.append(self.draw(st.sampled_from(["", " # [x] = {", "\n", "\n# y = [\n"])) + "\n")
        return "".join(statements)


@given(st.data())
def test_agrees_with_tomllib(data: st.DataObject) -> None:
    """A generated document has exactly the paths that tomllib reads, and each scalar on the line found for it."""
    text = Writer(data).document()
    document = tomllib.loads(text)
    found = locate(text)
    read = paths(document)
    assert found.keys() == read.keys()
    lines = text.split("\n")
    for path, value in read.items():
        line = lines[found[path] - 1]
        assert isinstance(path[-1], int) or path[-1][:8] in line
        assert isinstance(value, dict | list) or str(value)[:7] in line


FRAGMENTS = [
    "a",
    "b",
    ".",
    "=",
    "[",
    "]",
    "{",
    "}",
    ",",
    '"',
    "'",
    '"""',
    "'''",
    "\\",
    "#",
    "\n",
    " ",
    "1",
    "-",
    "é",
    "\r\n",
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
def test_whatever_tomllib_accepts(text: str) -> None:
    """Any text that tomllib reads at all has the paths that tomllib reads."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert locate(text).keys() == paths(document).keys()
