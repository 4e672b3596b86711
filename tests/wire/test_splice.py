import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.splice import _search, _walk, depth, is_deeper, read_object, splice

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=5)
SPACE = st.text(" \t\r\n", max_size=2)


def cut(text: bytes, changes: dict[str, bytes], renames: dict[str, str] | None = None) -> bytes:
    return splice(text, read_object(text), changes, renames)


def test_only_the_changed_value_differs():
    """Number formats, escapes, order and white space of all other fields stay byte for byte."""
    body = b' { "model" : "auto" ,\n "seed":12345678901234567890123, "t":1.0,"e":1e5, "u":"\\u00e9\\/" } \n'
    assert cut(body, {"model": b'"gpt"'}) == body.replace(b'"auto"', b'"gpt"')


def test_a_new_field_is_added_at_the_end():
    """A field that the body does not have comes last."""
    assert cut(b'{"a":1 }', {"b": b"2"}) == b'{"a":1,"b":2 }'
    assert cut(b"{}", {"b": b"2"}) == b'{"b":2}'


def test_a_field_is_renamed_and_keeps_its_value():
    """Only the key's text changes; together with a change, both do."""
    assert cut(b'{"max_tokens": 5.0,"a":1}', {}, {"max_tokens": "limit"}) == b'{"limit": 5.0,"a":1}'
    assert cut(b'{"max_tokens":5}', {"max_tokens": b"6"}, {"max_tokens": "limit"}) == b'{"limit":6}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","model":"b","x":1.50}', b'{"model":"new","x":1.50}'),
        (b'{"mod\\u0065l":"a","x":1.50}', b'{"model":"new","x":1.50}'),
        (b'{"x":1, "x":1,"model":"a","e":"\\u00e9"}', b'{"x":1,"model":"new","e":"\\u00e9"}'),
        (b'{"x":1, "x":1,"model":"a"}', b'{"x":1, "x":1,"model":"new"}'),
        (b'{"user":"model", "model" : "a"}', b'{"user":"model", "model" : "new"}'),
        (b'{"y":{"model":"b"}, "model":"a"}', b'{"y":{"model":"b"}, "model":"new"}'),
    ],
)
def test_irregular_keys(body, expected):
    """Keys that are doubled, escaped or also found elsewhere: the right value changes, and no value is lost."""
    assert cut(body, {"model": b'"new"'}) == expected


@given(OBJECTS, st.dictionaries(st.text(max_size=6), VALUES, max_size=3), SPACE, SPACE, st.booleans())
def test_splice_means_what_update_means(original, changes, before, after, ascii_only):
    """For any object and changes, the result reads as the object with the changes merged in, in order."""
    body = (before + json.dumps(original, ensure_ascii=ascii_only) + after).encode("utf-8", "surrogatepass")
    result = cut(body, {name: json.dumps(value).encode() for name, value in changes.items()})
    merged = json.loads(result)
    assert merged == {**original, **changes}
    assert list(merged) == list({**original, **changes})


@given(
    st.dictionaries(st.text("abc", max_size=2), st.text("abc") | VALUES, max_size=5),
    st.dictionaries(st.text("abc", max_size=2), VALUES, max_size=3),
    st.dictionaries(st.text("abc", max_size=2), st.sampled_from(["new", "newer"]), max_size=1),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]),
)
def test_a_search_finds_what_a_walk_finds(original, changes, renames, separators):
    """Short bodies are searched and long ones walked through; where a search is sure, both give the same bytes."""
    body = json.dumps(original, separators=separators, ensure_ascii=False).encode("utf-8", "surrogatepass")
    fields = read_object(body)
    new = {name: json.dumps(value).encode() for name, value in changes.items()}
    found = None if b"\\u" in body else _search(body, fields, new, renames)
    assert found is None or found == _walk(body, fields, new, renames)


def test_a_long_body_is_changed_like_a_short_one():
    """Beyond the size at which bodies are searched, the same bytes come out."""
    text = json.dumps({"messages": ["x" * 10_000], "model": "auto", "user": "model"}).encode()
    assert cut(text, {"model": b'"gpt"'}) == text.replace(b'"auto"', b'"gpt"')


@given(VALUES)
def test_depth_counts_nesting(value):
    """Depth agrees with a walk over the parsed value, whatever brackets and quotes strings contain."""

    def walk(node):
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        return 0 if children is None else 1 + max(map(walk, children), default=0)

    for padding in ("", "x" * 5000):
        body = json.dumps({"v": value, "p": padding}).encode()
        deep = depth(body)
        assert deep == 1 + walk(value)
        assert is_deeper(body, deep - 1)
        assert not is_deeper(body, deep)


def test_depth_is_not_fooled_by_strings():
    """Brackets inside strings, escaped quotes and escaped backslashes do not count."""
    assert depth(rb'{"a":"[[[\"{{{","b":"\\","c":["\\\\\"["]}') == 2
