"""The JSON Schema: complete, true to what the loader takes, and current in docs/."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from relay.policy.json_schema import json_schema, node_at
from relay.policy.load import check

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "policy.schema.json"
START = """\
version = 1
access.open = true
providers.openai = { dialect = "openai", base_url = "https://api.openai.com/v1" }
providers.one = { dialect = "openai", base_url = "https://one.example/v1" }
models.small = { provider = "one", price = { input = 1, output = 2 }, regions = ["eu"] }
models.a = { provider = "one" }
models.b = { provider = "one" }
routes = [{ name = "auto", candidates = ["small"], objective = { latency = 1 } }]
keys.team = { sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
"""


def keys(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every key of the schema with its path; NAME for a key that the operator chooses, [] for an item.

    The key `is_required` is added to what the schema says of it.
    """
    for name, inner in node.get("properties", {}).items():
        yield (*path, name), {**inner, "is_required": name in node.get("required", ())}
        yield from keys(inner, (*path, name))
    for inner in node.get("patternProperties", {}).values():
        yield from keys(inner, (*path, "NAME"))
    for inner in node.get("oneOf", ()):
        yield from keys(inner, path)
    if "items" in node:
        yield from keys(node["items"], (*path, "[]"))


KEYS = dict(keys(json_schema()))
SECTIONS = {(name,) for name in json_schema()["properties"]} - {("version",)}


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def with_value(path: tuple[str, ...], value: Any) -> str:
    """A set that holds, with one key set to a value."""
    document = tomllib.loads(START)
    node: Any = document
    names = {"providers": "one", "models": "small", "keys": "team", "intents": "code"}
    *way, last = path
    for before, step in zip(["", *way], way, strict=False):
        key = names.get(before, "chosen") if step == "NAME" else 0 if step == "[]" else step
        if isinstance(node, dict):
            node.setdefault(key, {})
        node = node[key]
    if last == "optional":
        node["env"] = "SOME"
    node[last] = value
    return "\n".join(f"{key} = {toml(inner)}" for key, inner in document.items())


def test_file_is_current() -> None:
    """docs/policy.schema.json is what the code says; `relay check --schema` prints it."""
    current = json.dumps(json_schema(), indent=2) + "\n"
    assert SCHEMA_FILE.read_text() == current, "run: .venv/bin/relay check --schema > docs/policy.schema.json"


def test_keys_are_described() -> None:
    """Each key has its own title, description and, unless it is a section, examples."""
    for path, node in KEYS.items():
        assert node["title"] == path[-1]
        assert node["description"].endswith((".", "?"))
        assert bool(node.get("examples")) == (path not in SECTIONS)


def test_objects_are_closed() -> None:
    """No table takes keys that it does not name."""
    for path, node in [((), json_schema()), *KEYS.items()]:
        for choice in node.get("oneOf", (node,)):
            if choice.get("type") == "object":
                assert choice["additionalProperties"] is False, path


def test_no_references_and_no_null() -> None:
    """Everything stands where it belongs, and nothing is offered that TOML cannot say."""
    text = json.dumps(json_schema())
    assert "$ref" not in text
    assert "null" not in text


EXAMPLES = [(path, example) for path, node in KEYS.items() for example in node.get("examples", ())]


@pytest.mark.parametrize(
    ("path", "example"), EXAMPLES, ids=lambda part: ".".join(part) if isinstance(part, tuple) else ""
)
def test_examples_hold(path: tuple[str, ...], example: Any) -> None:
    """Every example that an editor shows is one that the loader takes."""
    environ = dict.fromkeys(("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "CORPORATE_PROXY_URL", "SOME"), "http://p")
    assert [f for f in check({"p": with_value(path, example)}, environ)[1] if f.severity == "error"] == []


def outside(node: dict[str, Any]) -> list[Any]:
    """Values just outside what a part of the schema allows."""
    values: list[Any] = [{"unknown": 1}, [[]]]
    if "maximum" in node:
        values += [node["maximum"] + 1, node.get("minimum", node.get("exclusiveMinimum", 0) + 1) - 1, "1", True]
    if node.get("type") == "boolean":
        values += [1, "true"]
    if node.get("type") == "string":
        values += [3]
    if "enum" in node or "const" in node or "pattern" in node:
        values += ["\n"]
    return values


REFUSED = [(path, value) for path, node in KEYS.items() for value in outside(node)]


@pytest.mark.parametrize(("path", "value"), REFUSED, ids=lambda part: ".".join(part) if isinstance(part, tuple) else "")
def test_bounds_hold(path: tuple[str, ...], value: Any) -> None:
    """What the schema rules out, the loader rules out, and says so at that key or below."""
    policy, findings = check({"p": with_value(path, value)}, {"SOME": "k"})
    assert policy is None
    assert any(path[-1] in finding.key for finding in findings if finding.severity == "error")


def test_node_at() -> None:
    """A part of the schema is found by the path of a key; what lies within a secret is secret too."""
    schema = json_schema()
    assert (node_at(schema, ("requests", "max_messages")) or {})["type"] == "integer"
    assert (node_at(schema, ("routes", 3, "candidates", 0)) or {})["type"] == "string"
    for inside in (("env",), ("value",)):
        found = node_at(schema, ("providers", "x", "api_key", *inside))
        assert found is None if inside == ("value",) else (found or {})["writeOnly"]
    assert (node_at(schema, ("providers", "x", "headers", "h", "env")) or {})["writeOnly"]
    for nothing in (("request",), ("requests", "max"), ("routes", "auto"), ("models", 0), ("version", "x")):
        assert node_at(schema, nothing) is None
