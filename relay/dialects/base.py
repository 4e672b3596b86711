"""The seam to a wire dialect: bytes of one API on one side, the relay's values on the other. Sans-IO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from relay.messages import Usage
from relay.wire.splice import Fields

if TYPE_CHECKING:
    from relay.errors import RelayError, UpstreamFailure, UpstreamRefused
    from relay.messages import ChatRequest, Continuing, Headers, Reasoning, Shape
    from relay.wire.gist import Gist


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a complete non-stream answer says of itself.

    Attributes:
        finish_reason: of the first choice; None if the answer has no choices.
        usage: None if the upstream sent none.
        output_chars: characters of text in all choices; if there is a usage, only in those that have reasoning.
        reasoning_chars: those of them that are reasoning.
    """

    finish_reason: str | None
    usage: Usage | None
    output_chars: int
    reasoning_chars: int = 0


class StreamReader(Protocol):
    """Reads one upstream stream and says what may go to the client."""

    @property
    def finished(self) -> bool:
        """A terminal event was seen."""

    @property
    def done(self) -> bool:
        """The terminator was seen, so nothing more can follow."""

    @property
    def finish_reason(self) -> str | None:
        """Of the first choice that ended."""

    @property
    def output_chars(self) -> int:
        """Characters of real output seen: of content, reasoning, refusal or tool deltas, or of a shape not known."""

    @property
    def reasoning_chars(self) -> int:
        """Those of them that are reasoning."""

    @property
    def failure(self) -> UpstreamFailure | None:
        """What ended the stream, if anything did; nothing behind it is read.

        An UpstreamRefused is an error event, which `feed` has returned; an UpstreamProtocolError is an event that is
        not JSON or is larger than the bound, which it has not.
        """

    @property
    def usage(self) -> Usage | None:
        """The last usage seen."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came, return whole events for the client (perhaps none).

        Same dialect on both sides: the bytes returned are the bytes that came, less events that are not the
        client's business. An event that is not yet complete stays inside until it is.
        """

    def end(self) -> bytes:
        """The upstream has closed: what is still owed to the client, the terminator included.

        Raises:
            UpstreamTruncated: no terminal event was seen.
            UpstreamRefused: the last event, whose blank line was missing, is an error.
        """


class SoFar(msgspec.Struct, frozen=True):
    """An answer that is to be continued, as its client has it.

    Attributes:
        text: what a reader of the answer sees; no reasoning.
        mark: fields by which its chunks name it; each segment's must be the first one's.
        usage: of all segments together.
        segments: how many there were.
        first: the body of the first one, where the answer is no stream.
    """

    text: str
    mark: Fields
    usage: Usage
    segments: int
    first: bytes = b""


class SegmentReader(StreamReader, Protocol):
    """Reads one segment of an answer that may have several; what it returns joins the segments before it.

    Attributes:
        held: what the client is owed if no segment follows: the terminal event and all behind it, where those of a
            limit were to be held, or the upstream's error event; b"" if nothing.
    """

    held: bytes

    @property
    def plain(self) -> bool:
        """Nothing but text and reasoning came, so that the answer can go on in another segment."""

    def so_far(self, usage: Usage) -> SoFar:
        """The answer with this segment, which used that much."""


class Dialect(Protocol):
    """One wire API.

    Attributes:
        name: as policies call it.
        chat_path: below the provider's base URL.
    """

    name: str
    chat_path: str

    def auth_headers(self, api_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """Headers that carry the provider's credentials."""

    def parse_request(self, body: bytes) -> ChatRequest:
        """Read a client's request.

        Raises:
            InvalidRequest: not JSON, not an object, or a field has the wrong type; names the field.
        """

    def features(self, request: ChatRequest) -> frozenset[str]:
        """What a request uses beyond text: `tools`, `vision`, `json_schema`, `reasoning`, `audio`, `prefill`."""

    def prefixes(self, request: ChatRequest) -> tuple[tuple[bytes, int], ...]:
        """Fingerprints and tokens of the prompt's beginnings, see `relay.wire.prefixes`."""

    def prompt(self, request: ChatRequest) -> tuple[msgspec.Raw, ...]:
        """All of a request that `gist` reads, as it came: views of its body."""

    def gist(self, request: ChatRequest) -> Gist:
        """What tells what a request is after, and the texts that a model reads."""

    def reasoning(self, request: ChatRequest) -> Reasoning | None:
        """What the client says of hidden reasoning; None if it leaves that open."""

    def extendable(self, request: ChatRequest) -> bool:
        """Whether an answer that meets its limit is sure to be one that can be continued: no tools are offered."""

    def takes_effort(self, request: ChatRequest, effort_field: str) -> bool:
        """Whether an effort may be set in that field: the client left it open, and sent nothing that rules it out."""

    def encode_request(
        self,
        request: ChatRequest,
        *,
        model: str,
        max_tokens_field: str | None,
        ask_usage: bool,
        shape: Shape | None = None,
    ) -> bytes:
        """The body for an upstream that calls the model `model`.

        Args:
            request: the client's.
            model: as the upstream calls it.
            max_tokens_field: the name under which it takes the answer's limit; None leaves the client's.
            ask_usage: ask a stream for its usage.
            shape: what else to set; None leaves everything else as it came.
        """

    def stream_reader(self, *, choices: int, hide_usage: bool) -> StreamReader:
        """A reader for one attempt's stream of `choices` answers; usage that was not asked for is hidden."""

    def may_continue(self, request: ChatRequest) -> bool:
        """Whether an answer to this request can have several segments, as long as it is plain text."""

    def answer_text(self, body: bytes) -> str | None:
        """The text of a complete answer; None if there is more to it than text."""

    def answer_so_far(self, before: SoFar | None, body: bytes, style: Continuing, usage: Usage) -> SoFar:
        """An answer with a segment that is no stream; arguments as for these."""

    def whole_answer(self, so_far: SoFar, last: bytes) -> bytes:
        """The body for a client: the first segment's with all text, the end of the last one, and the usage of all."""

    def continue_request(self, body: bytes, text: str, style: Continuing) -> bytes:
        """What `encode_request` returned, made into the request for the rest of an answer that begins with `text`."""

    def segment_reader(
        self, so_far: SoFar | None, style: Continuing, *, hide_usage: bool, hold_length: bool
    ) -> SegmentReader:
        """A reader for one attempt's stream that is a segment.

        Args:
            so_far: the answer before it; None for the first.
            style: how the segment was asked for.
            hide_usage: as for `stream_reader`.
            hold_length: hold a terminal event that says that a limit was met.
        """

    def parse_answer(self, body: bytes) -> Answer:
        """Read a complete non-stream answer.

        Raises:
            UpstreamProtocolError: not a JSON object.
            UpstreamRefused: a 200 whose body is an error.
        """

    def parse_error(self, status: int, headers: Headers, body: bytes) -> UpstreamRefused:
        """Read an error answer. Never raises: what cannot be read becomes a message that says so."""

    def encode_error(self, error: RelayError) -> bytes:
        """The error as a response body for a client of this dialect."""

    def encode_error_event(self, error: RelayError) -> bytes:
        """The error as one stream event for a client of this dialect."""
