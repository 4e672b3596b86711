import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits.speed import MEMORY, Level, Speed, deviations, merge, merge_levels, portion

SECONDS = st.floats(0.01, 100)


def level_at(median_s: float, *, observations: int = 40, every_s: float = 1.0, until: float = 0.0) -> Level:
    """A level that has seen a model with that median, in provider-like scatter; the last observation is at `until`."""
    rng, level = random.Random(7), Level(median_s)
    for n in range(observations):
        level.add(median_s * rng.lognormvariate(0, 0.5), until - (observations - 1 - n) * every_s)
    return level


def test_a_level_finds_median_and_scatter():
    """Forty observations tell the median to some 20 %, and the 95th percentile to some 25 %."""
    level = level_at(2.0)
    assert level.quantile(0.0) == pytest.approx(2.0, rel=0.2)
    assert level.quantile(deviations(0.95)) == pytest.approx(2.0 * 2.276, rel=0.3)
    assert level.error() == pytest.approx(0.5 / MEMORY**0.5, rel=0.3)


@pytest.mark.parametrize("factor", [4.0, 10.0])
def test_a_jump_is_believed_within_three_observations(factor):
    """A model that is suddenly slower, or suddenly faster, is known to be so after three answers."""
    for by in (factor, 1 / factor):
        level = level_at(1.0)
        for n in range(3):
            level.add(by, n)
        assert level.quantile(0.0) == pytest.approx(by, rel=0.3)


def test_one_straggler_changes_little():
    """A heavy tail has single slow answers: one moves the median by less than a sixth."""
    level = level_at(1.0)
    before = level.quantile(0.0)
    level.add(10.0, 1.0)
    assert level.quantile(0.0) < before * 7 / 6


def test_good_news_of_a_model_left_alone_is_believed_at_once():
    """After a pause one good answer is enough to come back, and one bad one is not enough to leave."""
    recovered = level_at(10.0)
    recovered.add(1.0, 30.0)
    assert recovered.quantile(0.0) == pytest.approx(1.0, rel=0.01)
    slow_once = level_at(1.0)
    slow_once.add(3.0, 30.0)
    assert slow_once.quantile(0.0) < 1.5


def test_good_news_of_a_model_that_is_asked_all_the_time_is_chance():
    """One answer that is far faster than thirty others is no change."""
    level = level_at(1.0)
    before = level.quantile(0.0)
    level.add(0.1, 0.1)
    assert level.quantile(0.0) > before * 0.85


def test_a_level_that_was_raised_on_suspicion_follows_the_next_answers():
    """A wrong suspicion is over with the first answer that is as fast as ever; a right one is made precise."""
    wrong, right = level_at(1.0), level_at(1.0)
    for level in (wrong, right):
        level.rise(8.0, 1.0)
        assert level.quantile(0.0) == pytest.approx(8.0)
    wrong.add(1.0, 2.0)
    assert wrong.quantile(0.0) == pytest.approx(1.0)
    for n in range(12):
        right.add(5.0, 2.0 + n / 10)
    assert right.quantile(0.0) == pytest.approx(5.0, rel=0.15)


def test_a_model_is_strained_while_it_is_slower_than_usual():
    """Twice as slow as for hundreds of answers is strained; a straggler is not, nor is a model that was always slow."""
    level = level_at(1.0, observations=300)
    assert not level.strained()
    level.add(10.0, 1.0)
    assert not level.strained()
    for n in range(40):
        level.add(2.0, 2.0 + n)
    assert level.strained()
    assert not level_at(8.0, observations=300).strained()


@given(SECONDS, st.lists(SECONDS, max_size=40))
def test_hazards_rise_with_the_wait(value, seen):
    """The longer a wait, the more surprising, from nothing to a bounded much; half do not exceed the median."""
    level = Level(1.0)
    for n, observed in enumerate(seen):
        level.add(observed, n)
    assert 0.0 <= level.hazard(value) <= level.hazard(2 * value) < 25.0
    assert level.hazard(0.0) == pytest.approx(0.0, abs=1e-6)
    assert level.hazard(level.quantile(0.0)) == pytest.approx(0.6931, rel=1e-3)


def test_what_was_given_up_counts_only_as_bad_news():
    """A wait that ended before the median says nothing; a longer one raises it."""
    level = level_at(1.0)
    before = level.mean
    level.at_least(0.5, 1.0)
    assert level.mean == before
    level.at_least(3.0, 1.0)
    assert level.mean > before


@given(st.lists(SECONDS, max_size=60), st.lists(st.floats(0, 100), max_size=60))
def test_a_level_stays_within_what_it_saw(values, pauses):
    """The median lies between the smallest and the largest of what was expected and observed."""
    level, now = Level(1.0), 0.0
    for value, pause in zip(values, pauses, strict=False):
        now += pause
        level.add(value, now)
    seen = [1.0, *values]
    assert min(seen) * 0.999 <= level.quantile(0.0) <= max(seen) * 1.001
    assert 0.0 < level.error() < 20.0


@given(st.lists(SECONDS, min_size=1, max_size=30), st.lists(SECONDS, min_size=1, max_size=30))
def test_merging_levels_does_not_depend_on_the_order(first, second):
    """Two relays' levels come to the same whichever is merged into which, somewhere between the two."""
    a, b = Level(1.0), Level(1.0)
    for n, value in enumerate(first):
        a.add(value, n)
    for n, value in enumerate(second):
        b.add(value, n)
    one, other = (merge_levels(x.snapshot(), y.snapshot()) for x, y in ((a, b), (b, a)))
    assert one.mean == pytest.approx(other.mean)
    assert one.variance == pytest.approx(other.variance)
    assert min(a.mean, b.mean) - 1e-9 <= one.mean <= max(a.mean, b.mean) + 1e-9


def test_failures_fade_with_successes_and_with_time():
    """A failure counts a tenth; successes take it back, and so does a quiet minute before the next attempt."""
    speed = Speed()
    speed.failed(-2.0, 0.0)
    assert speed.failing == pytest.approx(0.1)
    assert speed.wasted_s == pytest.approx(0.2)
    for _ in range(60):
        speed.begun(0.5, 1.0)
    assert speed.failing == speed.wasted_s == 0.0
    speed.failed(-1.0, 1.0)
    speed.failed(119.0, 121.0)
    assert speed.failing < 0.11


def test_tails_are_read_from_what_was_seen():
    """With few observations the log-normal's tail, with many the sketch's, read at most once a second."""
    speed = Speed(ttft_s=1.0)
    assert speed.tail(0.95, 0.0) == pytest.approx(1.0 * 2.68, rel=0.01)
    for _ in range(95):
        speed.begun(0.0, 1.0)
    for _ in range(5):
        speed.begun(-7.0, 1.0)
    assert speed.tail(0.95, 1.5) == pytest.approx(1.0, rel=0.03)
    assert speed.tail(0.99, 1.5) == pytest.approx(8.0, rel=0.03)
    for _ in range(100):
        speed.begun(-28.4, 1.6)
    assert speed.tail(0.99, 1.6) == pytest.approx(8.0, rel=0.03)
    assert speed.tail(0.99, 2.6) == pytest.approx(30.0, rel=0.03)


def test_snapshots_merge_and_come_back():
    """What two relays saw of a model is one thing, from which a third can go on."""
    parts = []
    for ttft_s in (1.0, 4.0):
        speed = Speed()
        for now in range(30):
            speed.begun(now - ttft_s, now)
            speed.ended(tokens=11, output_s=1.0, truncated=False, now=now)
        parts.append(speed.snapshot(30))
    merged = Speed.restore(merge(*parts))
    assert merged.ttft.quantile(0.0) == pytest.approx(2.0, rel=0.05)
    assert merged.tail(0.95, 31) == pytest.approx(4.0, rel=0.05)
    assert merged.per_token.quantile(0.0) == pytest.approx(0.1, rel=0.05)


def test_shares_of_a_speed_are_together_what_it_was():
    """Divided among four and merged, twice over, nothing is counted twice: not the prior, not what was seen."""
    speed = Speed()
    for now in range(20):
        speed.begun(2.0, now)
        speed.ended(tokens=11, output_s=1.0, truncated=False, now=now)
    speed.failed(1.0, 20)
    whole = again = speed.snapshot(20)
    for _ in range(2):
        part = portion(again, 0.25)
        again = merge(merge(part, part), merge(part, part))
    for level in ("ttft", "per_token"):
        assert msgspec.structs.astuple(getattr(again, level)) == pytest.approx(
            msgspec.structs.astuple(getattr(whole, level))
        )
    assert again.ttft_tail.weights == pytest.approx(whole.ttft_tail.weights)
    assert (again.failing, again.wasted_s, again.failed_at) == pytest.approx((whole.failing, whole.wasted_s, 20))


def test_of_many_processes_together_no_more_is_kept_than_one_would_keep():
    """A level that four have filled can be divided among four, and leaves one no more settled than its own would be."""
    part = level_at(2.0, observations=4000).snapshot()
    four = merge_levels(merge_levels(part, part), merge_levels(part, part))
    assert four.weight == pytest.approx(4 * part.weight)
    assert Level.restore(four).snapshot().weight == MEMORY
    assert Level.restore(four).seen() == Level.restore(part).seen()


def test_a_speed_is_known_from_the_first_attempt_on():
    """What is expected of a model is not known of it; an answer is, and so is a failure alone."""
    for seen in (lambda speed: speed.begun(1.0, 1.0), lambda speed: speed.failed(1.0, 1.0)):
        speed = Speed(ttft_s=9.0)
        assert not speed.known()
        seen(speed)
        assert speed.known()


def test_only_quantiles_that_policies_may_name():
    """A quantile outside the table is refused instead of guessed."""
    with pytest.raises(KeyError):
        deviations(0.42)
