"""What a route has spent, and how much of it twice: keeps hedging within its bounds. Pure: time comes in as `now`.

Hedging helps if few are slow and harms if all are: then each second request makes the others slower (Dean and Barroso,
"The Tail at Scale", CACM 2013). Two bounds keep it apart: duplicate spend never exceeds its share of all spend, and
when more requests wait too long than a tail explains, none is hedged.
"""

from __future__ import annotations

from math import exp, log

HALF_LIFE_S = 600.0
"""Spend counts half after ten minutes: long enough to even out requests of very different size."""

SLOW_SHARE = 0.25
"""Share of requests that wait longer than the hedging quantile from which on it is no tail any more."""

_EXCESS = 1.5
"""Likewise, as a multiple of what the quantile itself leaves: behind the median half of all wait longer."""

_MEMORY = 50.0
"""Requests that the share is taken over."""

_DECAY = log(2.0) / HALF_LIFE_S


class Ledger:
    """One route's.

    Attributes:
        spent: USD, decayed; duplicates included.
        twice: the part of it that duplicates cost.
        pending: USD that duplicates under way may cost.
        slow: share of requests that waited longer than the hedging quantile.
    """

    __slots__ = ("_at", "pending", "slow", "spent", "twice")

    def __init__(self) -> None:
        self.spent = 0.0
        self.twice = 0.0
        self.pending = 0.0
        self.slow = 0.0
        self._at = 0.0

    def waited(self, *, too_long: bool) -> None:
        """A request's wait for its first output, or for the hedging quantile, is over."""
        self.slow += (float(too_long) - self.slow) / _MEMORY

    def spend(self, usd: float, now: float, *, twice: bool) -> None:
        """An attempt cost that much; `twice` if another one answered the request."""
        self._fade(now)
        self.spent += usd
        self.twice += usd if twice else 0.0

    def allows(self, usd: float, max_share: float, now: float, *, after: float) -> bool:
        """Whether a duplicate that may cost `usd` keeps within the share, and slowness is not everywhere.

        Args:
            usd: that it may cost.
            max_share: of the spend that duplicates may have.
            now: seconds on the clock of the others.
            after: the hedging quantile.
        """
        self._fade(now)
        usd += self.pending
        return self.slow <= max(SLOW_SHARE, _EXCESS * (1.0 - after)) and self.twice + usd <= max_share * (
            self.spent + usd
        )

    def _fade(self, now: float) -> None:
        fade = exp(min(self._at - now, 0.0) * _DECAY)
        self._at = now
        self.spent *= fade
        self.twice *= fade
