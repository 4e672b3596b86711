"""The policy sets that come with Relay."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.load import check
from relay.runtimes.policy_files import read_folder

POLICIES = Path(__file__).parents[2] / "policies"
SETS = sorted({file.parent.relative_to(POLICIES).as_posix() for file in POLICIES.rglob("*.toml")})
DEFAULT = read_folder(POLICIES / "default")
PROVIDERS = tomllib.loads(DEFAULT[str(POLICIES / "default" / "providers.toml")])["providers"]
VARIABLES = {name: provider["api_key"]["env"] for name, provider in PROVIDERS.items()}


class Everything(dict[str, str]):
    """An environment in which each variable is set."""

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        """A value that is also a URL, as a proxy's has to be."""
        return f"http://{key.lower().replace('_', '-')}:{len(default)}1"


def test_all_are_here() -> None:
    """The demo, the default and at least three examples."""
    assert {"demo", "default"} <= set(SETS)
    assert sum(name.startswith("examples/") for name in SETS) >= 3


@pytest.mark.parametrize("name", SETS)
def test_loads_without_findings(name: str) -> None:
    """With its variables set, each set loads, and not even a warning is said."""
    policy, findings = check(read_folder(POLICIES / name), Everything())
    assert findings == ()
    assert policy is not None
    assert policy.skipped == ()


@pytest.mark.parametrize(
    "file", sorted(POLICIES.rglob("*.toml")), ids=lambda file: file.relative_to(POLICIES).as_posix()
)
def test_editor_finds_the_schema(file: Path) -> None:
    """Each file begins with a directive that leads to the schema from where the file lies."""
    directive, _, target = file.read_text().splitlines()[0].partition(" ")
    assert directive == "#:schema"
    assert (file.parent / target).resolve() == POLICIES.parent / "docs" / "policy.schema.json"


def test_demo_needs_nothing() -> None:
    """The demo loads in an empty environment and keeps to this machine."""
    policy, findings = check(read_folder(POLICIES / "demo"), {})
    assert findings == ()
    assert policy is not None
    assert policy.open
    assert [provider.base_url for provider in policy.providers.values()] == ["http://127.0.0.1:8081/v1"]
    assert policy.visible_models(None) == ["auto", "smollm2-135m"]


@given(st.sets(st.sampled_from(sorted(VARIABLES)), min_size=1))
def test_default_with_any_keys(present: set[str]) -> None:
    """Whichever providers have keys, `auto`, `fast` and `best` work with exactly those, and nothing is said."""
    policy, findings = check(DEFAULT, {VARIABLES[name]: "key" for name in present})
    assert findings == ()
    assert policy is not None
    assert set(policy.providers) == present
    assert {name for name, _ in policy.skipped} == VARIABLES.keys() - present
    for name in ("auto", "fast", "best"):
        route = policy.route_for(name, "", "/v1/chat/completions", {})
        assert route is not None
        assert {model.provider.name for model in route.candidates} == present


def test_default_without_keys() -> None:
    """Without any key, one error says which variables there are."""
    policy, (finding,) = check(DEFAULT, {})
    assert policy is None
    assert all(variable in finding.message for variable in VARIABLES.values())
