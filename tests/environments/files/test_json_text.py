"""JSON from people fails in one way, and says where."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.files.json_text import DEEPEST, BadJson, parse_json, write_json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1, column 1"),
        ('{"a": 1,}', "line 1"),
        ('{\n"a": 1\n"b": 2}', "line 3"),
        ("{'a': 1}", "line 1"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": [1e999]}', "1e999"),
        ('{"a": -1.5E+400}', "-1.5E"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        (b'{"a": "\xff"}', "UTF-8"),
        ("[" * 100_000, "deeper"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "deeper"),
        ("1" * 5000, "not valid JSON"),
        ('{"id": 1, "b": 2, "id": 1}', "the key 'id' occurs twice"),
        ('[{"a": {"b": [], "b": []}}]', "the key 'b' occurs twice"),
        ('{"repeats": 1, "repe\\u0061ts": 2}', "the key 'repeats' occurs twice"),
    ],
)
def test_unstorable_json_is_refused_with_its_place(text: str | bytes, says: str) -> None:
    with pytest.raises(BadJson, match=says):
        parse_json(text)


def test_a_byte_order_mark_is_no_problem() -> None:
    assert parse_json(b"\xef\xbb\xbf{}") == {}


def test_the_deepest_allowed_nesting_is_read() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_values)
def test_written_json_is_read_back_equal(value: object) -> None:
    assert parse_json(write_json(value).encode()) == value


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        parse_json(content)
    except BadJson as error:
        assert str(error)
