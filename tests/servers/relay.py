"""The relay in this process, behind a real uvicorn server on a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from relay.app import create_app
from relay.clock import LoopClock
from relay.messages import RequestRecord
from relay.pipeline import Pipeline
from relay.policy.load import load
from relay.runtimes.fast_lane import FastLane
from relay.stores.memory import MemoryStore
from relay.telemetry.metrics import Metrics
from relay.transports.sockets import SocketsTransport
from tests.servers.policies import ENVIRON
from tests.servers.waiting import PATIENCE_S, Arrivals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    from relay.clock import Clock


FRONTS = ("asgi", "fast")
"""How requests come in: through the ASGI application, or below it as in the container."""


class Recorder(Arrivals[RequestRecord]):
    """Keeps the records of requests that are over, also by their id."""

    def __init__(self) -> None:
        super().__init__()
        self.by_id: dict[bytes, RequestRecord] = {}

    def record(self, record: RequestRecord) -> None:
        """Take note."""
        self.by_id[record.id.encode()] = record
        self.add(record)


@dataclass(eq=False)
class Running:
    """A relay that serves.

    Attributes:
        port: on 127.0.0.1.
        pipeline: the one it runs.
        records: one per request that is over, in order.
    """

    port: int
    pipeline: Pipeline
    records: Recorder

    @property
    def base_url(self) -> str:
        """What an OpenAI SDK is given."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def record(self, request_id: bytes) -> RequestRecord:
        """The record of the request whose answer bore that `x-request-id`."""
        while request_id not in self.records.by_id:
            await self.records.at(len(self.records))
        return self.records.by_id[request_id]

    async def only_record(self) -> RequestRecord:
        """The record of the only request there was; a second one fails the test."""
        record = await self.records.at(0)
        assert len(self.records) == 1
        return record


@contextlib.asynccontextmanager
async def serve(
    policy: str, *, front: str = "fast", clock: Clock | None = None, environ: Mapping[str, str] = ENVIRON
) -> AsyncIterator[Running]:
    """Run a relay while the block runs; an error that only a log or the event loop would tell of fails the test.

    Args:
        policy: text of its policy file.
        front: one of FRONTS.
        clock: real time if None.
        environ: what the policy's references name.
    """
    clock = clock or LoopClock()
    records, metrics = Recorder(), Metrics()
    pipeline = Pipeline(
        load({"test.toml": policy}, environ),
        transport=SocketsTransport(clock=clock),
        store=MemoryStore(),
        observers=[records, metrics],
        clock=clock,
        rng=random.Random(0),
    )
    app = create_app(pipeline, metrics=metrics, admin_key=None)
    protocol: type[HttpToolsProtocol] | str = FastLane.for_pipeline(pipeline) if front == "fast" else "httptools"
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with nothing_hidden(), socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        await server.startup(sockets=[listener])
        try:
            yield Running(listener.getsockname()[1], pipeline, records)
        finally:
            await _stop(server)
            await pipeline.close()


async def _stop(server: uvicorn.Server) -> None:
    """Like uvicorn's own shutdown, but cuts connections instead of waiting for them."""
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*server.server_state.tasks)
        await server.lifespan.shutdown()


@contextlib.contextmanager
def nothing_hidden() -> Iterator[None]:
    """Fail if meanwhile an error was logged, or an exception ended in the event loop's handler."""
    hidden: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: hidden.append(record.getMessage())  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: hidden.append(repr(context)))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(None)
    assert not hidden
