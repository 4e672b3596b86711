"""The figures of docs/intent.md, as Markdown: what scripts/train_intent.py measured."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from relay.intent import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.intent_examples.examples import Example

SUREST = 0.4
BINS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Measured(NamedTuple):
    """Examples and the probabilities that a model gives their labels.

    Attributes:
        examples: what was read.
        probabilities: by example and label, in the order of `LABELS`.
    """

    examples: Sequence[Example]
    probabilities: np.ndarray

    @property
    def true(self) -> np.ndarray:
        """Each example's label, as its place in `LABELS`."""
        return np.array([LABELS.index(example.label) for example in self.examples])

    @property
    def said(self) -> np.ndarray:
        """The label each example was given, likewise."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def right(self) -> np.ndarray:
        """Where both are the same."""
        return np.asarray(self.true == self.said)

    @property
    def confidence(self) -> np.ndarray:
        """How likely the given label is."""
        return np.asarray(self.probabilities.max(axis=1))

    def of(self, chosen: Iterable[bool]) -> Measured:
        """Some of them."""
        kept = np.array(list(chosen), dtype=bool)
        return Measured(
            [each for each, wanted in zip(self.examples, kept, strict=True) if wanted], self.probabilities[kept]
        )

    @property
    def surest(self) -> Measured:
        """The most confident 40 %."""
        rows = np.argsort(-self.confidence, kind="stable")[: int(SUREST * len(self.examples))]
        return self.of(np.isin(np.arange(len(self.examples)), rows))

    @property
    def accuracy(self) -> float:
        """Share of right labels."""
        return float(self.right.mean())

    def scores(self, label: int) -> tuple[float, float, float]:
        """Precision, recall and F1 of a label."""
        hits = int((self.right & (self.true == label)).sum())
        precision = hits / max(int((self.said == label).sum()), 1)
        recall = hits / max(int((self.true == label).sum()), 1)
        return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels that occur."""
        return float(np.mean([self.scores(label)[2] for label in np.unique(self.true)]))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers between 0 and 1 are shown with two digits."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def summary(name: str, measured: Measured) -> list[object]:
    """A row: accuracy, macro-F1, accuracy of the surest 40 %."""
    return [name, f"{measured.accuracy:.3f}", f"{measured.macro_f1:.3f}", f"{measured.surest.accuracy:.3f}"]


def by_source(measured: Measured) -> str:
    """Accuracy of each source."""
    counts = Counter(example.source for example in measured.examples)
    of = {source: measured.of(example.source == source for example in measured.examples) for source in sorted(counts)}
    return table(
        ("source", "prompts", "accuracy", "macro-F1"),
        [(f"`{source}`", len(part.examples), part.accuracy, part.macro_f1) for source, part in of.items()],
    )


def by_label(measured: Measured) -> str:
    """Precision, recall and F1 of each label, and what it is taken for."""
    rows = []
    for place, label in enumerate(LABELS):
        count = int((measured.true == place).sum())
        if count:
            wrong = Counter(measured.said[(measured.true == place) & ~measured.right].tolist()).most_common(2)
            taken = ", ".join(f"`{LABELS[other]}` {number / count:.0%}" for other, number in wrong)
            rows.append((f"`{label}`", count, *measured.scores(place), taken))
    return table(("label", "prompts", "precision", "recall", "F1", "taken for"), rows)


def calibration(measured: Measured) -> str:
    """How often answers of a confidence are right, and the expected calibration error."""
    rows = []
    error = 0.0
    for low, high in pairwise(BINS):
        within = (measured.confidence > low) & (measured.confidence <= high)
        if within.any():
            mean, right = measured.confidence[within].mean(), measured.right[within].mean()
            error += abs(mean - right) * within.mean()
            rows.append((f"{low:.1f} to {high:.1f}", f"{within.mean():.0%}", float(mean), float(right)))
    figures = table(("confidence", "share", "mean confidence", "right"), rows)
    return f"{figures}\nExpected calibration error: {error:.3f}.\n"


def by_language(measured: Measured) -> str:
    """Accuracy of each language."""
    codes = sorted({example.language for example in measured.examples})
    of = {code: measured.of(example.language == code for example in measured.examples) for code in codes}
    return table(
        ("language", "prompts", "accuracy", "macro-F1"),
        [(code, len(part.examples), part.accuracy, part.macro_f1) for code, part in of.items()],
    )
