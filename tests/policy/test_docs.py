"""docs/policy.md says what the schema says, and its examples hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from relay.policy.json_schema import json_schema
from relay.policy.load import check
from tests.policy.test_schema import keys, toml

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
ROW = re.compile(r"^\| `(?P<key>[\w.]+)` \| (?P<value>.+) \| (?P<default>.+) \| (?P<says>.+) \|$", re.MULTILINE)
ROWS = {match["key"]: match for match in ROW.finditer(TEXT)}


def documented_as(path: tuple[str, ...]) -> str:
    """The key under which a path of the schema is documented: what stands in several tables is told once."""
    steps = [step for step in path if step != "[]"]
    if steps[-1] in ("env", "optional"):
        return f"REFERENCE.{steps[-1]}"
    if "timeouts" in steps[:-1]:
        steps = steps[steps.index("timeouts") :]
    if "budget" in steps[:-1]:
        steps = ["budgets", *steps[steps.index("budget") + 1 :]]
    return ".".join(steps)


# Sections have chapters instead of rows.
KEYS = {documented_as(path): node for path, node in keys(json_schema()) if len(path) > 1 or path == ("version",)}


def test_every_key_is_documented() -> None:
    """Each key of the schema has a row, and each row is a key."""
    assert len(ROWS) == len(ROW.findall(TEXT))
    assert set(ROWS) == set(KEYS)


def test_sections_have_chapters() -> None:
    """Each section of a file has its own chapter."""
    assert {f"## {section}" for section in json_schema()["properties"]} <= set(TEXT.splitlines())


@pytest.mark.parametrize("key", sorted(KEYS))
def test_row_agrees_with_the_schema(key: str) -> None:
    """Bounds, choices, default and whether a key is required are those of the schema."""
    node, value, default = KEYS[key], ROWS[key]["value"].replace("_", ""), ROWS[key]["default"]
    if "maximum" in node and key != "version":
        bounds = [node.get("minimum", node.get("exclusiveMinimum")), node["maximum"]]
        assert re.findall(r"\d+(?:\.\d+)?", value) == [str(bound) for bound in bounds]
        assert ("over 0" in value) == ("exclusiveMinimum" in node)
        assert node["type"] in value
    for choice in node.get("enum", [node["const"]] if "const" in node else []):
        assert f'"{choice}"' in ROWS[key]["value"]
    assert (default == "required") == node["is_required"]
    if "default" in node:
        assert tomllib.loads(f"default = {default.strip('`')}")["default"] == node["default"]
    else:
        assert not default.startswith("`")


EXAMPLES = re.findall(r"^```toml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
_MODEL = {"provider": "local", "price": {"input": 1, "output": 2}}
AROUND: dict[str, Any] = {
    "version": 1,
    "access": {"open": True},
    "providers": {name: {"dialect": "openai", "base_url": "http://127.0.0.1"} for name in ("openai", "local")},
    "models": {
        "large": {**_MODEL, "tier": 2, "features": ["reasoning"], "verbosity": True},
        "small": _MODEL,
    },
    "routes": [{"name": "auto", "candidates": ["large", "small"]}],
    "budgets": {},
}
ENVIRON = {"OPENAI_API_KEY": "key", "AZURE_OPENAI_API_KEY": "key"}


def around(example: dict[str, Any]) -> str:
    """A set that holds, with an example in the place of its parts of the same name."""
    document = {**AROUND, **example}
    for section in ("providers", "models"):
        document[section] = {**AROUND[section], **document[section]}
    return "\n".join(f"{key} = {toml(value)}" for key, value in document.items())


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_hold(text: str) -> None:
    """Each example is TOML that a set may hold, without even a warning."""
    example = tomllib.loads(text)
    if example.keys() & {"api_key", "timeouts"}:
        example = {"providers": {"some": {"dialect": "openai", "base_url": "https://some.example", **example}}}
    assert check({"p": around(example)}, ENVIRON)[1] == ()


def test_small_set_is_whole() -> None:
    """The first example holds as it stands."""
    policy, findings = check({"p": EXAMPLES[0]}, ENVIRON)
    assert findings == ()
    assert policy is not None
    assert sorted(policy.visible_models(None)) == ["auto", "large", "small"]


def test_errors_look_like_that() -> None:
    """The findings shown are what the loader says, word for word."""
    (shown,) = re.findall(r"^\$ relay check policies/mine\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    files = {
        "policies/mine/models.toml": 'version = 1\naccess.open = true\n[models.large]\nprovider = "one"\n\n'
        '[providers.one]\ndialect = "openai"\nbase_url = "https://one.example"\n\n\n\n'
        '[models.small]\nprovider = "one"\nupsteam = "x"\ntimeouts = { connect_s = "3" }\n',
        "policies/mine/routes.toml": '\n\n[[routes]]\nname = "auto"\ncandidates = ["large",\n"smal"]\n',
        "policies/mine/z.toml": "[models.large]\n",
    }
    assert "".join(f"{finding}\n" for finding in check(files, {})[1]) == shown
