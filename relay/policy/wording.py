"""How findings say what was found and what is allowed."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from relay.policy.schema import PATTERN_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.policy.json_schema import Node

MAX_SHOWN = 60
"""Characters of a value that a message quotes."""
MAX_LISTED = 16
"""Names that a message lists."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dotted(path: Iterable[str | int]) -> str:
    """A key path as one would write it in TOML; array positions count from 0."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if _BARE_KEY.fullmatch(step) else f".{json.dumps(step, ensure_ascii=False)}"
    return text.removeprefix(".")


def found(value: Any, *, secret: bool) -> str:
    """What was found, in a few words; of a secret only its type."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() if secret or ("://" in value and "@" in value):  # the latter may be a URL with a password
            return "a string"
        case str():
            quoted = json.dumps(value, ensure_ascii=False)
            return quoted if len(quoted) <= MAX_SHOWN else f'{quoted[:MAX_SHOWN]}…"'
        case int() | float():
            return "a number" if secret else _number_found(value)
        case dict():
            return "a table"
        case list():
            return "an array" if value else "an empty array"
        case _:
            return "a date or time"


def _number_found(value: float) -> str:
    # Python refuses to write very long integers out.
    return repr(value) if isinstance(value, float) or abs(value) < 10**MAX_SHOWN else "a very large integer"


def allowed(node: Node) -> str:
    """What a part of the JSON Schema allows, in words."""
    if "oneOf" in node:
        return " or ".join(allowed(choice) for choice in node["oneOf"])
    if "enum" in node or "const" in node:
        return " or ".join(json.dumps(choice) for choice in node.get("enum") or [node["const"]])
    return _BY_TYPE[node["type"]](node)


def _number(node: Node) -> str:
    kind = "an integer" if node["type"] == "integer" else "a number"
    if "exclusiveMinimum" in node:
        return f"{kind} over {node['exclusiveMinimum']}, at most {node['maximum']}"
    least, most = node["minimum"], node["maximum"]
    return f"{kind} from {least} to {most}" if least < most else str(most)


def _string(node: Node) -> str:
    if "pattern" in node:
        return PATTERN_WORDS[node["pattern"]]
    return f"a string of {node['minLength']} to {node['maxLength']} characters" if "maxLength" in node else "a string"


def _array(node: Node) -> str:
    least = ", at least one" if node.get("minItems") else ""
    return f"an array{least}, each item {allowed(node['items'])}"


def _table(node: Node) -> str:
    return f"a table with {listed(node['properties'])}" if "properties" in node else "a table"


_BY_TYPE = {
    "boolean": lambda _: "true or false",
    "integer": _number,
    "number": _number,
    "string": _string,
    "array": _array,
    "object": _table,
}


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MAX_LISTED} more" if len(every) > MAX_LISTED else ""
    return ", ".join(every[:MAX_LISTED]) + more


def nearest(name: str, names: Iterable[str]) -> str:
    """A suggestion in brackets if one of the names is close to what was written, else nothing."""
    close = get_close_matches(name.lower(), {other.lower(): other for other in names}, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
