from hypothesis import given
from hypothesis import strategies as st

from relay.limits.hedging import Ledger


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 5000)), max_size=60), st.floats(0.01, 1))
def test_duplicates_never_exceed_their_share(attempts, share):
    """Whatever comes, as long as each duplicate was allowed first, their part of the spend stays within the share."""
    ledger, now = Ledger(), 0.0
    for usd, twice, pause in attempts:
        now += pause
        if not twice or ledger.allows(usd, share, now, after=0.95):
            ledger.spend(usd, now, twice=twice)
        assert ledger.twice <= share * ledger.spent * (1 + 1e-9)


def test_nothing_is_allowed_before_anything_was_spent():
    """The first request of a route cannot be hedged; when enough was spent, one can."""
    ledger = Ledger()
    assert not ledger.allows(0.01, 0.05, 1.0, after=0.95)
    for _ in range(20):
        ledger.spend(0.01, 1.0, twice=False)
    assert ledger.allows(0.01, 0.05, 1.0, after=0.95)
    ledger.spend(0.01, 1.0, twice=True)
    assert not ledger.allows(0.01, 0.05, 1.0, after=0.95)


def test_no_hedging_when_everything_is_slow():
    """A tail of 5 % is hedged; if every request waits too long, none is, until it is a tail again."""
    ledger = Ledger()
    ledger.spend(100.0, 0.0, twice=False)
    for n in range(200):
        ledger.waited(too_long=n % 20 == 0)
    assert ledger.allows(0.01, 0.05, 1.0, after=0.95)
    for _ in range(20):
        ledger.waited(too_long=True)
    assert not ledger.allows(0.01, 0.05, 1.0, after=0.95)
    for _ in range(20):
        ledger.waited(too_long=False)
    assert ledger.allows(0.01, 0.05, 1.0, after=0.95)


def test_an_early_quantile_leaves_more_behind_it():
    """Half of all requests are later than the median: that alone is no reason not to hedge."""
    ledger = Ledger()
    ledger.spend(100.0, 0.0, twice=False)
    for n in range(200):
        ledger.waited(too_long=n % 2 == 0)
    assert ledger.allows(0.01, 0.05, 1.0, after=0.5)
    assert not ledger.allows(0.01, 0.05, 1.0, after=0.9)
    for _ in range(50):
        ledger.waited(too_long=True)
    assert not ledger.allows(0.01, 0.05, 1.0, after=0.5)


def test_duplicates_under_way_count():
    """What those not yet over may cost is taken as spent twice."""
    ledger = Ledger()
    ledger.spend(1.0, 1.0, twice=False)
    ledger.pending += 0.05
    assert not ledger.allows(0.01, 0.05, 1.0, after=0.95)
    ledger.pending -= 0.05
    assert ledger.allows(0.01, 0.05, 1.0, after=0.95)
