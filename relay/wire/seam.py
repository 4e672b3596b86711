"""Where a continuation meets the text before it: what of it is new.

Asked to go on, a model or its server often says again what is already there. Which of these it may be depends on
how it was asked:

    as a prefix    the text was given as the beginning of the answer. The model goes on within a word, and only the
                   server may repeat: some send the whole text again first (Mistral does), and nothing else is cut.
    as a message   the text was given as an answer that is over, with the wish for more. The model begins anew: perhaps
                   with a remark, with the last words, the last paragraph, or all of it. It is therefore asked to begin
                   with the last words (`anchor`), and what follows those is new, spaces included.

White space at the end of a text is not sent, because some servers refuse it and others drop it; what the continuation
has of it is not doubled. What comes is held back only until its place is clear.
"""

from __future__ import annotations

import re

ANCHOR_CHARS = 60
"""A dozen words at the most: so many do not stand at the head of a continuation by chance, and are soon said again."""

LEAD_CHARS = 120
"""How far into a continuation its first words are looked for: behind "Sure, here is the rest of …:"."""

MIN_ECHO_CHARS = 8
"""A text shorter than this may well be repeated by what truly follows it: "ha", "10"."""

MIN_REPEATED_CHARS = 4
"""As for an echo; the word "the" at both sides of a seam says nothing."""

_UNSPACED = 0x0E00
"""From here on (Thai, Lao, …, Han, kana) words are not set apart by spaces, save Hangul's, where it is not missed."""


def anchor(text: str) -> str:
    """The last words of a text, as they stand there; a word is cut only where there is no space."""
    text = text.rstrip()
    tail = text[-ANCHOR_CHARS:]
    if tail == text:
        return tail.lstrip()
    _, space, words = tail.partition(" ")
    return words.lstrip() if space else tail


class Seam:
    """Reads a continuation, piece by piece.

    Args:
        text: what the client has; nothing is cut off behind an empty one.
        anchored: the text was given as a message, and the continuation was asked to begin with `anchor(text)`.

    Attributes:
        open: it is not yet clear where the new text begins.
    """

    __slots__ = ("_held", "_pattern", "_searched", "_text", "open")

    def __init__(self, text: str, *, anchored: bool) -> None:
        self._text = text
        self._held = ""
        self._searched = 0  # characters held in which no place was found
        self._pattern: re.Pattern[str] | None = None
        self.open = bool(text)
        if anchored:
            self._pattern = re.compile(r"\s+".join(map(re.escape, anchor(text).split())), re.IGNORECASE)

    def feed(self, piece: str) -> str:
        """Take the next piece, return what of all that came is new and may go on."""
        if not self.open:
            return piece
        self._held += piece
        return self._released(last=False)

    def end(self) -> str:
        """Nothing more will come: what is left that may go on."""
        return self._released(last=True) if self.open else ""

    def _released(self, *, last: bool) -> str:
        at = self._echo(last=last) if self._pattern is None else self._repetition(self._pattern, last=last)
        if at is None:
            return ""
        rest = self._held[at:]
        ended = self._text.rstrip()
        if not last and ended != self._text and not rest.strip():
            return ""  # white space that may be the same
        self.open = False
        self._held = ""
        if not at and self._pattern is not None and _is_word_lost(self._text, rest):
            return f" {rest}"
        return rest[_shared_space(self._text[len(ended) :], rest) :]

    def _echo(self, *, last: bool) -> int | None:
        """Where the new text begins behind a repetition of everything; None if that is not yet clear."""
        sent = self._text.rstrip()
        if len(sent) < MIN_ECHO_CHARS or not self._held.startswith(sent[: len(self._held)]):
            return 0
        if len(self._held) < len(sent):
            return 0 if last else None
        return len(sent)

    def _repetition(self, pattern: re.Pattern[str], *, last: bool) -> int | None:
        """Where the new text begins behind the anchor and whatever came before it; None if that is not yet clear.

        The anchor's words may also stand further up in the text, and the model begin further up still: of the places
        it then passes, the one at the text's end counts.
        """
        held, text = self._held, self._text.rstrip()
        for match in pattern.finditer(held, max(0, self._searched - 2 * ANCHOR_CHARS)):
            said = held[: match.end()].strip()
            if text.endswith(said) or said not in text:
                return match.end() if match.start() <= LEAD_CHARS or text.endswith(said) else self._last_words()
        if not last and (len(held) < LEAD_CHARS + ANCHOR_CHARS or held.strip() in text):
            self._searched = len(held)
            return None
        said = held.strip()
        if len(said) > ANCHOR_CHARS and said in text:  # begun further up, and cut before the text's end
            return len(held)
        return self._last_words()

    def _last_words(self) -> int:
        """Where the new text begins behind fewer words than were asked for, or a word begun anew; 0 if at once."""
        body = self._held.lstrip()
        start, tail = len(self._held) - len(body), self._text.rstrip()[-ANCHOR_CHARS:]
        for size in range(len(tail), MIN_REPEATED_CHARS - 1, -1):
            if body.startswith(tail[-size:]) and _begins_word(tail, len(tail) - size):
                return start + size
        return 0


def _begins_word(text: str, at: int) -> bool:
    return at == 0 or not (text[at - 1].isalnum() and text[at].isalnum()) or ord(text[at]) >= _UNSPACED


def _shared_space(trailing: str, rest: str) -> int:
    """How much of the white space at the head of `rest` already stands at the text's end."""
    leading = rest[: len(rest) - len(rest.lstrip())]
    return max(size for size in range(len(leading) + 1) if trailing.endswith(leading[:size]))


def _is_word_lost(text: str, rest: str) -> bool:
    """Whether a new message most likely stands for a new word: one never begins with the space that would say so.

    Limits cut between tokens, and in scripts with spaces most tokens are whole words.
    """
    before, after = text[-1:], rest[:1]
    return after.lower() != after.upper() and (before.lower() != before.upper() or before in set(",.;:!?)"))
