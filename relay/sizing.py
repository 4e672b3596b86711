"""How much one request may take: what it is after, what the policy says of such, and a budget for each model asked.

One `Sizer` per policy; one `Sizing` per request, which the attempts ask as they begin, because how long an answer
becomes depends most of all on who gives it.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from cachetools import LRUCache

from relay.dialects.base import Dialect
from relay.intent import classify, spoken
from relay.limits import lengths, prompt_tokens
from relay.limits.budgets import Request, thinking_tokens
from relay.limits.experience import Experience, Lesson
from relay.limits.lengths import Place, place_of
from relay.messages import Budget, ChatRequest, Intent, Reasoning, Shape
from relay.policy.compiled import IntentRules
from relay.wire.gist import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.messages import Usage
    from relay.policy.compiled import Intents, Model

_MODELS_OWN = {"max_output", "context"}
"""Clamps that make a limit the model's."""

LEAST_THINKING = 1024
"""The smallest thinking budget that Anthropic takes, tokens."""

MEMO_BYTES = 8 * 1024 * 1024
"""Of prompts that are remembered with what was read of them."""

REMEMBERED_BYTES = 32 * 1024
"""Of the longest request whose prompt is remembered."""

SEEN = 4096
"""Prompts that came lately, of which no more is kept than a hash; what is remembered has come twice."""

END_BYTES = 128
"""Of either end of the last message: with its length they nearly always tell a prompt from another."""

MAX_APPLICATIONS = 512
"""System prompts that are remembered; of each some kilobytes at most."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What is read of a prompt alone.

    Attributes:
        intent: what it seems to be for.
        label: what the policy has it treated as.
        application: fingerprint of the system prompt.
        prompt_tokens: estimated, before calibration.
    """

    intent: Intent
    label: str
    application: str
    prompt_tokens: float


class _Known(NamedTuple):
    """A prompt, and what was read of it. Others may have its fingerprint, so it is compared byte for byte."""

    prompt: tuple[msgspec.Raw, ...]
    reading: Reading

    @property
    def size(self) -> int:
        return sum(map(len, self.prompt))


class Sizer:
    """What sizing needs of a policy.

    It remembers what it read of prompts that come again, in retries, in evaluations, from programs in a loop; and of
    system prompts, which come with each request of their application.

    Args:
        intents: the policy's rules.
        experience: what was learned of lengths; it outlives the policy.
    """

    def __init__(self, intents: Intents, experience: Experience) -> None:
        self.intents = intents
        self.experience = experience
        self._seen = array("q", bytes(8 * SEEN))
        self._known: LRUCache[int, _Known] = LRUCache(MEMO_BYTES, getsizeof=attrgetter("size"))
        self._application = lru_cache(MAX_APPLICATIONS)(lengths.application)

    def size(self, request: ChatRequest, dialect: Dialect, key: str) -> Sizing:
        """Look at a request.

        Args:
            request: as it came.
            dialect: what its client speaks.
            key: name of the client's key; "" if it sent none.
        """
        reading = self._read(request, dialect)
        return Sizing(  # by place, see `wants_of`
            reading.intent,
            reading.label,
            self.intents.rules[reading.label],
            self.experience,
            request,
            dialect,
            key,
            reading.application,
            reading.prompt_tokens,
            dialect.reasoning(request),
            dialect.extendable(request),
        )

    def _read(self, request: ChatRequest, dialect: Dialect) -> Reading:
        if len(request.body) > REMEMBERED_BYTES:
            return self._reading(request, dialect)
        fingerprint = _fingerprint(request)
        if self._seen[fingerprint % SEEN] != fingerprint:  # most never come again
            self._seen[fingerprint % SEEN] = fingerprint
            return self._reading(request, dialect)
        prompt = dialect.prompt(request)
        try:
            known, reading = self._known[fingerprint]
        except KeyError:
            known = ()
        if known != prompt:
            reading = self._reading(request, dialect)
            self._known[fingerprint] = _Known(tuple(raw.copy() for raw in prompt), reading)
        return reading

    def _reading(self, request: ChatRequest, dialect: Dialect) -> Reading:
        gist = dialect.gist(request)
        intent = classify(gist.body)
        return Reading(
            intent,
            self.intents.settled(intent),
            self._application(system_text(gist.body)),
            prompt_tokens.estimate_escaped(gist.texts, messages=len(request.turns), images=gist.images),
        )


def _fingerprint(request: ChatRequest) -> int:
    """Of a prompt's last message, however long it is: templates begin alike or end alike, few do both."""
    turns = request.turns
    if not turns:
        return 0
    last = bytes(turns[-1].content)
    return hash((len(turns), len(last), last[:END_BYTES], last[-END_BYTES:]))


class Grant(msgspec.Struct, frozen=True, gc=False):
    """What was settled for one model.

    Attributes:
        asked: what is asked of it.
        place: where its answer is counted.
        budget: what each answer may take.
        shape: what to set in the request.
    """

    asked: Request
    place: Place
    budget: Budget
    shape: Shape


class Sizing(msgspec.Struct, eq=False):
    """One request's.

    Attributes:
        intent: what it seems to be after.
        label: what it is treated as: the policy's default where the intent is not sure.
        rules: of that label.
    """

    intent: Intent
    label: str
    rules: IntentRules
    _experience: Experience
    _request: ChatRequest
    _dialect: Dialect
    _key: str
    _application: str
    _prompt_tokens: float
    _reasoning: Reasoning | None
    _extendable: bool
    _grants: dict[str, Grant] = {}  # by model

    def prompt_tokens(self, model: str) -> int:
        """Estimated tokens of the prompt, as the model of that name counts."""
        return round(self._prompt_tokens * self._experience.prompts.factor(model))

    def output_tokens(self, model: str) -> float:
        """How many tokens all its answers are expected to have if that model gives them, reasoning aside."""
        place = place_of(self.label, model, self._key, self._application)
        expected = self._experience.answers.mean(place)
        limit = self._request.max_tokens
        return (expected if limit is None else min(expected, limit)) * self._request.choices

    def grant(self, model: Model) -> Grant:
        """What that model may take; the same whenever it is asked."""
        grant = self._grants.get(model.name)
        if grant is None:
            grant = self._grants[model.name] = self._settle(model)
        return grant

    def budget(self, model: Model) -> Budget:
        """What each answer of that model may take."""
        return self.grant(model).budget

    def shape(self, model: Model) -> Shape:
        """What to set in the request for that model."""
        return self.grant(model).shape

    @property
    def extends(self) -> bool:
        """An answer that meets the budget may be continued."""
        return self._extendable and self.rules.budget.extend and self.rules.budget.mode != "off"

    def extension(self, model: Model, budget: Budget, *, written: int, number: int) -> int:
        """What a continuation of an answer may take; 0 if the answer ends here.

        Args:
            model: who goes on.
            budget: what the first segment was given.
            written: tokens that the client has seen so far.
            number: which continuation it is, from 1.
        """
        grant = self.grant(model)
        return self._experience.extension(
            self.rules.budget, grant.asked, grant.place, budget, written=written, number=number
        )

    def spoken(self) -> list[tuple[str, float]]:
        """Which features of the request spoke most for its intent; they are pieces of the prompt."""
        return spoken(self._dialect.gist(self._request).body)

    def expected(self, model: Model, quantiles: Sequence[float]) -> list[float]:
        """How long the answer is expected to be, tokens, without the slack and the widening that a budget has."""
        return self._experience.answers.quantiles(self.grant(model).place, quantiles)

    def described(self) -> str:
        """What the request is treated as, for a header."""
        fallback = "" if self.label == self.intent.label else "; default"
        return f"{self.label}; confidence={self.intent.confidence:g}{fallback}"

    def met(self, budget: Budget, usage: Usage) -> bool:
        """Whether an answer that met some limit met the relay's own, and not the client's or its model's."""
        if not budget.own or budget.limit is None or not _MODELS_OWN.isdisjoint(budget.clamps):
            return False
        choices = self._request.choices
        return usage.estimated or choices > 1 or usage.completion_tokens >= budget.limit

    def observe(
        self, model: Model, budget: Budget, usage: Usage, now: float, *, cut: bool, reasoning_share: float = 0.0
    ) -> None:
        """Learn from an answer that has ended, soon: see `Experience.soon`.

        Args:
            model: who gave it.
            budget: what its first segment was given.
            usage: of all its segments together.
            now: seconds since the Unix epoch.
            cut: it would have gone on: a limit, the client or a failure ended it.
            reasoning_share: part of its text that is reasoning; some servers send that along and do not count it apart.
        """
        if not usage.estimated and usage.prompt_tokens:
            self._experience.prompts.observe(model.name, estimated=self._prompt_tokens, actual=usage.prompt_tokens)
        written = usage.completion_tokens // self._request.choices
        hidden = usage.reasoning_tokens // self._request.choices or round(written * reasoning_share)
        grant = self.grant(model)
        visible = max(written - hidden, 0)
        lesson = Lesson(self.rules.budget, grant.asked, grant.place, budget, now, visible, hidden, cut)
        self._experience.soon(lesson)

    def _settle(self, model: Model) -> Grant:
        rules, request, said, thinking = self.rules, self._request, self._reasoning, 0
        effort = rules.effort
        if effort is not None and not (model.takes_effort and self._dialect.takes_effort(request, model.effort)):
            effort = None
        asked = Request(  # by place, see `wants_of`
            self.prompt_tokens(model.name),
            request.max_tokens,
            said.tokens if said else 0,
            request.choices,
            said.effort if said else effort,
            model.reasons,
            self._extendable and model.continuation != "none",
            model.context,
            model.max_output,
        )
        place = place_of(self.label, model.name, self._key, self._application)
        budget = self._experience.budget(rules.budget, asked, place)
        if effort is not None:
            thinking = thinking_tokens(rules.budget.headroom, effort)
            if model.effort == "thinking" and not LEAST_THINKING <= thinking < (budget.limit or inf):
                effort = None
        shape = Shape(
            budget.limit if budget.own else None,
            effort,
            model.effort,
            thinking,
            rules.verbosity if model.verbosity else None,
            rules.steering,
        )
        return Grant(asked, place, budget, shape)


def described(budget: Budget) -> str:
    """A budget and why it is as it is, for a header."""
    headroom = f"; headroom={budget.headroom}" if budget.headroom and budget.own else ""
    clamps = f"; clamps={'+'.join(budget.clamps)}" if budget.clamps else ""
    return f"{'none' if budget.limit is None else budget.limit}; source={budget.source}{headroom}{clamps}"


def system_text(gist: Mapping[str, Any]) -> str:
    """The text of a conversation's first message if it is a system prompt, else "". Of many parts the first count.

    Args:
        gist: body of the conversation's gist.
    """
    first = gist["messages"][0] if gist["messages"] else {}
    if first.get("role") not in ("system", "developer"):
        return ""
    content = first["content"]
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content[:PARTS] if part["text"] is not None)
    return content or ""
