"""What the workers of one relay leave for each other: metrics, and the policy that last held.

One file per place (`slot`) of a worker, so that whoever takes a dead one's place carries its counts on and the
folder never grows. Files are replaced whole: a reader sees the old or the new one.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from relay.telemetry import metrics

if TYPE_CHECKING:
    from pathlib import Path

    from relay.telemetry.metrics import Snapshot

_policy_decoder = msgspec.msgpack.Decoder(dict[str, str])


class RunFolder:
    """The folder.

    Args:
        path: it exists, and is this relay's alone.
        workers: how many slots there are.
    """

    def __init__(self, path: Path, workers: int) -> None:
        self._path = path
        self._workers = workers

    def write_snapshot(self, slot: int, snapshot: Snapshot) -> None:
        """Leave this worker's metrics."""
        self._replace(self._snapshot_path(slot), metrics.encode(snapshot))

    def snapshot(self, slot: int) -> Snapshot:
        """The metrics a worker left; empty if there was none."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return metrics.decode(self._snapshot_path(slot).read_bytes())
        return {}

    def siblings(self, slot: int) -> list[Snapshot]:
        """The metrics of all other workers."""
        return [self.snapshot(other) for other in range(self._workers) if other != slot]

    def bury(self, slot: int) -> None:
        """A worker has died: what it counted stays, what it was doing is over."""
        self.write_snapshot(slot, metrics.counts_only(self.snapshot(slot)))

    def keep_policy(self, files: dict[str, str]) -> None:
        """Remember a policy set that holds: path -> text, without the secrets it refers to."""
        self._replace(self._policy_path, msgspec.msgpack.encode(files))

    def kept_policy(self) -> dict[str, str]:
        """The set that was remembered last.

        Raises:
            OSError: none was.
        """
        return _policy_decoder.decode(self._policy_path.read_bytes())

    @property
    def _policy_path(self) -> Path:
        return self._path / "policy.msgpack"

    def _snapshot_path(self, slot: int) -> Path:
        return self._path / f"metrics-{slot}.msgpack"

    def _replace(self, path: Path, data: bytes) -> None:
        """Several workers may do this at once, each through a file of its own."""
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(path)
