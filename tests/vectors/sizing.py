"""Decisions that every Python has to make alike: budget, what is set in a request, and who is asked.

What a request is taken for is held by vectors of its own, so here it is said: each policy treats all as one intent.

python -m tests.vectors.sizing    # write sizing.json anew, after a change that is meant to decide otherwise
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec

from relay.dialects import DIALECTS
from relay.limits.experience import Experience
from relay.messages import Usage
from relay.policy.decide import Chooser
from relay.policy.load import load
from relay.sizing import Sizer
from relay.upstreams import Upstream
from relay.wants import wants_of

KEPT = Path(__file__).with_suffix(".json")
POLICY = """\
version = 1
access.open = true
[providers.p]
dialect = "openai"
base_url = "http://127.0.0.1:1/v1"
[models.thinks]
provider = "p"
price = { input = 1, output = 5 }
features = ["reasoning", "tools"]
effort = "thinking"
context = 200_000
tier = 2
[models.plain]
provider = "p"
price = { input = 0.5, output = 1 }
features = ["tools"]
max_output = 4096
[[routes]]
name = "auto"
candidates = ["thinks", "plain"]
objective = { latency = 1, cost = 1 }
[budgets]
extend = false
[intents.code]
min_tier = 2
effort = "low"
budget = { quantile = 0.9 }
[intents.classify_extract]
budget = { mode = "cap", ceiling = 100 }
[classifier]
min_confidence = 1.0
default = "%s"
"""
LABELS = ("code", "classify_extract", "creative")
SYSTEMS = ("", "You sort support tickets into queues.", "Ты переводчик.", "あなたは親切な助手です。")
ASKED = (
    "Write a Python function that merges two sorted lists.",
    "Which queue? My invoice is wrong and nobody answers. Answer with one word.",
    "Переведи на английский: завтра будет дождь.",
    "日本の首都の歴史を教えてください。",
    "Write a long story about a lighthouse. " * 300,
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 50},
    {"n": 3},
    {"reasoning_effort": "high"},
    {"tools": [{"type": "function", "function": {"name": "look_up", "description": "look a thing up"}}]},
)


def decided() -> list[Any]:
    """Some hundred requests in turn, each of whose answers teaches the next one's budget."""
    policies = [load({"p": POLICY % label}, {}) for label in LABELS]
    route, dialect = policies[0].routes[0], DIALECTS["openai"]
    experience, rng = Experience(), random.Random(7)
    sizers = [Sizer(policy.intents, experience) for policy in policies if policy.intents]
    chooser = Chooser(route, {model.name: Upstream(model.expected, watched=True) for model in route.candidates})
    rows = []
    for number in range(150):
        system, asked = rng.choice(SYSTEMS), rng.choice(ASKED)
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": asked}]
        body = {"model": "auto", "messages": messages, **rng.choice(SETTINGS)}
        request = dialect.parse_request(json.dumps(body, ensure_ascii=rng.random() < 0.5).encode())
        sizing = rng.choice(sizers).size(request, dialect, "team")
        wants = wants_of(request, route, dialect, {}, None, sizing)
        decision = chooser.decide(wants, float(number), rng)
        model = policies[0].models[decision.order[0]]
        budget = sizing.budget(model)
        usage = Usage(rng.randint(10, 3000), rng.randint(1, 1500), reasoning_tokens=0)
        sizing.observe(model, budget, usage, 1_800_000_000.0 + number, cut=usage.completion_tokens == budget.limit)
        experience.catch_up()
        rows.append(
            [
                sizing.label,
                wants.prompt_tokens,
                round(wants.output_tokens, 6),
                decision.order,
                budget,
                sizing.shape(model),
            ]
        )
    return [_rounded(row) for row in msgspec.to_builtins(rows)]


def _rounded(value: Any) -> Any:
    """The last digits of powers and logarithms are the platform's own."""
    match value:
        case float():
            return round(value, 6)
        case dict():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case _:
            return value


if __name__ == "__main__":
    KEPT.write_text("[\n" + ",\n".join(json.dumps(row) for row in decided()) + "\n]\n")
