"""The linear model: sums of weights, and what they say.

Each feature has a small whole weight for every label, kept in the 16-bit lanes of one integer. Adding those integers
adds all lanes at once; no lane overflows, because a request has at most `features.MOST` features and a stored weight is
at most `2 * CENTRE`. Sums are divided by the square root of the number of features that were known, so that long
prompts do not look surer than they are, and turned into probabilities by the softmax.
"""

from __future__ import annotations

from base64 import b64decode
from math import exp, sqrt
from struct import Struct, iter_unpack
from typing import TYPE_CHECKING, Any, Final
from zlib import decompress

from relay.intent.features import features, legible
from relay.intent.weights import BIAS, PACKED, SCALE
from relay.messages import INTENTS, Intent

if TYPE_CHECKING:
    from collections.abc import Mapping

LABELS: Final = INTENTS
"""In the order of the weights' lanes."""

CENTRE: Final = 95
"""What a stored weight of nothing is: weights are stored from 0 to twice this."""

_LANE_BYTES = 2
_ROW_BYTES = _LANE_BYTES * len(LABELS)
_lanes = Struct(f"<{len(LABELS)}H").unpack
_DIGITS = 3  # of a confidence: the last bits of `exp` differ between C libraries


def load(packed: str) -> dict[str, int]:
    """Read weights as scripts/train_intent.py packs them: names, then label by label a byte for each name."""
    head, _, planes = decompress(b64decode(packed)).partition(b"\n\n")
    names = head.decode().split("\n")
    lanes = bytearray(_ROW_BYTES * len(names))
    for label in range(len(LABELS)):
        lanes[_LANE_BYTES * label :: _ROW_BYTES] = planes[label * len(names) : (label + 1) * len(names)]
    weights = [int.from_bytes(row, "little") for (row,) in iter_unpack(f"{_ROW_BYTES}s", lanes)]
    return dict(zip(names, weights, strict=True))


_weights = load(PACKED)


def classify(request: Mapping[str, Any]) -> Intent:
    """Say what a request is for.

    Pure and bounded: of long prompts the beginning and the end are read. Any mapping will do; what is not as Chat
    Completions has it is passed over.

    Args:
        request: a Chat Completions body as decoded JSON.

    Returns:
        The likeliest of `LABELS`. Of many answers with confidence 0.8, eight in ten are right.
    """
    _, odds = _weighed(_weights.keys() & features(request))
    best = max(odds)
    return Intent(LABELS[odds.index(best)], round(best / sum(odds), _DIGITS))


def spoken(request: Mapping[str, Any], most: int = 8) -> list[tuple[str, float]]:
    """Say why: the features that spoke most for the label of `classify`.

    Args:
        request: as for `classify`.
        most: how many to return at most.

    Returns:
        Features, legibly, and what each added to the label's log-odds against the mean of all labels, greatest first.
        They are pieces of the prompt: show them to nobody but its sender.
    """
    known = _weights.keys() & features(request)
    factor, odds = _weighed(known)
    label = odds.index(max(odds))
    weights = {name: factor * (_lanes(_weights[name].to_bytes(_ROW_BYTES, "little"))[label] - CENTRE) for name in known}
    loudest = sorted(weights, key=lambda name: (-weights[name], name))[:most]
    shown = legible(request)
    return [(shown[name], round(weights[name], _DIGITS)) for name in loudest if weights[name] > 0]


def _weighed(known: set[str]) -> tuple[float, list[float]]:
    """What sums of weights count, and by label how likely it is, but for a factor: none is too great for a float."""
    factor, nothing = SCALE / sqrt(len(known) or 1), CENTRE * len(known)
    lanes = _lanes(sum(map(_weights.__getitem__, known)).to_bytes(_ROW_BYTES, "little"))
    return factor, [exp(factor * (lane - nothing) + bias) for lane, bias in zip(lanes, BIAS, strict=True)]
