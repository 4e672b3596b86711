"""How long answers will be: quantiles learned per kind of request, from the general to the particular.

Length is heavy-tailed, so a point is never predicted. Which application asks, and which model answers, says more
than the prompt's words. Answers are therefore counted in cells, each inside a wider one:

    shipped prior of the intent  >  intent  >  intent + model  >  application  >  application + intent

where an application is a model, a key and a system prompt. What a cell believes is a mixture of its own sketch and
of the wider ones; a cell's share is n / (n + INERTIA), n being the decayed number of answers that it knows and the
narrower ones do not, as in a hierarchical Dirichlet process (Teh et al., JASA 2006). A mixture errs on the safe
side: long answers widen a young cell at once, short ones narrow it slowly.

A cell that knows thousands of answers learns nothing from one more. It counts one in k that are usual to it, for k;
which ones is drawn evenly, without randomness. Those that are longer are counted one by one.

Three rules turn what is believed into a quantile:

- An answer that was cut is a lower bound, not a length. What it would have become is drawn from the cell's own tail
  above the cut, which is redistribution to the right (Efron 1967) one answer at a time.
- A cell whose budgets prove too small more often than asked raises its own quantile until they do not (adaptive
  conformal inference: Gibbs and Candès, NeurIPS 2021).
- Where an answer can be continued, cells of long answers may be too small more often than those of short ones, in
  proportion to their mean: the least is reserved in all if a token of budget prevents the same share of
  continuations everywhere, and the tail of a long answer's cell is spread over more tokens.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from hashlib import blake2b
from math import exp, inf
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from relay.limits import quantiles
from relay.limits.quantiles import Distribution, Sketch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RELATIVE_ERROR = 0.05
"""Of the sketches. Lengths vary by far more, and a cell stays near 6 KB."""

HALF_LIFE_S = 3 * 86_400.0
"""Applications change by deployments: after three days an answer counts half."""

INERTIA = 3.0
"""Answers of its own that a cell needs to have as much say as the wider one. From 1.5 to 6 the savings are alike."""

INTENT_INERTIA = 10.0
"""Likewise of a cell that splits an application by intent: classifiers err, and what they tell apart is often alike."""

MAX_CELLS = 2048
"""Cells kept, the least recently used dropped: near 12 MB if all are full."""

MAX_SLACK = 2.0
"""A cell's share of answers over budget is this multiple of the one asked for at most, and its inverse at least."""

WIDENING_STEP = 0.02
"""How far one answer that fits narrows a widened cell, in the logarithm of the share allowed over budget."""

WIDENING_TOLERANCE = 1.5
"""A cell widens while more than this multiple of its share is over budget; less would be chance."""

MAX_WIDENING = 3.0
"""Bound of the logarithm: a widened cell allows a twentieth of its share."""

_KEPT = 0.99
"""What an answer leaves of those before it in the share that was over budget: an average over about a hundred."""

_REFRESH_AT = 0.1
"""Share of a cell's answers that are news, since its belief was computed, from which on it is computed again."""

CENSUS = 128.0
"""Answers that a cell counts one by one. If it knows more, it counts one in as many times this as it knows."""

MAX_STRIDE = 16.0
"""Of so many answers that are usual at least one is counted."""

USUAL = 0.9
"""Up to this quantile an answer is usual to its cell. The longer ones are what budgets go by: each of them counts."""

_GOLDEN = 0.6180339887498949
"""Multiples of it modulo one fill the unit interval evenly: draws that need no randomness."""

_SILVER = 0.4142135623730951
"""Likewise, for draws that have nothing to do with those."""

_ALL: tuple[str, ...] = ()
"""Name of the cell that counts every answer. It has no say in what others believe."""

_OF_APPLICATION = 3
"""Parts in the name of an application's cell, the only one that does not begin with an intent."""

_FORGOTTEN = 0.01
"""Answers that a cell has to know to be kept: a single one is forgotten after twenty days, a hundred after forty."""

_STALE = inf
"""News enough to have any cell's belief computed again."""

_FINGERPRINT_CHARS = 256
"""What is read of a system prompt. Templates begin alike; what they fill in mostly comes later."""

_VARYING = re.compile(r"[\W\d_]+")


def application(system_prompt: str) -> str:
    """Fingerprint of the application that a system prompt belongs to; "" for none.

    Digits, punctuation, space and case are left out: dates and counters in a template do not make it another one.
    """
    words = _VARYING.sub(" ", system_prompt[:_FINGERPRINT_CHARS]).strip().casefold()
    return blake2b(words.encode(errors="replace"), digest_size=8).hexdigest() if words else ""


class Place(NamedTuple):
    """Which requests count as alike.

    Attributes:
        kind: the intent's label; the prior goes by it.
        model: name of the policy's model.
        key: name of the policy's key.
        application: fingerprint of the system prompt, see `application`.
    """

    kind: str
    model: str
    key: str
    application: str

    @lru_cache(maxsize=MAX_CELLS)  # noqa: B019 - no more than names, and no more of them than of cells
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """Names of the cells it lies in, from the particular to the general."""
        return self, self[1:], self[:2], self[:1]


place_of = lru_cache(maxsize=MAX_CELLS)(Place)
"""A place, the same object each time: its hash is known then, and to make one takes five times as long."""


class Expectation(msgspec.Struct, frozen=True, gc=False):
    """What is expected of an answer.

    Attributes:
        tokens: the quantile, tokens; of the lengths that cannot be told apart there, the longest.
        quantile: which one it is, after the cell's slack and widening.
        allowed: share of answers that may be longer, after the slack and before the widening.
        cell: name of the most particular cell that knows anything; empty if only the shipped prior does.
    """

    tokens: float
    quantile: float
    allowed: float
    cell: tuple[str, ...]


class CellSnapshot(msgspec.Struct, frozen=True, gc=False):
    """One cell at rest.

    Attributes:
        cell: its name, as in `Place.cells`.
        lengths: what it counted.
        widening: logarithm of the factor on the share allowed over budget, 0 or below.
        judged: budgets of it that were judged lately, some hundred at most.
        over: those of them that were too small.
    """

    cell: tuple[str, ...]
    lengths: quantiles.Snapshot
    widening: float
    judged: float
    over: float


class _Cell:
    """A sketch, and what follows from it and the wider cells."""

    __slots__ = (
        "believed",
        "count",
        "cuts",
        "expected",
        "judged",
        "longest",
        "name",
        "news",
        "over",
        "sketch",
        "slack",
        "stride",
        "usual",
        "widening",
    )

    def __init__(self, name: tuple[str, ...], sketch: Sketch, believed: Distribution) -> None:
        self.name = name
        self.sketch = sketch
        self.believed = believed
        self.expected: dict[tuple[float, bool], Expectation] = {}  # by quantile, and whether it is extendable
        self.slack = 1.0
        self.usual = 0.0  # the longest answer that is
        self.stride = 1.0  # one in so many of those is counted, for as many
        self.news = _STALE  # share of what was counted that all of these know nothing of
        self.widening = 0.0
        self.judged = 0.0
        self.over = 0.0
        self.cuts = 0  # answers that were cut
        self.count = 0.0  # answers, those of earlier processes as far as they are remembered
        self.longest = 0.0  # of them


class Lengths:
    """The running model. Not to be shared by threads.

    Args:
        prior: shipped buckets of a `Sketch` by intent, and under "" those of any; see `relay.limits.shipped`.
        max_cells: bound on memory, at least the five cells of one request.
        half_life_s: time in which an answer's weight halves.
    """

    def __init__(
        self,
        prior: Mapping[str, Mapping[int, float]],
        *,
        max_cells: int = MAX_CELLS,
        half_life_s: float = HALF_LIFE_S,
    ) -> None:
        self._prior = {kind: _prior_cell(dict(weights)) for kind, weights in prior.items()}
        self._cells: OrderedDict[tuple[str, ...], _Cell] = OrderedDict()
        self._max_cells = max_cells
        self._half_life_s = half_life_s
        self._now = 0.0  # of the last answer
        self._draws = 0

    @property
    def empty(self) -> bool:
        """Whether no answer was counted."""
        return not self._cells

    def expect(self, place: Place, quantile: float, *, extendable: bool = False) -> Expectation:
        """How long the answer will be.

        Args:
            place: of the request.
            quantile: share of answers that shall fit, below 1.
            extendable: an answer that does not fit is continued, so cells may differ by their slack.
        """
        cell = self._nearest(place)
        expected = cell.expected.get((quantile, extendable))
        if expected is None:
            allowed = min((1.0 - quantile) * (cell.slack if extendable else 1.0), 1.0)
            share = 1.0 - (allowed * exp(cell.widening) if cell.widening else allowed)
            expected = Expectation(cell.believed.bound(share), share, allowed, cell.name)
            cell.expected[quantile, extendable] = expected
        return expected

    def mean(self, place: Place) -> float:
        """Tokens that the answer will have on average."""
        return self._nearest(place).believed.mean

    def quantiles(self, place: Place, quantiles: Iterable[float]) -> list[float]:
        """Tokens that these shares of answers will not exceed."""
        believed = self._nearest(place).believed
        return [believed.quantile(quantile) for quantile in quantiles]

    def count_within(self, cell: tuple[str, ...], tokens: float) -> float:
        """How many answers the cell of that name has counted; 0 if one of them was longer than `tokens`."""
        found = self._cells.get(cell)
        return 0.0 if found is None or found.longest > tokens else found.count

    def expect_more(self, place: Place, quantile: float, written: int) -> float:
        """How many tokens more an answer takes that has `written` by now and has not ended.

        Args:
            place: of the request.
            quantile: share of such answers that shall fit.
            written: tokens so far, at least 1.

        Returns:
            Tokens beyond `written`; as many again where no answer as long was ever seen.
        """
        tokens = self._nearest(place).believed.bound(quantile, above=written)
        return float(written) if tokens == inf else max(tokens - written, 1.0)

    def observe(self, place: Place, tokens: int, now: float, *, cut: bool = False) -> None:
        """Count an answer, in each of its cells as many times as it stands for there: on average once.

        The wider a cell is, the fewer answers it needs to count, so that those counted are always among the narrower
        one's, and the first cell that leaves one out is the last that is looked at.

        Args:
            place: of the request.
            tokens: how long it became, all its segments together.
            now: seconds since the Unix epoch, so that snapshots of several processes can be merged.
            cut: it would have become longer: a limit, the client or a failure ended it.
        """
        length = self._completed(place, tokens) if cut else max(tokens, 1.0)
        self._now = now
        self._draws += 1
        draw, weight = self._draws * _SILVER % 1.0, 1.0
        cells, stale = self._cells, []
        for name in (*place.cells(), _ALL):
            cell = cells.get(name)
            if cell is None:
                cell = self._add(name)
            else:
                cells.move_to_end(name)
            if length <= cell.usual and weight < cell.stride:
                weight = cell.stride
            if draw * weight >= 1.0:
                break
            cell.news += cell.sketch.add(length, now, weight)
            cell.count += weight
            cell.longest = max(cell.longest, length)
            if cell.news >= _REFRESH_AT and (name == place or cell.count > CENSUS):
                stale.append(cell)
        for cell in stale:  # after all have counted it: what one believes depends on the wider ones
            self._reflect(cell, place)

    def judge(self, place: Place, *, over: bool, allowed: float) -> None:
        """Say whether an answer was longer than what `expect` gave, so that its cell widens or narrows.

        Call it before `observe`, which then lets a young cell take the answer into account at once.

        Args:
            place: of the request.
            over: it was.
            allowed: `Expectation.allowed`.
        """
        cell = self._cells.get(place)
        if cell is not None:
            if over or cell.widening:
                step = WIDENING_STEP * (1.0 - over / (allowed * WIDENING_TOLERANCE))
                cell.widening = min(max(cell.widening + step, -MAX_WIDENING), 0.0)
                cell.expected.clear()
            cell.judged = cell.judged * _KEPT + 1.0
            cell.over = cell.over * _KEPT + over
            if over and cell.stride == 1.0:
                cell.news = _STALE

    def snapshot(self, now: float) -> list[CellSnapshot]:
        """All cells, the least recently used first."""
        return [
            CellSnapshot(name, cell.sketch.snapshot(now), cell.widening, cell.judged, cell.over)
            for name, cell in self._cells.items()
        ]

    def restore(self, cells: Iterable[CellSnapshot], now: float) -> None:
        """Take cells in, in place of those of the same names; if there are too many, the last ones stay.

        Raises:
            ValueError: a cell has another relative error than this version keeps.
        """
        self._now = now
        for old in list(cells)[-self._max_cells :]:
            if old.lengths.relative_error != RELATIVE_ERROR:
                raise ValueError(f"cells of {old.lengths.relative_error} relative error, not {RELATIVE_ERROR}")
            self._cells.pop(old.cell, None)
            cell = self._add(old.cell)
            cell.sketch = Sketch.restore(msgspec.structs.replace(old.lengths, half_life_s=self._half_life_s))
            cell.widening, cell.judged, cell.over = old.widening, old.judged, old.over
            cell.count, cell.longest = cell.sketch.weight(now), cell.sketch.largest()
            cell.news = _STALE

    def _nearest(self, place: Place) -> _Cell:
        """The most particular cell there is, its belief no older than its news allow; the prior's has no name."""
        cell = self._cells.get(place)
        if cell is None:
            known = filter(None, map(self._cells.get, place.cells()))
            cell = next(known, None) or self._prior_of(place.kind)
        if cell.news >= _REFRESH_AT:
            self._reflect(cell, place)
        return cell

    def _prior_of(self, kind: str) -> _Cell:
        return self._prior.get(kind) or self._prior[""]

    def _add(self, name: tuple[str, ...]) -> _Cell:
        """A cell of that name, now the most recently used."""
        sketch = Sketch(relative_error=RELATIVE_ERROR, half_life_s=self._half_life_s)
        cell = self._cells[name] = _Cell(name, sketch, self._prior_of("").believed)
        if len(self._cells) > self._max_cells:
            self._cells.popitem(last=False)
        return cell

    def _completed(self, place: Place, tokens: int) -> float:
        """What an answer cut at `tokens` would have become: a draw from the longer ones; twice as long if none was."""
        cell = self._nearest(place)
        cell.cuts += 1
        length = cell.believed.quantile(cell.cuts * _GOLDEN % 1.0, above=tokens)
        return 2.0 * max(tokens, 1) if length == inf else length

    def _reflect(self, cell: _Cell, place: Place) -> None:
        """Compute what follows for a cell inside the wider ones, as far as a place lies in them."""
        weight = cell.sketch.weight(self._now)
        share = weight / (weight + (INTENT_INERTIA if cell.name[_OF_APPLICATION:] else INERTIA))
        parts, rest = [(cell.sketch, share)], 1.0 - share
        for name in place.cells():
            if len(name) < len(cell.name) and (wider := self._cells.get(name)):
                # What a wider cell knows from this one is not said twice.
                others = max(wider.sketch.weight(self._now) - weight, 0.0)
                share = others / (others + INERTIA)
                parts.append((wider.sketch, rest * share))
                rest *= 1.0 - share
        cell.believed = quantiles.mix([(self._prior_of(place.kind).sketch, rest), *parts])
        cell.slack = self._slack(cell.sketch.mean(), weight)
        cell.stride = min(max(weight / CENSUS, 1.0), MAX_STRIDE)
        cell.usual = cell.believed.bound(USUAL)
        cell.expected.clear()
        cell.news = 0.0

    def _slack(self, mean: float | None, weight: float) -> float:
        """A cell's mean as a multiple of that of all answers, within bounds; near 1 while the cell is young."""
        overall = self._cells.get(_ALL)
        of_all = overall and overall.sketch.mean()
        if not of_all or mean is None:
            return 1.0
        ratio = (weight * mean / of_all + INERTIA) / (weight + INERTIA)
        return min(max(ratio, 1.0 / MAX_SLACK), MAX_SLACK)


def merge(a: Iterable[CellSnapshot], b: Iterable[CellSnapshot]) -> list[CellSnapshot]:
    """What both saw together, the cells that weigh most last. Where they differ, the wider cell is right.

    Raises:
        ValueError: they were kept with different relative errors or half-lives.
    """
    cells = {old.cell: old for old in a}
    for new in b:
        old = cells.get(new.cell)
        if old is not None:
            new = CellSnapshot(  # noqa: PLW2901
                cell=new.cell,
                lengths=quantiles.merge(old.lengths, new.lengths),
                widening=min(old.widening, new.widening),
                judged=old.judged + new.judged,
                over=old.over + new.over,
            )
        cells[new.cell] = new
    return sorted(cells.values(), key=lambda cell: sum(cell.lengths.weights.values()))


def portion(cells: Iterable[CellSnapshot], share: float) -> list[CellSnapshot]:
    """A share of every cell's answers, see `quantiles.portion`. How far cells are widened is no count."""
    return [
        CellSnapshot(
            old.cell, quantiles.portion(old.lengths, share), old.widening, old.judged * share, old.over * share
        )
        for old in cells
    ]


def living(cells: Iterable[CellSnapshot], now: float) -> list[CellSnapshot]:
    """The cells that still know anything at `now`, in their order: `MAX_CELLS` at most, the last ones."""
    return [old for old in cells if quantiles.weight(old.lengths, now) >= _FORGOTTEN][-MAX_CELLS:]


def models(cells: Iterable[CellSnapshot]) -> set[str]:
    """Whose answers are in these cells; see `Place.cells`."""
    return {name[0] if len(name) == _OF_APPLICATION else name[1] for name in (old.cell for old in cells) if name[1:]}


def _prior_cell(weights: dict[int, float]) -> _Cell:
    sketch = quantiles.of_buckets(weights, RELATIVE_ERROR)
    cell = _Cell((), sketch, quantiles.mix([(sketch, 1.0)]))
    cell.news = 0.0
    return cell
