"""Chat streams recorded at real providers, and what can be said of each without the relay's help."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from relay.messages import Usage

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Recording:
    """One recorded stream.

    Attributes:
        name: of its file.
        body: as the provider sent it.
    """

    name: str
    body: bytes

    @cached_property
    def events(self) -> list[tuple[bytes, dict[str, Any]]]:
        """Its events, each with its blank line, and what their data says; nothing for comments and `[DONE]`."""
        ends = [match.end() for match in _BLANK_LINE.finditer(self.body)]
        assert ends[-1] == len(self.body)
        return [(event, _value(event)) for event in map(self.body.__getitem__, map(slice, [0, *ends], ends))]

    @property
    def values(self) -> list[dict[str, Any]]:
        """What its events say."""
        return [value for _, value in self.events]

    def choices(self) -> int:
        """How many answers were asked for."""
        return max((choice["index"] + 1 for value in self.values for choice in value.get("choices") or ()), default=1)

    def outcome(self) -> str:
        """How a request that gets this stream ends."""
        if any(value.get("error") for value in self.values):
            return "upstream_error"
        return "length" if self.finish_reason() == "length" else "completed"

    def finish_reason(self) -> str | None:
        """The first one given."""
        reasons = (choice.get("finish_reason") for value in self.values for choice in value.get("choices") or ())
        return next((reason for reason in reasons if reason), None)

    def usage(self) -> Usage | None:
        """The last one sent."""
        sent = [value["usage"] for value in self.values if value.get("usage")]
        if not sent:
            return None
        counts = sent[-1]
        cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens")
        return Usage(
            counts["prompt_tokens"],
            counts["completion_tokens"],
            (counts.get("prompt_cache_hit_tokens") if cached is None else cached) or 0,
            (counts.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        )

    def for_client(self, *, hide_usage: bool) -> bytes:
        """What a client must get: everything up to an error, the usage event only if it asked, and one `[DONE]`."""
        sent = []
        for event, value in self.events:
            if not (hide_usage and value.get("usage") and not value.get("choices")):
                sent.append(event)
            if value.get("error"):
                return b"".join(sent)
        if _data(self.events[-1][0]) != b"[DONE]":
            sent.append(b"data: [DONE]\n\n")
        return b"".join(sent)


def _data(event: bytes) -> bytes:
    lines = (line.partition(b":") for line in _LINE_END.split(event))
    return b"\n".join(value.removeprefix(b" ") for name, _, value in lines if name == b"data")


def _value(event: bytes) -> dict[str, Any]:
    data = _data(event)
    if data in {b"", b"[DONE]"}:
        return {}
    value: dict[str, Any] = json.loads(data)
    return value


def chat_streams() -> list[Recording]:
    """Every recorded stream of the OpenAI chat dialect; none if the shared data is not there."""
    if not DATA.is_dir():
        return []
    index = json.loads((DATA / "streams" / "index.json").read_bytes())
    provided = [
        Recording(row["file"], (DATA / "streams" / row["file"]).read_bytes())
        for row in index
        if row["api"] in {"chat-completions", "chat"} and row["wire"] in {"sse", "sse-from-chunks"}
    ]
    served = [
        Recording(f"llamacpp/{path.name}", path.read_bytes().partition(b"\n\n")[2])
        for path in sorted((DATA / "llamacpp").glob("chat-*.txt"))
    ]
    return provided + served
