import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.dialects.openai_answers import _MAX_MISSES, _NO_TEXT, DONE_EVENT
from relay.dialects.openai_chat import OpenAIChat
from relay.errors import (
    InvalidRequest,
    LimitExceeded,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTruncated,
    may_retry,
)
from relay.messages import Reasoning, Shape, Usage
from relay.wire.sse import event_data, split_events

CHAT = OpenAIChat()


def body(**fields: object) -> bytes:
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def encoded(raw: bytes, **how: Any) -> bytes:
    defaults: dict[str, Any] = {"model": "auto", "max_tokens_field": None, "ask_usage": True}
    return CHAT.encode_request(CHAT.parse_request(raw), **{**defaults, **how})


def event(choices: list[object], **fields: object) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": choices, **fields}).encode()


def delta(index: int = 0, finish: str | None = None, **fields: object) -> dict[str, object]:
    return {"index": index, "delta": fields, "finish_reason": finish}


ROLE = event([delta(role="assistant", content="")])
TOKEN = event([delta(content="Hi")])
STOP = event([delta(finish="stop")])
USAGE = event([], usage={"prompt_tokens": 3, "completion_tokens": 2})


class TestRequests:
    def test_what_is_read(self):
        """Model, stream, limit, choices and messages are read; null is as if absent."""
        request = CHAT.parse_request(body(stream=True, n=2, max_tokens=5, max_completion_tokens=None))
        assert (request.model, request.stream, request.choices, len(request.turns)) == ("auto", True, 2, 1)
        assert request.max_tokens == 5
        assert not request.wants_usage
        assert CHAT.parse_request(body(max_tokens=5, max_completion_tokens=6)).max_tokens == 6

    @pytest.mark.parametrize(
        ("raw", "param"),
        [
            (b"", None),
            (b"[]", None),
            (b'{"model":"a"', None),
            (b"\xff", None),
            (b"[" * 100_000, None),
            (b'{"messages":[]}', "model"),
            (b'{"model":"a"}', "messages"),
            (b'{"model":1,"messages":[]}', "model"),
            (b'{"model":"a","messages":{}}', "messages"),
            (b'{"model":"a","messages":[],"stream":"yes"}', "stream"),
            (b'{"model":"a","messages":[],"max_tokens":1.5}', "max_tokens"),
            (b'{"model":"a","messages":[],"stream_options":3}', "stream_options"),
        ],
    )
    def test_what_is_refused(self, raw, param):
        """A body that is no chat request is refused, naming the field if one is at fault."""
        with pytest.raises(InvalidRequest) as caught:
            CHAT.parse_request(raw)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("raw", "field", "expected"),
        [
            (body(), None, {"max_tokens": 9}),
            (body(), "max_completion_tokens", {"max_completion_tokens": 9}),
            (body(max_completion_tokens=50), None, {"max_completion_tokens": 9}),
            (body(max_tokens=50), "max_completion_tokens", {"max_completion_tokens": 9}),
            (body(max_tokens=None), None, {"max_tokens": 9}),
        ],
    )
    def test_a_limit_is_set(self, raw, field, expected):
        """Under the name that the upstream wants, else the client's, else max_tokens; the client's own is replaced."""
        sent = json.loads(encoded(raw, max_tokens_field=field, shape=Shape(limit=9)))
        assert {name: value for name, value in sent.items() if name not in ("model", "messages")} == expected

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            (Shape(effort="low"), {"reasoning_effort": "low"}),
            (
                Shape(effort="low", effort_field="thinking", thinking_tokens=7),
                {"thinking": {"type": "enabled", "budget_tokens": 7}},
            ),
            (
                Shape(effort="low", effort_field="thinking_config", thinking_tokens=7),
                {"extra_body": {"google": {"thinking_config": {"thinking_budget": 7}}}},
            ),
            (Shape(verbosity="high"), {"verbosity": "high"}),
        ],
    )
    def test_effort_and_verbosity_are_set(self, shape, expected):
        """Each provider's own field for it is cut in; nothing else changes."""
        raw = body(temperature=1.0)
        assert encoded(raw, shape=shape) == raw[:-1] + b"," + json.dumps(expected, separators=(",", ":")).encode()[1:]
        assert encoded(raw, shape=Shape()) == raw

    def test_a_clients_verbosity_stays(self):
        """What the client said is not overruled."""
        raw = body(verbosity="low")
        assert encoded(raw, shape=Shape(verbosity="high")) == raw

    @pytest.mark.parametrize(
        ("messages", "expected"),
        [
            ([], [{"role": "system", "content": "Short."}]),
            ([{"role": "user", "content": "hi"}], [{"role": "system", "content": "Short."}]),
            ([{"role": "system", "content": 'a "b"'}], [{"role": "system", "content": 'a "b"\n\nShort.'}]),
            (
                [{"role": "developer", "content": [{"type": "text", "text": "a"}], "name": "x"}],
                [
                    {
                        "role": "developer",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "Short."}],
                        "name": "x",
                    }
                ],
            ),
            ([{"role": "system", "content": None}], [{"role": "system", "content": "Short."}]),
            ([3], [{"role": "system", "content": "Short."}]),
        ],
    )
    def test_steering_ends_the_system_prompt(self, messages, expected):
        """A text goes behind the system prompt, or becomes one; every other message stays as it is."""
        steered = json.loads(encoded(body(messages=messages), shape=Shape(steering="Short.")))["messages"]
        assert steered[0] == expected[0]
        assert steered[-len(messages) or len(steered) :] in (messages, expected)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, None),
            ({"reasoning_effort": None}, None),
            ({"reasoning_effort": "xhigh"}, Reasoning("xhigh")),
            ({"reasoning": {"effort": "low", "max_tokens": 9}}, Reasoning("low", 9)),
            ({"reasoning": {"exclude": True}}, None),
            ({"thinking": {"type": "enabled", "budget_tokens": 9}}, Reasoning(None, 9)),
            ({"thinking": {"type": "disabled"}}, Reasoning("none")),
            ({"thinking": "yes"}, Reasoning("yes")),
            ({"thinking": 3}, None),
            ({"extra_body": {"google": {"thinking_config": {"thinking_budget": 9}}}}, Reasoning(None, 9)),
            ({"extra_body": {"google": {"thinking_config": {"thinking_level": "HIGH"}}}}, Reasoning("high")),
            ({"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}, Reasoning("none")),
            ({"extra_body": {"google": {}}}, None),
        ],
    )
    def test_what_a_client_says_of_reasoning(self, fields, expected):
        """Effort and tokens are read from every provider's own field."""
        assert CHAT.reasoning(CHAT.parse_request(body(**fields))) == expected

    def test_where_an_effort_may_be_set(self):
        """Not where the client spoke, and as Anthropic's thinking not beside what that refuses."""
        takes = {
            (name, field): CHAT.takes_effort(CHAT.parse_request(body(**fields)), field)
            for name, fields in {
                "plain": dict[str, Any](),
                "null": {"reasoning_effort": None},
                "said": {"reasoning": {"effort": "low"}},
                "cool": {"temperature": 0},
            }.items()
            for field in ("reasoning_effort", "thinking")
        }
        assert {key for key, value in takes.items() if not value} == {
            ("said", "reasoning_effort"),
            ("said", "thinking"),
            ("cool", "thinking"),
        }

    def test_what_can_be_continued(self):
        """One text can; several answers, tools, JSON and sound cannot."""
        cases: dict[bool, list[dict[str, object]]] = {
            True: [{}, {"tools": []}, {"response_format": {"type": "text"}}, {"max_tokens": 3}],
            False: [
                {"n": 2},
                {"tools": [{"type": "function"}]},
                {"functions": [{}]},
                {"audio": {"voice": "a"}},
                {"response_format": {"type": "json_object"}},
            ],
        }
        for expected, requests in cases.items():
            for fields in requests:
                assert CHAT.extendable(CHAT.parse_request(body(**fields))) is expected, fields

    def test_texts_are_what_a_model_reads(self):
        """Contents, tool calls and tools, without data; pictures are counted."""
        messages = [
            {"role": "system", "content": "a\nb"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "c"}, {"type": "image_url", "image_url": {"url": "data:"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [1]},
            3,
        ]
        gist = CHAT.gist(CHAT.parse_request(body(messages=messages, tools=[2])))
        assert b" ".join(gist.texts).split() == [b"a\\nb", b"c", b"[1]", b"[2]"]
        assert gist.images == 1

    def test_an_answer_for_the_same_model_needs_no_change(self):
        """Where nothing has to change, the very bytes go on."""
        raw = body(n=1)
        assert encoded(raw) is raw

    def test_the_model_is_the_upstreams(self):
        """Only the model's name differs."""
        raw = body(temperature=1.0)
        assert encoded(raw, model="gpt") == raw.replace(b'"auto"', b'"gpt"')

    def test_streams_are_asked_for_usage(self):
        """`include_usage` is added unless the client asks itself, or the server takes no stream options."""
        assert json.loads(encoded(body(stream=True)))["stream_options"] == {"include_usage": True}
        options = {"include_obfuscation": False, "include_usage": False}
        asked = json.loads(encoded(body(stream=True, stream_options=options)))["stream_options"]
        assert asked == {"include_obfuscation": False, "include_usage": True}
        assert json.loads(encoded(body(stream=True, stream_options=None)))["stream_options"] == {"include_usage": True}
        for raw in (body(stream=False), body(stream=True, stream_options={"include_usage": True})):
            assert encoded(raw) is raw
        assert encoded(raw := body(stream=True), ask_usage=False) is raw

    def test_the_limit_has_the_upstreams_name(self):
        """The limit is renamed to what the upstream takes, unless the client uses that name already."""
        renamed = json.loads(encoded(body(max_tokens=5), max_tokens_field="max_completion_tokens"))
        assert renamed["max_completion_tokens"] == 5
        assert "max_tokens" not in renamed
        assert encoded(raw := body(max_tokens=5), max_tokens_field="max_tokens") is raw


class TestStreams:
    def reader(self, *, choices: int = 1, hide_usage: bool = True):
        return CHAT.stream_reader(choices=choices, hide_usage=hide_usage)

    def test_a_whole_stream(self):
        """Bytes go on as they came, less the usage chunk nobody asked for; everything is read from them."""
        reader = self.reader()
        assert reader.feed(ROLE) == ROLE
        assert reader.output_chars == 0
        assert reader.feed(TOKEN + TOKEN) == TOKEN + TOKEN
        assert (reader.output_chars, reader.finished) == (4, False)
        assert reader.feed(STOP + USAGE + DONE_EVENT) == STOP + DONE_EVENT
        assert reader.finished
        assert reader.done
        assert reader.end() == b""
        assert (reader.usage, reader.finish_reason) == (Usage(3, 2), "stop")

    def test_usage_is_shown_to_who_asked(self):
        """A client that asked for the usage chunk gets it; usage beside choices is never hidden."""
        assert self.reader(hide_usage=False).feed(USAGE) == USAGE
        running = event([delta(content="a")], usage={"prompt_tokens": 1, "completion_tokens": 1})
        assert self.reader().feed(running) == running

    def test_a_missing_terminator_is_added(self):
        """A stream that ended without `[DONE]` gets it."""
        reader = self.reader()
        reader.feed(TOKEN + STOP)
        assert reader.end() == DONE_EVENT
        assert reader.end() == b""

    @pytest.mark.parametrize("stream", [b"", ROLE, TOKEN, TOKEN + USAGE, DONE_EVENT, TOKEN + STOP[:-10]])
    def test_a_dead_upstream_is_no_end(self, stream):
        """Without a terminal event the end is a truncation, whatever else came."""
        reader = self.reader()
        assert b"[DONE]" not in reader.feed(stream)
        with pytest.raises(UpstreamTruncated):
            reader.end()

    def test_an_empty_finish_reason_is_none(self):
        """Some servers send an empty one with every chunk: nothing has ended with it, nor does an answer have one."""
        reader = self.reader()
        reader.feed(event([delta(content="a", finish="")]) * 2)
        assert (reader.finished, reader.finish_reason) == (False, None)
        with pytest.raises(UpstreamTruncated):
            reader.end()
        assert CHAT.parse_answer(b'{"choices":[{"index":0,"message":{},"finish_reason":""}]}').finish_reason is None

    def test_done_behind_output_is_an_end(self):
        """A provider that sends `[DONE]` but no finish reason is believed."""
        reader = self.reader()
        assert reader.feed(TOKEN + DONE_EVENT) == TOKEN + DONE_EVENT
        assert reader.finished
        assert reader.finish_reason is None

    def test_every_choice_must_end(self):
        """With two answers asked for, one finish reason is not enough, nor is the same one twice."""
        reader = self.reader(choices=2)
        reader.feed(event([delta(0, content="a"), delta(1, content="b")]) + event([delta(0, finish="stop")]) * 2)
        assert not reader.finished
        reader.feed(event([delta(1, finish="length")]))
        assert reader.finished

    def test_nothing_follows_the_terminator(self):
        """What an upstream sends behind `[DONE]` stays behind."""
        reader = self.reader()
        assert reader.feed(TOKEN + STOP + DONE_EVENT + TOKEN + DONE_EVENT) == TOKEN + STOP + DONE_EVENT
        assert reader.feed(TOKEN) == b""

    def test_an_error_event_ends_it(self):
        """An error event is passed on as it came, is read, and is the last."""
        reader = self.reader()
        error = b'event: error\ndata: {"error":{"message":"Overloaded","type":"overloaded_error","code":529}}\n\n'
        assert reader.feed(TOKEN + error + TOKEN + DONE_EVENT) == TOKEN + error
        assert isinstance(reader.failure, UpstreamRefused)
        assert (reader.failure.message, reader.failure.upstream_code) == ("Overloaded", "529")
        assert reader.feed(DONE_EVENT) == b""

    def test_null_error_is_none(self):
        """`"error": null` is no error."""
        reader = self.reader()
        reader.feed(event([delta(content="a")], error=None))
        assert reader.failure is None

    def test_broken_json_ends_it(self):
        """An event that is not JSON is not passed on, and ends the stream; what came before it goes on."""
        reader = self.reader()
        assert reader.feed(TOKEN + b"data: {nope\n\n" + TOKEN) == TOKEN
        assert isinstance(reader.failure, UpstreamProtocolError)

    @pytest.mark.parametrize("torn", [b'data: {"x":[1\n\ndata: 2]}\n\n', b"data: {},{}\n\n" + TOKEN])
    def test_what_is_json_together_is_not_json_apart(self, torn):
        """Events are read together only where that says the same as reading each."""
        reader = self.reader()
        assert reader.feed(TOKEN + torn) == TOKEN
        assert isinstance(reader.failure, UpstreamProtocolError)

    def test_unknown_shapes_go_on(self):
        """JSON of an unknown shape, comments and unknown fields are passed on."""
        odd = b'data: {"choices":"none"}\n\n: ping\n\nnonsense\n\ndata: {"x":1}\n\n'
        reader = self.reader()
        assert reader.feed(odd) == odd
        assert reader.failure is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"content": "a"},
            {"content": [{"type": "thinking"}]},
            {"reasoning_content": "a"},
            {"reasoning": "a"},
            {"refusal": "a"},
            {"tool_calls": [{"index": 0}]},
            {"function_call": {"name": "f"}},
            {"audio": {"data": "x"}},
            {"images": [{"type": "image_url"}]},
        ],
    )
    def test_what_is_output(self, fields):
        """Text, reasoning, refusals, tools and media are output."""
        reader = self.reader()
        reader.feed(event([delta(**fields)]))
        assert reader.output_chars > 0

    @pytest.mark.parametrize(
        "fields", [{}, {"role": "assistant"}, {"content": ""}, {"content": None, "tool_calls": []}]
    )
    def test_what_is_not_output(self, fields):
        """Roles and empty deltas are not."""
        reader = self.reader()
        reader.feed(event([delta(**fields)]))
        assert reader.output_chars == 0

    @pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n"])
    def test_a_last_event_without_its_blank_line(self, ending):
        """`[DONE]` counts even if the upstream closes right behind it, and is made a whole event."""
        reader = self.reader()
        out = reader.feed(TOKEN + STOP + b"data: [DONE]" + ending) + reader.end()
        assert out.startswith(TOKEN + STOP + b"data: [DONE]" + ending)
        assert out.endswith(b"\n\n")
        assert out.count(b"[DONE]") == 1

    @given(st.lists(st.integers(0, 400), max_size=8))
    def test_cuts_change_nothing(self, cuts):
        """However the bytes are cut, the client gets the same and the same is read."""
        stream = ROLE + TOKEN + b": ping\r\n\r\n" + TOKEN + STOP + USAGE + DONE_EVENT
        whole = self.reader()
        expected = whole.feed(stream)
        reader = self.reader()
        out = b""
        places = sorted(min(place, len(stream)) for place in cuts)
        for start, end in zip([0, *places], [*places, len(stream)], strict=True):
            out += reader.feed(stream[start:end])
        assert out + reader.end() == expected
        assert reader.usage == whole.usage
        assert reader.output_chars == whole.output_chars

    @pytest.mark.parametrize("fields", [{}, {"id": "a", "usage": None, "obfuscation": "b"}, {"error": None}])
    def test_events_with_other_text_are_known_by_the_bytes_around_it(self, fields):
        """The JSON of events that differ in nothing but their text is not read; their text is."""
        reader = self.reader()
        texts = ["Hi", " there", 'n\u00fc "\\', "", "\n"]
        events = [event([delta(content=text)], **fields) for text in texts]
        reader.feed(events[0])
        reader.feed(events[0])  # the first goes on at once
        reader.feed(ROLE + events[0])  # what comes between does not make it forget
        reader._framer = None  # whoever reads an event asks it first
        assert [reader.feed(event) for event in events[1:]] == events[1:]
        assert reader.output_chars == len("".join(texts)) + 4

    @pytest.mark.parametrize(
        "odd",
        [
            event([delta(content="Hi", finish="stop")]),
            event([delta(content="Hi", tool_calls=[{"index": 0}])]),
            event([delta(content="Hi", reasoning="Hi")]),
            event([delta(content="Hi", surplus="Hi")]),
            event([delta(content="Hi"), delta(1, content="Hi")]),
            event([delta(content="Hi")], usage={"completion_tokens": 1}),
            event([delta(content="Hi")], error="Hi"),
            b'data: {"choices":[{"delta":{"content":"\\u0048i"}}]}\n\n',
            b'data: {"content":"Hi","choices":[{"delta":{"content":"Hi"}}]}\n\n',
        ],
    )
    def test_no_event_is_known_by_one_that_tells_more(self, odd):
        """What ends, counts, calls or fails is read each time, and so is what cannot be told from its text."""
        reader = self.reader()
        reader.feed(TOKEN)
        reader.feed(odd)
        assert reader._known is _NO_TEXT

    def test_events_that_tell_the_time_are_read_each_by_itself(self):
        """Where the bytes around the text change all the time, they are not learned for ever."""
        reader = self.reader()
        for created in range(9):
            reader.feed(event([delta(content="Hi")], created=created))
        assert reader.output_chars == 18
        assert reader._misses == _MAX_MISSES

    @given(
        st.lists(
            st.one_of(
                st.text(max_size=6).map(lambda text: event([delta(content=text)])),
                st.text('"\\\n,{}u0', max_size=6).map(lambda middle: TOKEN.replace(b"Hi", middle.encode())),
                st.binary(max_size=3).map(lambda middle: TOKEN.replace(b'"Hi"', middle)),
                st.integers(1, len(TOKEN) - 1).map(lambda cut: TOKEN[:cut]),
                st.integers(1, len(TOKEN) - 1).map(lambda cut: TOKEN[cut:]),
                st.sampled_from([TOKEN, TOKEN, TOKEN + TOKEN, ROLE, STOP, USAGE, DONE_EVENT, b": ping\n\n"]),
            ),
            max_size=12,
        )
    )
    def test_what_is_known_by_its_surroundings_says_what_it_would_if_read(self, reads):
        """Read after read, whatever they bring: a reader that knows events by others does as one that reads each."""
        knowing, reading = self.reader(), self.reader()
        reading._misses = _MAX_MISSES
        for data in reads:
            assert knowing.feed(data) == reading.feed(data)
            told = ("output_chars", "reasoning_chars", "finish_reason", "finished", "done", "usage")
            assert [getattr(knowing, name) for name in told] == [getattr(reading, name) for name in told]
            assert type(knowing.failure) is type(reading.failure)

    @given(st.lists(st.binary(max_size=40) | st.sampled_from([TOKEN, STOP, USAGE, DONE_EVENT, b"data: {", b"\n\n"])))
    def test_no_bytes_make_it_raise(self, pieces):
        """Whatever an upstream sends, the reader answers with bytes or a failure of the tree, and one `[DONE]`."""
        reader = self.reader()
        out = b"".join(map(reader.feed, pieces))
        try:
            out += reader.end()
        except (UpstreamTruncated, UpstreamRefused):
            assert reader.failure is not None or not reader.finished
        assert [event_data(event) for event in split_events(out)].count(b"[DONE]") <= 1


class TestUsage:
    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2)),
            ({"prompt_tokens": 3, "completion_tokens": None}, Usage(3, 0)),
            (
                {
                    "prompt_tokens": 9,
                    "completion_tokens": 8,
                    "prompt_tokens_details": {"cached_tokens": 7},
                    "completion_tokens_details": {"reasoning_tokens": 6},
                },
                Usage(9, 8, 7, 6),
            ),
            ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4}, Usage(9, 1, 4)),
            ({"prompt_tokens_details": None, "completion_tokens_details": {}}, Usage(0, 0)),
            (None, None),
            ("many", None),
        ],
    )
    def test_shapes(self, usage, expected):
        """Counts are read where providers put them; what is not a count is not there."""
        answer = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": usage})
        read = CHAT.parse_answer(answer.encode())
        assert (read.usage, read.finish_reason) == (expected, "stop")
        assert read.output_chars == (0 if expected else 2)


class TestErrors:
    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b'{"error":{"message":"Slow down","type":"t","param":"p","code":"c"}}', "Slow down"),
            (b'{"error":"Slow down"}', "Slow down"),
            (b'{"message":"Slow down"}', "Slow down"),
            (b'{"detail":"Slow down"}', "Slow down"),
            (b'{"error":{"message":7}}', "The upstream answered with status 429."),
            (b"<html>", "The upstream answered with status 429."),
            (b"", "The upstream answered with status 429."),
        ],
    )
    def test_shapes(self, raw, message):
        """A message is found in every shape that servers use; where there is none, the status is said."""
        error = CHAT.parse_error(429, [(b"retry-after", b"2")], raw)
        assert (error.message, error.upstream_status, error.retry_after_s) == (message, 429, 2.0)

    def test_credentials_are_not_repeated(self):
        """What an upstream says of the relay's key is not passed on, and is no 401 of the client's."""
        error = CHAT.parse_error(401, [], b'{"error":{"message":"Incorrect API key provided: sk-123"}}')
        assert "sk-123" not in CHAT.encode_error(error).decode()
        assert error.http_status == 502

    def test_the_clients_own_fault_is_passed_on(self):
        """A 400 keeps status, message, type, param and code."""
        inner = {"message": "Too long", "type": "invalid_request_error", "param": "messages", "code": "too_long"}
        error = CHAT.parse_error(400, [], json.dumps({"error": inner}).encode())
        assert error.http_status == 400
        assert not may_retry(error)
        assert json.loads(CHAT.encode_error(error)) == {"error": inner}

    def test_an_answer_that_is_an_error(self):
        """A 200 whose body is an error is one, and what is not JSON is no answer."""
        with pytest.raises(UpstreamRefused, match="busy"):
            CHAT.parse_answer(b'{"error":{"message":"busy"}}')
        with pytest.raises(UpstreamProtocolError):
            CHAT.parse_answer(b"<html>")

    def test_errors_as_events(self):
        """In a stream an error is one data event of the same shape."""
        error = LimitExceeded("Used up.", retry_after_s=1)
        assert CHAT.encode_error_event(error) == b"data: " + CHAT.encode_error(error) + b"\n\n"
        assert json.loads(CHAT.encode_error(error))["error"]["code"] == "rate_limit_exceeded"


TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, set()),
        ({"tools": [TOOL]}, {"tools"}),
        ({"functions": [{"name": "f"}]}, {"tools"}),
        ({"tools": [], "reasoning_effort": None, "response_format": {"type": "json_object"}}, set()),
        ({"reasoning_effort": "low"}, {"reasoning"}),
        ({"reasoning_effort": "none"}, set()),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, {"json_schema"}),
        ({"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "mp3"}}, {"audio"}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}]}, {"vision"}),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, {"audio"}),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {"prefill"}),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}, set()),
        ({"messages": [{"role": "user", "content": json.dumps({"messages": [IMAGE], "role": "assistant"})}]}, set()),
    ],
)
def test_features_that_a_request_uses(fields, features):
    """Told from fields and from the types of parts; what a prompt's text says of them does not count."""
    assert CHAT.features(CHAT.parse_request(body(**fields))) == features


def test_prompts_with_the_same_beginning_are_told():
    """The next turn of a conversation begins as the last one did; with other tools it does not."""
    turns = [{"role": "user", "content": "a" * 9000}, {"role": "user", "content": "b"}]
    first, second = (CHAT.prefixes(CHAT.parse_request(body(messages=turns[:n]))) for n in (1, 2))
    assert [tokens for _, tokens in first] == [2048, 1024]
    assert first == second
    assert not set(CHAT.prefixes(CHAT.parse_request(body(messages=turns, tools=[TOOL])))) & set(first)
    assert CHAT.prefixes(CHAT.parse_request(body())) == ()


@pytest.mark.parametrize(
    ("message", "code", "status", "too_long"),
    [
        ("This model's maximum context length is 8192 tokens. However, you requested 8554.", None, 400, True),
        ("Your input exceeds the context window of this model.", "context_length_exceeded", 400, True),
        ("prompt is too long: 202095 tokens > 200000 maximum", None, 400, True),
        ("input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000", None, 400, True),
        ("The model returned the following errors: Input Tokens Exceeded: Number of input tokens", None, 400, True),
        ("The input token count (1200000) exceeds the maximum number of tokens allowed", None, 400, True),
        ("the request exceeds the available context size, try increasing it", None, 400, True),
        ("Unsupported value: 'temperature'", None, 400, False),
        ("You have exceeded your context length", None, 429, False),
    ],
)
def test_prompts_that_are_too_long_are_recognised(message, code, status, too_long):
    """Providers say it in their own words; only a status that blames the request counts."""
    assert UpstreamRefused(message, upstream_code=code, upstream_status=status).too_long == too_long
