import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.limits.speed import Level
from relay.limits.waits import MOST, Waits

MEDIAN_S = 0.4


def level_at(median_s: float = MEDIAN_S, observations: int = 40) -> Level:
    """Of a model that was seen often, with provider-like scatter."""
    rng, level = random.Random(7), Level(median_s)
    for n in range(observations):
        level.add(median_s * rng.lognormvariate(0, 0.5), n / 10)
    return level


def found(times: list[float], *, every_s: float) -> list[tuple[float, int]]:
    """When a model that answers after these times is held to be slower, and how often it was asked by then."""
    waits, level, events = Waits(), level_at(), []
    for n, time in enumerate(times):
        events += [(n * every_s, 0, n * every_s), (n * every_s + time, 1, n * every_s)]
    asked, suspected = 0, []
    for at, over, began_at in sorted(events):
        if (longest_s := waits.too_long(level, at)) is not None:
            suspected.append((at, asked))
            level.rise(4.0 * longest_s, at)
        if over:
            waits.end(began_at, level, at, answered=True)
            level.add(at - began_at, at)
        else:
            asked += 1
            waits.begin(level, at)
    return suspected


@pytest.mark.parametrize("every_s", [0.1, 0.2, 0.5])
def test_silence_of_several_is_noticed_before_any_is_a_straggler(every_s):
    """Some five streams that wait for longer than the median are enough, long before the first of them answers."""
    at, asked = found([4.0] * 60, every_s=every_s)[0]
    assert at < 1.6
    assert asked <= 10


def test_a_model_as_usual_is_rarely_suspected():
    """A thousand answers in provider-like scatter, every hundredth a straggler: fewer suspicions than stragglers."""
    rng = random.Random(3)
    times = [MEDIAN_S * rng.lognormvariate(0, 0.5) * (8.0 if n % 100 == 50 else 1.0) for n in range(1000)]
    assert len(found(times, every_s=0.2)) < 10


def test_answers_take_evidence_away():
    """What waits alone would show does not show it if as many others were answered in time."""
    silent, answered, level = Waits(), Waits(), level_at()
    for n in range(5):
        silent.begin(level, n / 10)
        answered.begin(level, n / 10)
        answered.begin(level, n / 10 + 0.05)
    for n in range(5):
        answered.end(n / 10 + 0.05, level, n / 10 + 0.35, answered=True)
    assert silent.too_long(level, 0.9) == pytest.approx(0.9)
    assert answered.too_long(level, 0.9) is None


def test_one_wait_must_be_very_long():
    """A single stream shows something only when it waits far longer than the tail explains."""
    waits, level = Waits(), level_at()
    waits.begin(level, 0.0)
    assert waits.too_long(level, 4.0) is None
    assert waits.too_long(level, 600.0) == 600.0


def test_what_failed_shows_nothing():
    """Attempts that failed neither wait on nor were answered; evidence that was believed is not found again."""
    waits, level = Waits(), level_at()
    for n in range(8):
        waits.begin(level, n / 100)
    for n in range(8):
        waits.forget(n / 100)
    assert waits.too_long(level, 5.0) is None
    for _ in range(8):
        waits.begin(level, 6.0)
    assert waits.too_long(level, 8.0) == pytest.approx(2.0)
    level.rise(8.0, 8.0)
    assert waits.too_long(level, 9.0) is None


def test_of_very_many_a_sample_is_looked_at():
    """With hundreds under way the first of them are watched, and the next when those are answered."""
    waits, level = Waits(), level_at()
    for n in range(10 * MOST):
        waits.begin(level, n / 1000)
    for n in range(10 * MOST):
        waits.end(n / 1000, level, n / 1000 + 0.3, answered=True)
    assert waits.too_long(level, 9.0) is None
    for _ in range(10 * MOST):
        waits.begin(level, 10.0)
    assert waits.too_long(level, 11.0) == pytest.approx(1.0)


def test_a_straggler_does_not_hide_what_comes_behind_it():
    """While one stream waits for minutes, hundreds behind it are answered, and then silence is noticed as ever."""
    waits, level = Waits(), level_at()
    waits.begin(level, 0.0)
    for n in range(10 * MOST):
        waits.begin(level, 1.0 + n)
        waits.end(1.0 + n, level, 1.3 + n, answered=True)
    for _ in range(8):
        waits.begin(level, 900.0)
    assert waits.too_long(level, 900.2) is None
    assert waits.too_long(level, 901.0) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=40), st.floats(0.0, 5.0))
def test_until_told_nothing_is_too_long(steps, ahead_s):
    """Before the moment that `quiet_until` names a look finds nothing, whatever began, ended and was looked at."""
    waits, level, now = Waits(), level_at(), 0.0
    begun: list[float] = []
    for step_s, ends in steps:
        now += step_s
        waits.too_long(level, now)
        if ends and begun:
            waits.end(begun.pop(0), level, now, answered=True)
        else:
            begun.append(now)
            waits.begin(level, now)
    quiet_until = waits.quiet_until(level)
    assert now + ahead_s >= quiet_until or waits.too_long(level, now + ahead_s) is None
    assert (quiet_until == inf) == (not begun)
