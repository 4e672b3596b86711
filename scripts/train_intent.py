"""Train the intent classifier.

    python scripts/train_intent.py --prompts ../shared/data/prompts.jsonl.gz

Writes `relay/intent/weights.py` and the figures between the markers of `docs/intent.md`, and prints them. Trains on
prompts written for it (`scripts/intent_examples/`), on rows marked `train` and, of those without a label, on those that
`labels.tsv` gives one. Rows marked `evaluate` are only measured. How features, strength and weights were chosen: by
leaving one source of labelled prompts out, training on the rest and measuring on it; the figures of `evaluate` decided
nothing. Needs the dependency group `train`; about ten minutes on one core; the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import textwrap
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, diags
from sklearn.linear_model import LogisticRegression

from relay.intent import LABELS
from relay.intent.features import features
from relay.intent.model import CENTRE
from scripts.intent_examples.examples import PARTIAL, Example, examples_of, own_examples, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = Path(__file__).parents[1] / "relay" / "intent" / "weights.py"
DOCUMENT = Path(__file__).parents[1] / "docs" / "intent.md"

SEED = "intent"

STRENGTH = 4.0
"""`C` of the regression: the inverse of its regularisation."""

SEEN = 3
"""A feature seen in fewer prompts than this is left out."""

KEPT = 12_000
"""Features shipped."""

CLIPPED = 0.9995
"""Share of weights that the range of the stored ones covers; the few beyond are cut to it."""


class Model(NamedTuple):
    """What is shipped, as numbers.

    Attributes:
        names: features, sorted.
        weights: by feature and label, whole numbers from -CENTRE to CENTRE.
        bias: by label, in log-odds.
        scale: log-odds of one weight, before the square root of the features known divides it.
    """

    names: list[str]
    weights: np.ndarray
    bias: np.ndarray
    scale: float

    def log_odds(self, read: Sequence[set[str]]) -> np.ndarray:
        """By request and label, but for a constant; as `relay.intent.model` works them out."""
        return np.asarray(normal(matrix(read, self.names)) @ self.weights * self.scale + self.bias)

    def cooled(self, temperature: float) -> Model:
        """The same answers, less or more sure of them."""
        return self._replace(bias=self.bias / temperature, scale=self.scale / temperature)


def matrix(read: Sequence[set[str]], names: Sequence[str]) -> csr_matrix:
    """Ones where a request has a feature."""
    index = {name: column for column, name in enumerate(names)}
    rows = [sorted(index[name] for name in found if name in index) for found in read]
    columns = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    starts = np.cumsum([0, *map(len, rows)])
    return csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), len(names)))


def normal(found: csr_matrix) -> csr_matrix:
    """Rows of length one."""
    return diags(1 / np.sqrt(np.maximum(np.diff(found.indptr), 1))) @ found


def fit(read: Sequence[set[str]], examples: Sequence[Example]) -> Model:
    """Fit with every feature, keep those that matter, fit again with these, round."""
    seen = Counter(name for found in read for name in found)
    names = sorted(name for name, count in seen.items() if count >= SEEN)
    found = matrix(read, names)
    worth = np.array([example.weight for example in examples])
    intents = [LABELS.index(example.label) for example in examples]
    full, _ = _regression(normal(found), intents, worth)
    importance = np.ptp(full, axis=1) * np.sqrt(worth @ found)
    kept = np.sort(np.argsort(-importance, kind="stable")[:KEPT])
    weights, bias = _regression(normal(found[:, kept]), intents, worth)
    scale = np.quantile(np.abs(weights), CLIPPED) / CENTRE
    rounded = np.clip(np.rint(weights / scale), -CENTRE, CENTRE).astype(int)
    return Model([names[column] for column in kept], rounded, bias, float(scale))


def _regression(found: csr_matrix, intents: Sequence[int], worth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights by feature and label with a mean of nothing, and the labels' bias."""
    model = LogisticRegression(C=STRENGTH, max_iter=300).fit(found, intents, sample_weight=worth)
    weights = model.coef_.T - model.coef_.T.mean(axis=1, keepdims=True)
    return weights, model.intercept_ - model.intercept_.mean()


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """By request and label."""
    powers = np.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def temperature(log_odds: np.ndarray, intents: np.ndarray) -> float:
    """What to divide log-odds by for confidences that hold on prompts which were not learnt from."""

    def loss(log_temperature: float) -> float:
        right = probabilities(log_odds / np.exp(log_temperature))[np.arange(len(intents)), intents]
        return float(-np.log(right).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


def write(model: Model) -> None:
    """Write the weights as `relay.intent.model` reads them."""
    planes = (model.weights + CENTRE).astype(np.uint8).T.tobytes()
    packed = base64.b64encode(zlib.compress("\n".join(model.names).encode() + b"\n\n" + planes, 9)).decode()
    lines = "\n".join(f'    "{line}"' for line in textwrap.wrap(packed, 112))
    WEIGHTS.write_text(
        '"""Written by scripts/train_intent.py; do not edit. As a module, so that reading it is no I/O."""\n\n'
        f"SCALE = {model.scale:.6g}\n\n"
        f"BIAS = ({', '.join(f'{bias:.4f}' for bias in model.bias)})\n\n"
        f"PACKED = (\n{lines}\n)\n",
        encoding="utf-8",
    )


def main() -> None:
    """Train, write, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl.gz of the shared data")
    rows = read_rows(parser.parse_args().prompts)
    own, shared = own_examples(SEED), examples_of(rows, "train")
    real = [example for example in shared if not example.source.startswith(PARTIAL)]
    own_read, real_read = ([features(example.request) for example in group] for group in (own, real))
    intents = np.array([LABELS.index(example.label) for example in real])
    log_odds = fit(own_read, own).log_odds(real_read)
    print(f"own prompts alone, on real ones: {(log_odds.argmax(axis=1) == intents).mean():.3f}", flush=True)
    write(fit([*own_read, *real_read], [*own, *real]).cooled(temperature(log_odds, intents)))


if __name__ == "__main__":
    main()
