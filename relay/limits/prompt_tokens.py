"""How many tokens a prompt has, from its bytes alone: no tokenizer, a few counts at C speed.

A tokenizer spends about one token per English word, more on capitals and signs, one on up to three digits, and per
character an amount that depends on the script. UTF-8 shows the script in its lead bytes, so one `bytes.translate`
and a count per class give the features; `relay.limits.shipped` has the weights, fitted to OpenAI's o200k.
What other tokenizers do differently is learned per model by `Calibration`.
"""

from __future__ import annotations

import re
from operator import mul
from typing import TYPE_CHECKING

import msgspec

from relay.limits.shipped import PROMPT_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SAMPLE_BYTES = 1024
"""A longer text is judged by eight pieces of it that have this many bytes together. On such texts the error is 5.7 %
instead of 5.3 %, and the time no longer grows with them."""

TOKENS_PER_MESSAGE = 4
"""What a chat template puts around a message (OpenAI's cookbook: three, and one for the role)."""

TOKENS_PER_REPLY = 3
"""What it puts in front of the answer."""

TOKENS_PER_IMAGE = 1024
"""A middling picture; providers count from 85 to some 5,000."""

_PIECES = 8
_BACKSLASH = ord("\\")  # a byte that is asked for by its number is found sooner
_ESCAPE = rb'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])'
_ESCAPES = re.compile(_ESCAPE + b"(?:" + _ESCAPE + b")*")  # with a backslash in front, for which it can search
_read_string = msgspec.json.Decoder(str).decode

# Each byte's class, written as one byte. Continuation bytes are in none: what is not named counts nothing.
_CLASSES = {
    b"a": range(ord("a"), ord("z") + 1),
    b"A": range(ord("A"), ord("Z") + 1),
    b"0": range(ord("0"), ord("9") + 1),
    b" ": b" ",
    b"\n": b"\n\r\t",
    b".": b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
}
_PAIRS = (b"..", b"  ", b"00")
_LEAD_CLASSES = {
    b"l": range(0xC3, 0xCE),  # Latin with diacritics
    b"g": range(0xCE, 0xD0),  # Greek
    b"c": range(0xD0, 0xD2),  # Cyrillic
    b"d": range(0xD2, 0xD4),  # Cyrillic outside Russian
    b"m": range(0xD4, 0xD6),  # Armenian
    b"h": range(0xD6, 0xD8),  # Hebrew
    b"r": range(0xD8, 0xDA),  # Arabic
    b"s": range(0xDA, 0xDC),  # Arabic outside Arabic: Persian, Urdu
    b"y": (0xC2, *range(0xDC, 0xE0)),  # Latin-1 signs; Syriac, Thaana, N'Ko
    b"p": (0xE2,),  # typographic signs
    b"k": (0xE3,),  # kana, CJK punctuation
    b"z": range(0xE4, 0xEA),  # Han
    b"o": range(0xEA, 0xEE),  # Hangul
    b"f": (0xEE, 0xEF),  # full-width forms
    b"e": range(0xF0, 0xF5),  # emoji, rare Han
    b"i": (0xE0,),  # several scripts, told apart by the second byte
    b"j": (0xE1,),  # likewise
}
_SHARED_LEADS = {
    b"i": {
        "devanagari": (b"\xe0\xa4", b"\xe0\xa5"),
        "bengali": (b"\xe0\xa6", b"\xe0\xa7"),
        "gurmukhi": (b"\xe0\xa8", b"\xe0\xa9"),
        "gujarati": (b"\xe0\xaa", b"\xe0\xab"),
        "oriya": (b"\xe0\xac", b"\xe0\xad"),
        "tamil": (b"\xe0\xae", b"\xe0\xaf"),
        "telugu": (b"\xe0\xb0", b"\xe0\xb1"),
        "kannada": (b"\xe0\xb2", b"\xe0\xb3"),
        "malayalam": (b"\xe0\xb4", b"\xe0\xb5"),
        "sinhala": (b"\xe0\xb6", b"\xe0\xb7"),
        "thai": (b"\xe0\xb8", b"\xe0\xb9"),
        "lao": (b"\xe0\xba", b"\xe0\xbb"),
        "tibetan": (b"\xe0\xbc", b"\xe0\xbd", b"\xe0\xbe", b"\xe0\xbf"),
    },
    b"j": {
        "myanmar": (b"\xe1\x80", b"\xe1\x81", b"\xe1\x82"),
        "georgian": (b"\xe1\x83",),
        "ethiopic": tuple(bytes((0xE1, second)) for second in range(0x88, 0x8F)),
        "khmer": (b"\xe1\x9e", b"\xe1\x9f"),
        "vietnamese": (b"\xe1\xb8", b"\xe1\xb9", b"\xe1\xba", b"\xe1\xbb"),
    },
}


def _table() -> bytes:
    table = bytearray(b"-" * 256)
    for name, members in (_CLASSES | _LEAD_CLASSES).items():
        for byte in members:
            table[byte] = name[0]
    return bytes(table)


_TABLE = _table()
_COUNTED = (*_CLASSES, *_PAIRS)
_NAMES = tuple(name.decode() for name in _COUNTED)
_ASCII_WEIGHTS = tuple(map(PROMPT_TOKENS.__getitem__, _NAMES))


def features(text: bytes) -> dict[str, int]:
    """What is counted in a UTF-8 text, by the names that weights have."""
    classes = text.translate(_TABLE)
    return dict(zip(_NAMES, map(classes.count, _COUNTED), strict=True)) | _scripts(text, classes)


def _scripts(text: bytes, classes: bytes) -> dict[str, int]:
    """Characters beyond ASCII."""
    counts = {name.decode(): classes.count(name) for name in _LEAD_CLASSES if name in classes}
    for lead, scripts in _SHARED_LEADS.items():
        if counts.pop(lead.decode(), 0):
            counts |= {script: sum(map(text.count, starts)) for script, starts in scripts.items()}
    if counts.get("vietnamese"):  # its words are in the vocabulary whole, those of most Latin scripts are not
        counts["l_vietnamese"] = counts.pop("l", 0)
    return counts


def estimate(text: bytes, *, escaped: bool = False) -> float:
    """Tokens of a UTF-8 text. Reads at most `SAMPLE_BYTES` of it; invalid bytes do no harm.

    Args:
        text: in UTF-8.
        escaped: it is the inside of JSON strings, with JSON's escapes.
    """
    if len(text) > SAMPLE_BYTES:
        size = SAMPLE_BYTES // _PIECES
        stride = (len(text) - size) // (_PIECES - 1)
        sample = b"".join([text[start : start + size] for start in range(0, stride * _PIECES, stride)])
        return estimate(sample, escaped=escaped) * len(text) / SAMPLE_BYTES
    if escaped and _BACKSLASH in text:
        text = unescaped(text)
    classes = text.translate(_TABLE)
    tokens: float = sum(map(mul, _ASCII_WEIGHTS, map(classes.count, _COUNTED)))
    if not text.isascii():
        scripts = _scripts(text, classes)
        tokens += sum(map(mul, map(PROMPT_TOKENS.__getitem__, scripts), scripts.values()))
    return tokens


def unescaped(text: bytes) -> bytes:
    """The inside of JSON strings, perhaps with line ends between them, as UTF-8."""
    try:
        return _read_string(b'"%b"' % text.replace(b"\n", b"\\n")).encode()
    except (msgspec.DecodeError, UnicodeDecodeError):  # a sample's pieces, or tools' JSON among them
        return _ESCAPES.sub(_unescaped, text)


def _unescaped(escapes: re.Match[bytes]) -> bytes:
    """Some escapes in a row, pairs for one character among them."""
    read = escapes[0].replace(b"\\/", b"/").decode("unicode_escape")
    return read.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def estimate_escaped(texts: Iterable[bytes | memoryview], *, messages: int, images: int = 0) -> float:
    """As `estimate_prompt`, of texts as they stand between the quotes of JSON."""
    around = TOKENS_PER_MESSAGE * messages + TOKENS_PER_REPLY + TOKENS_PER_IMAGE * images
    return estimate(b"\n".join(texts), escaped=True) + around


def estimate_prompt(texts: Iterable[str], *, messages: int, images: int = 0) -> float:
    """Tokens of a chat prompt before calibration.

    Args:
        texts: of all messages and tool definitions, without data that is not text.
        messages: how many messages they came in.
        images: pictures among the content parts.
    """
    text = "\n".join(texts).encode(errors="replace")
    return estimate(text) + TOKENS_PER_MESSAGE * messages + TOKENS_PER_REPLY + TOKENS_PER_IMAGE * images


class Calibration:
    """What upstreams counted against what was estimated, per model.

    A model's factor is a ratio of decayed sums, so that long prompts, which matter most, say most.

    Args:
        sums: what `sums` gave earlier.
    """

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None) -> None:
        self._sums = dict(sums or {})

    def sums(self) -> dict[str, tuple[float, float]]:
        """By model, decayed tokens as counted upstream and as estimated: what to persist."""
        return dict(self._sums)

    def factor(self, model: str) -> float:
        """What to multiply an estimate by; 1.0 for a model nothing is known of."""
        actual, estimated = self._sums.get(model, _PRIOR)
        return actual / estimated

    def observe(self, model: str, *, estimated: float, actual: int) -> None:
        """Count a prompt.

        Args:
            model: name of the policy's model; the set of names has to be bounded.
            estimated: before calibration, above 0.
            actual: tokens as the upstream counted them, cached ones included.
        """
        bounded = min(max(actual, estimated / _MAX_FACTOR), estimated * _MAX_FACTOR)
        sums = self._sums.get(model, _PRIOR)
        self._sums[model] = (sums[0] * _KEPT + bounded, sums[1] * _KEPT + estimated)


_PRIOR = (1_000.0, 1_000.0)
"""Tokens' worth of trust in the shipped weights."""

_KEPT = 0.99
"""What a prompt leaves of those before it: the factor is an average over about a hundred."""

_MAX_FACTOR = 4.0
"""More than this no tokenizer differs; it is an image, a file or a mistake, and must not spoil the factor."""
