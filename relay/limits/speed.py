"""How fast and how surely a model answers, from what was seen of it lately. Pure: time comes in as `now`.

Two kinds of memory, because routing and hedging ask two things of the past. *Where is it now?* is asked with every
request and has to follow a jump within a few observations: a `Level`, constant in time and space. *How long is its
tail?* is asked once in a while, and wants many observations: a decayed sketch (`quantiles.py`).

A level takes times as log-normal, which provider latencies nearly are (see docs/routing.md), and forgets by count and
by time. Three surprises in a row to one side are no chance any more (once in 3,000 observations): it starts anew from
them. A peak is so believed within three answers, as peak-EWMA does at once, but a single straggler, of which a
heavy tail has many, changes little. What is still awaited is held against the level too (`waits.py`), so a model that
has become slow is found out before it answers.
"""

from __future__ import annotations

from math import erfc, exp, inf, log, sqrt

import msgspec

from relay.limits import quantiles
from relay.limits.quantiles import Sketch
from relay.limits.waits import Waits

MEMORY = 30.0
"""Observations that a level rests on at most: 13 % standard error at the scatter of provider latencies."""

LEVEL_HALF_LIFE_S = 20.0
"""Without news, a level's weight halves in this time, so that one look after a minute counts."""

SKETCH_HALF_LIFE_S = 120.0
"""Of the sketches: at one request a second some 170 observations, enough for a p95."""

FEW = 8.0
"""A level that rests on fewer observations believes the first surprise that is good news: its model is hardly asked."""

PRIOR_TTFT_S = 0.8
PRIOR_TOKENS_PER_S = 60.0
"""What is expected of a model that nobody has seen: about the middle of large providers' small models."""

PRIOR_DEVIATION = 0.6
"""Standard deviation of log latency: p95 / p50 = 2.7, as measured at large providers (1.6 to 3.1)."""

_PRIOR_WEIGHT = 1.0
_SURPRISE = 1.5
"""In standard deviations."""
_RUN = 3
"""Surprises to one side that are a jump."""
_LEAST_DEVIATION = 0.1
_LEAST_VARIANCE = _LEAST_DEVIATION**2
_WIDE_SHARE = 0.15
_WIDE = 5.0
"""The tail: one answer in seven scatters five times as widely (in the shape of Tukey's contaminated normal, 1960)."""
_LEAST_SHARE = 1e-9
_RESIDUAL = 4.0
"""A model that has become slower is taken to need this many times its longest wait so far, until answers tell."""
_ROOT_2 = sqrt(2.0)
_USUAL_MEMORY = 3000.0
"""Observations behind what is usual for a model: it outlasts a bad hour."""
_STRAINED = log(1.25)
"""A level that is surely this much (in log) above what is usual is no chance: its model has more to do than it can."""
_RATE_MEMORY = 10.0
"""Observations behind a rate of failures."""
_TAIL_WEIGHT = 20.0
"""Observations from which on a tail is read from the sketch and not from the level."""
_REFRESH_S = 1.0
"""How long a quantile that was read from a sketch is kept."""

_FASTEST_S = 1e-4
"""Times below are taken as this: a logarithm wants something above zero."""
_LEAST_LOG = log(_FASTEST_S)
_DECAY = log(2.0) / LEVEL_HALF_LIFE_S


class LevelSnapshot(msgspec.Struct, frozen=True, gc=False):
    """A level at rest.

    Attributes:
        mean: of the natural logarithms of seconds.
        variance: likewise.
        weight: observations that it rests on, as of `at`; of several processes' together, more than one would keep.
        usual: the slow mean.
        seen: observations behind `usual`, the prior's included; likewise.
        at: the last observation, seconds on a clock that all who merge share.
    """

    mean: float
    variance: float
    weight: float
    usual: float
    seen: float
    at: float


class Level:
    """Where a positive quantity is now: median, scatter, and how sure that is.

    Args:
        expected: what is believed before the first observation.

    Attributes:
        mean: of the natural logarithms.
        deviation: their standard deviation.
        usual: their mean in the long run.
    """

    __slots__ = ("_at", "_run", "_run_sum", "_seen", "_weight", "deviation", "mean", "usual")

    def __init__(self, expected: float) -> None:
        self.mean = self.usual = log(max(expected, _FASTEST_S))
        self.deviation = PRIOR_DEVIATION
        self._weight = _PRIOR_WEIGHT
        self._seen = _PRIOR_WEIGHT
        self._at = 0.0
        self._run = 0  # surprises in a row, negative if below
        self._run_sum = 0.0

    def add(self, value: float, now: float) -> None:
        """Count one observation.

        Args:
            value: at least 0.
            now: seconds on any clock that does not run below zero.
        """
        x = log(value) if value > _FASTEST_S else _LEAST_LOG
        idle_s = now - self._at
        self._at = now
        seen = self._seen
        if seen < _USUAL_MEMORY:
            self._seen = seen = seen + 1.0
        self.usual += (x - self.usual) / seen
        weight = self._weight * exp(-idle_s * _DECAY) if idle_s > 0.0 else self._weight
        mean, deviation = self.mean, self.deviation
        off, surprise = x - mean, _SURPRISE * deviation
        if off > surprise or off < -surprise:
            if self._jumped(x, 1 if off > 0.0 else -1, few=weight < FEW):
                self._begin_anew(self._run_sum / abs(self._run), abs(self._run))
                return
        elif self._run:
            self._run, self._run_sum = 0, 0.0
        self._weight = weight = weight + 1.0 if weight < MEMORY - 1.0 else MEMORY
        self.mean = mean = mean + off / weight
        variance = deviation * deviation
        variance += (off * (x - mean) - variance) / weight
        self.deviation = sqrt(variance) if variance > _LEAST_VARIANCE else _LEAST_DEVIATION

    def _jumped(self, x: float, side: int, *, few: bool) -> bool:
        """Whether a surprise to one side is a jump, together with those before it."""
        if self._run * side < 0:
            self._run, self._run_sum = 0, 0.0
        self._run += side
        self._run_sum += x
        return abs(self._run) >= _RUN or (few and side < 0)

    def _begin_anew(self, mean: float, weight: float) -> None:
        self.mean, self.deviation, self._weight = mean, PRIOR_DEVIATION, weight
        self._run, self._run_sum = 0, 0.0

    def at_least(self, value: float, now: float) -> None:
        """One was given up that took longer than `value`: bad news if few do, else none."""
        if value > _FASTEST_S and log(value) > self.mean:
            self.add(value, now)

    def rise(self, value: float, now: float) -> None:
        """Observations are to come from now on round `value`, which is higher than those so far."""
        self._at = now
        self._begin_anew(log(value), _RUN)

    def hazard(self, value: float) -> float:
        """How surprising it is that an observation exceeds `value`: minus the logarithm of the share that does.

        Tails are heavier than a log-normal's: a share of the observations is taken to scatter several times as widely.
        """
        z = (log(value) - self.mean) / (self.deviation * _ROOT_2) if value > _FASTEST_S else -inf
        return -log(0.5 * ((1.0 - _WIDE_SHARE) * erfc(z) + _WIDE_SHARE * erfc(z / _WIDE)) + _LEAST_SHARE)

    def quantile(self, deviations: float) -> float:
        """The value so many standard deviations above the median."""
        return exp(self.mean + deviations * self.deviation)

    def error(self) -> float:
        """Standard error of `mean`, as of the last observation."""
        return self.deviation / sqrt(self._weight)

    def strained(self) -> bool:
        """Whether it is above what is usual by more than the scatter explains."""
        return self.mean - self.error() > self.usual + _STRAINED

    def seen(self) -> float:
        """Observations so far, counted to some thousands."""
        return self._seen - _PRIOR_WEIGHT

    def snapshot(self) -> LevelSnapshot:
        """What is known, as of the last observation."""
        return LevelSnapshot(self.mean, self.deviation * self.deviation, self._weight, self.usual, self._seen, self._at)

    @classmethod
    def restore(cls, snapshot: LevelSnapshot) -> Level:
        """A level that goes on from a snapshot."""
        level = cls(exp(snapshot.usual))
        level.mean, level.deviation = snapshot.mean, max(sqrt(snapshot.variance), _LEAST_DEVIATION)
        level._weight, level._seen = min(snapshot.weight, MEMORY), min(snapshot.seen, _USUAL_MEMORY)
        level._at = snapshot.at
        return level


def merge_levels(a: LevelSnapshot, b: LevelSnapshot) -> LevelSnapshot:
    """What both saw together, as of the later one (pooled mean and variance: Chan, Golub and LeVeque, 1979)."""
    at = max(a.at, b.at)
    wa, wb = (part.weight * exp((part.at - at) * _DECAY) for part in (a, b))
    weight = wa + wb
    if weight <= 0.0:
        return a if a.at >= b.at else b
    off = b.mean - a.mean
    return LevelSnapshot(
        mean=a.mean + off * wb / weight,
        variance=(wa * a.variance + wb * b.variance) / weight + off * off * wa * wb / (weight * weight),
        weight=weight,
        usual=(a.usual * a.seen + b.usual * b.seen) / (a.seen + b.seen),
        seen=a.seen + b.seen - _PRIOR_WEIGHT,
        at=at,
    )


def portion_of_level(level: LevelSnapshot, share: float) -> LevelSnapshot:
    """A share of what it rests on, see `quantiles.portion`."""
    seen = _PRIOR_WEIGHT + (level.seen - _PRIOR_WEIGHT) * share
    return msgspec.structs.replace(level, weight=level.weight * share, seen=seen)


class SpeedSnapshot(msgspec.Struct, frozen=True, gc=False):
    """A model's statistics at rest: what is persisted, sent and merged.

    Attributes:
        ttft: level of the time to the first output, seconds.
        per_token: level of the time between tokens behind it, seconds.
        ttft_tail: sketch of the former.
        failing: share of attempts that fail.
        truncated: share of answers that break off behind the first output.
        wasted_s: seconds that an attempt loses to failures, on average.
        failed_at: the last attempt that `failing` counted, seconds on the clock of the others.
    """

    ttft: LevelSnapshot
    per_token: LevelSnapshot
    ttft_tail: quantiles.Snapshot
    failing: float
    truncated: float
    wasted_s: float
    failed_at: float

    def heard_at(self) -> float:
        """When anything was last heard of the model."""
        return max(self.ttft.at, self.failed_at)

    def moved(self, by_s: float) -> SpeedSnapshot:
        """The same on a clock that is so much ahead."""
        replace = msgspec.structs.replace
        return replace(
            self,
            ttft=replace(self.ttft, at=self.ttft.at + by_s),
            per_token=replace(self.per_token, at=self.per_token.at + by_s),
            ttft_tail=replace(self.ttft_tail, at=self.ttft_tail.at + by_s),
            failed_at=self.failed_at + by_s,
        )


class Speed:
    """Statistics of one model as seen from one region; not to be shared by threads.

    Args:
        ttft_s: expected before anything was seen, seconds.
        tokens_per_s: likewise.

    Attributes:
        ttft: time from an attempt's start to its first real output, seconds.
        per_token: mean time between tokens behind it, seconds.
        failing: share of attempts that fail before their first output.
        truncated: share of answers that break off behind it.
        wasted_s: seconds that an attempt loses to failures, on average.
    """

    __slots__ = (
        "_kept",
        "_kept_until",
        "_tail",
        "_waits",
        "failed_at",
        "failing",
        "per_token",
        "truncated",
        "ttft",
        "wasted_s",
    )

    def __init__(self, *, ttft_s: float = PRIOR_TTFT_S, tokens_per_s: float = PRIOR_TOKENS_PER_S) -> None:
        self.ttft = Level(ttft_s)
        self.per_token = Level(1.0 / tokens_per_s)
        self.failing = 0.0
        self.truncated = 0.0
        self.wasted_s = 0.0
        self.failed_at = 0.0  # when `failing` was last brought up to date
        self._tail = Sketch(half_life_s=SKETCH_HALF_LIFE_S)
        self._waits = Waits()
        self._kept: dict[float, float] = {}
        self._kept_until = 0.0

    def asked(self, now: float) -> None:
        """A stream's attempt begins: its wait counts from now on. Tell of its end with the same moment."""
        self._waits.begin(self.ttft, now)

    def begun(self, asked_at: float, now: float) -> None:
        """An attempt has its first output."""
        self._waits.end(asked_at, self.ttft, now, answered=True)
        ttft_s = now - asked_at
        self.ttft.add(ttft_s, now)
        self._tail.add(ttft_s, now)
        if self.failing:
            self._attempted(now, failed=0.0, wasted_s=0.0)

    def left(self, asked_at: float, now: float) -> None:
        """An attempt was given up before its first output: another one was faster, or its client has gone."""
        self._waits.end(asked_at, self.ttft, now, answered=False)
        self.ttft.at_least(now - asked_at, now)

    def refused(self, asked_at: float) -> None:
        """An attempt found its request wrong: that shows nothing of the model."""
        self._waits.forget(asked_at)

    def failed(self, asked_at: float, now: float) -> None:
        """An attempt failed before its first output."""
        self._waits.forget(asked_at)
        self._attempted(now, failed=1.0, wasted_s=now - asked_at)

    def look(self, now: float) -> float:
        """If the attempts under way wait so long that the model must have become slower, it is taken so.

        Returns when to look again, if nothing else is told until then.
        """
        waits = self._waits
        if not waits.waiting:
            return inf
        longest_s = waits.too_long(self.ttft, now)
        if longest_s is not None:
            self.ttft.rise(_RESIDUAL * longest_s, now)
        return waits.quiet_until(self.ttft)

    def ended(self, *, tokens: int, output_s: float, truncated: bool, now: float) -> None:
        """An answer is over: `tokens` came within `output_s` seconds behind the first."""
        if tokens > 1 and output_s > 0.0:
            self.per_token.add(output_s / (tokens - 1), now)
        if truncated or self.truncated:
            self.truncated += (float(truncated) - self.truncated) / _RATE_MEMORY

    def whole(self, duration_s: float, *, tokens: int, now: float) -> None:
        """An answer that was no stream took `duration_s`: both levels were wrong by the same factor."""
        ttft_s, token_s = exp(self.ttft.mean), exp(self.per_token.mean)
        factor = duration_s / (ttft_s + tokens * token_s)
        self.ttft.add(ttft_s * factor, now)
        self.per_token.add(token_s * factor, now)
        if self.failing:
            self._attempted(now, failed=0.0, wasted_s=0.0)

    def _attempted(self, now: float, *, failed: float, wasted_s: float) -> None:
        fade = exp(min(self.failed_at - now, 0.0) * _DECAY)
        self.failed_at = now
        self.failing = self.failing * fade + (failed - self.failing * fade) / _RATE_MEMORY
        self.wasted_s = self.wasted_s * fade + (wasted_s - self.wasted_s * fade) / _RATE_MEMORY
        if self.failing < 1e-3:  # noqa: PLR2004 - one failure, sixty successes later
            self.failing = self.wasted_s = 0.0

    def tail(self, q: float, now: float) -> float:
        """The TTFT that a share `q` of attempts does not exceed, seconds; from few observations, their log-normal's."""
        if now >= self._kept_until:
            self._kept_until = now + _REFRESH_S
            self._kept = {}
        kept = self._kept.get(q)
        if kept is None:
            read = self._tail.quantile(q) if self._tail.weight(now) >= _TAIL_WEIGHT else None
            kept = self._kept[q] = self.ttft.quantile(deviations(q)) if read is None else read
        return kept

    def known(self) -> bool:
        """Whether anything was seen; if not, all of it is what was expected."""
        return self.ttft.seen() > 0.0 or self.failing > 0.0

    def snapshot(self, now: float) -> SpeedSnapshot:
        """What is known at `now`, to keep, send or merge."""
        return SpeedSnapshot(
            ttft=self.ttft.snapshot(),
            per_token=self.per_token.snapshot(),
            ttft_tail=self._tail.snapshot(now),
            failing=self.failing,
            truncated=self.truncated,
            wasted_s=self.wasted_s,
            failed_at=self.failed_at,
        )

    @classmethod
    def restore(cls, snapshot: SpeedSnapshot) -> Speed:
        """Statistics that go on from a snapshot."""
        speed = cls()
        speed.ttft, speed.per_token = Level.restore(snapshot.ttft), Level.restore(snapshot.per_token)
        speed._tail = Sketch.restore(snapshot.ttft_tail)
        speed.failing, speed.truncated, speed.wasted_s = snapshot.failing, snapshot.truncated, snapshot.wasted_s
        speed.failed_at = snapshot.failed_at
        return speed


def merge(a: SpeedSnapshot, b: SpeedSnapshot) -> SpeedSnapshot:
    """What both saw together; rates count by what their levels rest on."""
    share = b.ttft.weight / (a.ttft.weight + b.ttft.weight) if a.ttft.weight + b.ttft.weight else 0.5
    return SpeedSnapshot(
        ttft=merge_levels(a.ttft, b.ttft),
        per_token=merge_levels(a.per_token, b.per_token),
        ttft_tail=quantiles.merge(a.ttft_tail, b.ttft_tail),
        failing=a.failing + (b.failing - a.failing) * share,
        truncated=a.truncated + (b.truncated - a.truncated) * share,
        wasted_s=a.wasted_s + (b.wasted_s - a.wasted_s) * share,
        failed_at=max(a.failed_at, b.failed_at),
    )


def portion(snapshot: SpeedSnapshot, share: float) -> SpeedSnapshot:
    """A share of all observations, see `quantiles.portion`. Rates are what they are."""
    return msgspec.structs.replace(
        snapshot,
        ttft=portion_of_level(snapshot.ttft, share),
        per_token=portion_of_level(snapshot.per_token, share),
        ttft_tail=quantiles.portion(snapshot.ttft_tail, share),
    )


_DEVIATIONS = {0.5: 0.0, 0.75: 0.6745, 0.9: 1.2816, 0.95: 1.6449, 0.98: 2.0537, 0.99: 2.3263}
"""Quantiles of the standard normal distribution."""


def deviations(q: float) -> float:
    """How many standard deviations above the median a quantile of a normal distribution is.

    Raises:
        KeyError: it is none of those that policies may name.
    """
    return _DEVIATIONS[q]
