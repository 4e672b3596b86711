"""The story of one request, top to bottom: exactly one answer, one outcome and one record.

A runtime opens an exchange when a request's headers are there, has it look at them (`admit`), gives it the body
(`start`), and tells it what the client does meanwhile (`pause`, `resume`, `client_gone`). The rest happens here: the
request is read, a route found, limits reserved; one candidate after the other is tried until one has an answer; and
whatever happens, what was used is settled and the end is written down.

The story is a coroutine that sleeps while bytes flow: they go from the transport through the attempt to the client by
plain calls. No task need run it: requests that come together go together from stage to stage (`relay.stages`). What is
done behind an answer's last byte is done in the event loop's next turn, when that byte is on its way.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from math import inf
from typing import TYPE_CHECKING, Any

from relay.admission import check_head, find_route, read_request
from relay.attempt import NO_HEADERS, OK, AnswerAttempt, Attempt, PartAttempt, SegmentAttempt, StreamAttempt, Trial
from relay.continuation import Continuation
from relay.dialects import DIALECTS
from relay.errors import (
    ClientGone,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    RelayError,
    RequestTimeout,
    ShuttingDown,
    Unavailable,
    UpstreamRefused,
    may_retry,
)
from relay.explain import explained_to_sender
from relay.lessons import account, learn
from relay.messages import Attempt as Planned
from relay.messages import (
    AttemptRecord,
    ChatRequest,
    Decision,
    Headers,
    KeyLimits,
    Outcome,
    RequestRecord,
    UpstreamRequest,
    Usage,
    Wants,
)
from relay.policy.decide import Chooser, schedule
from relay.race import Race
from relay.reservation import Reservation
from relay.sizing import described
from relay.stages import GIVEN_UP, next_stage
from relay.upstreams import PASSING
from relay.wants import BYTES_PER_TOKEN, HEDGE, NEVER, PREFER, wants_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from relay.client import Client
    from relay.dialects.base import Dialect
    from relay.head import Head
    from relay.pipeline import Pipeline
    from relay.policy.compiled import Hedge, Model, Provider, Route
    from relay.served import Served
    from relay.sizing import Sizing
    from relay.upstreams import Upstream

LINGER_S = 2.0
"""How long an upstream may take, behind its `[DONE]`, to end its response so that the connection can be kept."""

BODY_TIMEOUT_S = 60.0
"""How long a request's body may take to arrive."""

ANSWER_TOKENS = 1024
"""What is reserved for an answer without a limit; 97 of 100 answers are shorter."""

CHAT_DIALECT = "openai"
"""What clients of /v1/chat/completions speak."""

_NO_LIMITS = KeyLimits()
_log = logging.getLogger("relay")


class Exchange:
    """One request and its answer.

    Args:
        pipeline: the shared parts.
        served: the policy it runs under to its end.
        client: where the answer goes.
        head: of the request.

    Attributes:
        id: the request id, the client's own if it sent a usable one.
        client, head: as given.
        dialect: what the client speaks.
        closed: the answer is complete, or nobody is left to get it; the record is written.
    """

    __slots__ = (
        "_arrived_at",
        "_attempt",
        "_attempts",
        "_begun",
        "_continuation",
        "_deadline",
        "_decision",
        "_drain_until",
        "_ending",
        "_kept_alive_at",
        "_paused",
        "_pipeline",
        "_race",
        "_request",
        "_reservation",
        "_route",
        "_running",
        "_served",
        "_sizing",
        "_sleeping",
        "_status",
        "_wall",
        "_wants",
        "client",
        "closed",
        "head",
        "id",
    )

    dialect: Dialect = DIALECTS[CHAT_DIALECT]

    def __init__(self, pipeline: Pipeline, served: Served, client: Client, head: Head) -> None:
        self.client = client
        self.closed = False
        self._pipeline = pipeline
        self._served = served
        self.head = head
        self._arrived_at = pipeline.clock.now()
        self._wall = pipeline.clock.wall()
        self.id = head.request_id or b"req_%024x" % pipeline.rng.getrandbits(96)
        self._request: ChatRequest | None = None
        self._route: Route | None = None
        self._attempt: Attempt | None = None  # the latest, or the one that won
        self._race: Race | None = None
        self._continuation: Continuation | None = None  # where the answer may have several segments
        self._begun = 0  # attempts so far
        self._attempts: tuple[AttemptRecord, ...] = ()
        self._status = 0  # of the answer; 0 until its head is sent
        self._sizing: Sizing | None = None  # where the policy tells intents or sets budgets
        self._wants: Wants | None = None  # where there was something to decide
        self._decision: Decision | None = None
        self._deadline = inf
        self._drain_until = inf
        self._kept_alive_at = self._arrived_at
        self._running = False
        self._paused = False
        self._ending: RelayError | None = None  # why it is to end, if it is not for an upstream's sake
        self._sleeping: asyncio.Future[None] | None = None
        self._reservation: Reservation | None = None  # where the key has limits

    # --- what the runtime tells ---

    @property
    def max_body_bytes(self) -> int:
        """The runtime reads no more of the body than this; if there is more, it calls `refuse`."""
        return self._served.policy.requests.max_body_bytes

    @property
    def streaming(self) -> bool:
        """Whether an SSE answer was asked for; False until the body is read."""
        return self._request is not None and self._request.stream

    def admit(self, *, known: bool = False) -> bool:
        """Look at the headers. False if they were enough to refuse the request, which is then answered.

        Args:
            known: a request with the same head was admitted under this policy.
        """
        try:
            if self._pipeline.draining:
                raise ShuttingDown("The relay is shutting down; try again.", retry_after_s=1)
            if not known:
                check_head(self.head, self._served)
        except RelayError as error:
            self.refuse(error)
            return False
        return True

    def explain(self, body: bytes) -> dict[str, Any]:
        """Decide as for a request with that body, send nothing, and say everything that decided.

        Raises:
            RelayError: as the request would be refused before anything is decided.
        """
        policy = self._served.policy
        check_head(self.head, self._served)
        request = read_request(body, self.dialect, policy.requests)
        route = find_route(request, self.head, policy)
        chooser = Chooser(route, self._served.upstreams)  # of its own: explorations are for requests that are sent
        self._sizing = self._size(request)
        decision, wants = self._decide(request, route, chooser, self._pipeline.clock.now())
        return explained_to_sender(decision, wants, self._sizing, route.candidates)

    def refuse(self, error: RelayError) -> None:
        """Answer with an error without having run."""
        if not self.closed:
            self._answer_error(error)
            self._close(error, None)

    async def run(self, body: bytes) -> None:
        """Answer the request. Never raises for anything that a client or an upstream did."""
        if self.closed:
            return
        self._running = True
        error: RelayError | None = None
        try:
            request, route = self._read(body)
            await next_stage
            self._sizing = self._size(request)
            if self._sizing is not None:
                await next_stage
            planned, left_out = self._plan(request, route, self._pipeline.clock.now())
            if self._reservation is not None:
                await self._reservation.take(self._tokens_for(request, route, planned))
            await next_stage
            self._check_ending()
            await self._try_candidates(request, route, planned, left_out)
        except RelayError as caught:
            error = caught
            error.__traceback__ = error.__context__ = None  # whose frames know it: no cycles are left for the collector
        except GIVEN_UP:
            error = ClientGone("The server gave the request up.")
            raise
        except Exception as defect:  # noqa: BLE001 - a defect ends one request, never the process
            error = _internal(defect, self.id)
        finally:
            if error is not None:
                self._answer_error(error)
            usage = self._usage()
            try:
                if self._reservation is not None:
                    await self._reservation.settle(usage.total_tokens if usage else 0)
                if error is None:
                    await next_stage
            finally:
                self._close(error, usage)

    def start(self, body: bytes) -> None:
        """As `run`, without a task, and together with other requests that start now; see `relay.stages`."""
        self._pipeline.stages.start(self.run(body))

    def pause(self) -> None:
        """The client takes no more for now."""
        self._paused = True
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        """The client takes more again."""
        self._paused = False
        if self._attempt is not None:
            self._attempt.resume()

    def client_gone(self) -> None:
        """The client closed the connection. Nothing more is sent; the upstream is cancelled, or drained."""
        if self.closed or self._answered():
            return
        streams = self._served.policy.streams
        gone = ClientGone("The client closed the connection before its answer was complete.")
        attempt = self._attempt
        if streams.on_disconnect == "drain" and attempt is not None and not attempt.ended.done():
            self._ending = gone
            if self._race is not None:
                self._race.stop(gone)
            self._drain_until = self._pipeline.clock.now() + streams.drain_max_s
            attempt.drain(streams.drain_max_bytes)
        else:
            self.interrupt(gone)

    def interrupt(self, error: RelayError) -> None:
        """End it now, in band if the answer has begun."""
        if self._answered():
            return
        self._ending = self._ending or error
        if not self._running:
            self.refuse(error)
        self._wake()
        if self._race is not None:
            self._race.stop(error)
        if self._attempt is not None:
            self._attempt.fail(error)

    def tick(self, now: float) -> None:
        """Look at the time: deadlines, silence, keep-alives."""
        attempt = self._attempt
        if not self._running and now - self._arrived_at >= BODY_TIMEOUT_S:
            self.refuse(body_too_late())
        if attempt is None:
            return
        if now >= self._deadline:
            self.interrupt(DeadlineExceeded("The answer took longer than `timeouts.total_s` allows."))
        elif now >= self._drain_until:
            attempt.fail(ClientGone("The client left; its answer was read as long as the policy allows."))
        heard_at = self._arrived_at if attempt.ended.done() else attempt.tick(now)
        rival = self._race.rival if self._race is not None else None
        if rival is not None and not rival.ended.done():
            rival.tick(now)
        if self._ending is None and not self.closed:
            self._keep_alive(now, heard_at if attempt.committed else self._arrived_at)

    # --- the story ---

    def _read(self, body: bytes) -> tuple[ChatRequest, Route]:
        """What is asked, and where it goes."""
        policy, pipeline, key = self._served.policy, self._pipeline, self.head.key
        request = self._request = read_request(body, self.dialect, policy.requests)
        route = self._route = find_route(request, self.head, policy)
        if key is not None and key.limits != _NO_LIMITS:
            self._reservation = Reservation(key, pipeline.store, pipeline.clock, route.longest_s)
        return request, route

    def _size(self, request: ChatRequest) -> Sizing | None:
        """What the request is after, and how much it may take."""
        sizer, key = self._served.sizer, self.head.key
        return None if sizer is None else sizer.size(request, self.dialect, key.name if key else "")

    def _tokens_for(self, request: ChatRequest, route: Route, planned: Sequence[Planned]) -> int:
        """What to reserve: what the first model to be asked may use. If another one uses more, the end settles it."""
        sizing = self._sizing
        first = self._served.policy.models[planned[0].model] if planned else route.candidates[0]
        if sizing is None or sizing.rules.budget.mode == "off":
            answer = ANSWER_TOKENS if request.max_tokens is None else request.max_tokens
            possible = max(0, min(answer, first.max_output or answer))
            return len(request.body) // BYTES_PER_TOKEN + possible * request.choices
        grant = sizing.grant(first)
        return grant.asked.prompt_tokens + max(0, grant.budget.reserve)

    async def _try_candidates(
        self, request: ChatRequest, route: Route, planned_attempts: Sequence[Planned], left_out: Mapping[str, str]
    ) -> None:
        """One attempt after the other until one has an answer.

        Args:
            request: what is asked.
            route: its route.
            planned_attempts: whom to ask, in which order.
            left_out: who is not in there, and why.

        Raises:
            RelayError: none has; the last failure, or why nothing was tried.
        """
        served, clock = self._served, self._pipeline.clock
        now = clock.now()
        failure: RelayError | None = None
        too_small: list[Model] = []  # for this prompt
        queue = list(planned_attempts)
        if self._sizing is not None or served.policy.streams.recover:
            self._continuation = self._continuation_for(request)
        while queue:
            planned = queue.pop(0)
            model, upstream = served.policy.models[planned.model], served.upstreams[planned.model]
            if self._begun and not self._may_ask(model, too_small):
                continue
            self._deadline = self._arrived_at + model.timeouts.total_s
            waits = planned.backoff_s > 0 or upstream.troubled
            if now >= self._deadline or (waits and not await self._becomes_free(upstream, planned.backoff_s, now)):
                continue
            race = self._race = None if route.hedge is None else self._race_for(request, route.name, route.hedge)
            ended_by = await (
                self.outcome(self.begin(model))
                if race is None
                else race.run(model, queue, usual=self._usual(model, queue))
            )
            self._check_ending()
            if ended_by is not None:
                failure = ended_by
                if not self._may_go_on(failure, too_small):
                    break
            elif self._continuation is None or not await self._extend(self._continuation, queue):
                return
            now = clock.now()
        self._give_up(failure or _none_left(route, left_out, served.upstreams, now))

    async def _becomes_free(self, upstream: Upstream, backoff_s: float, now: float) -> bool:
        """Wait until an attempt may begin. False if it may not, or not soon enough.

        Args:
            upstream: whom it would ask.
            backoff_s: the longest wait before it.
            now: seconds on the pipeline's clock.
        """
        pipeline = self._pipeline
        wait_s = pipeline.rng.uniform(0, backoff_s) if backoff_s else 0.0
        ready_at = max(now + wait_s, upstream.not_before)
        if ready_at - now > self._served.policy.retries.max_s or ready_at >= self._deadline:
            return False
        if ready_at > now:
            await self._sleep(ready_at - now)
            now = max(ready_at, pipeline.clock.now())  # uvloop's timers may run a little early
        return upstream.unavailable(now) is None

    def _continuation_for(self, request: ChatRequest) -> Continuation | None:
        """How the answer can go on if it breaks off or meets a limit; None if it cannot."""
        recover = self._served.policy.streams.recover and request.stream
        sizing = self._sizing if self._sizing is not None and self._sizing.extends else None
        if sizing is None and not (recover and self.dialect.may_continue(request)):
            return None
        return Continuation(request, self.dialect, sizing, recover)

    async def _extend(self, continuation: Continuation, queue: list[Planned]) -> bool:
        """Whether an answer that ended goes on, because it did so at the relay's own limit; if not, it has been sent.

        It goes on with the same model, which has read the prompt; if that fails, with whoever is next.
        """
        attempt = self._attempt
        if not isinstance(attempt, SegmentAttempt | PartAttempt) or not attempt.held:
            return False
        usage = attempt.usage or self._estimated_usage(attempt)
        grant = continuation.grant(attempt, usage)
        tokens = usage.prompt_tokens + usage.completion_tokens + grant
        if grant and (self._reservation is None or await self._reservation.take_more(tokens)):
            self._check_ending()
            continuation.extend(attempt, usage, grant)
            queue.insert(0, Planned(attempt.trial.model.name))
            return True
        if isinstance(attempt, PartAttempt) and not attempt.plain and continuation.last is not None:
            attempt = self._attempt = continuation.last  # what the client wants is one text
        attempt.release(usage)
        return False

    def _give_up(self, failure: RelayError) -> None:
        """Nobody is left to ask: end what the client has a part of, or tell the failure.

        Raises:
            RelayError: what broke off the answer, or else the failure; no answer is left that only met a limit.
        """
        continuation = self._continuation
        if continuation is None or continuation.last is None:
            raise failure
        last = self._attempt = continuation.last
        if continuation.broken_by is not None:
            raise continuation.broken_by
        last.release(last.usage or self._estimated_usage(last))

    def _may_ask(self, model: Model, too_small: list[Model]) -> bool:
        """Whether a model can serve what is to be asked next, behind an attempt or more."""
        if model.continuation == "none" and self._continuation is not None and self._continuation.so_far is not None:
            return False
        return all(_is_larger(model, small) for small in too_small)

    def _race_for(self, request: ChatRequest, route: str, hedge: Hedge) -> Race | None:
        """A race if this request, of a route that hedges, may be asked twice at a time at all."""
        if self._wants is None or not request.stream or self.head.fields.get(HEDGE) == NEVER:
            return None
        if self._continuation is not None and self._continuation.so_far is not None:
            return None  # somebody is reading: what two models would write next differs
        return Race(self, self._served, route, hedge, self._wants, self._pipeline.clock)

    def _usual(self, model: Model, queue: list[Planned]) -> Model:
        """Whose TTFT says how long a model may take: one that is only tried out is measured by who would have been."""
        explored = self._decision is not None and self._decision.first_by == "explore" and not self._begun
        return self._served.policy.models[queue[0].model] if explored and queue else model

    def _may_go_on(self, failure: RelayError, too_small: list[Model]) -> bool:
        """Whether another attempt may follow; notes a model whose context was too small."""
        attempt = self._attempt
        if isinstance(attempt, SegmentAttempt) and self._continuation is not None and attempt.committed:
            return self._continuation.recover(attempt, failure, attempt.usage or self._estimated_usage(attempt))
        if attempt is None or attempt.committed:
            return False
        if isinstance(failure, UpstreamRefused) and failure.too_long:
            too_small.append(attempt.trial.model)
            return True
        return may_retry(failure)

    def _plan(self, request: ChatRequest, route: Route, now: float) -> tuple[tuple[Planned, ...], Mapping[str, str]]:
        """What to try, and why some candidates are not: as written, unless the route or the client wants a choice."""
        served = self._served
        chooser = served.choosers.get(route.name)
        if chooser is None and PREFER not in self.head.fields:
            return served.as_written(route, now)
        decision, _ = self._decide(request, route, chooser or Chooser(route, served.upstreams), now)
        order, left_out = decision.order, {}
        if len(order) < len(route.candidates):
            left_out = dict(decision.left_out)
            order = order or served.worth_waiting_for(route, left_out, now)
            # The tier is what an intent wants, and an intent is a guess: candidates below it are the last resort.
            order += tuple(name for name, reason in left_out.items() if reason == "tier")
        return schedule(order[: route.attempts], route.attempts, served.policy.retries), left_out

    def _decide(self, request: ChatRequest, route: Route, chooser: Chooser, now: float) -> tuple[Decision, Wants]:
        wants = self._wants = wants_of(request, route, self.dialect, self.head.fields, self.head.key, self._sizing)
        decision = self._decision = chooser.decide(wants, now, self._pipeline.rng)
        return decision, wants

    def begin(self, model: Model, *, hedge: bool = False) -> Attempt:
        """See `relay.race.Runner.begin`."""
        request = self._request
        if request is None:
            raise AssertionError("an attempt begins behind the request's reading")
        provider, now = model.provider, self._pipeline.clock.now()
        sizing, continuation = self._sizing, self._continuation
        grant = None if sizing is None else sizing.grant(model)
        budget, shape = (None, None) if grant is None else (grant.budget, grant.shape)
        if continuation is not None and continuation.so_far is not None:
            budget, shape = continuation.budget, continuation.shape(shape)
        tokens = self._wants.prompt_tokens + self._wants.output_tokens if self._wants is not None else 0.0
        upstream = self._served.upstreams[model.name]
        self._begun += 1
        trial = Trial(model, self._begun, upstream.start(now, tokens), now, hedge, budget)
        ended: asyncio.Future[RelayError | None] = asyncio.get_running_loop().create_future()
        hide_usage = provider.ask_usage and not request.wants_usage
        attempt: Attempt
        if continuation is not None:
            attempt = continuation.attempt(self, trial, ended, hide_usage=hide_usage)
        elif request.stream:
            reader = self.dialect.stream_reader(choices=request.choices, hide_usage=hide_usage)
            attempt = StreamAttempt(self, trial, ended, reader)
        else:
            attempt = AnswerAttempt(self, trial, ended)
        if not hedge:
            self._attempt = attempt
        body = self.dialect.encode_request(
            request,
            model=model.upstream,
            max_tokens_field=model.max_tokens_field,
            ask_usage=provider.ask_usage,
            shape=shape,
        )
        if continuation is not None and continuation.so_far is not None:
            body = self.dialect.continue_request(body, continuation.so_far.text, model.continuation)
        attempt.request = UpstreamRequest(self._served.endpoints[provider.name], self._forwarded(provider), body)
        return attempt

    async def outcome(self, attempt: Attempt) -> RelayError | None:
        """See `relay.race.Runner.outcome`."""
        failure: RelayError | None = None
        upstream = self._served.upstreams[attempt.trial.model.name]
        try:
            await next_stage
            self._send(attempt, upstream)
            failure = await attempt.ended
        except GIVEN_UP:
            failure = ClientGone("The server gave the request up.")
            self._ending = self._ending or failure
            raise
        finally:
            if failure is not None:
                attempt.cancel()
            elif attempt.call is not None:
                self._pipeline.clock.call_later(LINGER_S, attempt.cancel)
            self._note(attempt, failure, upstream)
        await next_stage
        return failure

    def _send(self, attempt: Attempt, upstream: Upstream) -> None:
        """Send what has been prepared, unless the attempt was ended before that."""
        request, attempt.request = attempt.request, None
        if request is None or attempt.ended.done():
            return
        attempt.call = self._pipeline.transport.send(request, attempt)
        if isinstance(attempt, StreamAttempt):
            upstream.asked(attempt.trial.started_at)
        if self._paused:
            attempt.pause()

    def _forwarded(self, provider: Provider) -> tuple[tuple[bytes, bytes], ...]:
        """The client's headers that this provider may see."""
        names = self._served.forwarded[provider.name]
        if names.isdisjoint(self.head.fields):
            return ()
        return tuple(field for field in self.head.headers if field[0] in names)

    def _note(self, attempt: Attempt, failure: RelayError | None, upstream: Upstream) -> None:
        """Write down how an attempt went, and let the model's statistics and breaker know."""
        now, trial = self._pipeline.clock.now(), attempt.trial
        name, provider, took_s = trial.model.name, trial.model.provider.name, now - trial.started_at
        ttft_s = None if attempt.committed_at is None else attempt.committed_at - trial.started_at
        code = failure.code if failure is not None else None
        segment = 1 if self._continuation is None else self._continuation.segment
        record = AttemptRecord(name, provider, code, attempt.status, ttft_s, took_s, trial.hedge, segment)
        self._attempts += (record,)
        learn(upstream, attempt, failure, self._wants, now)
        route, served = self._route, self._served
        if route is not None and route.hedge is not None:
            price = served.prices[route.name][name]
            account(served.ledgers[route.name], price, attempt, failure, self._wants, now)

    def lead(self, attempt: Attempt) -> None:
        """See `relay.race.Runner.lead`."""
        self._attempt = attempt

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless something ends the exchange meanwhile."""
        self._check_ending()
        self._sleeping = asyncio.get_running_loop().create_future()
        timer = self._pipeline.clock.call_later(seconds, self._wake)
        try:
            await self._sleeping
        finally:
            timer.cancel()
        self._check_ending()

    def _wake(self) -> None:
        if self._sleeping is not None and not self._sleeping.done():
            self._sleeping.set_result(None)

    def _check_ending(self) -> None:
        if self._ending is not None:
            raise self._ending

    def _answered(self) -> bool:
        """The client has all of its answer, though the record may not be written yet."""
        attempt = self._attempt
        return attempt is not None and attempt.ended.done() and attempt.ended.result() is None and not attempt.held

    # --- towards the client ---

    def commit(self, attempt: Attempt, length: int | None) -> None:
        """See `relay.attempt.Downstream.commit`."""
        now = attempt.committed_at = self._pipeline.clock.now()
        if self._race is not None:
            self._race.commit(attempt)
            self._attempt = attempt
        if self._status:
            return
        trial = attempt.trial
        relay_ms, upstream_ms = (trial.started_at - self._arrived_at) * 1000, (now - trial.started_at) * 1000
        headers = self._answer_head(stream=length is None)
        headers += (
            (b"x-relay-model", trial.model.name.encode()),
            (b"x-relay-attempts", b"%d" % self._begun),
            (b"server-timing", b"relay;dur=%.1f, upstream;dur=%.1f" % (relay_ms, upstream_ms)),
        )
        sizing, budget = self._sizing, trial.budget
        if sizing is not None and budget is not None:
            headers += (
                (b"x-relay-intent", sizing.described().encode()),
                (b"x-relay-budget", described(budget).encode()),
            )
        self._start(OK, headers, length)

    def soon(self, step: Callable[[], None]) -> None:
        """See `relay.attempt.Downstream.soon`."""
        self._pipeline.stages.soon(step)

    def begun(self, attempt: Attempt) -> None:
        """See `relay.attempt.Downstream.begun`."""
        trial, at = attempt.trial, attempt.committed_at
        upstream = self._served.upstreams[trial.model.name]
        if upstream.speed is not None and at is not None:
            upstream.answered(attempt.head, at)
            if isinstance(attempt, StreamAttempt):
                upstream.begun(trial.started_at, at)
        attempt.head = NO_HEADERS  # not to be held for as long as the stream lasts

    def _answer_head(self, *, stream: bool) -> Headers:
        if not stream:
            return [(b"content-type", b"application/json"), (b"x-request-id", self.id)]
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self.id),
        ]

    def _start(self, status: int, headers: Headers, length: int | None) -> None:
        self._status = status
        self.client.start(status, headers, length)

    def _keep_alive(self, now: float, heard_at: float) -> None:
        """A comment, if the policy asks for it and the client has heard nothing for that long."""
        keep_alive_s = self._served.policy.streams.keep_alive_s
        if keep_alive_s is None or self._request is None or not self._request.stream:
            return
        if now - max(heard_at, self._kept_alive_at) >= keep_alive_s:
            self._kept_alive_at = now
            if not self._status:
                self._start(OK, self._answer_head(stream=True), None)
            self.client.write(b": keep-alive\n\n")

    def _answer_error(self, error: RelayError) -> None:
        """As a response of its own if nothing was sent yet, else in band."""
        if isinstance(error, ClientGone):
            return
        if self._status:
            attempt = self._attempt
            told = attempt is not None and attempt.client_told
            self.client.end(attempt.held if attempt is not None and told else self.dialect.encode_error_event(error))
            return
        body = self.dialect.encode_error(error)
        headers = self._answer_head(stream=False) + error.headers()
        if self._attempts:
            headers.append((b"x-relay-attempts", b"%d" % len(self._attempts)))
        self._start(error.http_status, headers, len(body))
        self.client.end(body)

    # --- the end ---

    def _usage(self) -> Usage | None:
        """What the answer used, all segments together; None for no output."""
        attempt, continuation = self._attempt, self._continuation
        if attempt is None or self._request is None:
            return None
        if continuation is None or continuation.so_far is None:
            return attempt.usage or (self._estimated_usage(attempt) if attempt.output_chars else None)
        usage = continuation.so_far.usage
        if attempt is continuation.last or not attempt.committed:
            return usage
        return usage.continued(attempt.usage or self._estimated_usage(attempt))

    def _estimated_usage(self, attempt: Attempt) -> Usage:
        """What an attempt used whose upstream did not say: from what was sent to it, and what it sent."""
        read = len(self._request.body) if self._request is not None else 0
        return Usage(
            prompt_tokens=-(-read // BYTES_PER_TOKEN),
            completion_tokens=-(-attempt.output_chars // BYTES_PER_TOKEN),
            estimated=True,
        )

    def _learn(self, sizing: Sizing, attempt: Attempt, usage: Usage, error: RelayError | None) -> bool:
        """Let what the answer was be known to those that set budgets. True if the relay's own ended it."""
        budget = attempt.trial.budget
        if budget is None:
            return False
        at_limit = attempt.finish_reason == "length"
        cut = at_limit or (error is not None and attempt.finish_reason is None)
        share = attempt.reasoning_chars / max(attempt.output_chars, 1)
        now = self._pipeline.clock.wall()
        sizing.observe(attempt.trial.model, budget, usage, now, cut=cut, reasoning_share=share)
        return at_limit and sizing.met(budget, usage)

    def _close(self, error: RelayError | None, usage: Usage | None) -> None:
        self.closed = True
        attempt, head, sizing, continuation = self._attempt, self.head, self._sizing, self._continuation
        first_at = attempt.committed_at if attempt is not None else None
        segments, extensions = 0 if first_at is None else 1, 0
        if continuation is not None and continuation.so_far is not None:
            segments += continuation.so_far.segments - (attempt is continuation.last)
            extensions = min(continuation.extensions, max(segments - 1, 0))
            attempt = continuation.last if first_at is None else attempt
            first_at = continuation.began_at or first_at
        model = attempt.trial.model if attempt is not None and attempt.committed else None
        finish_reason = attempt.finish_reason if attempt is not None else None
        met_budget = False
        if sizing is not None and attempt is not None and usage is not None:
            met_budget = self._learn(sizing, attempt, usage, error)
        if error is not None:
            outcome = error.outcome
        elif finish_reason == "length":
            outcome = Outcome.BUDGET if met_budget else Outcome.LENGTH
        else:
            outcome = Outcome.COMPLETED
        record = RequestRecord(  # by place: fields given by name are looked for one by one, six times as long in all
            self.id.decode("ascii"),
            self._wall,
            head.path,
            head.key.name if head.key else "",
            self._route.name if self._route else "",
            model.name if model else "",
            model.provider.name if model else "",
            model.upstream if model else "",
            self._request is not None and self._request.stream,
            self._status,
            outcome,
            error.code if error else None,
            self._attempts,
            usage,
            finish_reason,
            None if first_at is None else first_at - self._arrived_at,
            self._pipeline.clock.now() - self._arrived_at,
            self._served.policy.version,
            self._decision,
            self._wants,
            sizing.label if sizing else "",
            sizing.intent.confidence if sizing else 0.0,
            attempt.trial.budget if attempt is not None else None,
            segments,
            extensions,
            error.param if outcome is Outcome.REJECTED and error else None,  # what an upstream names may quote anything
        )
        # These know this exchange: no cycles are left for the collector.
        self._attempt = self._race = self._continuation = None
        self._pipeline.close_exchange(self, record)


def body_too_late() -> RequestTimeout:
    """The answer to a request whose body takes longer than `BODY_TIMEOUT_S`."""
    return RequestTimeout(f"The request's body did not arrive within {BODY_TIMEOUT_S:g} s.")


def _is_larger(model: Model, small: Model) -> bool:
    """Whether a prompt that is too long for one may fit the other."""
    return model is not small and (model.context or inf) > (small.context or 0)


def _none_left(
    route: Route, left_out: Mapping[str, str], upstreams: Mapping[str, Upstream], now: float
) -> Unavailable | InvalidRequest:
    """What to say if no attempt is made at all."""
    reasons = ", ".join(f"{name} ({reason})" for name, reason in left_out.items()) or "no time is left"
    passing = [name for name, reason in left_out.items() if reason.startswith(PASSING)]
    if left_out and not passing:
        return InvalidRequest(f"No model of the route {route.name!r} serves such a request: {reasons}.")
    waits = [upstreams[name].free_in_s(now) for name in passing]
    return Unavailable(
        f"No model of the route {route.name!r} can be asked now: {reasons}.", retry_after_s=min(waits, default=None)
    )


def _internal(defect: Exception, request_id: bytes) -> InternalError:
    """Log where a defect is, without its message: that may hold what a client sent."""
    frames = "".join(traceback.format_tb(defect.__traceback__))
    _log.error("request %s: %s\n%s", request_id.decode("ascii"), type(defect).__name__, frames)
    return InternalError(f"The relay failed; its log says more under {request_id.decode('ascii')}.")
