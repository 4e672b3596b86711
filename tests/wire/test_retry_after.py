import pytest

from relay.wire.retry_after import MAX_RETRY_AFTER_S, retry_after_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"retry-after-ms", b"1500"), (b"retry-after", b"7")], 1.5),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"-3")], None),
        ([(b"retry-after", b"99999999")], MAX_RETRY_AFTER_S),
        ([(b"retry-after", b"Fri, 31 Dec 1999 23:59:59 GMT")], None),
        (
            [(b"date", b"Fri, 31 Dec 1999 23:59:29 GMT"), (b"retry-after", b"Fri, 31 Dec 1999 23:59:59 GMT")],
            30.0,
        ),
        (
            [(b"date", b"Fri, 31 Dec 1999 23:59:59 GMT"), (b"retry-after", b"Fri, 31 Dec 1999 23:59:29 GMT")],
            None,
        ),
        ([(b"retry-after", b"\xff\xfe")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"1e999")], MAX_RETRY_AFTER_S),
    ],
)
def test_seconds(headers, seconds):
    """Seconds, milliseconds and dates are read; what makes no sense is as if it was not there."""
    assert retry_after_s(headers) == seconds
