from hypothesis import given
from hypothesis import strategies as st

from relay.wire.prefixes import LONGEST, SHORTEST, prefixes


def test_short_prompts_have_none():
    """Below what providers cache there is nothing to remember."""
    assert prefixes(b"x" * (SHORTEST - 1)) == ()
    assert len(prefixes(b"x" * SHORTEST)) == 1


def test_a_longer_prompt_is_known_by_its_beginning():
    """A conversation's next turn shares the beginnings of the last one, a changed first word none."""
    turn, next_turn = b"a" * 20_000, b"a" * 20_000 + b"b" * 20_000
    assert set(prefixes(turn)) <= set(prefixes(next_turn))
    assert not set(prefixes(b"c" + turn[1:])) & set(prefixes(turn))
    assert not set(prefixes(turn, b"tools")) & set(prefixes(turn))


@given(st.integers(SHORTEST, 3 * LONGEST))
def test_at_least_half_is_told(size):
    """The longest beginning covers at least half of a prompt, up to the longest that is looked at; longest first."""
    found = prefixes(bytes(size))
    tokens = [count for _, count in found]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] * 4 <= size
    assert tokens[0] * 4 > min(size, LONGEST) / 2
