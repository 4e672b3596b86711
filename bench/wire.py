"""As much of HTTP/1.1 as the benches' own upstreams need."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """The next request of a connection: its target, and its body as a value.

    Raises:
        asyncio.IncompleteReadError: the other end has closed it.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return head.split(b" ", 2)[1].decode(), json.loads(await reader.readexactly(size))
