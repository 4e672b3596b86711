"""Frozen values that travel between the parts. No behaviour beyond reading themselves."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple, get_args

import msgspec

Headers = list[tuple[bytes, bytes]]
"""Header fields in order, names in lower case, repeats kept."""

Continuing = Literal["instruction", "continue_final_message", "prefix", "prefill", "none"]
"""How a model is asked to go on with an answer that was broken off; see `relay.policy.schema.Model.continuation`."""


class Outcome(StrEnum):
    """How a request ended. Exactly one per request; see docs/architecture.md for what leads to each."""

    COMPLETED = "completed"
    LENGTH = "length"
    BUDGET = "budget"
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    STALLED = "stalled"
    TTFT_TIMEOUT = "ttft_timeout"
    DEADLINE = "deadline"
    REJECTED = "rejected"
    RELAY_ERROR = "relay_error"


IntentLabel = Literal[
    "classify_extract",
    "factual_qa",
    "explain_advise",
    "summarize",
    "translate_rewrite",
    "code",
    "math_reasoning",
    "creative",
    "brainstorm_plan",
    "chat_roleplay",
    "tool_use",
    "longform",
]

INTENTS: tuple[str, ...] = get_args(IntentLabel)
"""What a request can be for; docs/intent.md says what each means."""


class Intent(NamedTuple):
    """What a request is for.

    Attributes:
        label: one of `INTENTS`, for example `summarize`.
        confidence: how likely the label is right, from 0 to 1.
    """

    label: str
    confidence: float


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one request, as the upstream counted them.

    Attributes:
        prompt_tokens: tokens read, cached ones included.
        completion_tokens: tokens written, reasoning included.
        cached_tokens: the part of `prompt_tokens` served from the provider's prompt cache.
        reasoning_tokens: the part of `completion_tokens` spent on hidden reasoning.
        estimated: True if the upstream sent no usage and the relay counted what it saw.
        continuation_prompt_tokens: tokens read again by the requests that continued the answer; not a part of
            `prompt_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    continuation_prompt_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All that was read and written, continuations included."""
        return self.prompt_tokens + self.completion_tokens + self.continuation_prompt_tokens

    def continued(self, more: Usage) -> Usage:
        """Of an answer that went on with a segment of that usage: one prompt, and all that was written."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens + more.completion_tokens,
            cached_tokens=self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + more.reasoning_tokens,
            estimated=self.estimated or more.estimated,
            continuation_prompt_tokens=self.continuation_prompt_tokens + more.prompt_tokens,
        )


ABSENT = msgspec.Raw()
"""A field that is not there."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """A message of a conversation, as far as the relay looks at it.

    Attributes:
        role: who speaks.
        content: a text or a list of parts, as a raw JSON view into the request; `ABSENT` if it has none.
        tool_calls: likewise.
    """

    role: str | None = None
    content: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT


class ChatRequest(msgspec.Struct, frozen=True):
    """A Chat Completions request, read but not rebuilt.

    Attributes:
        body: the client's bytes.
        fields: top-level fields in the client's order, values as raw JSON views into `body`.
        model: what the client asked for.
        stream: True for an SSE answer.
        wants_usage: the client itself asked for the usage chunk.
        max_tokens: the client's limit on the answer, under either of its two names; None if it set none.
        choices: how many answers were asked for (`n`).
        turns: messages of the conversation; of what is no message, an empty one.
    """

    body: bytes
    fields: dict[str, msgspec.Raw]
    model: str
    stream: bool
    wants_usage: bool
    max_tokens: int | None
    choices: int
    turns: list[Turn]


class Origin(NamedTuple):
    """Where connections go. Pools are kept per origin."""

    scheme: str
    host: str
    port: int


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """One path of one provider, with all that is the same for each request to it. Compared by identity.

    Attributes:
        origin: where to connect.
        target: path and query, as sent on the request line.
        headers: fixed request headers (host, credentials, content type, accept), names in lower case.
        connect_timeout_s: seconds a new connection may take, TLS included.
        max_connections: open connections to the origin; further requests wait their turn.
        proxy: URL of an HTTP proxy; needs the httpx2 transport.
        http2: speak HTTP/2; needs the httpx2 transport.
        method: GET for what has no body.
    """

    origin: Origin
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    connect_timeout_s: float = 3.0
    max_connections: int = 16_384
    proxy: str | None = None
    http2: bool = False
    method: Literal["POST", "GET"] = "POST"

    def __repr__(self) -> str:
        """Without headers: they hold credentials."""
        scheme, host, port = self.origin
        return f"<Endpoint {scheme}://{host}:{port}{self.target}>"


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One request to an upstream.

    Attributes:
        endpoint: where, and the headers that never change.
        headers: headers of this request alone (forwarded from the client's allow-listed ones).
        body: the bytes to send; content-length is the transport's business.
    """

    endpoint: Endpoint
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class KeyLimits(msgspec.Struct, frozen=True, gc=False):
    """What a key may use; None is no limit.

    Attributes:
        requests_per_min: requests, a token bucket that holds one minute's worth.
        tokens_per_min: prompt and completion tokens, likewise.
        streams: requests in flight at the same time.
    """

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    streams: int | None = None


class Wants(msgspec.Struct, frozen=True, gc=False):
    """What of a request a decision looks at.

    Attributes:
        features: what it uses beyond text.
        prompt_tokens: estimated.
        output_tokens: expected.
        limit_tokens: the client's own limit on the answer; 0 if it set none.
        min_tier: the lowest tier that will do.
        prefixes: (fingerprint, tokens) of the prompt's beginnings, the longest first.
        prefer: `ttft`, `latency` or `cost` alone, or a candidate's name; "" leaves it to the route.
    """

    features: frozenset[str] = frozenset()
    prompt_tokens: int = 0
    output_tokens: float = 0.0
    limit_tokens: int = 0
    min_tier: int = 0
    prefixes: tuple[tuple[bytes, int], ...] = ()
    prefer: str = ""


class Weighed(msgspec.Struct, frozen=True, gc=False):
    """How a candidate stood in one decision.

    Attributes:
        model: its name.
        place: in the route.
        left_out: why it was not to be asked; "" if it was.
        over: its TTFT p95 is above the route's ceiling.
        score: log of the weighted product, lower is better; 0 without an objective.
        ttft_s: expected seconds to the first output.
        latency_s: to the last.
        usd: expected cost.
        cached_tokens: of the prompt, which are likely to be in its provider's cache.
    """

    model: str
    place: int
    left_out: str = ""
    over: bool = False
    score: float = 0.0
    ttft_s: float = 0.0
    latency_s: float = 0.0
    usd: float = 0.0
    cached_tokens: int = 0


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What was decided for one request, and why.

    Attributes:
        route: its name.
        order: candidates to try, best first.
        first_by: what put the first one there: `written`, `score`, `share`, `explore`, `prefer` or, with nobody
            to ask, "".
        candidates: each one of the route, as written.
    """

    route: str
    order: tuple[str, ...]
    first_by: str
    candidates: tuple[Weighed, ...]

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """(model, reason) of those that are not to be asked."""
        return tuple((weighed.model, weighed.left_out) for weighed in self.candidates if weighed.left_out)


class Headroom(NamedTuple):
    """Tokens set aside for hidden reasoning, by effort."""

    low: int = 1024
    medium: int = 4096
    high: int = 16_384


class BudgetRules(msgspec.Struct, frozen=True, gc=False):
    """How a policy wants answers limited.

    Attributes:
        mode: `fill` sets a limit only if the client set none, `cap` also lowers the client's, `off` sets none.
        quantile: share of answers that shall fit the budget, below 1.
        floor: least budget for what the client sees, tokens.
        ceiling: most that the client ever sees, all continuations included, tokens.
        headroom: tokens on top for hidden reasoning.
        extend: continue an answer that meets the budget.
        max_extensions: continuations of one answer; the last is given all up to the ceiling.
    """

    mode: Literal["fill", "cap", "off"] = "fill"
    quantile: float = 0.95
    floor: int = 64
    ceiling: int = 8192
    headroom: Headroom = Headroom()
    extend: bool = True
    max_extensions: int = 4


class Budget(msgspec.Struct, frozen=True, gc=False):
    """What one answer may take, and why.

    Attributes:
        limit: of the answer, hidden reasoning included, as sent upstream; None sends none.
        visible: the part of it meant for what the client sees; of a client's limit, what the model can write.
        headroom: the part meant for hidden reasoning.
        reserve: to take from the key's tokens for all choices together. What cannot be continued has a limit far above
            what it is expected to take; that is what is reserved. Likewise a client's limit above what the model can
            write.
        source: where the number comes from: a learned `cell`, the shipped `prior`, the `client`, the `ceiling`, or
            `off`.
        clamps: bounds that changed it, in the order applied: `floor`, `ceiling`, `max_output`, `context`.
        cell: name of the cell it was read from; empty if none.
        quantile: which quantile of that cell.
        allowed: share of answers that may be longer, before widening.
    """

    limit: int | None
    visible: int
    headroom: int
    reserve: int
    source: Literal["cell", "prior", "client", "ceiling", "off"]
    clamps: tuple[str, ...] = ()
    cell: tuple[str, ...] = ()
    quantile: float = 1.0
    allowed: float = 1.0

    @property
    def own(self) -> bool:
        """The limit is the relay's; else it is the client's, or there is none."""
        return self.source not in ("client", "off")


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """What a client itself says of hidden reasoning.

    Attributes:
        effort: the word it used; None if it used none.
        tokens: what it set aside for reasoning within its limit; 0 if it named no number.
    """

    effort: str | None = None
    tokens: int = 0


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What the policy sets in a request for one model; None leaves a part as the client wrote it.

    Attributes:
        limit: of the answer, tokens.
        effort: reasoning effort.
        effort_field: how the model's provider takes it: `reasoning_effort`, `thinking` or `thinking_config`.
        thinking_tokens: what the effort is in tokens, for providers that want a number.
        verbosity: how wordy the answer shall be.
        steering: a text to put at the end of the system prompt.
    """

    limit: int | None = None
    effort: str | None = None
    effort_field: str = "reasoning_effort"
    thinking_tokens: int = 0
    verbosity: str | None = None
    steering: str | None = None


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One planned try.

    Attributes:
        model: name of the policy's model.
        backoff_s: the longest wait before it starts, seconds; how much of it, chance decides (full jitter).
    """

    model: str
    backoff_s: float = 0.0


class AttemptRecord(msgspec.Struct, frozen=True, gc=False):
    """How one attempt went.

    Attributes:
        model: name of the policy's model.
        provider: name of its provider.
        error: code of the error that ended it (see errors.py); None if it served the answer.
        upstream_status: HTTP status of the answer's head; None if none came.
        ttft_s: seconds from its start to the first real output (stream) or the whole answer; None if none came.
        duration_s: seconds from its start to its end.
        hedge: it was started beside another one.
        segment: which segment of the answer it was asked for, from 1.
    """

    model: str
    provider: str
    error: str | None
    upstream_status: int | None
    ttft_s: float | None
    duration_s: float
    hedge: bool = False
    segment: int = 1


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request when it is over; metadata only, never prompt or answer text.

    Attributes:
        id: the `x-request-id` of the answer.
        at: when it arrived, seconds since the Unix epoch.
        endpoint: the path called, for example `/v1/chat/completions`.
        key: name of the policy's key; "" if open or not authenticated.
        route: name of the route; "" if none matched.
        model: name of the model that served it; "" if none did.
        provider: name of that model's provider; "" if none did.
        upstream_model: what that provider calls the model; "" if none served it.
        stream: whether an SSE answer was asked for.
        status: HTTP status the client got; 0 if it left before one was sent.
        outcome: how it ended.
        error: code of the error the client was told, or of the failure that ended it; None if none.
        attempts: each try, in order.
        usage: tokens; None if nothing was written and the upstream counted nothing.
        finish_reason: as the upstream gave it.
        ttft_s: seconds from the request's arrival to the first real output sent on; None if none was.
        duration_s: seconds from arrival to the end.
        policy: version of the policy set it ran under.
        decision: who was to be asked, and why; None if the route leaves nothing to decide, or none was found.
        wants: what that decision looked at.
        intent: the label it was treated as; "" if the policy does not ask.
        confidence: how sure the classifier was of what it took it for.
        budget: what the answer was given; None if the policy sets none.
        segments: pieces that the client's answer was put together from; 1 as a rule, 0 if nothing came.
        extensions: those of them that followed because the relay's own budget was met, and not a failure.
        param: name of the body's field, or of the header, for which the request was rejected; None if it was none.
    """

    id: str
    at: float
    endpoint: str
    key: str
    route: str
    model: str
    provider: str
    upstream_model: str
    stream: bool
    status: int
    outcome: Outcome
    error: str | None
    attempts: tuple[AttemptRecord, ...]
    usage: Usage | None
    finish_reason: str | None
    ttft_s: float | None
    duration_s: float
    policy: str
    decision: Decision | None = None
    wants: Wants | None = None
    intent: str = ""
    confidence: float = 0.0
    budget: Budget | None = None
    segments: int = 1
    extensions: int = 0
    param: str | None = None
