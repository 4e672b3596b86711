from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.runtimes.run_folder import RunFolder
from relay.telemetry.metrics import Metrics
from tests.telemetry.records import SERVED

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder for three workers."""
    return RunFolder(tmp_path, 3)


def counted() -> Metrics:
    """Metrics of a worker that served one request and is busy with two."""
    metrics = Metrics()
    metrics.gauge("relay_active_requests", "Active.", (), lambda: [((), 2)])
    metrics.record(SERVED)
    return metrics


def test_workers_see_each_others_snapshots(folder: RunFolder) -> None:
    """A worker reads what the others have left, not its own; who has left nothing counts for nothing."""
    snapshot = counted().snapshot()
    folder.write_snapshot(0, snapshot)
    assert folder.siblings(0) == [{}, {}]
    assert folder.siblings(1) == [snapshot, {}]


def test_the_dead_keep_their_counts(folder: RunFolder) -> None:
    """Burying a worker drops what it was doing and keeps what it did, once."""
    folder.write_snapshot(0, counted().snapshot())
    folder.bury(0)
    folder.bury(0)
    buried = folder.snapshot(0)
    assert "relay_active_requests" not in buried
    assert list(buried["relay_requests_total"].rows.values()) == [[1]]


def test_who_died_before_leaving_anything_can_be_buried(folder: RunFolder) -> None:
    """There is nothing to keep."""
    folder.bury(2)
    assert folder.snapshot(2) == {}


def test_a_damaged_snapshot_counts_for_nothing(folder: RunFolder, tmp_path: Path) -> None:
    """A scrape succeeds whatever lies in the folder."""
    (tmp_path / "metrics-1.msgpack").write_bytes(b"\xc1")
    assert folder.siblings(0) == [{}, {}]


def test_files_are_replaced_and_never_pile_up(folder: RunFolder, tmp_path: Path) -> None:
    """However often they are written, there is one file for each worker and one for the policy."""
    for _ in range(5):
        for slot in range(3):
            folder.write_snapshot(slot, counted().snapshot())
        folder.keep_policy({"a.toml": "version = 1"})
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics-0.msgpack",
        "metrics-1.msgpack",
        "metrics-2.msgpack",
        "policy.msgpack",
    }
    assert folder.kept_policy() == {"a.toml": "version = 1"}
