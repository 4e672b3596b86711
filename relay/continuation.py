"""One answer in several segments: what its client has of it, and how the next one is asked for and read.

A segment is an attempt of its own. Another one follows in two cases, and the client sees its text go on:

    recovery   a stream broke off behind its first output, and the policy says `streams.recover`
    extension  the answer met a limit that the relay set, and its budget may be extended
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from relay.attempt import PartAttempt, SegmentAttempt
from relay.dialects.base import Dialect, SoFar
from relay.errors import RelayError, UpstreamFailure, may_retry
from relay.messages import Budget, ChatRequest, Shape
from relay.sizing import Sizing

if TYPE_CHECKING:
    import asyncio

    from relay.attempt import Downstream, Trial
    from relay.messages import Usage


class Continuation(msgspec.Struct, eq=False):
    """One request's.

    Args:
        request: whose answer it is.
        dialect: of the client and the upstreams.
        sizing: says how much more an answer may take; None if it may take no more than its budget.
        recover: whether to go on behind what broke off.

    Attributes:
        so_far: the segments that are over; None while the first one lasts.
        last: the attempt that brought the latest of these.
        broken_by: what ended it, to be told if nothing follows; None if it was a limit.
        began_at: when the first one had its first output, seconds on the pipeline's clock; None if none was sent yet.
        budget: what the first one was given.
        extensions: how many followed because a limit was met.
    """

    _request: ChatRequest
    _dialect: Dialect
    _sizing: Sizing | None
    _recover: bool
    _left: int | None = None  # of the limit, for the next segment
    so_far: SoFar | None = None
    last: SegmentAttempt | PartAttempt | None = None
    broken_by: RelayError | None = None
    began_at: float | None = None
    budget: Budget | None = None
    extensions: int = 0

    @property
    def segment(self) -> int:
        """Which one is under way, from 1."""
        return 1 if self.so_far is None else self.so_far.segments + 1

    # --- asking ---

    def attempt(
        self,
        downstream: Downstream,
        trial: Trial,
        ended: asyncio.Future[RelayError | None],
        *,
        hide_usage: bool,
    ) -> SegmentAttempt | PartAttempt:
        """An attempt at the next segment; `hide_usage` as for `relay.dialects.base.Dialect.stream_reader`."""
        budget = trial.budget
        hold_length = self._sizing is not None and budget is not None and budget.own
        if not self._request.stream:
            return PartAttempt(downstream, trial, ended, self.so_far, hold_length=hold_length)
        style = trial.model.continuation
        reader = self._dialect.segment_reader(self.so_far, style, hide_usage=hide_usage, hold_length=hold_length)
        return SegmentAttempt(downstream, trial, ended, reader)

    def shape(self, shape: Shape | None) -> Shape | None:
        """What is set in the request for a further segment: what is left of the limit, or was granted anew."""
        return shape if self._left is None else replace(shape or Shape(), limit=self._left)

    # --- when a segment is over ---

    def grant(self, attempt: SegmentAttempt | PartAttempt, usage: Usage) -> int:
        """How many tokens more an answer gets whose end is held; 0 if it ends here."""
        sizing, budget = self._sizing, self.budget or attempt.trial.budget
        if sizing is None or budget is None or not attempt.plain:
            return 0
        limit = budget.limit if self.so_far is None else self._left
        if not sizing.met(replace(budget, limit=limit), usage):
            return 0
        thought = usage.reasoning_tokens  # and it will think again
        if thought >= usage.completion_tokens:  # more than was set aside for it, if anything was
            thought *= 2
        budget = replace(budget, headroom=max(budget.headroom, thought))
        total = self.so_far.usage.continued(usage) if self.so_far else usage
        written = total.completion_tokens - total.reasoning_tokens
        return sizing.extension(attempt.trial.model, budget, written=written, number=self.extensions + 1)

    def extend(self, attempt: SegmentAttempt | PartAttempt, usage: Usage, grant: int) -> None:
        """A segment ended at its limit, and another one of `grant` tokens is to follow."""
        self._take(attempt, usage)
        self.broken_by = None
        self.extensions += 1
        self._left = grant

    def recover(self, attempt: SegmentAttempt, failure: RelayError, usage: Usage) -> bool:
        """A segment with output broke off. True if another one may follow."""
        limit = self._left
        if self.so_far is None:
            limit = attempt.trial.budget.limit if attempt.trial.budget else self._request.max_tokens
        self._take(attempt, usage)
        self.broken_by = failure
        self._left = None if limit is None else max(limit - usage.completion_tokens, 1)
        return self._recover and attempt.plain and isinstance(failure, UpstreamFailure) and may_retry(failure)

    def _take(self, attempt: SegmentAttempt | PartAttempt, usage: Usage) -> None:
        if self.so_far is None:
            self.began_at = attempt.committed_at
            self.budget = attempt.trial.budget
        self.so_far = attempt.so_far(usage)
        self.last = attempt
