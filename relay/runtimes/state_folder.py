"""What a relay has learned, in a folder that outlives it.

`learned` is what was known when the relay now running began; each of its workers went on from an equal share of that,
and from time to time leaves what has become of its share in a part of its own, `learned.RUN.SLOT`. So what is known is
the sum of the parts, the share standing for a worker that has left none. The next run begins by writing that sum to
`learned`, under its own name: with this one rename the parts are those of another run and count no more. Whenever
a process dies, everything is there once.

Should two relays be given one folder, the one that came later has it. So the new one of a rolling update goes on from
what the old one left, and the old one, seeing a run that is not its own, leaves nothing more.

Each file begins with a line of text: what it is, the version of its form, the run, among how many workers it was
divided, and a digest of the MessagePack that follows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from relay.errors import ConfigurationError
from relay.learned import NOTHING, Learned, living, merge, portion

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from pathlib import Path

FORMAT = 1
"""Version of the files' form. It also stands for the constants by which sketches count: a change of these makes old
files mean something else."""

_KIND = b"relay-learned"
_HEAD_BYTES = 256

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Learned)
_log = logging.getLogger("relay.state")


class Unreadable(Exception):
    """A file that is not what it should be; the message says why."""


@dataclass(frozen=True)
class _Head:
    run: str
    workers: int
    digest: bytes


class StateFolder:
    """The folder, as one relay uses it.

    Args:
        path: of the folder; it is made if need be, to be read by its owner only.
        workers: how many there are, each with a slot from 0.
    """

    def __init__(self, path: Path, workers: int) -> None:
        self._path = path
        self._workers = workers
        self._run = secrets.token_hex(8)
        self._base = path / "learned"
        self._writing = threading.Lock()  # a worker's last writing may come while a thread is at the one before
        self._lost = False
        self._failing = False

    def begin(self, models: Container[str], now: float) -> None:
        """Take over what earlier runs have left. What cannot be read is put aside, and said.

        Args:
            models: those of the policy: the speed of others is forgotten in time.
            now: seconds since the Unix epoch.

        Raises:
            ConfigurationError: the folder cannot be had.
        """
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            learned = living(_read(self._path, self._set_aside), now, models)
            self._write_base(learned)
        except OSError as error:
            raise ConfigurationError(
                f"What is learned cannot be kept in {self._path}: {error.strerror}. Name a folder that can be written "
                "in RELAY_STATE, or leave it unset."
            ) from None
        fields = {
            "folder": str(self._path),
            "models": sum(map(len, learned.speeds.values())),
            "cells": len(learned.experience.answers),
        }
        _log.info("going on with what is kept in %s", self._path, extra={"event": "state_read", "fields": fields})

    def share(self, slot: int) -> Learned:
        """What the worker in that slot goes on with: what one before it has left, or its share of the beginning."""
        with contextlib.suppress(OSError, Unreadable):
            return _load(self._part(slot))[1]
        with contextlib.suppress(OSError, Unreadable):
            return portion(_load(self._base)[1], 1.0 / self._workers)
        return NOTHING

    def leave(self, slot: int, learned: Learned) -> None:
        """Keep what a worker knows. What cannot be written is said once, until it goes well again."""
        try:
            with self._writing:
                if self._ours():
                    _replace(self._part(slot), self._encoded(learned))
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                told = "what is learned cannot be kept in %s: %s"
                _log.warning(told, self._path, error.strerror, extra={"event": "state_failed"})

    def end(self) -> None:
        """Put the workers' parts together, when none of them runs any more."""
        try:
            if self._ours():
                learned = _read(self._path, self._set_aside)
                self._run = secrets.token_hex(8)
                self._write_base(learned)
        except OSError as error:  # the parts are still there
            told = "what was learned is left in parts in %s: %s"
            _log.warning(told, self._path, error.strerror, extra={"event": "state_failed"})

    def _write_base(self, learned: Learned) -> None:
        _replace(self._base, self._encoded(learned))
        for part in self._parts():
            with contextlib.suppress(OSError):
                part.unlink()

    def _parts(self) -> Iterable[Path]:
        """Those of all runs, files that were not finished included."""
        return self._path.glob("learned.*.*")

    def _encoded(self, learned: Learned) -> bytes:
        body = _encoder.encode(learned)
        return b"%b %d %b %d %b\n%b" % (_KIND, FORMAT, self._run.encode(), self._workers, _digest(body), body)

    def _ours(self) -> bool:
        """No other relay has begun to use the folder since, and nobody has emptied it."""
        if not self._lost:
            try:
                with self._base.open("rb") as file:
                    self._lost = _head(file.read(_HEAD_BYTES)).run != self._run
            except (FileNotFoundError, Unreadable):
                self._lost = True
            if self._lost:
                told = "%s was emptied or is another relay's now: what this one learns is not kept any more"
                _log.warning(told, self._path, extra={"event": "state_lost"})
        return not self._lost

    def _part(self, slot: int) -> Path:
        return _part(self._base, self._run, slot)

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = self._path / "aside"
        aside.mkdir(mode=0o700, exist_ok=True)
        # Parts say nothing without what they are parts of, and go with it, so that they can come back with it.
        for file in (path, *self._parts()) if path == self._base else (path,):
            file.replace(aside / file.name)
        told = "%s cannot be used (%s): put aside in %s, and begun without it"
        _log.warning(told, path, reason, aside, extra={"event": "state_unreadable"})


def read(folder: Path) -> Learned:
    """What is kept in a folder now, whether a relay uses it or not. Nothing is changed.

    Raises:
        ConfigurationError: it cannot be read, or a file in it is damaged, of a newer version or something else.
    """

    def refuse(path: Path, reason: str) -> None:
        raise ConfigurationError(f"{path} cannot be used: {reason}.")

    try:
        if not (folder / "learned").exists():
            raise ConfigurationError(f"Nothing is kept in {folder}: no relay was given it as RELAY_STATE.")
        return _read(folder, refuse)
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}.") from None


def _read(folder: Path, unusable: Callable[[Path, str], None]) -> Learned:
    base = folder / "learned"
    try:
        head, learned = _load(base)
    except FileNotFoundError:
        return NOTHING
    except Unreadable as error:
        unusable(base, str(error))
        return NOTHING
    begun = portion(learned, 1.0 / head.workers)
    parts = []
    for slot in range(head.workers):
        part = _part(base, head.run, slot)
        try:
            parts.append(_load(part)[1])
        except FileNotFoundError:
            parts.append(begun)
        except Unreadable as error:
            unusable(part, str(error))
            parts.append(begun)
    return reduce(merge, parts)


def _part(base: Path, run: str, slot: int) -> Path:
    return base.with_name(f"{base.name}.{run}.{slot}")


def _load(path: Path) -> tuple[_Head, Learned]:
    data = path.read_bytes()
    head = _head(data)
    body = data[data.index(b"\n") + 1 :]
    if _digest(body) != head.digest:
        raise Unreadable("it is damaged: its content does not match its digest")
    try:
        return head, _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise Unreadable(f"it is not as this version writes it: {error}") from None


def _head(data: bytes) -> _Head:
    line, end, _ = data[:_HEAD_BYTES].partition(b"\n")
    match line.split(b" "):
        case [kind, version, run, workers, digest] if kind == _KIND and end and version.isdigit():
            if int(version) != FORMAT:
                raise Unreadable(f"it was written by another version of Relay: form {int(version)}, known is {FORMAT}")
            if workers.isdigit() and int(workers) and run.isalnum():
                return _Head(run.decode(), int(workers), digest)
    raise Unreadable("it is damaged, or was not written by Relay")


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).hexdigest().encode()


def _replace(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, also after the power has failed."""
    fresh = path.with_name(f"{path.name}.fresh")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network file systems do not know that of folders
        os.fsync(folder)
    os.close(folder)
