"""Fingerprints of a prompt's beginnings, by which a provider that has read one of them lately is known again."""

from __future__ import annotations

from hashlib import blake2b

SHORTEST = 4096
"""Bytes of the shortest beginning: about 1,024 tokens, below which providers cache nothing."""

LONGEST = 512 * 1024
"""Bytes of the longest one: about 128,000 tokens."""

_BYTES_PER_TOKEN = 4


def prefixes(prompt: bytes | memoryview, before: bytes | memoryview = b"") -> tuple[tuple[bytes, int], ...]:
    """The fingerprint and the tokens, four bytes each, of each beginning that is `SHORTEST` doubled some times.

    Doubling bounds the work by the prompt's length and what is remembered by its logarithm, and tells at least half
    of what two prompts have in common.

    Args:
        prompt: what providers cache the beginning of.
        before: what else they read before it; a part of each beginning, not counted in its length.

    Returns:
        The longest first; nothing for a prompt shorter than `SHORTEST`.
    """
    if len(prompt) < SHORTEST:
        return ()
    digest = blake2b(before, digest_size=8)
    found, start, end = [], 0, SHORTEST
    view = memoryview(prompt)
    while end <= min(len(prompt), LONGEST):
        digest.update(view[start:end])
        found.append((digest.copy().digest(), end // _BYTES_PER_TOKEN))
        start, end = end, end * 2
    return tuple(reversed(found))
