"""Experience: budgets that learn from whole answers, reasoning models above all."""

from __future__ import annotations

import msgspec
import pytest

from relay.limits.budgets import Request
from relay.limits.experience import MANY, TRIAL, Experience, ExperienceSnapshot, Lesson, living, merge, portion
from relay.limits.lengths import Place
from relay.messages import BudgetRules

NOW = 1_800_000_000.0
RULES = BudgetRules()
HOME = Place("math_reasoning", "thinker", "team-a", "f00d")


def answer(experience: Experience, request: Request, *, hidden: int, visible: int, now: float = NOW) -> int:
    """Let a model think `hidden` tokens, then write `visible` ones; returns what of them came out before the limit."""
    budget = experience.budget(RULES, request, HOME)
    assert budget.limit is not None
    thought = min(hidden, budget.limit)
    written = min(visible, budget.limit - thought)
    cut = hidden + visible > budget.limit
    experience.observe(Lesson(RULES, request, HOME, budget, now, visible=written, hidden=thought, cut=cut))
    return written


def test_budgets_come_from_what_was_seen() -> None:
    """A hundred answers of 1,200 tokens set the budget of the next."""
    experience = Experience()
    request = Request(100)
    before = experience.budget(RULES, request, HOME)
    for second in range(100):
        experience.observe(Lesson(RULES, request, HOME, before, NOW + second, visible=1200))
    after = experience.budget(RULES, request, HOME)
    assert (before.source, after.source) == ("prior", "cell")
    assert after.limit == pytest.approx(1200, rel=0.06)


def test_answers_learned_together_teach_what_they_teach_one_by_one() -> None:
    """Answers wait until they are asked for, or are many; then all is as if each had been counted at once."""
    request = Request(100, reasons=True)
    at_once, together = Experience(), Experience()
    budget = at_once.budget(RULES, request, HOME)
    for number in range(MANY - 1):
        for observe in (at_once.observe, together.soon):
            visible, cut = 100 + 9 * number, number % 7 == 0
            observe(Lesson(RULES, request, HOME, budget, NOW + number, visible=visible, hidden=number, cut=cut))
    assert together.answers.empty
    together.catch_up()
    assert together.snapshot(NOW) == at_once.snapshot(NOW)
    for _ in range(MANY):
        for observe in (at_once.observe, together.soon):
            observe(Lesson(RULES, request, HOME, budget, NOW + MANY, visible=50))
    assert together.answers.snapshot(NOW) == at_once.answers.snapshot(NOW)


def test_a_snapshot_knows_what_waits() -> None:
    """Nothing that was answered is missing in what is kept."""
    experience, request = Experience(), Request(100)
    experience.soon(Lesson(RULES, request, HOME, experience.budget(RULES, request, HOME), NOW, visible=50))
    assert experience.snapshot(NOW).answers


@pytest.mark.parametrize("effort", ["low", "medium", "high", None])
def test_a_model_that_thinks_is_never_starved(effort: str | None) -> None:
    """Where a fixed limit of 400 was all spent on reasoning, the first answer already comes out whole."""
    experience = Experience()
    request = Request(100, reasons=True, effort=effort)
    assert answer(experience, request, hidden=400, visible=300) == 300


def test_199_of_200_tokens_hidden() -> None:
    """A cell that learns answers of one token keeps the room for the thinking before them."""
    experience = Experience()
    request = Request(100, reasons=True, effort="low")
    for second in range(300):
        assert answer(experience, request, hidden=199, visible=1, now=NOW + second) == 1


def test_a_model_nobody_said_would_think_gets_room_after_its_first_failure() -> None:
    """All of the limit went to reasoning: the next request is given more than twice that, and answers."""
    experience = Experience()
    request = Request(100)
    hidden = 1500
    came = [answer(experience, request, hidden=hidden, visible=200, now=NOW + second) for second in range(4)]
    assert came[0] == 0
    assert came[-1] == 200
    assert experience.budget(RULES, request, HOME).headroom >= hidden


def test_thinking_longer_than_the_policy_foresaw_is_learned() -> None:
    """The headroom of an effort rises above the policy's when the model is seen to need it."""
    experience = Experience()
    request = Request(100, reasons=True, effort="low")
    for second in range(50):
        answer(experience, request, hidden=1900, visible=100, now=NOW + second)
    assert answer(experience, request, hidden=1900, visible=100, now=NOW + 60) == 100
    assert experience.budget(RULES, Request(100, reasons=True, effort="high"), HOME).headroom == RULES.headroom.high


def test_an_answer_that_never_began_says_nothing_of_answers() -> None:
    """A client that leaves during the thinking does not teach that answers are short."""
    experience = Experience()
    request = Request(100, reasons=True)
    budget = experience.budget(RULES, request, HOME)
    for second in range(50):
        experience.observe(Lesson(RULES, request, HOME, budget, NOW + second, visible=0, hidden=30, cut=True))
    after = experience.budget(RULES, request, HOME)
    assert (after.source, after.visible) == ("prior", budget.visible)


@pytest.mark.parametrize("limited", [Request(100, client_limit=10), Request(100, max_output=10)])
def test_a_limit_of_others_does_not_widen_the_cell(limited: Request) -> None:
    """Only budgets that were learned are judged by how often they were too small."""
    experience = Experience()
    budget = experience.budget(RULES, limited, HOME)
    for second in range(100):
        experience.observe(Lesson(RULES, limited, HOME, budget, NOW + second, visible=10, cut=True))
    assert experience.budget(RULES, Request(100), HOME).quantile == pytest.approx(0.95)


def test_loops_do_not_set_the_budget() -> None:
    """Answers that run into the ceiling, even a tenth of them, leave the cell's lengths as they were."""
    experience = Experience()
    request = Request(100)
    budget = experience.budget(RULES, request, HOME)
    for second in range(50):
        loops = second % 10 == 3
        experience.observe(
            Lesson(RULES, request, HOME, budget, NOW + second, visible=RULES.ceiling if loops else 300, cut=loops)
        )
    assert experience.budget(RULES, request, HOME).visible < 600


def test_answers_that_are_as_long_as_the_ceiling_widen_the_cell() -> None:
    """If most run into it, they are no loops: the cell's quantile rises."""
    experience = Experience()
    request = Request(100)
    for second in range(100):
        budget = experience.budget(RULES, request, HOME)
        cut = second % 2 == 0
        experience.observe(
            Lesson(RULES, request, HOME, budget, NOW + second, visible=RULES.ceiling if cut else 300, cut=cut)
        )
    assert experience.budget(RULES, request, HOME).quantile > 0.99


def test_continuations_finish_most_answers() -> None:
    """The next grant is what nine in ten of the longer answers still need, and the last goes to the ceiling."""
    experience = Experience()
    request = Request(100)
    first = experience.budget(RULES, request, HOME)
    for second in range(400):
        experience.observe(Lesson(RULES, request, HOME, first, NOW + second, visible=100 + second))
    more = experience.extension(RULES, request, HOME, first, written=300, number=1)
    assert 160 < more < 210
    last = experience.extension(RULES, request, HOME, first, written=300, number=RULES.max_extensions)
    assert last == RULES.ceiling - 300


def test_a_clients_own_limit_is_not_continued() -> None:
    """What the client asked for is the end, however much the cell expects."""
    experience = Experience()
    request = Request(100, client_limit=300)
    budget = experience.budget(RULES, request, HOME)
    assert experience.extension(RULES, request, HOME, budget, written=300, number=1) == 0


def test_snapshots_carry_everything_learned() -> None:
    """Answers, reasoning and prompts come back after a restart, through JSON."""
    experience = Experience()
    request = Request(100, reasons=True, effort="low")
    for second in range(50):
        answer(experience, request, hidden=3000, visible=800, now=NOW + second)
        experience.prompts.observe("thinker", estimated=1000, actual=1400)
    written = msgspec.json.encode(experience.snapshot(NOW + 100))
    restored = Experience()
    restored.restore(msgspec.json.decode(written, type=ExperienceSnapshot), NOW + 100)
    before, after = (each.budget(RULES, request, HOME) for each in (experience, restored))
    assert after.headroom == pytest.approx(before.headroom, rel=0.11)
    assert after.visible == pytest.approx(before.visible, rel=0.11)
    assert restored.prompts.factor("thinker") == experience.prompts.factor("thinker")


def test_merged_experience_knows_what_either_knew() -> None:
    """One worker saw the model, the other its prompts: together they know both."""
    a, b = Experience(), Experience()
    for second in range(50):
        answer(a, Request(100), hidden=0, visible=2000, now=NOW + second)
        b.prompts.observe("thinker", estimated=1000, actual=2000)
    both = Experience()
    both.restore(merge(a.snapshot(NOW + 50), b.snapshot(NOW + 50)), NOW + 50)
    assert both.budget(RULES, Request(100), HOME).visible > 1800
    assert both.prompts.factor("thinker") == b.prompts.factor("thinker")


def test_shares_of_experience_are_together_what_it_was() -> None:
    """Divided among three and merged, every cell and every sum is as it was: nothing is counted twice."""
    experience = Experience()
    for second in range(50):
        answer(experience, Request(100, reasons=True), hidden=300, visible=second, now=NOW + second)
        experience.prompts.observe("thinker", estimated=1000, actual=1400)
    whole = experience.snapshot(NOW + 50)
    part = portion(whole, 1 / 3)
    again = merge(merge(part, part), part)
    for before, after in ((whole.answers, again.answers), (whole.reasoning, again.reasoning)):
        cells = {cell.cell: cell for cell in after}
        assert cells.keys() == {cell.cell for cell in before}
        for cell in before:
            assert cells[cell.cell].lengths.weights == pytest.approx(cell.lengths.weights)
            assert cells[cell.cell].lengths.total == pytest.approx(cell.lengths.total)
            assert cells[cell.cell].widening == cell.widening
            assert (cells[cell.cell].judged, cells[cell.cell].over) == pytest.approx((cell.judged, cell.over))
    assert again.prompts["thinker"] == pytest.approx(whole.prompts["thinker"])


def test_what_is_old_is_forgotten() -> None:
    """Cells go when their answers have faded; how a model counts prompts goes with them, unless it may be asked."""
    experience = Experience()
    answer(experience, Request(100), hidden=0, visible=100)
    experience.prompts.observe("thinker", estimated=1000, actual=1400)
    snapshot = experience.snapshot(NOW)
    assert living(snapshot, NOW + 14 * 86_400, ()) == snapshot
    late = living(snapshot, NOW + 30 * 86_400, ())
    assert (late.answers, late.prompts) == ([], {})
    assert living(snapshot, NOW + 30 * 86_400, {"thinker"}).prompts == snapshot.prompts


def test_a_model_of_which_nothing_is_said() -> None:
    """It gets headroom until enough of its answers had no hidden reasoning; one that had some keeps it."""
    experience, request, other = Experience(), Request(100, reasons=None), HOME._replace(model="other")
    for number in range(TRIAL + 1):
        assert experience.budget(RULES, request, HOME).headroom == (RULES.headroom.medium if number < TRIAL else 0)
        answer(experience, request, hidden=0, visible=50, now=NOW)
    assert experience.budget(RULES, request, other).headroom == RULES.headroom.medium
    assert experience.budget(RULES, Request(100, reasons=None, effort="high"), HOME).headroom == RULES.headroom.high
    restored = Experience()
    restored.restore(experience.snapshot(NOW), NOW)
    assert restored.budget(RULES, request, HOME).headroom == 0
    for one in (experience, restored):
        answer(one, request, hidden=300, visible=50, now=NOW)
        assert one.budget(RULES, request, HOME).headroom >= RULES.headroom.medium


def test_a_model_that_begins_to_reason_is_noticed_at_once() -> None:
    """After ten thousand answers without hidden reasoning, the first that has some brings its headroom back."""
    experience, request = Experience(), Request(100, reasons=None)
    for number in range(10_000):
        answer(experience, request, hidden=0, visible=50, now=NOW + number)
    assert experience.budget(RULES, request, HOME).headroom == 0
    answer(experience, request, hidden=300, visible=50, now=NOW)
    assert experience.budget(RULES, request, HOME).headroom >= RULES.headroom.medium


@pytest.mark.parametrize("reasons", [False, None])
def test_what_others_think_says_nothing_of_a_model(reasons: bool | None) -> None:  # noqa: FBT001 - a case
    """A model that was never seen to reason pays nothing for those that do, in a policy that has both."""
    experience = Experience()
    others, quiet = Request(100, reasons=True), Request(100, reasons=reasons)
    thinker, other = HOME._replace(model="another"), HOME._replace(model="other")
    for _ in range(TRIAL):
        for place, request, hidden in ((thinker, others, 1500), (other, quiet, 0)):
            budget = experience.budget(RULES, request, place)
            experience.observe(Lesson(RULES, request, place, budget, NOW, visible=50, hidden=hidden))
    assert experience.budget(RULES, others, thinker).headroom == RULES.headroom.medium
    assert experience.budget(RULES, quiet, other).headroom == 0
    assert experience.budget(RULES, Request(100), HOME).headroom == 0
