"""Every recorded chat stream, replayed by a real server in every way a network may cut it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.servers import chat
from tests.servers.client import ask, post
from tests.servers.policies import policy
from tests.servers.recordings import Recording, chat_streams
from tests.servers.relay import FRONTS, Running, serve
from tests.servers.upstream import Received, Step, Upstream, close, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from tests.servers.client import Answer

RECORDINGS = chat_streams()

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not RECORDINGS, reason="no ../shared/data here: recorded streams are read in place"),
]

MAX_CUTS = 100
"""Cuts of one kind in one replay; where there are more places, some are drawn."""

NO_BREAKER = {"breaker": {"failures": 1000}}
"""One recording that fails must not fail those behind it."""

SINGLE_BYTES = 300
"""A longer stream comes byte by byte at its start, in a drawn middle and at its end, this many bytes each."""


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    """The body in pieces that begin at `places`."""
    bounds = [0, *sorted(set(places) - {0, len(body)}), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(bounds)]


def some(places: list[int], rng: random.Random) -> list[int]:
    """All of them, or as many as one replay may have."""
    return places if len(places) <= MAX_CUTS else rng.sample(places, MAX_CUTS)


def whole(body: bytes, _rng: random.Random) -> list[bytes]:
    """One piece."""
    return [body]


def single_bytes(body: bytes, rng: random.Random) -> list[bytes]:
    """Byte by byte."""
    starts = (0, rng.randrange(len(body)), len(body) - SINGLE_BYTES)
    return cut(body, (at for start in starts for at in range(max(0, start), min(start + SINGLE_BYTES, len(body)))))


def anywhere(body: bytes, rng: random.Random) -> list[bytes]:
    """At random."""
    return cut(body, (rng.randrange(len(body)) for _ in range(rng.randint(1, MAX_CUTS))))


def inside_characters(body: bytes, rng: random.Random) -> list[bytes]:
    """Before each continuation byte of UTF-8."""
    return cut(body, some([at for at, byte in enumerate(body) if byte & 0xC0 == 0x80], rng))


def inside_line_ends(body: bytes, rng: random.Random) -> list[bytes]:
    """Between CR and LF, and between the line ends that make a blank line."""
    return cut(body, some([match.start() + 1 for match in re.finditer(rb"\r(?=\n)|[\r\n](?=\r|\n)", body)], rng))


CUTS = (whole, single_bytes, anywhere, inside_characters, inside_line_ends)


def as_recorded(body: bytes, _rng: random.Random) -> bytes:
    """Line ends as the provider sent them: LF, in all recordings of this dialect."""
    return body


def with_crlf(body: bytes, _rng: random.Random) -> bytes:
    """All line ends as CRLF. JSON text holds no bare line ends, so nothing else changes."""
    return body.replace(b"\n", b"\r\n")


def with_mixed_line_ends(body: bytes, rng: random.Random) -> bytes:
    """Each event with line ends of its own kind, as when a proxy adds its pings to a provider's stream."""
    events = body.split(b"\n\n")
    kinds = [rng.choice((b"\n", b"\r\n", b"\r")) for _ in events]
    return (
        b"".join(event.replace(b"\n", kind) + kind * 2 for event, kind in zip(events[:-1], kinds, strict=False))
        + events[-1]
    )


LINE_ENDS = (as_recorded, with_crlf, with_mixed_line_ends)


def chunked(pieces: list[bytes]) -> list[Step]:
    """Each piece in a chunk of its own."""
    return [send(chat.stream_head(), *map(chat.framed, pieces), chat.LAST_CHUNK)]


def with_length(pieces: list[bytes]) -> list[Step]:
    """Under a content-length."""
    return [send(chat.head(200, ("content-length", str(sum(map(len, pieces))))), *pieces)]


def until_close(pieces: list[bytes]) -> list[Step]:
    """Ended by the connection's end."""
    return [send(chat.head(200, ("connection", "close")), *pieces), close]


FRAMINGS = (chunked, with_length, until_close)


@dataclass(frozen=True)
class Replay:
    """One way to replay a recording."""

    name: str
    recording: Recording
    pieces: list[bytes]
    framing: Callable[[list[bytes]], list[Step]]
    asks_usage: bool
    front: str

    def request(self) -> bytes:
        """What the client sends; `user` tells the upstream which replay is asked for."""
        fields: dict[str, Any] = {"stream": True, "n": self.recording.choices(), "user": self.name}
        if self.asks_usage:
            fields["stream_options"] = {"include_usage": True}
        return post(chat.request_body(**fields))


def replays(recording: Recording) -> list[Replay]:
    """Every kind of cut with every kind of line end; clients, framings and fronts take turns."""
    asks_usage = itertools.cycle((True, False))
    framings = itertools.cycle(FRAMINGS)
    fronts = itertools.cycle(("fast", "fast", "asgi", "asgi"))
    made = []
    for line_ends in LINE_ENDS:
        rng = random.Random(f"{recording.name} {line_ends.__name__}")
        changed = Recording(recording.name, line_ends(recording.body, rng))
        for cuts in CUTS:
            name = f"{line_ends.__name__}-{cuts.__name__}"
            pieces = cuts(changed.body, rng)
            made.append(Replay(name, changed, pieces, next(framings), next(asks_usage), next(fronts)))
    return made


class Stage:
    """One upstream, and a relay with each front, on which all recordings are played."""

    def __init__(self) -> None:
        self.playing: dict[str, Replay] = {}
        self.upstream = Upstream(self._answer)
        self.relays: dict[str, Running] = {}

    def _answer(self, request: Received) -> Iterable[Step]:
        body = json.loads(request.body)
        assert body["stream_options"] == {"include_usage": True}
        replay = self.playing[body["user"]]
        return replay.framing(replay.pieces)

    async def play(self, replay: Replay) -> Answer:
        """Replay once, through the relay."""
        return await ask(self.relays[replay.front].port, replay.request())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    """The stage."""
    stage = Stage()
    async with stage.upstream, contextlib.AsyncExitStack() as relays:
        text = policy(stage.upstream.base_url, provider=NO_BREAKER)
        for front in FRONTS:
            stage.relays[front] = await relays.enter_async_context(serve(text, front=front))
        yield stage


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
async def test_recorded_stream_reaches_the_client_as_it_was_sent(recording: Recording, stage: Stage) -> None:
    """However it is cut: the client's bytes are the upstream's, and outcome, reason and usage are right."""
    made = replays(recording)
    stage.playing = {replay.name: replay for replay in made}
    answers = await asyncio.gather(*map(stage.play, made))
    for replay, answer in zip(made, answers, strict=True):
        record = await stage.relays[replay.front].record(answer.header(b"x-request-id") or b"")
        assert (record.outcome, len(record.attempts)) == (recording.outcome(), 1), replay.name
        assert (answer.status, answer.complete) == (expected_status(replay), True), replay.name
        if answer.status == 200:
            assert bytes(answer.body) == replay.recording.for_client(hide_usage=not replay.asks_usage), replay.name
            assert record.finish_reason == recording.finish_reason(), replay.name
            assert record.usage is not None
            assert record.usage.estimated or record.usage == recording.usage(), replay.name
            assert record.usage.estimated == (recording.usage() is None), replay.name


def expected_status(replay: Replay) -> int:
    """An error that came in the same read as all output is told plainly: nothing had been sent yet."""
    return 502 if replay.recording.outcome() == "upstream_error" and len(replay.pieces) == 1 else 200
