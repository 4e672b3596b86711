"""The folder in which what was learned outlives the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.errors import ConfigurationError
from relay.learned import Learned, Memory
from relay.limits import lengths, speed
from relay.limits.quantiles import Sketch
from relay.runtimes.state_folder import FORMAT, StateFolder, read
from tests.learned import HOME, counted, pipeline, teach

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_800_000_000.0
MODELS = ("first", "second")


def begun(path: Path, workers: int = 1) -> StateFolder:
    """A relay that has begun."""
    state = StateFolder(path, workers)
    state.begin(MODELS, NOW)
    return state


def work(state: StateFolder, slot: int = 0, *, answers: int = 0) -> None:
    """A worker's life: go on, learn, leave it."""
    pupil = pipeline()
    memory = Memory(pupil, "")
    memory.recall(state.share(slot))
    teach(pupil, answers=answers)
    state.leave(slot, memory.learned())


def known(learned: Learned) -> float:
    """Answers of the cell `HOME`."""
    return sum(sum(c.lengths.weights.values()) for c in learned.experience.answers if c.cell == tuple(HOME))


def only_file(path: Path) -> bool:
    """Nothing but the one file is there."""
    return [entry.name for entry in path.iterdir()] == ["learned"]


def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    """The folder is made, one file is left in it, for its owner's eyes, and the next process starts with that."""
    path = tmp_path / "var" / "relay"
    state = begun(path)
    work(state, answers=20)
    state.end()
    assert only_file(path)
    assert (path / "learned").stat().st_mode & 0o777 == 0o600
    heir = pipeline()
    Memory(heir, "").recall(begun(path).share(0))
    assert counted(heir) == pytest.approx(20)
    assert heir.upstreams["first"].speed is not None
    assert heir.upstreams["first"].speed.ttft.quantile(0) == pytest.approx(2.0, rel=0.1)


def test_workers_of_any_number_count_everything_once(tmp_path: Path) -> None:
    """Over restarts with four, two, no busy and one worker, the answers known are those that were seen, or nearly."""
    seen = 0
    for workers, busy in ((4, 20), (2, 20), (3, 0), (3, 0), (1, 20)):
        state = begun(tmp_path, workers)
        for slot in range(workers):
            work(state, slot, answers=busy)
            seen += busy
        assert known(read(tmp_path)) == pytest.approx(seen, rel=0.05)
        state.end()
        assert known(read(tmp_path)) == pytest.approx(seen, rel=0.05)
    assert only_file(tmp_path)


def test_a_dead_workers_part_is_not_lost(tmp_path: Path) -> None:
    """Whoever takes its place goes on from what it left, or from its share if it left nothing."""
    state = begun(tmp_path)
    work(state, answers=20)
    state.end()
    state = begun(tmp_path, 2)
    work(state, 0, answers=20)  # dies
    work(state, 0, answers=20)  # takes its place
    assert known(state.share(0)) == pytest.approx(50)
    assert known(state.share(1)) == pytest.approx(10)
    assert known(read(tmp_path)) == pytest.approx(60)


def test_a_relay_that_was_killed_loses_no_part(tmp_path: Path) -> None:
    """If nobody put the parts together, the next start does."""
    state = begun(tmp_path, 2)
    work(state, 0, answers=20)
    work(state, 1, answers=20)
    begun(tmp_path, 3)
    assert only_file(tmp_path)
    assert known(read(tmp_path)) == pytest.approx(40)


def test_parts_that_were_counted_are_not_counted_again(tmp_path: Path) -> None:
    """A relay that dies between writing the sum and removing the parts has them in the folder, and not in the sum."""
    state = begun(tmp_path)
    work(state, answers=20)
    (part,) = tmp_path.glob("learned.*")
    kept = part.read_bytes()
    begun(tmp_path)
    part.write_bytes(kept)
    begun(tmp_path)
    assert known(read(tmp_path)) == pytest.approx(20)
    assert only_file(tmp_path)


def test_the_later_of_two_relays_has_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on from what the first one left, as in a rolling update; that one says once that it keeps no more."""
    old = begun(tmp_path)
    work(old, answers=20)
    new = begun(tmp_path)
    work(old, answers=20)
    work(old, answers=20)
    old.end()
    work(new, answers=20)
    assert known(read(tmp_path)) == pytest.approx(40)
    assert [line.event for line in caplog.records if line.levelname == "WARNING"] == ["state_lost"]  # type: ignore[attr-defined]


def test_a_folder_that_was_emptied_stays_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who removes the files wants it all forgotten; the relay that runs says that it keeps nothing more."""
    state = begun(tmp_path)
    (tmp_path / "learned").unlink()
    work(state, answers=20)
    state.end()
    assert list(tmp_path.iterdir()) == []
    assert "is not kept any more" in caplog.text


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda data: data[:-10],
    "a bit": lambda data: data[:-10] + bytes([data[-10] ^ 1]) + data[-9:],
    "foreign": lambda _: b"\x89PNG\r\n" + bytes(300),
    "no head": lambda data: data.replace(b"\n", b" ", 1),
    "no workers": lambda data: data.replace(b" 1 ", b" 1 ", 1).replace(b" 1 " + data.split(b" ")[4], b" 1 0", 1),
    "newer": lambda data: data.replace(b" %d " % FORMAT, b" %d " % (FORMAT + 1), 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_cannot_be_used_is_put_aside(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged, foreign or of another version: the relay starts without it, keeps it, and says which it is and why."""
    state = begun(tmp_path)
    work(state, answers=20)
    state.end()
    base = tmp_path / "learned"
    damaged = damage(base.read_bytes())
    base.write_bytes(damaged)
    with pytest.raises(ConfigurationError, match="learned cannot be used: it"):
        read(tmp_path)
    state = begun(tmp_path)
    assert (tmp_path / "aside" / "learned").read_bytes() == damaged
    (line,) = [line for line in caplog.records if line.levelname == "WARNING"]
    assert str(base) in line.getMessage()
    assert str(tmp_path / "aside") in line.getMessage()
    work(state, answers=20)
    assert known(read(tmp_path)) == pytest.approx(20)


def test_what_was_put_aside_can_come_back(tmp_path: Path) -> None:
    """After an excursion to a version that could not read it, all that a killed relay had left is there again."""
    state = begun(tmp_path, 2)
    for slot in range(2):
        work(state, slot, answers=20)
    base = tmp_path / "learned"
    base.write_bytes(DAMAGE["newer"](base.read_bytes()))
    begun(tmp_path).end()
    assert known(read(tmp_path)) == 0
    for file in (tmp_path / "aside").iterdir():
        file.replace(tmp_path / file.name)
    base.write_bytes(base.read_bytes().replace(b" %d " % (FORMAT + 1), b" %d " % FORMAT, 1))
    assert known(read(tmp_path)) == pytest.approx(40)


def test_a_damaged_part_costs_only_what_that_worker_learned(tmp_path: Path) -> None:
    """Its share of the beginning stands for it, at the next start and for whoever takes its place."""
    state = begun(tmp_path)
    work(state, answers=20)
    state.end()
    state = begun(tmp_path, 2)
    for slot in range(2):
        work(state, slot, answers=20)
    (part,) = tmp_path.glob("learned.*.1")
    part.write_bytes(b"x")
    assert known(state.share(1)) == pytest.approx(10)
    state.end()
    assert known(read(tmp_path)) == pytest.approx(40)
    assert (tmp_path / "aside" / part.name).read_bytes() == b"x"


def test_a_folder_that_cannot_be_had_stops_the_start(tmp_path: Path) -> None:
    """Who asks for state to be kept is told if it cannot be, with the path and what to do."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"file/state: Not a directory\. Name a folder .* RELAY_STATE"):
        begun(tmp_path / "file" / "state")


def test_a_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written later on is said until it goes well again, and nothing else happens."""
    state = begun(tmp_path)
    tmp_path.joinpath("learned").rename(tmp_path / "elsewhere")
    tmp_path.joinpath("learned").mkdir()  # reading it fails as a broken disk does
    work(state)
    work(state)
    tmp_path.joinpath("learned").rmdir()
    tmp_path.joinpath("elsewhere").rename(tmp_path / "learned")
    work(state, answers=20)
    assert [line.event for line in caplog.records if line.levelname == "WARNING"] == ["state_failed"]  # type: ignore[attr-defined]
    assert known(read(tmp_path)) == pytest.approx(20)


def test_nothing_kept_is_said(tmp_path: Path) -> None:
    """A folder that no relay ever used is more likely a slip than an answer."""
    with pytest.raises(ConfigurationError, match="Nothing is kept in"):
        read(tmp_path)


def test_the_form_stands_for_how_is_counted() -> None:
    """Who changes one of these has to raise FORMAT: sketches that count otherwise cannot be read or merged."""
    constants = (lengths.RELATIVE_ERROR, lengths.HALF_LIFE_S, speed.SKETCH_HALF_LIFE_S, Sketch().relative_error)
    assert (FORMAT, *constants) == (1, 0.05, 3 * 86_400.0, 120.0, 0.02)
