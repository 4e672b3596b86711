"""Chat streams recorded at real providers, and what can be said of each without the relay's help."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
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

    def events(self) -> list[bytes]:
        """Its events, each with its blank line."""
        ends = [match.end() for match in _BLANK_LINE.finditer(self.body)]
        assert ends[-1] == len(self.body)
        return [self.body[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def choices(self) -> int:
        """How many answers were asked for."""
        return max((c["index"] + 1 for v in self._values() for c in v.get("choices") or ()), default=1)

    def outcome(self) -> str:
        """How a request that gets this stream ends."""
        if any(value.get("error") for value in self._values()):
            return "upstream_error"
        return "length" if self.finish_reason() == "length" else "completed"

    def finish_reason(self) -> str | None:
        """The first one given."""
        reasons = [c.get("finish_reason") for v in self._values() for c in v.get("choices") or ()]
        return next((reason for reason in reasons if reason), None)

    def usage(self) -> Usage | None:
        """The last one sent."""
        sent = [value["usage"] for value in self._values() if value.get("usage")]
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
        for event in self.events():
            value = _value(event)
            if not (hide_usage and value.get("usage") and not value.get("choices")):
                sent.append(event)
            if value.get("error"):
                return b"".join(sent)
        done = b"" if self._is_done() else b"data: [DONE]\n\n"
        return b"".join(sent) + done

    def _is_done(self) -> bool:
        return any(_data(event) == b"[DONE]" for event in self.events())

    def _values(self) -> list[dict[str, Any]]:
        return [_value(event) for event in self.events()]


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
