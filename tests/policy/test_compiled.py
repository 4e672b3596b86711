"""The compiled policy: which route, key and models a request may use."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.load import load

if TYPE_CHECKING:
    from relay.policy.compiled import Policy

BASE = """\
version = 1
access.open = true
[providers.one]
dialect = "openai"
base_url = "https://one.example/v1"
[models.small]
provider = "one"
[models.large]
provider = "one"
"""


def policy(text: str) -> Policy:
    return load({"p": BASE + text}, {})


def taken(routes: Policy, model: str, key: str = "", path: str = "/v1/chat/completions", **headers: str) -> str | None:
    """The name of the route that a request takes."""
    wire = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    route = routes.route_for(model, key, path, wire)
    return None if route is None else route.name


def test_route_by_name() -> None:
    """Without a match, a route takes exactly the model of its name."""
    routes = policy('[[routes]]\nname = "auto"\ncandidates = ["small"]')
    assert taken(routes, "auto") == "auto"
    assert taken(routes, "Auto") is None
    assert taken(routes, "autos") is None
    assert taken(routes, "auto\n") is None
    assert taken(routes, "") is None


def test_models_own_routes() -> None:
    """A model's own name is a route to it alone, unless a route has that name."""
    routes = policy('[[routes]]\nname = "large"\nmatch.model = "big"\ncandidates = ["small", "large"]')
    assert taken(routes, "small") == "small"
    assert taken(routes, "big") == "large"
    assert taken(routes, "large") is None


def test_every_pattern_has_to_match() -> None:
    """Model, key, path and headers narrow a route together; a header that was not sent does not match."""
    routes = policy(
        '[[routes]]\nname = "r"\ncandidates = ["small"]\n'
        'match = { model = "gpt-[45]*", key = "team-?", path = "/v1/chat/*", headers = { X-Tier = "g*", x-b = "" } }'
    )
    everything = {"model": "gpt-4o", "key": "team-a", "path": "/v1/chat/completions", "x_tier": "gold", "x_b": ""}
    assert taken(routes, **everything) == "r"
    for other in (
        {"model": "gpt-3"},
        {"key": "team-ab"},
        {"key": ""},
        {"path": "/v1/embeddings"},
        {"x_tier": "silver"},
    ):
        assert taken(routes, **{**everything, **other}) is None
    del everything["x_b"]
    assert taken(routes, **everything) is None


def test_first_match_wins() -> None:
    """Of several routes that match, the first in the files takes the request."""
    routes = policy(
        '[[routes]]\nname = "batch"\nmatch = { model = "*", headers = { x-batch = "*" } }\ncandidates = ["small"]\n'
        '[[routes]]\nname = "auto"\ncandidates = ["large"]\n'
        '[[routes]]\nname = "rest"\nmatch.model = "*"\ncandidates = ["small"]\n'
    )
    assert taken(routes, "auto", x_batch="1") == "batch"
    assert taken(routes, "auto") == "auto"
    assert taken(routes, "small") == "rest"
    assert taken(routes, "never heard of") == "rest"


GLOBS = st.sampled_from(["a", "b", "ab", "*", "a*", "?", "[ab]", "*b"])
MATCHES = st.fixed_dictionaries({"model": GLOBS}, optional={"key": GLOBS, "path": GLOBS, "header": GLOBS})
WORDS = st.sampled_from(["", "a", "b", "ab", "c"])


@given(st.lists(MATCHES, max_size=6), WORDS, WORDS, WORDS, WORDS)
def test_lookup_is_the_plain_scan(matches: list[dict[str, str]], model: str, key: str, path: str, header: str) -> None:
    """The look-up by name finds what going through all routes in order finds."""
    text = ""
    for number, match in enumerate(matches):
        parts = [f'{name} = "{match[name]}"' for name in ("model", "key", "path") if name in match]
        parts += [f'headers = {{ h = "{match["header"]}" }}'] if "header" in match else []
        text += f'[[routes]]\nname = "r{number}"\nmatch = {{ {", ".join(parts)} }}\ncandidates = ["small"]\n'
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b", "ab", "c")}
    text += "".join(f'[keys.{name}]\nsha256 = "{digest}"\n' for name, digest in digests.items())
    request = {"model": model, "key": key, "path": path, "header": header}
    fitting = [all(fnmatchcase(request[name], glob) for name, glob in match.items()) for match in matches]
    expected = f"r{fitting.index(True)}" if True in fitting else None
    assert taken(policy(text), model, key, path, h=header) == expected


KEYS = {name: hashlib.sha256(f"sk-{name}".encode()).hexdigest() for name in ("all", "one", "two")}
VISIBLE = f"""\
[[routes]]
name = "mine"
match = {{ model = "auto", key = "two" }}
candidates = ["small"]
[[routes]]
name = "auto"
candidates = ["large"]
[[routes]]
name = "globs"
match.model = "gpt-*"
candidates = ["large"]
[[routes]]
name = "tier"
match = {{ model = "gold", headers = {{ x-tier = "1" }} }}
candidates = ["large"]
[keys.all]
sha256 = "{KEYS["all"]}"
[keys.one]
sha256 = "{KEYS["one"]}"
routes = ["auto", "small", "tier"]
[keys.two]
sha256 = "{KEYS["two"]}"
routes = ["auto", "globs"]
"""


@pytest.mark.parametrize(
    ("presented", "visible"),
    [
        (b"sk-all", ["auto", "gold", "small", "large"]),
        (b"sk-one", ["auto", "gold", "small"]),
        (b"sk-two", []),  # "auto" always ends in "mine" for this key, and globs cannot be listed
        (b"sk-none", ["auto", "gold", "small", "large"]),  # no key of the set: an open set lists everything
    ],
)
def test_visible_models(presented: bytes, visible: list[str]) -> None:
    """A client sees the model names that it may ask for: those that routes spell out, and the models' own."""
    routes = policy(VISIBLE)
    assert routes.visible_models(routes.key_for(presented)) == visible


def test_key_for() -> None:
    """A key is known by its digest; anything else is not."""
    keys = policy(VISIBLE)
    assert [key.name for name in KEYS if (key := keys.key_for(f"sk-{name}".encode()))] == list(KEYS)
    for presented in (b"", b"sk-", b"sk-all ", KEYS["all"].encode(), bytes.fromhex(KEYS["all"])):
        assert keys.key_for(presented) is None


def test_keys_with_the_same_prefix() -> None:
    """Keys whose digests begin alike are told apart by the whole digest."""
    digest = KEYS["all"]
    twin = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    keys = policy(f'[keys.twin]\nsha256 = "{twin}"\n[keys.real]\nsha256 = "{digest}"')
    assert [len(group) for group in keys.keys.values()] == [2]
    key = keys.key_for(b"sk-all")
    assert key is not None
    assert key.name == "real"


def test_may_use() -> None:
    """A key without a list may use every route; one with a list those on it."""
    keys = policy(VISIBLE)
    everything, some = keys.key_for(b"sk-all"), keys.key_for(b"sk-one")
    assert everything is not None
    assert some is not None
    assert everything.may_use("mine")
    assert [name for name in ("auto", "mine", "small", "large") if some.may_use(name)] == ["auto", "small"]
