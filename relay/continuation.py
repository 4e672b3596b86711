"""One answer in several segments: what its client has of it, and how the next one is asked for and read.

A segment is a stream of its own. Another one follows where a stream breaks off behind its first output and the policy
says `streams.recover`: the client, who has seen the text so far, sees it go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import RelayError, UpstreamFailure, may_retry

if TYPE_CHECKING:
    from relay.attempt import SegmentAttempt
    from relay.dialects.base import Dialect, SegmentReader, SoFar, StreamReader
    from relay.messages import Usage
    from relay.policy.compiled import Model


class Continuation:
    """One request's.

    Args:
        dialect: of the client and the upstreams.
        recover: whether to go on behind what broke off.

    Attributes:
        so_far: the segments that are over; None while the first one lasts.
        last: the attempt that brought the latest of these.
        broken_by: what ended it; told if nothing follows.
        began_at: when the first one had its first output, seconds on the pipeline's clock.
    """

    __slots__ = ("_dialect", "_recover", "began_at", "broken_by", "last", "so_far")

    def __init__(self, dialect: Dialect, *, recover: bool) -> None:
        self._dialect = dialect
        self._recover = recover
        self.so_far: SoFar | None = None
        self.last: SegmentAttempt | None = None
        self.broken_by: RelayError | None = None
        self.began_at: float | None = None

    @property
    def segment(self) -> int:
        """Which one is under way, from 1."""
        return 1 if self.so_far is None else self.so_far.segments + 1

    def reader(self, reader: StreamReader, model: Model) -> SegmentReader:
        """Reads the segment that a model is now asked for."""
        return self._dialect.segment_reader(reader, self.so_far, model.continuation, hold_length=False)

    def request(self, body: bytes, model: Model) -> bytes:
        """The body that asks a model for it, made from the one that asks for a whole answer."""
        if self.so_far is None:
            return body
        return self._dialect.continue_request(body, self.so_far.text, model.continuation)

    def take(self, attempt: SegmentAttempt, failure: RelayError, usage: Usage) -> bool:
        """A segment with output was broken off. True if another one may follow."""
        self.so_far = attempt.reader.so_far(self.so_far, usage)
        self.last = attempt
        self.broken_by = failure
        if self.began_at is None:
            self.began_at = attempt.committed_at
        return self._recover and attempt.reader.plain and isinstance(failure, UpstreamFailure) and may_retry(failure)
