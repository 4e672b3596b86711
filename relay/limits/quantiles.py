"""Quantiles of a stream of positive numbers that forget the past, in bounded memory.

Buckets whose borders grow by a constant factor keep a relative error (DDSketch: Masson, Rim and Lee, VLDB 2019).
Forgetting is forward decay (Cormode et al., ICDE 2009): instead of shrinking all the old weights, each new one is
larger than the last, so an update touches one bucket; the scale is reset before it overflows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import ceil, exp, inf, log
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

LOWEST = 1e-3
"""Smallest value told apart: a millisecond. Whatever is below counts as this."""

HIGHEST = 1e7
"""Largest value told apart: ten million tokens, or 115 days. Whatever is above counts as this."""

_RESCALE_AT = 60.0
"""Natural logarithm of the weight at which the scale is reset; far from both ends of a float."""

_NEGLIGIBLE = 1e-9
"""Share of the whole weight below which a bucket is dropped at a reset."""


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """A sketch at rest: what is persisted, sent and merged.

    Attributes:
        relative_error: of every quantile read from it.
        half_life_s: time in which a weight halves; None if nothing is forgotten.
        at: the moment at which the weights are as given, seconds on a clock that all who merge share.
        weights: by bucket number.
        total: sum of weight times value.
    """

    relative_error: float
    half_life_s: float | None
    at: float
    weights: dict[int, float]
    total: float


class Sketch:
    """The running form; not to be shared by threads.

    At most ln(HIGHEST / LOWEST) / (2 * relative_error) buckets: 576 at 2 %.

    Args:
        relative_error: bound on |estimate - true| / true of every quantile, for values from `LOWEST` to `HIGHEST`.
        half_life_s: time in which an observation's weight halves; None forgets nothing.
    """

    __slots__ = (
        "_buckets_per_e",
        "_landmark",
        "_rate",
        "_total",
        "_weight",
        "_weights",
        "half_life_s",
        "relative_error",
    )

    def __init__(self, *, relative_error: float = 0.02, half_life_s: float | None = None) -> None:
        self.relative_error = relative_error
        self.half_life_s = half_life_s
        self._buckets_per_e = 1.0 / log(_growth(relative_error))
        self._rate = _rate(half_life_s)
        self._landmark = 0.0  # the moment at which a weight of one is stored as one
        self._weights: dict[int, float] = {}
        self._weight = 0.0
        self._total = 0.0

    def add(self, value: float, now: float, weight: float = 1.0) -> float:
        """Count one observation.

        Args:
            value: at least 0.
            now: seconds on any clock that does not run below zero; it may stand still or step back.
            weight: how much it counts for, above 0.

        Returns:
            Its share of all that is now known: above 0, at most 1.
        """
        age = (now - self._landmark) * self._rate
        if age > _RESCALE_AT:
            self._rescale(now)
        elif age > 0.0:
            weight *= exp(age)
        if not LOWEST <= value <= HIGHEST:
            value = LOWEST if value < LOWEST else HIGHEST
        bucket = ceil(log(value) * self._buckets_per_e)
        weights = self._weights
        weights[bucket] = weights.get(bucket, 0.0) + weight
        self._weight += weight
        self._total += weight * value
        return weight / self._weight

    def _rescale(self, now: float) -> None:
        factor = self._faded(now)
        keep = self._weight * _NEGLIGIBLE
        self._weights = {bucket: weight * factor for bucket, weight in self._weights.items() if weight > keep}
        self._weight *= factor
        self._total *= factor
        self._landmark = now

    def _faded(self, now: float) -> float:
        """What is left at `now` of a weight stored as one. Never more than one, should a clock have stepped back."""
        return exp(min((self._landmark - now) * self._rate, 0.0))

    def weight(self, now: float) -> float:
        """How many observations the sketch still stands for."""
        return self._weight * self._faded(now)

    def largest(self) -> float:
        """The upper end of the highest bucket in which something was observed and is not forgotten; 0 if nothing."""
        return exp(max(self._weights) / self._buckets_per_e) if self._weights else 0.0

    def mean(self) -> float | None:
        """The weighted mean; None if nothing was observed."""
        return self._total / self._weight if self._weight else None

    def quantile(self, q: float) -> float | None:
        """The value that a share `q` (0 to 1) of the weight does not exceed; None if nothing was observed.

        Sorts the buckets: tens of microseconds. Who reads more often than the answer changes keeps the `mix`.
        """
        return mix([(self, 1.0)]).quantile(q) if self._weight else None

    def pour(self, share: float, into: dict[int, float]) -> float:
        """Add its buckets to a mixture in which it weighs `share`; returns what that adds to the mixture's sum.

        Nothing is added if nothing was observed.
        """
        if not self._weight:
            return 0.0
        factor = share / self._weight
        if not into:  # of a mixture the prior comes first, and has most of the buckets
            into.update({bucket: weight * factor for bucket, weight in self._weights.items()})
        else:
            for bucket, weight in self._weights.items():
                into[bucket] = into.get(bucket, 0.0) + weight * factor
        return self._total * factor

    def snapshot(self, now: float) -> Snapshot:
        """What is known at `now`, to keep, send or merge."""
        factor = self._faded(now)
        weights = {bucket: weight * factor for bucket, weight in self._weights.items()}
        return Snapshot(self.relative_error, self.half_life_s, now, weights, self._total * factor)

    @classmethod
    def restore(cls, snapshot: Snapshot) -> Sketch:
        """A sketch that goes on from a snapshot. It keeps its own copy of the weights."""
        sketch = cls(relative_error=snapshot.relative_error, half_life_s=snapshot.half_life_s)
        sketch._landmark = snapshot.at
        sketch._weights = dict(snapshot.weights)
        sketch._weight = sum(snapshot.weights.values())
        sketch._total = snapshot.total
        return sketch


class Distribution:
    """What sketches said at one moment, sorted for reading: any quantile in a microsecond. Never empty.

    Args:
        weights: by bucket number.
        total: sum of weight times value.
        relative_error: of the sketches.

    Attributes:
        mean: of the values.
    """

    __slots__ = ("_buckets", "_growth", "_sums", "mean")

    def __init__(self, weights: dict[int, float], total: float, relative_error: float) -> None:
        self._buckets = sorted(weights)
        self._sums = list(accumulate(map(weights.__getitem__, self._buckets)))
        self._growth = _growth(relative_error)
        self.mean = total / self._sums[-1]

    def quantile(self, q: float, *, above: float = 0.0) -> float:
        """The value that a share `q` of the weight does not exceed.

        Args:
            q: 0 to 1.
            above: look only at the weight in buckets above this value's own.

        Returns:
            The quantile; `inf` if there is no weight above `above`.
        """
        return 2.0 * self.bound(q, above=above) / (self._growth + 1.0)

    def bound(self, q: float, *, above: float = 0.0) -> float:
        """The upper border of the bucket that `quantile` gives the middle of: no value counted in it is larger.

        For limits. Against the middle, values that are all the same would be over it for ever, or never.
        """
        total = self._sums[-1]
        below = self._below(above)
        if below >= total:
            return inf
        index = bisect_left(self._sums, below + q * (total - below), lo=bisect_right(self._sums, below))
        return self._growth ** self._buckets[min(index, len(self._buckets) - 1)]

    def _below(self, value: float) -> float:
        """Weight in the value's own bucket and under it."""
        if value < LOWEST:
            return 0.0
        index = bisect_right(self._buckets, ceil(log(value) / log(self._growth)))
        return self._sums[index - 1] if index else 0.0


def mix(parts: Iterable[tuple[Sketch, float]]) -> Distribution:
    """The mixture in which each sketch has the share given, whatever it weighs.

    Args:
        parts: sketches of one relative error, at least one of them not empty. Empty ones drop out.
    """
    weights: dict[int, float] = {}
    total = 0.0
    for sketch, share in parts:
        total += sketch.pour(share, weights)
    return Distribution(weights, total, sketch.relative_error)


def of_buckets(weights: dict[int, float], relative_error: float) -> Sketch:
    """A sketch of which nothing but the buckets is known, and which forgets nothing: a value is its bucket's middle."""
    growth = _growth(relative_error)
    total = sum(weight * 2.0 * growth**bucket / (growth + 1.0) for bucket, weight in weights.items())
    return Sketch.restore(Snapshot(relative_error, None, 0.0, weights, total))


def merge(a: Snapshot, b: Snapshot) -> Snapshot:
    """What both saw together, as of the later one. The order of merging does not matter beyond rounding.

    Raises:
        ValueError: their relative errors or half-lives differ, so their buckets or weights mean different things.
    """
    if (a.relative_error, a.half_life_s) != (b.relative_error, b.half_life_s):
        raise ValueError(
            f"sketches of {a.relative_error} and {b.relative_error} relative error, half-lives {a.half_life_s} and "
            f"{b.half_life_s} s, cannot be merged"
        )
    rate, at = _rate(a.half_life_s), max(a.at, b.at)
    weights: dict[int, float] = {}
    total = 0.0
    for part in (a, b):
        factor = exp((part.at - at) * rate)
        total += part.total * factor
        for bucket, weight in part.weights.items():
            weights[bucket] = weights.get(bucket, 0.0) + weight * factor
    return Snapshot(a.relative_error, a.half_life_s, at, weights, total)


def weight(snapshot: Snapshot, now: float) -> float:
    """How many observations a sketch at rest still stands for at `now`."""
    return sum(snapshot.weights.values()) * exp(min(snapshot.at - now, 0.0) * _rate(snapshot.half_life_s))


def portion(snapshot: Snapshot, share: float) -> Snapshot:
    """A share of everything counted: what each of several heirs goes on with. Merged, they are the whole again."""
    weights = {bucket: weight * share for bucket, weight in snapshot.weights.items()}
    return msgspec.structs.replace(snapshot, weights=weights, total=snapshot.total * share)


def _growth(relative_error: float) -> float:
    """Ratio of a bucket's borders that keeps the error: bucket b is (growth^(b-1), growth^b]."""
    return (1.0 + relative_error) / (1.0 - relative_error)


def _rate(half_life_s: float | None) -> float:
    return 0.0 if half_life_s is None else log(2.0) / half_life_s
