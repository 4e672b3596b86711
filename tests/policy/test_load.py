"""Loading: what a set becomes, and what is said of one that does not hold."""
# ruff: noqa: E501  (each finding is written whole, on one line)

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from relay.errors import ConfigurationError, Finding
from relay.messages import INTENTS, BudgetRules, Headroom, KeyLimits
from relay.policy import compiled
from relay.policy.load import check, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.policy.compiled import IntentRules

START = """\
version = 1
access.open = true
[providers.one]
dialect = "openai"
base_url = "https://one.example/v1"
[models.small]
provider = "one"
"""
"""Seven lines of a set that holds. What tests add begins on line 8."""

DIGEST = "ab" * 32


def findings(text: str, **environ: str) -> list[str]:
    """What is said of one file `p`, line and message."""
    return [str(finding).removeprefix("p:").lstrip() for finding in check({"p": text}, environ)[1]]


def added(text: str, **environ: str) -> list[str]:
    """What is said of text added to a set that holds."""
    return findings(START + text, **environ)


# --- what a set becomes ------------------------------------------------------------------------------------


def test_defaults() -> None:
    """What a file leaves out has the documented defaults."""
    policy = load({"p": START}, {})
    assert policy.open
    assert policy.requests == compiled.RequestLimits()
    assert policy.streams == compiled.Streams()
    assert policy.retries == compiled.Retries()
    assert (policy.keys, policy.skipped) == ({}, ())
    provider = policy.providers["one"]
    assert provider.timeouts == compiled.Timeouts()
    assert provider.breaker == compiled.Breaker()
    assert provider.forward_headers == {"openai-beta", "x-client-request-id"}
    assert (provider.api_key, provider.headers, provider.proxy, provider.http2) == (None, (), None, False)
    assert (provider.max_connections, provider.ask_usage) == (16_384, True)
    model = policy.models["small"]
    assert (model.upstream, model.max_tokens_field, model.provider) == ("small", None, provider)


def test_everything_written() -> None:
    """Every key reaches the place that acts on it."""
    policy = load(
        {
            "a.toml": f"""
                version = 1
                [requests]
                max_body_bytes = 2048
                max_header_bytes = 4096
                max_json_depth = 8
                max_messages = 3
                [streams]
                keep_alive_s = 15
                on_disconnect = "drain"
                drain_max_bytes = 5000
                drain_max_s = 1.5
                [retries]
                base_s = 1
                max_s = 2
                [keys.team]
                sha256 = "{DIGEST.upper()}"
                routes = ["auto", "small"]
                limits = {{ requests_per_min = 1, tokens_per_min = 2, streams = 3 }}
            """,
            "b.toml": """
                [providers.one]
                dialect = "openai"
                base_url = "https://one.example/v1/"
                api_key = { env = "ONE_KEY" }
                headers = { X-Fixed = "a b", x-secret = { env = "ONE_EXTRA" } }
                forward_headers = ["Traceparent"]
                timeouts = { connect_s = 1, first_token_s = 2, answer_s = 2.5, silence_s = 3, total_s = 4 }
                breaker = { failures = 2, open_s = 0.5 }
                max_connections = 7
                proxy = "http://proxy.example:3128"
                http2 = true
                ask_usage = false
                [models.small]
                provider = "one"
                upstream = "their name"
                max_tokens_field = "max_tokens"
                timeouts = { first_token_s = 3.5 }
                [[routes]]
                name = "auto"
                match = { model = "a*", key = "team", path = "/v1/*", headers = { X-Tier = "gold" } }
                candidates = ["small"]
                attempts = 5
            """,
        },
        {"ONE_KEY": "k1", "ONE_EXTRA": "k2"},
    )
    assert policy.requests == compiled.RequestLimits(2048, 4096, 8, 3)
    assert policy.streams == compiled.Streams(15, "drain", 5000, 1.5)
    assert policy.retries == compiled.Retries(1, 2)
    assert not policy.open
    (key,) = policy.keys[bytes.fromhex(DIGEST)[:8]]
    assert (key.name, key.digest.hex(), key.routes) == ("team", DIGEST, {"auto", "small"})
    assert key.limits == KeyLimits(1, 2, 3)
    provider = policy.providers["one"]
    assert (provider.dialect, provider.base_url, provider.api_key) == ("openai", "https://one.example/v1", "k1")
    assert provider.headers == (("x-fixed", "a b"), ("x-secret", "k2"))
    assert provider.forward_headers == {"traceparent"}
    assert provider.timeouts == compiled.Timeouts(1, 2, 2.5, 3, 4)
    assert provider.breaker == compiled.Breaker(2, 0.5)
    assert (provider.max_connections, provider.proxy) == (7, "http://proxy.example:3128")
    assert (provider.http2, provider.ask_usage) == (True, False)
    model = policy.models["small"]
    assert (model.upstream, model.max_tokens_field) == ("their name", "max_tokens")
    assert model.timeouts == compiled.Timeouts(1, 3.5, 2.5, 3, 4)
    auto, own = policy.routes
    assert (auto.name, auto.candidates, auto.attempts) == ("auto", (model,), 5)
    assert (own.name, own.candidates, own.attempts) == ("small", (model,), 2)


def test_secrets_do_not_show() -> None:
    """Whatever prints a policy does not print its secrets."""
    text = START.replace("[models", 'api_key = { env = "K" }\nheaders = { a = { env = "H" } }\n[models')
    policy = load(
        {"p": text.replace("[models", 'proxy = { env = "P" }\n[models')},
        {"K": "s3k", "H": "s3h", "P": "http://u:s3p@h"},
    )
    assert policy.providers["one"].proxy == "http://u:s3p@h"
    assert "s3" not in repr(policy)


@pytest.mark.parametrize(("candidates", "attempts"), [(1, 2), (2, 2), (3, 3), (12, 10)])
def test_attempts_by_default(candidates: int, attempts: int) -> None:
    """A route tries each candidate once, but at least two and at most ten times in all."""
    names = [f"m{number}" for number in range(candidates)]
    models = "".join(f'[models.{name}]\nprovider = "one"\n' for name in names)
    policy = load({"p": f'{START}{models}[[routes]]\nname = "auto"\ncandidates = {names}\n'.replace("'", '"')}, {})
    assert policy.routes[0].attempts == attempts


def test_defaults_give_way() -> None:
    """A default that is longer than what was written is shortened instead of being an error."""
    policy = load({"p": START + "timeouts.total_s = 2\n[retries]\nmax_s = 0.1"}, {})
    assert policy.models["small"].timeouts == compiled.Timeouts(2, 2, 2, 2, 2)
    assert policy.retries == compiled.Retries(0.1, 0.1)


def test_version_of_a_set() -> None:
    """The version follows from names and contents of the files, wherever they lie, and from nothing else."""
    version = load({"x/p.toml": START}, {}).version
    assert len(version) == 12
    assert load({"y/z/p.toml": START}, {"HOME": "/"}).version == version
    assert load({"C:\\x\\p.toml": START}, {}).version == version
    assert load({"x/q.toml": START}, {}).version != version
    assert load({"x/p.toml": START + "\n"}, {}).version != version


def test_files_are_merged_in_name_order() -> None:
    """Tables meet key by key, and routes stand in the order of the files' names."""
    route = '[[routes]]\nname = "{}"\ncandidates = ["small"]\n'
    files = {
        "c": route.format("last") + "[requests]\nmax_messages = 5",
        "a": START + route.format("first"),
        "b": "version = 1\n" + route.format("middle") + "[requests]\nmax_json_depth = 6",
    }
    policy = load(files, {})
    assert [route.name for route in policy.routes] == ["first", "middle", "last", "small"]
    assert (policy.requests.max_messages, policy.requests.max_json_depth) == (5, 6)


# --- optional providers ------------------------------------------------------------------------------------

OPTIONAL = """\
[providers.two]
dialect = "openai"
base_url = "https://two.example"
api_key = { env = "TWO", optional = true }
[models.large]
provider = "two"
[[routes]]
name = "auto"
candidates = ["large", "small"]
[[routes]]
name = "large-only"
candidates = ["large"]
"""


def test_optional_provider_set() -> None:
    """With its variable set, an optional provider is like any other."""
    policy = load({"p": START + OPTIONAL}, {"TWO": "key"})
    assert policy.skipped == ()
    assert list(policy.models) == ["small", "large"]


@pytest.mark.parametrize("environ", [{}, {"TWO": ""}])
def test_optional_provider_unset(environ: dict[str, str]) -> None:
    """Without it, provider and models drop out, also of routes, and the set says so."""
    policy, found = check({"p": START + OPTIONAL}, environ)
    assert policy is not None
    assert policy.skipped == (("two", "TWO is not set"),)
    assert (list(policy.providers), list(policy.models)) == (["one"], ["small"])
    auto, _ = policy.routes
    assert [model.name for model in auto.candidates] == ["small"]
    assert found == (Finding("p", 17, "routes.large-only", "left out: none of its candidates can be used", "warning"),)


def test_optional_everywhere_and_nothing_set() -> None:
    """A set of which nothing can be used does not load, and says which variables would help."""
    text = START.replace("[models", 'api_key = { env = "ONE", optional = true }\n[models')
    assert findings(text + OPTIONAL) == ["7: error: models: no model can be used; set at least one of ONE, TWO"]


# --- what is said of a set that does not hold --------------------------------------------------------------

PROVIDER = '[providers.two]\ndialect = "openai"\nbase_url = "https://two.example"\n'  # lines 8 to 10
ROUTE = '[[routes]]\nname = "auto"\ncandidates = ["small"]\n'  # lines 8 to 10
KEY = f'[keys.team]\nsha256 = "{DIGEST}"\n'  # lines 8 and 9
A_NAME = "a name: a letter or digit, then letters, digits and . _ : / @ + -, 128 characters at most"

SAID = [
    # unknown keys and tables
    ("[model.large]", ["8: error: model: unknown key (did you mean models?); allowed are version, access, requests, streams, retries, providers, models, routes, keys, budgets, intents, classifier"]),
    ('Upsteam = "x"', ["8: error: models.small.Upsteam: unknown key (did you mean upstream?); allowed are provider, upstream, max_tokens_field, timeouts, price, context, max_output, features, tier, regions, expected, effort, verbosity, continuation"]),
    ("timeouts = { ttft_s = 1 }", ["8: error: models.small.timeouts.ttft_s: unknown key (did you mean total_s?); allowed are connect_s, first_token_s, answer_s, silence_s, total_s"]),
    ('"[key]" = 1', ['8: error: models.small."[key]": unknown key; allowed are provider, upstream, max_tokens_field, timeouts, price, context, max_output, features, tier, regions, expected, effort, verbosity, continuation']),
    ('["[key]"]', ['8: error: "[key]": unknown key (did you mean keys?); allowed are version, access, requests, streams, retries, providers, models, routes, keys, budgets, intents, classifier']),
    (PROVIDER + 'proxy = { "<text>" = 1, env = "P" }', ['11: error: providers.two.proxy."<text>": unknown key; allowed are env, optional']),
    # types: none is taken for another
    ('[requests]\nmax_messages = "3"', ['9: error: requests.max_messages: found "3"; allowed is an integer from 1 to 1000000']),
    ("[requests]\nmax_messages = true", ["9: error: requests.max_messages: found true; allowed is an integer from 1 to 1000000"]),
    ("[requests]\nmax_messages = 3.0", ["9: error: requests.max_messages: found 3.0; allowed is an integer from 1 to 1000000"]),
    ("[requests]\nmax_messages = 2026-01-01", ["9: error: requests.max_messages: found a date or time; allowed is an integer from 1 to 1000000"]),
    ("upstream = 3", ["8: error: models.small.upstream: found 3; allowed is a string of 1 to 256 characters"]),
    ("timeouts = 3", ["8: error: models.small.timeouts: found 3; allowed is a table with connect_s, first_token_s, answer_s, silence_s, total_s"]),
    ("timeouts.connect_s = true", ["8: error: models.small.timeouts.connect_s: found true; allowed is a number over 0, at most 60"]),
    ("[[keys]]", ["8: error: keys: found an array; allowed is a table"]),
    ("[routes]", ["8: error: routes: found a table; allowed is an array, each item a table with name, match, candidates, attempts, objective, slo, hedge, weights, regions"]),
    (PROVIDER + "http2 = 1", ["11: error: providers.two.http2: found 1; allowed is true or false"]),
    # bounds and choices
    ("timeouts.connect_s = 0", ["8: error: models.small.timeouts.connect_s: found 0; allowed is a number over 0, at most 60"]),
    ("timeouts.connect_s = 61", ["8: error: models.small.timeouts.connect_s: found 61; allowed is a number over 0, at most 60"]),
    ("timeouts.connect_s = nan", ["8: error: models.small.timeouts.connect_s: found nan; allowed is a number over 0, at most 60"]),
    ("[requests]\nmax_json_depth = 3", ["9: error: requests.max_json_depth: found 3; allowed is an integer from 4 to 512"]),
    ('[streams]\non_disconnect = "close"', ['9: error: streams.on_disconnect: found "close"; allowed is "cancel" or "drain"']),
    ('[streams]\non_disconnect = "' + "x" * 70 + '"', ['9: error: streams.on_disconnect: found "' + "x" * 59 + '…"; allowed is "cancel" or "drain"']),
    ("[requests]\nmax_messages = 1" + "0" * 70, ["9: error: requests.max_messages: found a very large integer; allowed is an integer from 1 to 1000000"]),
    (ROUTE + "attempts = 11", ["11: error: routes.auto.attempts: found 11; allowed is an integer from 1 to 10"]),
    ('[[routes]]\nname = "auto"\ncandidates = []', [f"10: error: routes.auto.candidates: found an empty array; allowed is an array, at least one, each item {A_NAME}"]),
    # missing
    ("[models.large]", [f"8: error: models.large.provider: missing; allowed is {A_NAME}"]),
    ("[[routes]]", [f"8: error: routes[0].name: missing; allowed is {A_NAME}", f"8: error: routes[0].candidates: missing; allowed is an array, at least one, each item {A_NAME}"]),
    # names
    ('[models."a b"]\nprovider = "one"', [f'8: error: models."a b": allowed is {A_NAME}']),
    (ROUTE.replace('"auto"', '"*"'), [f'9: error: routes.*.name: found "*"; allowed is {A_NAME}'.replace("routes.*", 'routes."*"')]),
    # references
    ('[models.large]\nprovider = "on"', ['9: error: models.large.provider: found "on", but no provider has that name (did you mean one?); allowed are one']),
    (ROUTE.replace('"small"', '"small",\n"smal"'), ['11: error: routes.auto.candidates[1]: found "smal", but no model has that name (did you mean small?); allowed are small']),
    (KEY + 'routes = ["small", "auto"]', ['10: error: keys.team.routes[1]: found "auto", but no route or model has that name; allowed are small']),
    (ROUTE + 'match.key = "team"', ['11: error: routes.auto.match.key: found "team", but no key has that name; none is defined']),
    # duplicates
    (ROUTE + ROUTE, ["12: error: routes.auto.name: already defined at p:9"]),
    (ROUTE.replace('"small"', '"small", "small"'), ["10: error: routes.auto.candidates: found an array; small stands there twice"]),
    (KEY + KEY.replace("team", "other"), ["11: error: keys.other.sha256: the same key as team at p:9"]),
    ('[models.small]\nprovider = "one"', ["8: error: models.small: already defined at p:6"]),
    (PROVIDER + 'headers = { a = "1", A = "2" }', ["11: error: providers.two.headers.A: stands there twice; case makes no difference in header names"]),
    # URLs
    (PROVIDER.replace("https:", "ftp:"), ['10: error: providers.two.base_url: found "ftp://two.example"; allowed is an http:// or https:// URL without spaces']),
    (PROVIDER.replace("two.example", ""), ['10: error: providers.two.base_url: found "https://"; allowed is an http:// or https:// URL without spaces']),
    (PROVIDER.replace("two.example", "h:99999"), ['10: error: providers.two.base_url: found "https://h:99999"; allowed is an http:// or https:// URL with a host and, if any, a port from 1 to 65535']),
    (PROVIDER.replace("two.example", "h/?a=b"), ['10: error: providers.two.base_url: found "https://h/?a=b"; allowed is a URL without ? and #']),
    (PROVIDER.replace("https", "http") + "http2 = true", ["11: error: providers.two.http2: found true, but HTTP/2 needs an https base_url"]),
    # headers
    (PROVIDER + 'headers = { Content-Length = "1" }', ["11: error: providers.two.headers.Content-Length: found a string; the relay sets this header itself"]),
    (PROVIDER + 'headers = { Authorization = "x" }', ["11: error: providers.two.headers.Authorization: found a string; the relay sets this header itself, from api_key or proxy"]),
    (PROVIDER + 'headers = { "a b" = "x" }', ['11: error: providers.two.headers."a b": allowed is the name of an HTTP header']),
    (PROVIDER + 'headers = { a = "x\\n" }', ["11: error: providers.two.headers.a: found a string; allowed is a header value: printable ASCII without space at either end or a table with env, optional"]),
    (PROVIDER + 'forward_headers = ["x-a",\n"Cookie"]', ['12: error: providers.two.forward_headers[1]: found "Cookie"; this header can hold the client\'s credentials and is never passed on']),
    (PROVIDER + 'headers = { x-a = "1" }\nforward_headers = ["X-A"]', ["12: error: providers.two.forward_headers[0]: X-A has a fixed value in headers"]),
    (PROVIDER + 'forward_headers = ["te"]', ['11: error: providers.two.forward_headers[0]: found "te"; this header belongs to the client\'s own connection and is never passed on']),
    # durations that contradict each other
    ("timeouts = { first_token_s = 9, total_s = 8 }", ["8: error: models.small.timeouts.first_token_s: first_token_s is 9, but total_s is 8 (p:8); allowed is first_token_s up to total_s"]),
    ("timeouts.silence_s = 601", ["8: error: models.small.timeouts.silence_s: silence_s is 601, but total_s is 600, its default; allowed is silence_s up to total_s"]),
    (PROVIDER + 'timeouts.first_token_s = 50\n[models.large]\nprovider = "two"\ntimeouts.total_s = 40', ["14: error: models.large.timeouts.total_s: first_token_s is 50, but total_s is 40 (p:14); allowed is first_token_s up to total_s"]),
    (PROVIDER + 'timeouts.first_token_s = 700\n[models.large]\nprovider = "two"', ["11: error: providers.two.timeouts.first_token_s: first_token_s is 700, but total_s is 600, its default; allowed is first_token_s up to total_s"]),
    ("[retries]\nbase_s = 2\nmax_s = 1", ["9: error: retries.base_s: base_s is 2, but max_s is 1 (p:10); allowed is base_s up to max_s"]),
    # warnings
    ("[streams]\ndrain_max_s = 1", ['9: warning: streams.drain_max_s: has no effect: on_disconnect is not "drain"']),
    (ROUTE + ROUTE.replace("auto", "other") + 'match.model = "auto"', ["11: warning: routes.other: never taken: auto, which stands before it, takes all its requests"]),
    (ROUTE + 'match.model = "*"\n' + ROUTE.replace("auto", "gpt-*") .replace('"gpt-*"', '"gpt"\nmatch.model = "gpt-*"'), ["12: warning: routes.gpt: never taken: auto, which stands before it, takes all its requests"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), SAID)
def test_said(text: str, said: list[str]) -> None:
    """A finding names file, line, key path, what was found and what is allowed."""
    assert added(text) == said


def test_no_warning_without_reason() -> None:
    """Routes that narrow one that follows, and globs that only look alike, are not called unreachable."""
    narrow = ROUTE + 'match = { model = "*", headers = { a = "b" } }\n' + ROUTE.replace("auto", "next")
    alike = ROUTE.replace("auto", "a") + 'match.model = "a?"\n' + ROUTE.replace("auto", "b") + 'match.model = "a*"\n'
    assert added(narrow + alike) == []


SYNTAX = [
    ("a = \n", "1: error: not valid TOML: Invalid value (column 5)"),
    ("a = 1\na = 2\n", "2: error: not valid TOML: Cannot overwrite a value (column 6)"),
    ("a = 1\nb = 'x", "2: error: not valid TOML: Expected \"'\" (at the end of the file)"),
    ("[x]\na = 1\n[y]\n[x]", "4: error: x: already defined at p:1"),
    ("a = {}\n[a]", "2: error: a: already defined at p:1"),
    ("[[x]]\n[x.y]\n[[x]]\n# \u2028\n[x.y]\n[x.y]", "6: error: x.y: already defined at p:5"),
    ("a = " + "[" * 5000 + "]" * 5000, "error: arrays or tables are nested too deeply"),
    ("a = 1" + "0" * 5000, "error: not valid TOML: Exceeds the limit (4300 digits) for integer string conversion: value has 5001 digits"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), SYNTAX)
def test_syntax(text: str, said: str) -> None:
    """A file that is not TOML is one finding, at the place where it goes wrong."""
    assert findings(text) == [said]


def test_syntax_error_beside_other_files() -> None:
    """The other files are checked all the same, but what the broken one may define is not called undefined."""
    files = {"a": "[models.large]\nprovider = 'two'\nupsteam = 'x'", "b": START, "c": "[providers.two\n"}
    assert [str(finding) for finding in check(files, {})[1]] == [
        (
            "a:3: error: models.large.upsteam: unknown key (did you mean upstream?); "
            "allowed are provider, upstream, max_tokens_field, timeouts, "
            "price, context, max_output, features, tier, regions, expected, effort, verbosity, continuation"
        ),
        "c:1: error: not valid TOML: Expected ']' at the end of a table declaration (column 15)",
    ]


def test_everything_at_once() -> None:
    """One run finds what is wrong in every table, two things in one table included, not only the first."""
    text = """\
version = 2
[acess]
[providers.one]
dialect = "opnai"
api_key = { env = "UNSET" }
[models.small]
provider = "two"
upsteam = "x"
timeouts = { first_token_s = 7, total_s = 5 }
[[routes]]
name = "auto"
attempts = 0
candidates = ["small", "large"]
[keys.team]
sha256 = "00"
routes = ["atuo"]
"""
    lines = [said.split(": ")[:3] for said in findings(text)]
    assert [f"{line} {key}" for line, _, key in lines] == [
        "1 version",
        "2 acess",
        "3 providers.one.base_url",
        "4 providers.one.dialect",
        "7 models.small.provider",
        "8 models.small.upsteam",
        "9 models.small.timeouts.first_token_s",
        "12 routes.auto.attempts",
        "13 routes.auto.candidates[1]",
        "15 keys.team.sha256",
    ]


def test_duplicates_across_files() -> None:
    """A name or key that two files define is an error that names both places."""
    files = {
        "a": START + ROUTE + "[requests]\nmax_messages = 5",
        "b": '[models.small]\nprovider = "one"\n\n[requests]\nmax_messages = 5\n' + ROUTE,
        "c": "version = 2\nmodels = 1",
    }
    assert [str(finding) for finding in check(files, {})[1]] == [
        "b:1: error: models.small: already defined at a:6; one file of a set may define it",
        "b:5: error: requests.max_messages: already defined at a:12; one file of a set may define it",
        "b:7: error: routes.auto.name: already defined at a:9",
        "c:1: error: version: differs from what a:1 says",
        "c:2: error: models: differs from what a:6 says",
    ]


def test_whole_set() -> None:
    """What no line is to blame for is said of the first file."""
    assert findings("") == [
        "error: version: missing; one file of the set has to say version = 1",
        "error: models: no models: a set needs at least one [models.NAME]",
        (
            "error: access: no keys, and not open: nobody could call. `relay keys new` makes a key and prints what to put "
            "under [keys.NAME]; [access] with open = true serves requests without one"
        ),
    ]
    assert check({}, {}) == (None, (Finding("", 0, "", "the set has no files"),))


# --- secrets -----------------------------------------------------------------------------------------------

LEAKS = {
    "key as text": (PROVIDER + 'api_key = "hunter2"', 'found a string; allowed is a reference such as { env = "NAME" }: policy files never hold the secret itself'),
    "key in the place of the variable's name": (PROVIDER + 'api_key = { env = "hunter2" }', "found a string; allowed is the name of an environment variable: capital letters, digits and _"),
    "key as a number": (PROVIDER + "api_key = 555", "found a number; allowed is a table with env, optional"),
    "key beside the reference": (PROVIDER + 'api_key = { env = "KEY", value = "hunter2" }', "unknown key; allowed are env, optional"),
    "header": (PROVIDER + 'headers = { x-api-key = "hunter2" }', 'this header holds a secret; allowed is a reference such as { env = "NAME" }'),
    "header of another type": (PROVIDER + 'headers = { a = ["hunter2"] }', "found an array; allowed is a header value: printable ASCII without space at either end or a table with env, optional"),
    "client's key instead of its digest": ('[keys.team]\nsha256 = "hunter2"', "found a string; allowed is 64 hexadecimal digits: the SHA-256 of a key, as `relay keys new` prints it"),
    "URL with password": (PROVIDER.replace("two.example", "me:hunter2@h"), "found a string; allowed is a URL without user name and password"),
    "URL with password that cannot be read": (PROVIDER.replace("two.example", "me:hunter2@["), "found a string; allowed is an http:// or https:// URL with a host and, if any, a port from 1 to 65535"),
    "proxy with password": (PROVIDER + 'proxy = "http://me:hunter2@proxy"', "found a string; allowed is a URL without user name and password"),
    "misspelt key": (PROVIDER + 'apikey = "hunter2"', "unknown key (did you mean api_key?); allowed are dialect, base_url, api_key, headers, forward_headers, timeouts, breaker, max_connections, proxy, http2, ask_usage, probe"),
    "broken TOML": (PROVIDER + 'api_key = "hunter2', "not valid TOML: Unterminated string (at the end of the file)"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), LEAKS.values(), ids=LEAKS)
def test_secret_in_a_file(text: str, message: str) -> None:
    """A secret that someone wrote into a file is refused without being repeated."""
    (said,) = added(text)
    assert said.endswith(message)
    assert "hunter" not in said


@pytest.mark.parametrize("value", ["hunter2 ", "hun\nter2", "hunter2\n", "hüter2"])
def test_secret_that_no_header_can_carry(value: str) -> None:
    """A variable's value that would break the request is refused without being shown."""
    text = PROVIDER + 'api_key = { env = "KEY" }'
    assert added(text, KEY=value) == [
        "11: error: providers.two.api_key.env: the value of KEY has spaces, line breaks or non-ASCII around or in it"
    ]


def test_proxy_from_the_environment() -> None:
    """A proxy's URL from the environment is checked without being shown."""
    text = PROVIDER + 'proxy = { env = "PROXY" }'
    assert added(text, PROXY="http://me:hunter2@proxy:3128") == []
    assert added(text, PROXY="hunter2") == [
        (
            "11: error: providers.two.proxy.env: the value of PROXY is no proxy URL; "
            "allowed is an http:// or https:// URL with a host and, if any, a port from 1 to 65535"
        )
    ]


def test_required_secret_unset() -> None:
    """A variable that is not optional has to be set."""
    assert added(PROVIDER + 'headers = { a = { env = "EXTRA" } }') == [
        (
            "11: error: providers.two.headers.a.env: environment variable EXTRA is not set; "
            "set it, or say optional = true to leave the provider out without it"
        )
    ]


@pytest.mark.parametrize("host", ["two.example", "10.0.0.1"])
def test_key_in_the_clear(host: str) -> None:
    """Credentials over plain http to another machine are worth a warning."""
    text = PROVIDER.replace("https://two.example", f"http://{host}") + 'api_key = { env = "KEY" }'
    assert added(text, KEY="k") == [
        "10: warning: providers.two.base_url: the API key and all prompts travel unencrypted over http"
    ]


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "[::1]:8081", "localhost", "model.localhost"])
def test_key_on_loopback(host: str) -> None:
    """On the own machine nobody listens in."""
    text = PROVIDER.replace("https://two.example", f"http://{host}") + 'api_key = { env = "KEY" }'
    assert added(text, KEY="k") == []


# --- load --------------------------------------------------------------------------------------------------


def test_load_raises() -> None:
    """`load` raises one error that carries all findings and tells the first."""
    with pytest.raises(ConfigurationError) as caught:
        load({"p": START + "[requests]\nmax_messages = 0\nmax_json_depth = 0\n"}, {})
    assert len(caught.value.findings) == 2
    assert str(caught.value) == (
        "The policy set does not hold. p:9: error: requests.max_messages: found 0; "
        "allowed is an integer from 1 to 1000000 (and 1 more)"
    )


def test_load_with_warnings() -> None:
    """Warnings do not keep a set from loading."""
    assert load({"p": START + "[streams]\ndrain_max_s = 1"}, {}).streams.drain_max_s == 1


def test_key_digest_is_of_the_key() -> None:
    """The digest in a file is that of the key itself, as bytes."""
    digest = hashlib.sha256(b"the key").hexdigest()
    policy = load({"p": f'{START}[keys.team]\nsha256 = "{digest}"'}, {})
    key = policy.key_for(b"the key")
    assert key is not None
    assert key.name == "team"


# --- intents and budgets -----------------------------------------------------------------------------------


def rules(text: str) -> Mapping[str, IntentRules]:
    """Of a set with these tables added."""
    intents = load({"p": START + text}, {}).intents
    assert intents is not None
    return intents.rules


@pytest.mark.parametrize("text", ["", '[budgets]\nmode = "off"', "[intents.code]", '[classifier]\ndefault = "code"'])
def test_nothing_to_size(text: str) -> None:
    """A set that wants neither budgets nor anything of an intent does not have requests looked at."""
    assert load({"p": START + text}, {}).intents is None


def test_budgets_by_intent() -> None:
    """An intent's budget overrides key by key, in the headroom too; others have that of [budgets]."""
    text = """[budgets]
quantile = 0.9
headroom = { low = 10 }
[intents.code.budget]
ceiling = 100
headroom = { high = 20_000 }
"""
    code, other = rules(text)["code"].budget, rules(text)["creative"].budget
    assert (code.quantile, code.ceiling, code.headroom) == (0.9, 100, Headroom(10, 4096, 20_000))
    assert (other.quantile, other.ceiling, other.headroom) == (0.9, BudgetRules().ceiling, Headroom(10, 4096, 16_384))
    assert len(rules(text)) == len(INTENTS)


def test_intents_without_budgets() -> None:
    """Tier, effort and steering work in a set without budgets."""
    found = rules('[intents.code]\nmin_tier = 2\neffort = "low"\nsteering = "Short."')
    assert (found["code"].min_tier, found["code"].effort, found["code"].steering) == (2, "low", "Short.")
    assert {rule.budget.mode for rule in found.values()} == {"off"}


def test_a_budget_for_one_intent_alone() -> None:
    """An intent may have a budget where the set has none."""
    found = rules('[intents.code.budget]\nmode = "fill"')
    assert (found["code"].budget.mode, found["creative"].budget.mode) == ("fill", "off")


def test_a_smaller_bound_takes_the_default_along() -> None:
    """A ceiling under the usual floor, or headroom under the usual, is not refused."""
    found = rules("[budgets]\nceiling = 10\nheadroom = { high = 500 }")["code"].budget
    assert (found.floor, found.headroom) == (10, Headroom(500, 500, 500))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[intents.cod]\nmin_tier = 1", "8: error: intents.cod: unknown intent (did you mean code?); allowed are "),
        ("[budgets]\nfloor = 9\nceiling = 8", "9: error: budgets.floor: floor is 9, but ceiling is 8 (p:10); "),
        (
            "[budgets]\n[intents.code.budget]\nceiling = 8\nfloor = 9",
            "11: error: intents.code.budget.floor: floor is 9, but ceiling is 8 (p:10); ",
        ),
        (
            "[intents.code.budget]\nquantile = 0.9",
            '8: warning: intents.code.budget: has no effect: there is no [budgets], or its mode is "off"',
        ),
        ('[classifier]\ndefault = "chat"', '9: error: classifier.default: found "chat"; allowed is "classify_extract"'),
    ],
)
def test_what_is_said_of_intents(text: str, said: str) -> None:
    """Mistakes name the key, what was found and what is allowed."""
    (finding,) = check({"p": START + text}, {})[1]
    assert str(finding).removeprefix("p:").startswith(said)


TIERS = """\
[models.low]
provider = "one"
[models.high]
provider = "one"
tier = 2
[[routes]]
name = "auto"
candidates = ["low", "high"]
[[routes]]
name = "fast"
candidates = ["low", "small"]
[intents.code]
"""  # lines 8 to 19


ASKED = [
    (TIERS + "min_tier = 2", []),
    (TIERS + "min_tier = 3", ["20: warning: intents.code.min_tier: found 3, but no candidate of auto has that tier or a higher one; the best there are serve instead"]),
    ("[intents.code]\nmin_tier = 1", ["9: warning: intents.code.min_tier: has no effect: no route has candidates of different tiers"]),
    ('features = ["reasoning"]\n[intents.code]\neffort = "low"', []),
    ('features = ["tools"]\n[intents.code]\neffort = "low"', ['10: warning: intents.code.effort: has no effect: no model takes one; features = ["reasoning"] says that a model does, unless its effort is "off"']),
    ('features = ["reasoning"]\neffort = "off"\n[intents.code]\neffort = "low"', ['11: warning: intents.code.effort: has no effect: no model takes one; features = ["reasoning"] says that a model does, unless its effort is "off"']),
    ('verbosity = true\n[intents.code]\nverbosity = "low"', []),
    ('[intents.code]\nverbosity = "low"', ["9: warning: intents.code.verbosity: has no effect: no model takes it; verbosity = true says that one does"]),
    ('[intents.code]\neffort = "low"\n[streams]\nnone = 1', ["11: error: streams.none: unknown key; allowed are keep_alive_s, on_disconnect, drain_max_bytes, drain_max_s, recover"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), ASKED)
def test_what_intents_ask_of_no_model(text: str, said: list[str]) -> None:
    """A tier, an effort or a verbosity that no model has is a warning; a set with an error is not searched for it."""
    assert added(text) == said


def test_models_left_out_are_looked_at() -> None:
    """What intents ask for is held against the set as written: an environment without a key brings no warning."""
    optional = OPTIONAL.replace("[[routes]]", "tier = 2\nverbosity = true\n[[routes]]", 1)
    policy, found = check({"p": START + optional + '[intents.code]\nmin_tier = 2\nverbosity = "low"'}, {})
    assert policy is not None
    assert policy.skipped
    assert [finding.key for finding in found] == ["routes.large-only"]
