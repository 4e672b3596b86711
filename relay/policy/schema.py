"""What may stand in a policy file: tables, keys, types, units, bounds and defaults.

These classes only check the shape of single tables; `load.py` merges files, follows references and makes the
immutable form that requests use. A key is here only if it does something. Types are exact: TOML has integers,
floats, booleans and strings, and none is taken for another, save a whole number where a fraction may stand.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from relay.messages import INTENTS, BudgetRules, Continuing, IntentLabel
from relay.policy import compiled

if TYPE_CHECKING:
    from pydantic.config import JsonDict

Dialect = Literal["openai"]
"""Wire dialects that a provider can speak."""

MAX_ATTEMPTS = 10

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
ENV_NAME = r"^[A-Z][A-Z0-9_]{0,127}$"
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"
HEADER_VALUE = r"^[!-~]([ !-~]*[!-~])?$"
URL_PATH = r"^/[!\"$-~]{0,1023}$"
HTTP_URL = r"^https?://[!-~]+$"
SHA256 = r"^[0-9A-Fa-f]{64}$"
INTENT = f"^({'|'.join(INTENTS)})$"

PATTERN_WORDS = {
    NAME: "a name: a letter or digit, then letters, digits and . _ : / @ + -, 128 characters at most",
    ENV_NAME: "the name of an environment variable: capital letters, digits and _",
    HEADER_NAME: "the name of an HTTP header",
    HEADER_VALUE: "a header value: printable ASCII without space at either end",
    URL_PATH: "a path that begins with /, without spaces and #",
    HTTP_URL: "an http:// or https:// URL without spaces",
    INTENT: f"an intent: {', '.join(INTENTS)}",
    SHA256: "64 hexadecimal digits: the SHA-256 of a key, as `relay keys new` prints it",
}
"""Each pattern in words, for messages."""

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
"""RFC 9110 §7.6.1: headers of one connection, not of the message."""
_RELAYS_OWN = {"host", "content-length", "content-type", "content-encoding", "accept", "accept-encoding", "expect"}
"""Headers that follow from what the relay itself sends and can read."""
_CREDENTIALS = re.compile(r"(.*-)?(api-?key|auth|authorization|cookie2?|password|secret|token)")

_REQUESTS = compiled.RequestLimits()
_STREAMS = compiled.Streams()
_RETRIES = compiled.Retries()
_TIMEOUTS = compiled.Timeouts()
_BREAKER = compiled.Breaker()
_PROBE = compiled.Probe()
_EXPECTED = compiled.Expectation()
_OBJECTIVE = compiled.Objective()
_BUDGET = BudgetRules()


def http_url(url: str, *, userinfo: bool = False) -> str:
    """Refuse what would leak or be lost in a URL.

    Args:
        url: what was given.
        userinfo: whether it may hold a user name and a password.

    Returns:
        The URL without slashes at its end.

    Raises:
        ValueError: says what is allowed, and nothing of what was found.
    """
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:  # its text may quote the URL, which may hold a password
        usable = False
    if not usable:
        raise ValueError("allowed is an http:// or https:// URL with a host and, if any, a port from 1 to 65535")
    if "@" in parts.netloc and not userinfo:
        raise ValueError("allowed is a URL without user name and password")
    if parts.query or parts.fragment:
        raise ValueError("allowed is a URL without ? and #")
    return url.rstrip("/")


def holds_credentials(header: str) -> bool:
    """Whether a header of that name is likely to carry a secret."""
    return _CREDENTIALS.fullmatch(header.lower()) is not None


def _settable_header(name: str) -> str:
    """Refuse headers that are not the policy's to set."""
    if name.lower() in _HOP_BY_HOP | _RELAYS_OWN:
        raise ValueError("the relay sets this header itself")
    if name.lower() in {"authorization", "proxy-authorization"}:
        raise ValueError("the relay sets this header itself, from api_key or proxy")
    return name


def _forwardable_header(name: str) -> str:
    """Refuse client headers that no upstream may see, or that would say something untrue there."""
    if name.lower() in _HOP_BY_HOP | _RELAYS_OWN:
        raise ValueError("this header belongs to the client's own connection and is never passed on")
    if holds_credentials(name):
        raise ValueError("this header can hold the client's credentials and is never passed on")
    return name


def _distinct(names: list[str]) -> list[str]:
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"{name} stands there twice")
    return names


def _glob(pattern: str) -> str:
    if not pattern:
        raise ValueError('allowed is a glob that can match something, for example "gpt-*"')
    return pattern


UNIQUE: JsonDict = {"uniqueItems": True}
Name = Annotated[str, Field(pattern=NAME)]
Names = Annotated[
    list[Name],
    Field(min_length=1, max_length=1000, json_schema_extra=UNIQUE),
    AfterValidator(_distinct),
]
Glob = Annotated[str, AfterValidator(_glob)]
HttpUrl = Annotated[str, Field(pattern=HTTP_URL), AfterValidator(http_url)]


class Table(BaseModel):
    """A table of a policy file: unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, field_title_generator=lambda name, _: name
    )


class Reference(Table):
    """Where a secret comes from. Policy files hold references, never values."""

    env: Annotated[str, Field(pattern=ENV_NAME)] = Field(
        description="Name of the environment variable that holds the value; on Workers, of the secret binding.",
        examples=["OPENAI_API_KEY"],
    )
    optional: bool = Field(
        default=False,
        description="true: if the variable is not set, the provider and its models are left out. "
        "false: that is an error.",
        examples=[True],
    )

    @model_validator(mode="before")
    @classmethod
    def _no_value(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(  # noqa: TRY004 pydantic turns a ValueError into a finding, not a TypeError
                'allowed is a reference such as { env = "NAME" }: policy files never hold the secret itself'
            )
        return value


TEXT_TAG = "<text>"
REFERENCE_TAG = "<reference>"
"""pydantic puts the tag of the alternative it took into an error's path; no key that the schema allows looks so."""


def _text_or_reference(value: object) -> str:
    return REFERENCE_TAG if isinstance(value, (dict, Reference)) else TEXT_TAG


HeaderValue = Annotated[
    Annotated[str, Field(pattern=HEADER_VALUE), Tag(TEXT_TAG)] | Annotated[Reference, Tag(REFERENCE_TAG)],
    Discriminator(_text_or_reference),
]
UrlOrReference = Annotated[
    Annotated[HttpUrl, Tag(TEXT_TAG)] | Annotated[Reference, Tag(REFERENCE_TAG)], Discriminator(_text_or_reference)
]

SECRET: JsonDict = {"writeOnly": True}
"""JSON Schema's mark for values that are never shown; messages leave out what was found."""


class Timeouts(Table):
    """How long to wait for an upstream, in seconds. A default gives way to a shorter time that was written."""

    connect_s: float = Field(
        default=_TIMEOUTS.connect_s,
        gt=0,
        le=60,
        description="Seconds for a new connection, TLS included.",
        examples=[3],
    )
    first_token_s: float = Field(
        default=_TIMEOUTS.first_token_s,
        gt=0,
        le=3600,
        description="Seconds from an attempt's start to the first real output. Models that reason in silence "
        "need more.",
        examples=[15, 120],
    )
    answer_s: float = Field(
        default=_TIMEOUTS.answer_s,
        gt=0,
        le=86_400,
        description="Seconds from an attempt's start to the end of an answer that is no stream; then another "
        "candidate is asked. A stream has `first_token_s` and `silence_s` instead.",
        examples=[60, 300],
    )
    silence_s: float = Field(
        default=_TIMEOUTS.silence_s,
        gt=0,
        le=3600,
        description="Seconds between any two bytes once output has begun; pings count as life.",
        examples=[20],
    )
    total_s: float = Field(
        default=_TIMEOUTS.total_s,
        gt=0,
        le=86_400,
        description="Seconds for the whole request, all attempts together.",
        examples=[600],
    )


class Breaker(Table):
    """When to leave a model alone."""

    failures: int = Field(
        default=_BREAKER.failures,
        ge=1,
        le=1000,
        description="Failures in a row after which the model is left alone.",
        examples=[5],
    )
    open_s: float = Field(
        default=_BREAKER.open_s,
        gt=0,
        le=3600,
        description="Seconds it is left alone before one request may try again.",
        examples=[10],
    )


class Probe(Table):
    """How a provider is asked whether it lives."""

    path: Annotated[str, Field(pattern=URL_PATH)] = Field(
        default=_PROBE.path,
        description="What is asked for with GET, below base_url, with the provider's credentials.",
        examples=["/models", "/health"],
    )
    every_s: float = Field(default=_PROBE.every_s, ge=1, le=3600, description="Seconds between probes.", examples=[30])
    timeout_s: float = Field(
        default=_PROBE.timeout_s, gt=0, le=60, description="Seconds after which no answer is a failure.", examples=[5]
    )


class Provider(Table):
    """A place where models are served."""

    dialect: Dialect = Field(description="The API it speaks.", examples=["openai"])
    base_url: HttpUrl = Field(
        description="URL below which the API's paths begin, version included.",
        examples=["https://api.openai.com/v1"],
    )
    api_key: Reference | None = Field(
        default=None,
        description="Its credentials, as a reference. Absent: it wants none.",
        examples=[{"env": "OPENAI_API_KEY", "optional": True}],
        json_schema_extra=SECRET,
    )
    headers: dict[Annotated[str, Field(pattern=HEADER_NAME), AfterValidator(_settable_header)], HeaderValue] = Field(
        default={},
        description="Extra headers of every request to it: a fixed text, or a reference if the value is a secret.",
        examples=[{"openai-project": "proj_123"}, {"api-key": {"env": "AZURE_OPENAI_API_KEY"}}],
        json_schema_extra=SECRET,
    )
    forward_headers: list[Annotated[str, Field(pattern=HEADER_NAME), AfterValidator(_forwardable_header)]] = Field(
        default=["openai-beta", "x-client-request-id"],
        description="Client headers that are passed on to it; all others stay here.",
        examples=[["openai-beta", "traceparent", "tracestate"]],
    )
    timeouts: Timeouts = Field(
        default=Timeouts(), description="How long to wait for its models.", examples=[{"first_token_s": 30}]
    )
    breaker: Breaker = Field(
        default=Breaker(), description="When to leave one of its models alone.", examples=[{"failures": 3}]
    )
    max_connections: int = Field(
        default=16_384,
        ge=1,
        le=65_535,
        description="Open connections to it, per worker process; further requests wait for one.",
        examples=[256],
    )
    proxy: UrlOrReference | None = Field(
        default=None,
        description="HTTP proxy on the way to it: a URL, or a reference if the URL holds a password.",
        examples=["http://proxy.internal:3128", {"env": "CORPORATE_PROXY_URL"}],
        json_schema_extra=SECRET,
    )
    http2: bool = Field(default=False, description="Speak HTTP/2 to it; needs an https base_url.", examples=[True])
    ask_usage: bool = Field(
        default=True,
        description="Ask its streams for their usage with stream_options; false for servers that refuse that field.",
        examples=[False],
    )
    probe: Probe | None = Field(
        default=None,
        description="Ask it now and then whether it lives, beside requests. Absent: only requests tell.",
        examples=[{"every_s": 30}],
    )


Feature = Literal["tools", "vision", "json_schema", "reasoning", "audio", "prefill"]
"""What a request may use beyond text."""

Features = Annotated[list[Feature], Field(json_schema_extra=UNIQUE), AfterValidator(_distinct)]
Regions = Annotated[list[Name], Field(json_schema_extra=UNIQUE), AfterValidator(_distinct)]
Usd = Annotated[float, Field(ge=0, le=100_000)]


class Price(Table):
    """What tokens cost, in USD per million."""

    input: Usd = Field(description="USD per million tokens read.", examples=[0.15])
    output: Usd = Field(description="USD per million tokens written, reasoning included.", examples=[0.6])
    cached_input: Usd | None = Field(
        default=None,
        description="USD per million tokens read from the provider's prompt cache. Default: as `input`.",
        examples=[0.075],
    )


class Expected(Table):
    """How fast a model is taken to be before any answer of it was seen."""

    ttft_ms: float = Field(
        default=_EXPECTED.ttft_s * 1000,
        gt=0,
        le=600_000,
        description="Milliseconds to the first output, at the median.",
        examples=[500],
    )
    tokens_per_s: float = Field(
        default=_EXPECTED.tokens_per_s,
        gt=0,
        le=100_000,
        description="Tokens per second behind it.",
        examples=[80],
    )


class Model(Table):
    """A model, under the name that routes and clients use."""

    provider: Name = Field(description="Name of the provider that serves it.", examples=["openai"])
    upstream: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="What the provider calls it. Default: the model's own name.",
        examples=["gpt-4o-mini"],
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        default=None,
        description="Under which of its two names the provider takes the limit on the answer; the client's is "
        "renamed. Default: it stays as the client wrote it.",
        examples=["max_completion_tokens"],
    )
    timeouts: Timeouts = Field(
        default=Timeouts(),
        description="How long to wait for it; each key overrides the provider's.",
        examples=[{"first_token_s": 120}],
    )
    price: Price | None = Field(
        default=None,
        description="What its tokens cost. Default: what the package genai-prices knows of it.",
        examples=[{"input": 0.15, "cached_input": 0.075, "output": 0.6}],
    )
    context: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Tokens that prompt and answer may have together. Default: no bound is known.",
        examples=[128_000],
    )
    max_output: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Tokens that an answer may have. Default: no bound is known.",
        examples=[16_384],
    )
    features: Features | None = Field(
        default=None,
        description="What it can do beyond text; it gets no requests that use anything else. Default: it gets all.",
        examples=[["tools", "vision", "json_schema"]],
    )
    tier: int = Field(
        default=0, ge=0, le=100, description="Your rank of its quality, higher is better.", examples=[1, 2]
    )
    regions: Regions = Field(
        default=[],
        description="Where it may process a request; names of your choice.",
        examples=[["eu"]],
    )
    expected: Expected = Field(
        default=Expected(),
        description="How fast it is taken to be before any answer of it was seen.",
        examples=[{"ttft_ms": 500, "tokens_per_s": 80}],
    )

    effort: Literal["reasoning_effort", "thinking", "thinking_config", "off"] = Field(
        default="reasoning_effort",
        description="How it takes the effort that an intent sets, if its features have reasoning: in the field "
        "reasoning_effort, in Anthropic's thinking, in Gemini's extra_body.google.thinking_config, or not at all.",
        examples=["thinking"],
    )
    verbosity: bool = Field(default=False, description="It takes the field verbosity.", examples=[True])
    continuation: Continuing = Field(
        default="instruction",
        description="How it is asked to go on with an answer that was broken off: a message that says so, or the text "
        "as the beginning of its answer. none: it is not asked.",
        examples=["continue_final_message"],
    )


class Match(Table):
    """When a route applies: all globs given must match. `*` any text, `?` one character, `[ab]` one of these."""

    model: Glob | None = Field(
        default=None,
        description='Glob over the model that the client asked for; "*" is any. Default: exactly the route\'s name.',
        examples=["gpt-*"],
    )
    key: str | None = Field(
        default=None,
        description='Glob over the name of the client\'s key; a client without key has the name "". Default: any.',
        examples=["team-*"],
    )
    path: Glob | None = Field(
        default=None,
        description="Glob over the request path. Default: any.",
        examples=["/v1/chat/*"],
    )
    headers: dict[Annotated[str, Field(pattern=HEADER_NAME)], str] = Field(
        default={},
        description="Globs over request headers, by name; a header that was not sent does not match.",
        examples=[{"x-tier": "gold"}],
    )


class Objective(Table):
    """What a route's candidates are put in order by: weights of which only the proportion counts."""

    ttft: float = Field(
        default=_OBJECTIVE.ttft, ge=0, le=1000, description="Weight of the time to the first output.", examples=[0.5]
    )
    latency: float = Field(
        default=_OBJECTIVE.latency, ge=0, le=1000, description="Weight of the time to the last.", examples=[0.6]
    )
    cost: float = Field(default=_OBJECTIVE.cost, ge=0, le=1000, description="Weight of the money.", examples=[0.4])
    explore: float = Field(
        default=_OBJECTIVE.explore,
        ge=0,
        le=1,
        description="Share of requests that may go to a model that could be better than it seems: one that is new, or "
        "was slow or failing when it was last asked.",
        examples=[0.05],
    )

    @model_validator(mode="after")
    def _wants_something(self) -> Objective:
        if not self.ttft + self.latency + self.cost:
            raise ValueError("allowed is a weight over 0 for at least one of ttft, latency and cost")
        return self


class Hedge(Table):
    """When a second candidate is asked beside the first, so that whoever has output first answers."""

    after: Literal["p50", "p75", "p90", "p95", "p98", "p99"] = Field(
        default="p95",
        description="Quantile of the first one's time to its first output that passes without any.",
        examples=["p95"],
    )
    max_extra_cost: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Share of the route's spend that may go into answers that come second.",
        examples=[0.05],
    )


class Slo(Table):
    """What a route promises. A candidate that does not keep it is asked only if none does."""

    ttft_p95_ms: float | None = Field(
        default=None,
        gt=0,
        le=600_000,
        description="Milliseconds within which 95 of 100 streams have their first output. Default: no bound.",
        examples=[1500],
    )


class Route(Table):
    """Which models may answer the requests that match. The first route that matches is taken."""

    name: Name = Field(description="What keys, logs and metrics call it.", examples=["auto"])
    match: Match = Field(default=Match(), description="When it applies.", examples=[{"model": "gpt-*"}])
    candidates: Names = Field(description="Names of models, in the order they are tried.", examples=[["a", "b"]])
    attempts: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ATTEMPTS,
        description="Tries for one request at most, all candidates together. Default: one for each candidate that "
        "can be used, but at least 2.",
        examples=[3],
    )
    objective: Objective | None = Field(
        default=None,
        description="What the candidates are put in order by, for each request anew. Default: as written.",
        examples=[{"latency": 0.6, "cost": 0.4}],
    )
    slo: Slo = Field(
        default=Slo(),
        description="What the route promises; who does not keep it is asked last.",
        examples=[{"ttft_p95_ms": 1500}],
    )
    hedge: Hedge | None = Field(
        default=None,
        description="When a second candidate is asked beside the first; streams only. Default: never.",
        examples=[{"after": "p95", "max_extra_cost": 0.05}],
    )
    weights: dict[Name, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={},
        description="Share of requests that a candidate gets first, whatever the objective says; what is left of 1 "
        "is divided among the others.",
        examples=[{"small": 0.05}],
    )
    regions: Regions = Field(
        default=[],
        description="Regions that requests may be processed in: all of a candidate's have to be among them. Default: "
        "any.",
        examples=[["eu"]],
    )

    @model_validator(mode="after")
    def _shares_add_up(self) -> Route:
        total = sum(self.weights.values())
        if total > 1 + 1e-9:
            raise ValueError(f"the weights add up to {total:g}; allowed is 1 at most")
        return self


class Limits(Table):
    """What a key may use. A limit that is absent does not exist."""

    requests_per_min: int | None = Field(
        default=None, ge=1, le=10**9, description="Requests per minute.", examples=[600]
    )
    tokens_per_min: int | None = Field(
        default=None, ge=1, le=10**12, description="Prompt and completion tokens per minute.", examples=[200_000]
    )
    streams: int | None = Field(
        default=None, ge=1, le=10**6, description="Requests in flight at the same time.", examples=[50]
    )


class Key(Table):
    """A client's key."""

    sha256: Annotated[str, Field(pattern=SHA256)] = Field(
        description="SHA-256 of the key; `relay keys new` makes both.",
        examples=["6b1f0d3f4c0be2e5c9a3f8f1d7b64a0c52e98d7306fb1a4e8c3d95f2706ab41e"],
        json_schema_extra=SECRET,
    )
    routes: Names | None = Field(
        default=None,
        description="Names of the routes and models it may use. Default: all.",
        examples=[["auto", "small"]],
    )
    limits: Limits = Field(default=Limits(), description="What it may use.", examples=[{"requests_per_min": 600}])
    prefer: bool = Field(
        default=False,
        description="Its requests may say what matters to them, in the header x-relay-prefer.",
        examples=[True],
    )


class Access(Table):
    """Who may call without a key."""

    open: bool = Field(default=False, description="Serve requests that carry no key.", examples=[True])


class Requests(Table):
    """What a request may look like."""

    max_body_bytes: int = Field(
        default=_REQUESTS.max_body_bytes,
        ge=1024,
        le=1024**3,
        description="Bytes of the whole body.",
        examples=[33_554_432],
    )
    max_header_bytes: int = Field(
        default=_REQUESTS.max_header_bytes,
        ge=1024,
        le=1024**2,
        description="Bytes of all header names and values together.",
        examples=[32_768],
    )
    max_json_depth: int = Field(
        default=_REQUESTS.max_json_depth, ge=4, le=512, description="Nested arrays and objects.", examples=[64]
    )
    max_messages: int = Field(
        default=_REQUESTS.max_messages,
        ge=1,
        le=1_000_000,
        description="Messages of the conversation.",
        examples=[4096],
    )


class Streams(Table):
    """How streams behave towards the client."""

    keep_alive_s: float | None = Field(
        default=None,
        ge=1,
        le=300,
        description="Seconds of silence after which an SSE comment goes out. Default: none is sent.",
        examples=[15],
    )
    on_disconnect: Literal["cancel", "drain"] = Field(
        default=_STREAMS.on_disconnect,
        description="When the client has gone: cancel the upstream at once, or drain it to learn the true usage.",
        examples=["drain"],
    )
    drain_max_bytes: int = Field(
        default=_STREAMS.drain_max_bytes,
        ge=1024,
        le=1024**3,
        description="Bytes that a drain reads at most.",
        examples=[1_048_576],
    )
    drain_max_s: float = Field(
        default=_STREAMS.drain_max_s, gt=0, le=3600, description="Seconds that a drain takes at most.", examples=[30]
    )
    recover: bool = Field(
        default=_STREAMS.recover,
        description="When a stream breaks off behind its first output, have the next candidate go on with its text. "
        "false: the client is told in band.",
        examples=[True],
    )


class Retries(Table):
    """Waiting between attempts on the same upstream: exponential with full jitter."""

    base_s: float = Field(
        default=_RETRIES.base_s, gt=0, le=60, description="Upper bound of the first wait, seconds.", examples=[0.25]
    )
    max_s: float = Field(
        default=_RETRIES.max_s,
        gt=0,
        le=300,
        description="Upper bound of any wait, seconds. An upstream whose Retry-After asks for more is left out.",
        examples=[5],
    )


Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class Headroom(Table):
    """Tokens on top of a budget for hidden reasoning, by effort."""

    low: Tokens = Field(
        default=_BUDGET.headroom.low, description="For low effort, and what is below it.", examples=[1024]
    )
    medium: Tokens = Field(
        default=_BUDGET.headroom.medium,
        description="For medium effort, and where neither client nor policy says one.",
        examples=[4096],
    )
    high: Tokens = Field(
        default=_BUDGET.headroom.high,
        description="For high effort; efforts above it get twice as much.",
        examples=[16_384],
    )


class Budgets(Table):
    """How long answers may become."""

    mode: Literal["fill", "cap", "off"] = Field(
        default=_BUDGET.mode,
        description="fill: set a limit if the client set none. cap: also lower the client's to the budget. off: "
        "set none.",
        examples=["fill"],
    )
    quantile: float = Field(
        default=_BUDGET.quantile, ge=0.5, le=0.999, description="Share of answers that fit.", examples=[0.95]
    )
    floor: Tokens = Field(
        default=_BUDGET.floor, description="Tokens that an answer gets at least, reasoning aside.", examples=[64]
    )
    ceiling: Tokens = Field(
        default=_BUDGET.ceiling,
        description="Tokens that an answer gets at most, reasoning aside and all continuations included.",
        examples=[8192],
    )
    headroom: Headroom = Field(
        default=Headroom(), description="Tokens on top for hidden reasoning.", examples=[{"high": 32_768}]
    )
    extend: bool = Field(
        default=_BUDGET.extend,
        description="Continue an answer that meets its budget, in the same stream.",
        examples=[False],
    )
    max_extensions: int = Field(
        default=_BUDGET.max_extensions,
        ge=1,
        le=16,
        description="Continuations of one answer at most; the last is given all up to the ceiling.",
        examples=[4],
    )


class IntentTable(Table):
    """What holds for requests of one intent."""

    budget: Budgets = Field(
        default=Budgets(),
        description="How long their answers may become; each key overrides that of [budgets].",
        examples=[{"quantile": 0.97, "ceiling": 16_384}],
    )
    min_tier: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Lowest tier that serves them; if all candidates are below it, the best of them do.",
        examples=[2],
    )
    effort: Literal["low", "medium", "high"] | None = Field(
        default=None,
        description="Reasoning effort, if the client left it open. Default: the model's own.",
        examples=["medium"],
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        default=None,
        description="How wordy, if the client left it open; for models that take it. Default: the model's own.",
        examples=["low"],
    )
    steering: str | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="A text put at the end of the system prompt. Default: none.",
        examples=["Answer in at most three sentences."],
    )


class Classifier(Table):
    """When to believe what a request seems to be after."""

    default: IntentLabel = Field(
        default="explain_advise",
        description="The intent of requests of which it is not sure what they are after.",
        examples=["chat_roleplay"],
    )
    min_confidence: float = Field(
        default=0.3, ge=0, le=1, description="How sure it has to be, as a probability.", examples=[0.5]
    )


class PolicySet(Table):
    """A Relay policy file. All `*.toml` files of a folder, merged in name order, are a policy set."""

    version: int | None = Field(
        default=None,
        ge=1,
        le=1,
        description="Version of the format. At least one file of a set says it, and all that do agree.",
        examples=[1],
    )
    access: Access = Field(default=Access(), description="Who may call without a key.")
    requests: Requests = Field(default=Requests(), description="What a request may look like.")
    streams: Streams = Field(default=Streams(), description="How streams behave towards the client.")
    retries: Retries = Field(default=Retries(), description="Waiting between attempts on the same upstream.")
    providers: dict[Name, Provider] = Field(default={}, description="Places where models are served, by name.")
    models: dict[Name, Model] = Field(default={}, description="Models, by name.")
    routes: list[Route] = Field(default=[], description="Which models may answer which requests; first match wins.")
    keys: dict[Name, Key] = Field(default={}, description="Clients' keys, by name.")
    budgets: Budgets = Field(
        default=Budgets(mode="off"), description="How long answers may become. Without it, no limit is set."
    )
    intents: dict[Annotated[str, Field(pattern=INTENT)], IntentTable] = Field(
        default={}, description="What holds for requests of one intent, by its label."
    )
    classifier: Classifier = Field(
        default=Classifier(), description="When to believe what a request seems to be after."
    )
