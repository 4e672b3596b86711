"""Answers in several segments: how the rest is asked for, and how what comes is joined."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.dialects.openai_answers import _MAX_MISSES, MAX_KEPT_BYTES
from relay.dialects.openai_chat import OpenAIChat
from relay.dialects.openai_segments import INSTRUCTION
from relay.errors import UpstreamTruncated
from relay.messages import Usage
from tests.servers import chat
from tests.servers.chat import DONE, HELLO, ROLE, STOP, USAGE, WORLD

DIALECT = OpenAIChat()
LENGTH = chat.chunk({}, "length")
USED = Usage(7, 2)


def reader(so_far=None, *, style="prefix", hold_length=True, hide_usage=False):
    """A segment's reader, for a client that asked for the usage unless it is hidden."""
    return DIALECT.segment_reader(so_far, style, hide_usage=hide_usage, hold_length=hold_length)


def begun(*events: bytes, **options: Any):
    """The answer so far, of which these events came before its stream broke off."""
    first = reader(**options)
    assert first.feed(b"".join(events)) == b"".join(events)
    return first.so_far(USED)


def renamed(event: bytes) -> bytes:
    """An event as another upstream would name it."""
    value = json.loads(event[6:]) | {"id": "other", "created": 2, "model": "n", "system_fingerprint": "fp"}
    return chat.event(value)


def values(events: bytes) -> list[Any]:
    return [json.loads(event[6:]) for event in events.split(b"\n\n") if event and event != b"data: [DONE]"]


def text(events: bytes) -> str:
    """What a reader of these events sees."""
    return "".join(
        choice["delta"].get("content") or "" for value in values(events) for choice in value.get("choices", [])
    )


# --- the request -------------------------------------------------------------------------------------------

BODY = b'{"model": "m", "messages": [ {"role":"user","content":"1\\u002b1?"} ] , "temperature": 1.0}'


@pytest.mark.parametrize(
    ("style", "said", "more"),
    [
        ("prefill", {}, {}),
        ("prefix", {"prefix": True}, {}),
        ("continue_final_message", {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
def test_text_is_given_as_the_beginning_of_the_answer(style, said, more):
    """The last message is the assistant's, without white space at its end; the client's bytes are kept."""
    body = DIALECT.continue_request(BODY, "It is \n", style)
    assert body.startswith(BODY[: BODY.index(b" ] ,")])
    asked = json.loads(body)
    assert asked["messages"][1:] == [{"role": "assistant", "content": "It is", **said}]
    assert {key: value for key, value in asked.items() if key not in json.loads(BODY)} == more


def test_text_is_given_as_a_message_with_the_wish_for_more():
    """Where no beginning is taken, the model is asked for the rest, and told the words to begin with."""
    asked = json.loads(DIALECT.continue_request(BODY, "It is", "instruction"))
    assert asked["messages"][1:] == [
        {"role": "assistant", "content": "It is"},
        {"role": "user", "content": f"{INSTRUCTION}It is"},
    ]


def test_answer_without_visible_text_is_asked_for_again():
    """There is nothing to go on from: no server takes an empty beginning."""
    assert DIALECT.continue_request(BODY, " \n", "prefix") == BODY


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({}, True),
        ({"tools": [{"type": "function"}], "response_format": {"type": "text"}, "logprobs": False}, True),
        ({"n": 2}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, False),
        ({"modalities": ["text", "audio"]}, False),
        ({"logprobs": True}, False),
        ({"messages": []}, False),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]}, False),
    ],
)
def test_which_answers_may_have_segments(fields, may):
    """One answer of plain text, whose beginning the model writes itself."""
    assert DIALECT.may_continue(DIALECT.parse_request(chat.request_body(**fields))) is may


# --- the first segment -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 400), max_size=20))
def test_first_segment_goes_on_as_it_came(cuts):
    """Whatever the cuts, no byte of an answer that ends by itself is touched or held."""
    stream = ROLE + HELLO + b": ping\n\n" + WORLD * 300 + STOP + USAGE + DONE
    first, passed, rest = reader(), b"", stream
    for size in cuts:
        passed += first.feed(rest[:size])
        rest = rest[size:]
    assert passed + first.feed(rest) == stream
    assert (first.held, first.plain, first.usage) == (b"", True, USED)
    assert first.so_far(USED).text == "hello" + " world" * 300


def test_end_at_a_limit_is_held():
    """The text goes on; the terminal event and what follows it wait, and are what came."""
    first = reader()
    assert first.feed(ROLE + HELLO + LENGTH + USAGE + DONE) == ROLE + HELLO
    assert (first.held, first.done) == (LENGTH + USAGE + DONE, True)


def test_end_at_a_limit_that_brings_text_is_held_without_it():
    """The text of a terminal event goes on at once."""
    first = reader()
    passed = first.feed(ROLE + HELLO + chat.chunk({"content": " world"}, "length") + DONE)
    assert text(passed) == "hello world"
    assert [value["choices"][0]["finish_reason"] for value in values(passed)] == [None] * 3
    assert values(first.held)[0]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert first.so_far(USED).text == "hello world"


@pytest.mark.parametrize("later", [True, False])
def test_second_end_is_held_as_well(later):
    """Some servers (OpenRouter) give a finish reason twice: both events are the client's."""
    segment = reader(begun(ROLE, HELLO) if later else None)
    segment.feed(HELLO + LENGTH + LENGTH + DONE)
    assert segment.held.count(b'"length"') == 2
    assert segment.held.endswith(DONE)


def test_end_at_a_limit_is_held_without_its_terminator():
    """A stream that ends without `[DONE]` is owed one."""
    first = reader()
    assert first.feed(ROLE + HELLO + LENGTH) == ROLE + HELLO
    assert first.end() == b""
    assert first.held == LENGTH + DONE


def test_end_at_a_limit_goes_on_where_it_is_not_to_be_held():
    """Where the client's own limit was met, nothing waits."""
    first = reader(hold_length=False)
    assert first.feed(ROLE + HELLO + LENGTH + DONE) == ROLE + HELLO + LENGTH + DONE
    assert first.held == b""


def test_error_event_is_held():
    """Another upstream may go on: only if none does, the client gets the event as it came."""
    first, error = reader(), b'data: {"error": {"message": "overloaded"}}\n\n'
    assert first.feed(ROLE + HELLO + error + WORLD) == ROLE + HELLO
    assert first.held == error
    assert first.failure is not None


def test_stream_that_breaks_off_says_so():
    """The end of a stream without a terminal event is what it was."""
    first = reader()
    first.feed(ROLE + HELLO + WORLD[:-9])
    with pytest.raises(UpstreamTruncated):
        first.end()
    assert first.so_far(USED).text == "hello"


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f"}},
        {"refusal": "No"},
        {"audio": {"id": "a"}},
        {"content": [{"type": "thinking"}]},
        {"annotations": [{"type": "url_citation"}]},
    ],
)
@pytest.mark.parametrize("later", [True, False])
def test_answer_that_is_more_than_text_is_not_plain(delta, later):
    """What cannot be begun anew in the middle is not continued, whatever segment it is in; it goes on all the same."""
    segment = reader(begun(ROLE, HELLO) if later else None)
    passed = segment.feed(HELLO + chat.chunk(delta))
    segment.so_far(USED)
    assert not segment.plain
    assert values(passed)[-1]["choices"][0]["delta"] == delta


def test_answer_of_a_shape_not_known_is_not_plain():
    """What its client makes of it cannot be told."""
    first, odd = reader(), chat.event({"choices": [{"index": "0", "delta": {"content": "hello"}}]})
    assert first.feed(ROLE + odd) == ROLE + odd
    assert not first.plain


@given(
    st.lists(
        st.one_of(
            st.sampled_from([HELLO, WORLD, WORLD, WORLD, HELLO + WORLD, STOP, LENGTH, USAGE, DONE]),
            st.sampled_from(
                [ROLE, b": ping\n\n", chat.chunk({"content": "a"}, "length"), chat.chunk({"refusal": "No"})]
            ),
            st.integers(1, len(WORLD) - 1).map(lambda cut: WORLD[:cut]),
            st.integers(1, len(WORLD) - 1).map(lambda cut: WORLD[cut:]),
        ),
        max_size=12,
    )
)
@example([HELLO, WORLD, LENGTH, WORLD])  # text behind the end stays there
def test_segment_that_knows_events_does_as_one_that_reads_each(reads):
    """What goes on, what is held, and what would be continued: all is the same, in the same order."""
    knowing, reading = reader(), reader()
    reading._misses = _MAX_MISSES
    for data in reads:
        assert knowing.feed(data) == reading.feed(data)
        assert (knowing.held, knowing.plain, knowing.done) == (reading.held, reading.plain, reading.done)
    assert knowing.so_far(USED) == reading.so_far(USED)


def test_answer_too_long_to_go_on_is_not_kept():
    """Memory does not grow with a stream that no ceiling would continue; all of it still goes on."""
    first = reader()
    piece = chat.chunk({"content": "x" * 30_000})
    assert first.feed(ROLE) == ROLE
    assert all(first.feed(piece) == piece for _ in range(MAX_KEPT_BYTES // 30_000 + 2))
    assert not first.plain
    assert first.so_far(Usage(1, 1)).text == ""


def test_deltas_that_are_empty_or_reasoning_are_plain():
    """Providers fill deltas with nulls; reasoning is not part of the text."""
    so_far = begun(ROLE, chat.chunk({"reasoning_content": "hm", "tool_calls": None, "refusal": None}), HELLO)
    assert so_far.text == "hello"


# --- later segments ----------------------------------------------------------------------------------------

RUN = [renamed(event) for event in (ROLE, WORLD, chat.chunk({"role": "assistant", "content": "!"}), STOP, USAGE)]


@given(st.lists(st.integers(1, 400), max_size=20))
def test_later_segment_bears_the_first_ones_name(cuts):
    """Its chunks have the first one's id, and no role; its own role chunk, being empty, is not told."""
    later, passed, rest = reader(begun(ROLE, HELLO)), b"", b"".join(RUN) + DONE
    for size in cuts:
        passed += later.feed(rest[:size])
        rest = rest[size:]
    passed += later.feed(rest)
    chunks = values(passed)
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {("c1", 1, "m")}
    assert not any("system_fingerprint" in chunk for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [{"content": " world"}, {"content": "!"}, {}]
    assert passed.endswith(DONE)
    assert passed.count(DONE) == 1
    assert later.so_far(USED).text == "hello world!"


def test_later_usage_is_that_of_all_segments():
    """One prompt and everything written; what the continuation read again is told apart."""
    later = reader(begun(ROLE, HELLO))
    told = values(later.feed(b"".join(RUN)))[-1]["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == (7, 4, 11)
    assert later.usage == USED
    assert later.so_far(USED).usage == Usage(7, 4, continuation_prompt_tokens=7)


def test_hidden_usage_stays_hidden():
    """A client that did not ask for usage gets none of any segment."""
    later = reader(begun(ROLE, HELLO), hide_usage=True)
    assert not any(value.get("usage") for value in values(later.feed(b"".join(RUN) + DONE)))


def test_later_segment_may_meet_the_limit_too():
    """Its end is held as the first one's, under the first one's name and with all usage."""
    later = reader(begun(ROLE, HELLO))
    assert text(later.feed(RUN[1] + renamed(LENGTH) + RUN[-1] + DONE)) == " world"
    end, usage = values(later.held)
    assert (end["id"], end["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"]) == ("c1", "length", 4)
    assert later.held.endswith(DONE)


def test_reasoning_about_how_to_go_on_is_not_told():
    """A model that thinks again thinks of the seam, which is no business of the client's."""
    later = reader(begun(ROLE, HELLO))
    assert later.feed(chat.chunk({"reasoning_content": "The user wants me to continue"})) == b""


def test_reasoning_is_told_where_the_answer_has_not_begun():
    """A stream that broke off while it reasoned is asked for from the start."""
    later = reader(begun(ROLE, chat.chunk({"reasoning_content": "hm"})))
    assert b"so" in later.feed(chat.chunk({"reasoning_content": "so"}))


@pytest.mark.parametrize("going_on", [None, ""])
def test_repeated_text_is_dropped(going_on):
    """What the model says again is not told again, however its tokens fall; an empty finish reason ends nothing."""
    later = reader(begun(ROLE, chat.chunk({"content": "It is very impor"})), style="instruction")
    pieces = (chat.chunk({"content": piece}, going_on) for piece in ("Sure: it", " is very", " important"))
    passed = b"".join(map(later.feed, pieces))
    assert text(passed + later.feed(STOP)) == "tant"


@pytest.mark.parametrize("end", [[STOP], [DONE]])
def test_text_that_waits_at_the_seam_is_told_at_the_end(end):
    """A continuation shorter than what the seam needs to be found."""
    later = reader(begun(ROLE, chat.chunk({"content": "It is."})), style="instruction")
    assert later.feed(chat.chunk({"content": "No"})) == b""
    assert text(later.feed(b"".join(end))) == " No"


def test_comments_and_unknown_events_go_on():
    """Pings keep a connection alive, and a shape not known here is the client's to judge."""
    later, odd = reader(begun(ROLE, HELLO)), b'data: {"choices": 7}\n\n'
    assert later.feed(b": ping\n\n" + odd) == b": ping\n\n" + odd


DELTAS: list[dict[str, Any]] = [
    {"content": "hello"},
    {"content": 'n\u00fc\n\n"', "tool_calls": None, "refusal": None},
    {"content": "data: ", "surplus": None},
    {"role": "assistant", "content": "", "tool_calls": [], "refusal": ""},
    {"content": None, "reasoning_content": "hm", "reasoning_details": [{}]},
    {"content": "a", "reasoning": "hm"},
    {},
]
"""What is plain text, in various shapes."""
MORE: list[dict[str, Any]] = [
    {"content": [{"type": "text", "text": "a"}]},
    {"content": "a", "tool_calls": [{"index": 0}]},
    {"content": "a", "surplus": 1},
    {"refusal": "No"},
]
"""What is more."""
BETWEEN = [b": ping\n\n", chat.event({"choices": []}), b"event: x\ndata: {}\n\n"]
EVENTS = st.one_of(
    st.sampled_from(DELTAS).map(chat.chunk),
    st.sampled_from(DELTAS).map(chat.chunk).map(lambda event: event.replace(b"\n\n", b"\r\n\r\n")),
    st.sampled_from(BETWEEN),
)


@given(st.lists(EVENTS, max_size=300), st.sampled_from([None, *MORE]), st.data())
def test_text_is_kept_whatever_the_events_look_like(events, more, data):
    """However events are read, one by one or together, what is known in the end is what each by itself says."""
    if more is not None:
        events.insert(data.draw(st.integers(0, len(events))), chat.chunk(more))
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    whole, alone = reader(), DIALECT.stream_reader(choices=1, hide_usage=False)
    passed = b"".join(whole.feed(stream[start:end]) for start, end in itertools.pairwise([0, *cuts, len(stream)]))
    assert passed + whole.feed(STOP) == stream + STOP
    for event in [*events, STOP]:
        alone.feed(event)
    assert (whole.output_chars, whole.reasoning_chars) == (alone.output_chars, alone.reasoning_chars)
    so_far = whole.so_far(USED)
    assert whole.plain == (more is None)
    if more is None:
        said = [json.loads(event[6:])["choices"] for event in events if event.startswith(b"data")]
        assert so_far.text == "".join(choice["delta"].get("content") or "" for choices in said for choice in choices)
    if any(b'"index"' in event for event in events):
        assert {name: json.loads(bytes(value)) for name, value in so_far.mark.items()} == {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
        }
