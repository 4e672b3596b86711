"""Bytes of the OpenAI chat dialect and of HTTP/1.1, for scripts and for expectations."""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


def event(value: Any) -> bytes:
    """A value as one event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """A stream event with one choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def usage(prompt: int, completion: int) -> bytes:
    """The event that only counts."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": counts}
    )


ROLE = chunk({"role": "assistant", "content": ""})
HELLO = chunk({"content": "hello"})
WORLD = chunk({"content": " world"})
STOP = chunk({}, "stop")
USAGE = usage(7, 2)


def completion(text: str = "hello world") -> bytes:
    """A whole non-stream answer."""
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        },
    ).encode()


def error(message: str, type_: str = "server_error", code: str | None = None) -> bytes:
    """An error answer's body."""
    return json.dumps({"error": {"message": message, "type": type_, "param": None, "code": code}}).encode()


def head(status: int = 200, *headers: tuple[str, str], media: str = "text/event-stream") -> bytes:
    """A response head."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in (("content-type", media), *headers))
    return f"HTTP/1.1 {status} Status\r\n{fields}\r\n".encode()


def stream_head() -> bytes:
    """The head of a chunked stream."""
    return head(200, ("transfer-encoding", "chunked"))


def framed(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes, status: int = 200, *headers: tuple[str, str]) -> bytes:
    """A complete JSON answer with its length."""
    return head(status, ("content-length", str(len(body))), *headers, media="application/json") + body


def request_body(model: str = "auto", **fields: Any) -> bytes:
    """A chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
