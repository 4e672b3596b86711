"""What of a continuation is new."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.wire.seam import ANCHOR_CHARS, LEAD_CHARS, MIN_ECHO_CHARS, Seam, anchor

WORDS = st.lists(st.text("abcdefghij,.üж世", min_size=1, max_size=9), min_size=1, max_size=40)
TEXTS = WORDS.map(" ".join)
ENDS = st.sampled_from(["", " ", "\n", "\n\n", "\n    "])
CUTS = st.lists(st.integers(1, 12), max_size=30)


def joined(text: str, continuation: str, *, anchored: bool, cuts: list[int] | None = None) -> str:
    """The text with what is new of a continuation that comes in pieces of these sizes, the rest in one."""
    seam = Seam(text, anchored=anchored)
    for size in cuts or []:
        text += seam.feed(continuation[:size])
        continuation = continuation[size:]
    return text + seam.feed(continuation) + seam.end()


@given(TEXTS, TEXTS, st.sampled_from(["", " ", "\n\n"]), CUTS)
def test_prefix_is_gone_on_from_within_a_word(text, more, between, cuts):
    """Behind a prefix that ends in no space nothing is dropped."""
    assume(not (between + more).startswith(text[: len(more)]))
    assert joined(text, between + more, anchored=False, cuts=cuts) == text + between + more


@given(TEXTS, ENDS, TEXTS, CUTS)
def test_space_that_was_not_sent_is_not_doubled(text, end, more, cuts):
    """White space at a text's end comes again, or does not: the text has it once."""
    assume(not more.startswith(text[: len(more)]))
    for between in ("", end):
        assert joined(text + end, between + more, anchored=False, cuts=cuts) == text + end + more


@given(TEXTS, ENDS, TEXTS, CUTS)
def test_prefix_that_the_server_repeats_is_dropped(text, end, more, cuts):
    """A whole echo is dropped, however it is cut; white space that was not sent comes again and stays single."""
    assume(len(text) >= MIN_ECHO_CHARS)
    assert joined(text + end, text + end + more, anchored=False, cuts=cuts) == text + end + more


@pytest.mark.parametrize(("text", "continuation"), [("banan", "anas"), ("ha", "haha"), ("no, no, no, ", "no, no!")])
def test_prefix_whose_end_is_repeated_by_what_follows_keeps_it(text, continuation):
    """A model that goes on within a word may well write the same letters again."""
    assert joined(text, continuation, anchored=False) == text + continuation


@given(TEXTS, ENDS, TEXTS, st.sampled_from(["", "Sure! ", "Here is the rest:\n\n", "…"]), CUTS)
def test_last_words_are_dropped_with_what_stands_before_them(text, end, more, remark, cuts):
    """A continuation that begins with the anchor, perhaps behind a remark, goes on exactly behind it."""
    words = anchor(text)
    assume(f"{remark}{words}{end}{more}".lower().count(words.lower()) == 1)
    assume(text.count(words) == 1)
    assert joined(text + end, f"{remark}{words}{end}{more}", anchored=True, cuts=cuts) == text + end + more


@given(TEXTS, TEXTS, st.integers(0, 200), CUTS)
def test_answer_begun_anew_is_dropped_up_to_its_end(text, more, start, cuts):
    """A model that repeats the last paragraph, or everything, is followed to the place where it stopped."""
    words = anchor(text)
    start = min(start, len(text) - len(words))
    assume((text + more).lower().count(words.lower()) == 1)
    assert joined(text, text[start:] + more, anchored=True, cuts=cuts) == text + more


def test_answer_begun_anew_and_cut_before_its_end_adds_nothing():
    """A model that repeats what the text says, and meets its limit on the way, has said nothing new."""
    text = " ".join(f"Sentence {number} is not the one before." for number in range(20))
    for start in (0, text.index("Sentence 9")):
        assert joined(text, text[start : start + 3 * LEAD_CHARS], anchored=True) == text
    assert joined(f"{text} Is it?", " the one before", anchored=True) == f"{text} Is it? the one before"


def test_place_that_the_model_passes_on_its_way_is_not_the_seam():
    """Where the same words stand twice in the text, a model that begins further up is followed past the first."""
    verse = "and then he went home, as he always did when it was late in the day. "
    text = f"One. {verse}Two. {verse}".rstrip()
    assert joined(text, text + " Three.", anchored=True, cuts=[1] * len(text)) == text + " Three."


@pytest.mark.parametrize(
    ("text", "continuation", "expected"),
    [
        ("It is impor", "important to know.", "It is important to know."),
        ("The quick brown fox", "brown fox jumps.", "The quick brown fox jumps."),
        ("he was the", "theory of relativity", "he was the theory of relativity"),
        ("It ended.", "Then it began.", "It ended. Then it began."),
        ("Ten of 1", "00 were red.", "Ten of 100 were red."),
        ("    return ", "value", "    return value"),
        ("Is this so? Yes", ", it is.", "Is this so? Yes, it is."),
        ("春天的花园里开满了", "春天的花园里开满了红色的花", "春天的花园里开满了红色的花"),
        ("春天的花园", "很美", "春天的花园很美"),
        ("a list:\n- one\n", "- two", "a list:\n- one\n- two"),
        ("a list:\n- one\n", "\n- two", "a list:\n- one\n- two"),
        ("", "All of it.", "All of it."),
    ],
)
def test_message_that_does_not_begin_as_asked_is_joined_as_well_as_can_be(text, continuation, expected):
    """Fewer words than asked for and a word begun anew are dropped; a space that no message begins with is put in."""
    assert joined(text, continuation, anchored=True) == expected
    assert joined(text, continuation, anchored=True, cuts=[1] * len(continuation)) == expected


def test_message_is_held_no_longer_than_its_first_words_may_take():
    """A continuation with nothing of the text in it goes on after a bounded number of characters."""
    seam = Seam("All that was said before this.", anchored=True)
    released = ""
    for fed in range(1, LEAD_CHARS + ANCHOR_CHARS + 1):  # noqa: B007
        released = seam.feed("x")
        if released:
            break
    assert fed == LEAD_CHARS + ANCHOR_CHARS
    assert not seam.open


def test_prefix_is_held_only_while_it_may_be_an_echo():
    """What differs from the text goes on at once."""
    seam = Seam("All that was said before.", anchored=False)
    assert seam.feed("All ") == ""
    assert seam.feed("in all") == "All in all"
    assert seam.feed(", yes") == ", yes"


@given(st.text())
def test_anchor_is_the_end_of_the_text(text):
    """It stands at the text's end, is short, and only white space is behind it."""
    words = anchor(text)
    assert text.rstrip().endswith(words)
    assert len(words) <= ANCHOR_CHARS
    assert bool(words) == bool(text.strip())
