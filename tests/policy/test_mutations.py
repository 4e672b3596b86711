"""Whatever is done to a policy set, it either holds or says where it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigurationError
from relay.policy.json_schema import json_schema
from relay.policy.load import check, load
from relay.runtimes.policy_files import read_folder
from tests.policy.test_schema import keys, toml

POLICIES = Path(__file__).parents[2] / "policies"
SETS = [
    {Path(path).name: text for path, text in read_folder(folder).items()}
    for folder in sorted({file.parent for file in POLICIES.rglob("*.toml")})
]
SECRET = "hunter2-hunter2"
VARIABLES = {name for files in SETS for text in files.values() for name in re.findall(r"\w+_KEY", text)}
ENVIRON = dict.fromkeys(VARIABLES, SECRET)

TOKEN = re.compile(r'"[^"\n]*"|[A-Za-z_][\w.-]*|[\d_.]+|[\[\]{}=,]|\n')
VALUES = [
    *('""', '"x"', "0", "-1", "1.5", "true", "nan", "inf", "[]", "{}", "[[1]]", "{ a = 1 }", "2026-01-01", "1e400"),
    *('"*"', '"[z-a]"', '"ftp://x"', '"http://["', '"http://u:p@h"', '"é"', '"""\n\n"""', "9999999999999999999"),
    *('{ env = "A" }', '{ env = "GROQ_API_KEY" }', '"auto"', '"local"', "name", "env", "models", "[routes]", '"[key]"'),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, str]:
    """One of Relay's own sets with a few tokens replaced, removed, doubled, or moved to another file."""
    files = dict(draw(st.sampled_from(SETS)))
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(files)))
        text = files[name]
        spans = [match.span() for match in TOKEN.finditer(text)]
        if not spans:
            continue
        start, end = draw(st.sampled_from(spans))
        match draw(st.sampled_from(["replace", "remove", "double", "cut", "move"])):
            case "replace":
                files[name] = text[:start] + draw(st.sampled_from(VALUES)) + text[end:]
            case "remove":
                files[name] = text[:start] + text[end:]
            case "double":
                files[name] = text[:end] + " " + text[start:]
            case "cut":
                files[name] = text[:start]
            case _:
                files[name] = text[:start]
                files["z.toml"] = text[start:]
    return files


@given(mutated())
def test_holds_or_says_where(files: dict[str, str]) -> None:
    """A mutated set gives a policy, or errors that each name a file, a line in it, and what is wrong."""
    policy, findings = check(files, ENVIRON)
    errors = [finding for finding in findings if finding.severity == "error"]
    assert (policy is None) == bool(errors)
    for finding in findings:
        assert 0 <= finding.line <= files[finding.file].count("\n") + 1
        assert finding.message
        assert SECRET not in str(finding)
    assert list(findings) == sorted(findings, key=lambda finding: (finding.file, finding.line))


@given(mutated())
def test_load_and_check_agree(files: dict[str, str]) -> None:
    """`load` raises exactly where `check` finds an error, with the same findings."""
    policy, findings = check(files, ENVIRON)
    if policy is None:
        with pytest.raises(ConfigurationError) as caught:
            load(files, ENVIRON)
        assert caught.value.findings == findings
    else:
        assert load(files, ENVIRON).version == policy.version


WORDS = sorted({step for path, _ in keys(json_schema()) for step in path if step not in ("[]", "NAME")})
NAMES = st.sampled_from([*WORDS, "a", "b", "*", "", "[key]", "<text>", "<reference>", "x y", "é", "0"])
SCALARS = st.one_of(
    NAMES, st.integers(-2, 70), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.just("https://a")
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=20
)


@given(st.dictionaries(NAMES, ANYTHING, max_size=6), st.dictionaries(NAMES, ANYTHING, max_size=6))
def test_any_document(one: dict[str, object], two: dict[str, object]) -> None:
    """Tables, arrays and scalars where nobody expects them give findings, never a crash."""
    files = {
        name: "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in document.items())
        for name, document in (("a", one), ("b", two))
    }
    policy, findings = check(files, ENVIRON)
    assert policy is None
    for finding in findings:
        assert 0 <= finding.line <= files[finding.file].count("\n") + 1
