"""Strict JSON: what two readers could read differently is refused, and no message shows what was read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.errors import ContentError
from guardrail_vl.wire.jsons import as_text, check_fields, index_of, is_empty, list_of, loads, mapping_of, strings

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_TEXT, _JSON, max_size=5), st.booleans())
def test_what_is_json_reads_as_any_parser_reads_it(value: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert loads(text.encode()) == json.loads(text) == loads(text)


@pytest.mark.parametrize(
    ("why", "raw"),
    [
        ("twice", b'{"a": 1, "a": 2}'),
        ("twice", b'{"x": [{"secret": 1, "secret": 1}]}'),
        ("twice", b'{"a": 1, "\\u0061": 2}'),
        ("NaN", b'{"a": NaN}'),
        ("NaN", b'{"a": -Infinity}'),
        ("too large", b'{"a": 1e999}'),
        ("UTF-8", b'{"a": "\xff"}'),
        ("UTF-8", '{"a": "ä"}'.encode("latin-1")),
        ("valid JSON", '{"a": 1}'.encode("utf-16-le")),
        ("valid JSON", b'\xef\xbb\xbf{"a": 1}'),
        ("valid JSON", b""),
        ("valid JSON", b'{"a": 1} {"b": 2}'),
        ("valid JSON", b'{"secret": 1,}'),
        ("valid JSON", b'{"a": ' + b"9" * 5000 + b"}"),
        ("deeply", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        ("object", b'["secret"]'),
        ("object", b"null"),
        ("object", b'"secret"'),
    ],
)
def test_what_readers_could_differ_on_is_refused(why: str, raw: bytes) -> None:
    with pytest.raises(ContentError, match=why) as caught:
        loads(raw)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", [None, True, 0, 3.5, "", [], {}])
def test_a_value_without_content_passes_under_any_name(value: object) -> None:
    assert is_empty(value)
    check_fields({"unknown": value}, (), "a test")


@pytest.mark.parametrize("value", ["x", " ", [0], [[]], {"a": None}])
def test_an_unknown_field_is_refused_by_name_unless_allowed(value: object) -> None:
    with pytest.raises(ContentError, match=r"'new_thing' in a test.*allow_unguarded"):
        check_fields({"known": "x", "new_thing": value}, {"known"}, "a test")
    check_fields({"new_thing": value}, (), "a test", {"new_thing"})


def test_a_name_that_may_be_content_is_not_shown() -> None:
    with pytest.raises(ContentError) as caught:
        check_fields({"secret words of a user": "x"}, (), "a test")
    assert "secret" not in str(caught.value)


@given(_JSON)
def test_strings_and_text_leave_nothing_out(value: Any) -> None:
    def walk(one: Any) -> list[str]:
        if isinstance(one, dict):
            return [leaf for key, inner in one.items() for leaf in (key, *walk(inner))]
        if isinstance(one, list):
            return [leaf for inner in one for leaf in walk(inner)]
        return [one] if isinstance(one, str) else []

    assert list(strings(value)) == walk(value)
    if not isinstance(value, str):
        assert json.loads(as_text(value, "a test")) == value


def test_shapes_are_checked() -> None:
    wrong: Any
    for wrong in ("x", 3, {"a": 1}):
        with pytest.raises(ContentError, match="list"):
            list_of(wrong, "test")
    for wrong in (None, [], "x"):
        with pytest.raises(ContentError, match="object"):
            mapping_of(wrong, "test")
    for wrong in (-1, True, "1", 1.0):
        with pytest.raises(ContentError, match="whole number"):
            index_of(wrong, "test")
    assert (list_of(None, "test"), index_of(None, "test"), index_of(4, "test")) == ((), 0, 4)
