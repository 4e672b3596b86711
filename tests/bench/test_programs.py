"""The mock upstream and the load generator: what they send, what they check, what they count."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import urllib.request

import pytest

from bench.programs import Answer, LoadFailed, Mock, build, finish_load, start_load

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

ANSWERS = [
    Answer(chunks=3),
    Answer(chunks=10),
    Answer(chunks=10, separate=True),
    Answer(chunks=5, gap_us=200, first_us=300),
    Answer(chunks=50, chunk_bytes=4000),
]


@pytest.fixture(scope="module")
def mock():
    """One for all tests here."""
    running = Mock()
    yield running
    running.stop()


def load(mock, *extra, requests=20):
    """Run the load generator against the mock."""
    return finish_load(start_load(["--port", str(mock.port), "--requests", str(requests), *extra]))


def body_of(mock, **fields):
    """One answer's body, through a client that is not ours."""
    request = urllib.request.Request(f"http://127.0.0.1:{mock.port}/v1/chat/completions", json.dumps(fields).encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


@pytest.mark.parametrize("answer", ANSWERS)
def test_streams_are_openai_streams(mock, answer):
    """A stream has the asked number of events, the role first, a finish reason last, and one [DONE]."""
    mock.set(answer)
    *events, done, rest = body_of(mock, stream=True).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    values = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
    assert len(values) == answer.chunks
    assert values[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(len(value["delta"]["content"]) == answer.chunk_bytes for value in values[1:-1])
    assert [value["finish_reason"] for value in values] == [None] * (answer.chunks - 1) + ["stop"]


def test_usage_comes_only_if_asked_for(mock):
    """Without include_usage there is no usage event, as at OpenAI."""
    mock.set(Answer())
    assert b'"usage"' not in body_of(mock, stream=True)
    assert body_of(mock, stream=True, stream_options={"include_usage": True}).count(b'"usage"') == 1


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("pace", [[], ["--rate", "2000"], ["--stall-ms", "5", "--read-rate", "10000000"]])
def test_right_answers_pass(mock, answer, pace):
    """What the mock sends has the sums it says, in closed loop, open loop and slowly read."""
    sums = mock.set(answer)
    expected = ["--expect-body", sums.stream_body_sum, "--expect-content", sums.stream_content_sum]
    report = load(mock, "--stream", *expected, *pace)
    assert (report.requests, report.errors, report.timed) == (20, 0, 20)


def test_other_bytes_are_noticed(mock):
    """A body that differs from what is expected is an error, for streams and for whole answers."""
    sums = mock.set(Answer(chunks=10))
    mock.set(Answer(chunks=11))
    report = load(mock, "--stream", "--expect-body", sums.stream_body_sum, "--expect-content", sums.stream_content_sum)
    assert report.error_kinds["wrong_body"] == report.error_kinds["wrong_content"] == 20
    assert load(mock, "--expect-body", sums.stream_body_sum).error_kinds["wrong_body"] == 20
    assert load(mock, "--expect-body", sums.json_body_sum).errors == 0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}", "status"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "early_close"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", "early_close"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\ndata: nothing\n", "wrong_done"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n" + b"data: [DONE]\n\n " * 2, "wrong_done"),
    ],
)
def test_bad_answers_are_noticed(answer, kind):
    """A bad status, an answer cut short and a missing or second [DONE] are errors of their own kind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port = str(listener.getsockname()[1])
        report = finish_load(start_load(["--port", port, "--requests", "1", "--stream"]))
        thread.join()
    assert report.error_kinds == {**dict.fromkeys(report.error_kinds, 0), kind: 1}


@pytest.mark.parametrize("size", [512, 1024, 32 * 1024, 1024 * 1024])
def test_no_two_prompts_are_alike(size):
    """Requests are valid JSON of the asked size, and each is different."""
    bodies = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for _ in range(5):
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as stream:
                    while stream.readline() != b"\r\n":
                        pass
                    bodies.append(stream.read(size))
                    connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")

        thread = threading.Thread(target=serve)
        thread.start()
        arguments = ["--port", str(listener.getsockname()[1]), "--connections", "1", "--prompt-bytes", str(size)]
        report = finish_load(start_load([*arguments, "--requests", "5"]))
        thread.join()
    assert report.errors == 0
    assert {len(body) for body in bodies} == {size}
    assert len({json.loads(body)["messages"][1]["content"] for body in bodies}) == 5


def test_an_open_loop_counts_waiting(mock):
    """Requests that find all connections busy count from when they should have been sent."""
    mock.set(Answer(first_us=10_000))
    report = load(mock, "--connections", "1", "--rate", "100000")
    assert report.total_us.max >= 20 * 10_000 - 20 * 1e6 / 100_000
    closed = load(mock, "--connections", "1")
    assert closed.total_us.mean < report.total_us.mean


def test_connections_are_counted(mock):
    """The mock tells how many connections carried requests, so that a server that does not reuse them is seen."""
    mock.set(Answer())
    before = mock.stats()
    load(mock, "--connections", "4", requests=40)
    after = mock.stats()
    assert (after.connections - before.connections, after.requests - before.requests) == (4, 40)


def test_streams_left_early_are_counted(mock):
    """A client that goes in the middle of a stream is counted."""
    mock.set(Answer(chunks=1000, gap_us=1000))
    before = mock.stats().left_early
    with socket.create_connection(("127.0.0.1", mock.port)) as client:
        client.sendall(b'POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 15\r\n\r\n{"stream":true}')
        assert client.recv(1024)
    while mock.stats().left_early == before:
        pass
    assert mock.stats().streaming == 0


def test_a_load_without_a_server_fails():
    """No server is a failure, not a report."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LoadFailed, match="cannot connect"):
        finish_load(start_load(["--port", str(port), "--requests", "1"]))


def test_programs_are_built_once():
    """A binary newer than its sources is kept."""
    first = build("mock")
    stamp = first.stat().st_mtime_ns
    assert build("mock") == first
    assert first.stat().st_mtime_ns == stamp
