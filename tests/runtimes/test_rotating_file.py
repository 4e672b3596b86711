from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest

from relay.errors import ConfigurationError
from relay.runtimes.rotating_file import RotatingFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def found(path: Path) -> dict[str, bytes]:
    """What there is, by name."""
    return {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())}


def test_full_files_make_room(path: Path) -> None:
    """No file is larger than allowed, the latest have the lowest numbers, and the oldest are gone."""
    file = RotatingFile(path, max_bytes=8, kept=2)
    for number in range(8):
        file.write(b"%03d\n" % number)
    assert found(path) == {
        "log.jsonl": b"006\n007\n",
        "log.jsonl.1": b"004\n005\n",
        "log.jsonl.2": b"002\n003\n",
    }


def test_one_write_is_never_divided(path: Path) -> None:
    """Lines that are more than a file may have go to one of their own."""
    file = RotatingFile(path, max_bytes=4, kept=1)
    file.write(b"a\n")
    file.write(b"0123456789\n")
    file.write(b"b\n")
    assert found(path) == {"log.jsonl": b"b\n", "log.jsonl.1": b"0123456789\n"}


def test_a_restart_goes_on(path: Path) -> None:
    """What is there counts, and stays."""
    path.write_bytes(b"000\n")
    file = RotatingFile(path, max_bytes=8, kept=1)
    file.write(b"001\n")
    file.write(b"002\n")
    assert found(path) == {"log.jsonl": b"002\n", "log.jsonl.1": b"000\n001\n"}


def test_only_the_owner_reads_it(path: Path) -> None:
    """Who asked for how much is nobody else's business on a shared machine."""
    RotatingFile(path, max_bytes=8, kept=1)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_taken_away_is_begun_anew(path: Path) -> None:
    """Somebody's tidying up costs the lines until the next file, not all that follow."""
    file = RotatingFile(path, max_bytes=4, kept=1)
    file.write(b"000\n")
    path.unlink()
    file.write(b"001\n")
    assert found(path) == {"log.jsonl": b"001\n"}


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The relay does not start and then keep silent about it."""
    with pytest.raises(ConfigurationError, match=r"absent.log\.jsonl cannot be opened: No such file"):
        RotatingFile(tmp_path / "absent" / "log.jsonl", max_bytes=8, kept=1)


def test_a_full_disk_is_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are served all the same; a line that was cut short does not spoil the next one."""
    room = [3, 0, 100]
    write = os.write

    def limited(file: int, data: bytes) -> int:
        left = room.pop(0)
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:left])

    file = RotatingFile(path, max_bytes=1000, kept=1)
    monkeypatch.setattr(os, "write", limited)
    with caplog.at_level(logging.WARNING, "relay"):
        for number in range(3):
            file.write(b"%05d\n" % number)
    assert found(path) == {"log.jsonl": b"000\n00002\n"}
    assert [record.message for record in caplog.records] == ["decisions are not logged: there is no room"]
