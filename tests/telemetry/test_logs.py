from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from relay.errors import UpstreamTruncated
from relay.telemetry import logs
from tests.telemetry.logging_kept import logging_kept

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give logging back as it was."""
    with logging_kept():
        yield


def configured(**changes: Any) -> io.StringIO:
    stream = io.StringIO()
    settings: dict[str, Any] = {"level": "info", "style": "json", "colour": False} | changes
    logs.configure(stream, **settings)
    return stream


def test_a_message_is_one_json_line_with_its_fields() -> None:
    """The event's name and facts are fields of the line, beside the message for people."""
    stream = configured()
    logging.getLogger("relay.x").info(
        "policy loaded", extra={"event": "policy_loaded", "fields": {"version": "abc", "n": 3}}
    )
    event = json.loads(stream.getvalue())
    assert event.pop("ts").endswith("Z")
    assert isinstance(event.pop("pid"), int)
    assert event == {
        "level": "info",
        "event": "policy_loaded",
        "logger": "relay.x",
        "message": "policy loaded",
        "version": "abc",
        "n": 3,
    }


@pytest.mark.parametrize(
    ("level", "said"),
    [(logging.CRITICAL, "error"), (logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.DEBUG, "debug")],
)
def test_levels_have_the_relays_names(level: int, said: str) -> None:
    """The four levels of request lines are the only ones."""
    stream = configured(level="debug")
    logging.getLogger("relay").log(level, "x")
    assert json.loads(stream.getvalue())["level"] == said


def test_quieter_messages_are_left_out() -> None:
    """The level holds for the relay; libraries that chat are heard from warning on."""
    stream = configured(level="info")
    logging.getLogger("relay").debug("no")
    logging.getLogger("uvicorn.error").info("no")
    logging.getLogger("uvicorn.error").warning("yes")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["yes"]


def failure(error: BaseException) -> str:
    """What the log says of an exception."""
    stream = configured()
    try:
        raise error
    except type(error):
        logging.getLogger("relay").exception("failed")
    exception: str = json.loads(stream.getvalue())["exception"]
    return exception


def test_an_exception_is_told_without_what_it_quotes() -> None:
    """The stack and the type are logged; the message of an error that may quote a prompt is not."""
    told = failure(ValueError("the patient's name is"))
    assert "in failure" in told
    assert told.endswith("ValueError: (message withheld: it may quote a request)")


def test_errors_that_quote_nothing_are_told_in_full() -> None:
    """The relay's own errors and those of the operating system say what was wrong."""
    assert failure(UpstreamTruncated("no terminal event")).endswith("UpstreamTruncated: no terminal event")
    assert failure(OSError(98, "Address already in use")).endswith("[Errno 98] Address already in use")


def test_causes_are_told_first() -> None:
    """An error raised from another one comes after it, each as careful as the other."""
    error = OSError("outer")
    error.__cause__ = KeyError("the prompt")
    told = failure(error)
    assert told.index("KeyError: (message withheld") < told.index("OSError: outer")
    assert "the prompt" not in told


def test_people_get_one_short_line() -> None:
    """The console shows time, level, message and fields; a stack follows below."""
    stream = configured(style="console")
    logging.getLogger("relay").warning("failed", exc_info=OSError("gone"), extra={"fields": {"file": "a.toml"}})
    first, *rest = stream.getvalue().splitlines()
    assert first[8:] == "  warning  failed  file=a.toml"
    assert rest[-1] == "OSError: gone"


def test_the_console_is_coloured_on_a_terminal() -> None:
    """A warning is yellow."""
    stream = configured(style="console", colour=True)
    logging.getLogger("relay").warning("x")
    assert "\x1b[33mwarning" in stream.getvalue()
