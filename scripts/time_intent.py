"""What a call of the intent classifier costs, on the Python that runs this; as JSON, for scripts/train_intent.py.

    PATH/TO/python scripts/time_intent.py ../shared/data/prompts.jsonl.gz

Prompts of about 300 tokens, each as it is and ten times in a row (3,000 tokens), behind a system prompt of one
sentence, as decoded mappings. Each figure is the least of many rounds: what a call costs when nothing else disturbs it.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from relay.intent import classify, model, weights

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPTS = 60
ROUNDS = 100
LOADS = 20
TOKENS = range(255, 346)
REPEATED = 10


def least_s(rounds: int, call: Callable[[], object]) -> float:
    """Seconds of the fastest of so many calls."""
    best = float("inf")
    for _ in range(rounds):
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
    return best


def requests(prompts: Path, repeated: int) -> list[dict[str, Any]]:
    """Chat Completions bodies around prompts of about 300 tokens, each written so many times in a row."""
    with gzip.open(prompts, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["prompt"] for row in rows if row.get("prompt") and (row["prompt_tokens"] or 0) in TOKENS][:PROMPTS]
    system = {"role": "system", "content": "You are a helpful assistant."}
    return [{"messages": [system, {"role": "user", "content": "\n".join([text] * repeated)}]} for text in texts]


def classify_us(bodies: list[dict[str, Any]]) -> float:
    """Microseconds of one call."""
    return least_s(ROUNDS, lambda: [classify(body) for body in bodies]) / len(bodies) * 1e6


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print(
        json.dumps(
            {
                "short_us": classify_us(requests(path, 1)),
                "long_us": classify_us(requests(path, REPEATED)),
                "load_ms": least_s(LOADS, lambda: model.load(weights.PACKED)) * 1e3,
            }
        )
    )
