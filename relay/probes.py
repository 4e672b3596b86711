"""Asks providers now and then whether they live, so that no user's request has to find out.

A probe is a GET with the provider's own credentials, and nothing of any client. It tells of the provider, not of its
models, so it does not decide alone:

- **2xx**: it lives. An open breaker of its models need not wait longer: one request may try. That request closes it.
- **5xx, no connection, no answer in time**: it is dead. As many such probes in a row as requests would have to fail
  open the breakers of its models, and none lets a request through until a probe was answered. A closed breaker of a
  model that requests were sent to lately stays closed: they tell more.
- **Any other status** (a path that it does not have, a key that may not list models): it lives, but the probe is of no
  use. That is said once, and changes nothing.

While all is well a provider that requests were sent to lately is not asked; while it is not, it is asked as often as
its breaker would let a request try.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from relay.messages import UpstreamRequest
from relay.served import probe_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.clock import Clock, Timer
    from relay.errors import UpstreamFailure
    from relay.messages import Endpoint, Headers
    from relay.pipeline import Pipeline
    from relay.policy.compiled import Probe, Provider
    from relay.transports.base import Call, Transport
    from relay.upstreams import Upstream

Result = Literal["ok", "failed", "refused"]

LOOK_S = 1.0
"""How often is looked whether a probe is due, seconds."""

JITTER = 0.2
"""Part of the interval by which probes are earlier or later, so that those of many relays do not meet."""

MAX_BODY_BYTES = 1024 * 1024
"""Of an answer, which nobody reads: what is read to its end leaves the connection for the next request."""

_log = logging.getLogger("relay.probes")


class Probes:
    """Those of one pipeline. They follow its policy.

    Args:
        pipeline: whose providers are asked, and whose breakers are told.

    Attributes:
        counts: probes that are over, by provider and result.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.counts: dict[tuple[str, Result], int] = {}
        self._pipeline = pipeline
        self._watches: dict[str, _Watch] = {}
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin, once the event loop runs."""
        self._timer = self._pipeline.clock.call_later(LOOK_S, self._look)

    def stop(self) -> None:
        """Ask nobody any more; what is under way is given up."""
        if self._timer is not None:
            self._timer.cancel()
        for watch in self._watches.values():
            watch.stop()

    def _look(self) -> None:
        pipeline = self._pipeline
        if pipeline.draining:
            self.stop()
            return
        self._timer = pipeline.clock.call_later(LOOK_S, self._look)
        probed = {name: provider for name, provider in pipeline.policy.providers.items() if provider.probe is not None}
        for name in self._watches.keys() - probed.keys():
            self._watches.pop(name).stop()
        for name, provider in probed.items():
            if (watch := self._watches.get(name)) is None:
                watch = self._watches[name] = _Watch(name, pipeline, self._count)
            if provider.probe is not None:
                watch.look(provider, provider.probe)

    def _count(self, provider: str, result: Result) -> None:
        self.counts[provider, result] = self.counts.get((provider, result), 0) + 1


class _Watch:
    """One provider. At most one probe of it is under way."""

    def __init__(self, name: str, pipeline: Pipeline, count: Callable[[str, Result], None]) -> None:
        self._name = name
        self._pipeline = pipeline
        self._count = count
        self._row = 0  # failed probes
        self._useless = ""  # what it last answered that told nothing
        self._probe: _Probe | None = None
        self._last_at: float | None = None
        self._pace = 1.0

    def stop(self) -> None:
        """Give up what is under way."""
        if self._probe is not None:
            self._probe.give_up()

    def look(self, provider: Provider, how: Probe) -> None:
        """Ask, if it is time."""
        now, rng, upstreams = self._pipeline.clock.now(), self._pipeline.rng, self._upstreams()
        troubled = self._row > 0 or any(upstream.state.retry_at is not None for upstream in upstreams)
        every_s = min(how.every_s, provider.breaker.open_s) if troubled else how.every_s
        if self._last_at is None:
            self._last_at = now - every_s * rng.random()  # relays that start together do not ask together
        # A request that was sent since tells as much, as long as all is well.
        told_at = self._last_at if troubled else max([self._last_at, *(upstream.asked_at for upstream in upstreams)])
        if now < told_at + every_s * self._pace or (self._probe is not None and not self._probe.over):
            return
        self._last_at, self._pace = now, rng.uniform(1.0 - JITTER, 1.0 + JITTER)
        shut_s = max(provider.breaker.open_s, 2.0 * every_s + how.timeout_s)  # by then the next one has told
        self._probe = _Probe(lambda result, why: self._judge(provider, how, result, why, shut_s))
        endpoint = probe_endpoint(provider, how.path)
        self._probe.send(self._pipeline.transport, endpoint, self._pipeline.clock, how.timeout_s)

    def _judge(self, provider: Provider, how: Probe, result: Result, why: str, shut_s: float) -> None:
        now, threshold = self._pipeline.clock.now(), provider.breaker.failures
        fields = {"provider": self._name}
        self._count(self._name, result)
        if result == "failed":
            self._row += 1
            for upstream in self._upstreams():
                idle = upstream.asked_at <= now - how.every_s
                if upstream.state.retry_at is not None or (idle and self._row >= threshold):
                    upstream.dead(now + shut_s)
            if self._row == threshold:
                told = "provider %s does not answer probes: %s"
                _log.warning(told, self._name, why, extra={"event": "provider_down", "fields": fields})
            return
        if self._row >= threshold:
            _log.info("provider %s answers probes", self._name, extra={"event": "provider_up", "fields": fields})
        self._row = 0
        if result == "ok":
            for upstream in self._upstreams():
                upstream.alive(now)
        elif self._useless != why:
            self._useless = why
            told = "provider %s answers probes with %s, which tells nothing: is its probe.path right?"
            _log.warning(told, self._name, why, extra={"event": "probe_useless", "fields": fields})

    def _upstreams(self) -> list[Upstream]:
        pipeline = self._pipeline
        models = pipeline.policy.models.values()
        return [pipeline.upstreams[model.name] for model in models if model.provider.name == self._name]


class _Probe:
    """One probe: the transport's receiver.

    Args:
        tell: told once what became of it, and why; not if it is given up before.

    Attributes:
        over: nothing comes of it any more.
    """

    def __init__(self, tell: Callable[[Result, str], None]) -> None:
        self.over = False
        self._tell: Callable[[Result, str], None] | None = tell
        self._read_bytes = 0
        self._call: Call
        self._timer: Timer

    def send(self, transport: Transport, endpoint: Endpoint, clock: Clock, timeout_s: float) -> None:
        """Begin."""
        self._timer = clock.call_later(timeout_s, self._out_of_time)
        self._call = transport.send(UpstreamRequest(endpoint, (), b""), self)

    def give_up(self) -> None:
        """End it, with nothing told."""
        self._tell = None
        self._call.cancel()
        self._end()

    def on_head(self, status: int, headers: Headers) -> None:  # noqa: ARG002 - the seam's
        """See `relay.transports.base.Receiver`."""
        alive: Result = "ok" if status // 100 == 2 else "refused"  # noqa: PLR2004
        self._say("failed" if status >= 500 else alive, f"status {status}")  # noqa: PLR2004

    def on_body(self, data: bytes) -> None:
        """See `relay.transports.base.Receiver`."""
        self._read_bytes += len(data)
        if self._read_bytes > MAX_BODY_BYTES:
            self.give_up()

    def on_end(self) -> None:
        """See `relay.transports.base.Receiver`."""
        self._end()

    def on_failure(self, failure: UpstreamFailure) -> None:
        """See `relay.transports.base.Receiver`."""
        self._say("failed", failure.message)
        self._end()

    def _out_of_time(self) -> None:
        self._say("failed", "no answer in time")
        self.give_up()

    def _end(self) -> None:
        self.over = True
        self._timer.cancel()

    def _say(self, result: Result, why: str) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(result, why)
