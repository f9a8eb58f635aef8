from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl.bulk.rows import Row, read_json, read_rows
from guardrail_vl.errors import ContentError
from guardrail_vl.turn import ImagePart, Turn


def rows(*lines: object) -> list[Row]:
    raw = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    return list(read_rows(io.BytesIO(raw)))


def test_a_string_is_a_prompt() -> None:
    (row,) = rows("hello")
    assert (row.number, row.id, row.error) == (1, None, None)
    assert Turn.of(row.content) == Turn.from_prompt("hello")


@pytest.mark.parametrize("given_id", ["a", 7, 0.5, None])
def test_prompt_images_and_response_make_the_turn_that_python_makes(tmp_path: Path, given_id: object) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (3, 2), "red").save(picture)
    part = ImagePart.load(picture)
    value = {"id": given_id, "prompt": "p", "images": [str(picture), part.data_url], "response": "r"}
    (row,) = rows(value)
    assert row.id == given_id
    assert Turn.of(row.content) == Turn.from_prompt("p", images=[part, part], response="r")


def test_messages_go_through_as_they_are() -> None:
    messages = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    (row,) = rows({"messages": messages})
    assert row.content == messages


def test_null_is_the_same_as_absent() -> None:
    (row,) = rows({"prompt": "p", "images": None, "response": None, "messages": None})
    assert Turn.of(row.content) == Turn.from_prompt("p")


def test_blank_lines_are_counted_and_a_byte_order_mark_is_none_of_the_text() -> None:
    found = rows(b'\xef\xbb\xbf"a"', b"", b"  \r", "b")
    assert [(row.number, row.content) for row in found] == [(1, "a"), (4, "b")]


def test_the_last_row_needs_no_newline() -> None:
    assert [row.content for row in read_rows(io.BytesIO(b'"a"\n"b"'))] == ["a", "b"]


SECRET = "xyzzy"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"prompt": "xyzzy', "not valid JSON"),
        (b'"xyzzy\xff"', "not valid UTF-8 at byte 6"),
        (b'"xyzzy" "xyzzy"', "not valid JSON"),
        (b'{"prompt": "a", "prompt": "xyzzy"}', "same key twice"),
        (b'{"messages": [{"role": "user", "role": "xyzzy"}]}', "same key twice"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "too long"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["xyzzy"]', "must be a JSON string or object"),
        (b"17", "must be a JSON string or object"),
        (b'{"prompt": "a", "xyzzy": "b"}', "unknown field"),
        (b'{"prompt": "a", "messages": []}', "unknown field"),
        (b'{"id": 3}', "unknown field"),
        (b"{}", "unknown field"),
        (b'{"prompt": ["xyzzy"]}', "prompt of row 1 is not text"),
        (b'{"prompt": "a", "response": {"xyzzy": 1}}', "response of row 1 is not text"),
        (b'{"images": "xyzzy.png"}', "images of row 1"),
        (b'{"images": ["xyzzy.png"]}', "row 1"),
        (b'{"messages": {"xyzzy": 1}}', "messages of row 1"),
        (b'{"id": ["xyzzy"], "prompt": "a"}', "id of row 1"),
        (b'{"id": true, "prompt": "a"}', "id of row 1"),
    ],
)
def test_a_bad_row_says_why_without_repeating_it_and_the_next_is_read(raw: bytes, says: str) -> None:
    bad, good = rows(raw, "fine")
    assert bad.error is not None
    assert bad.content is None
    assert says in str(bad.error)
    assert SECRET not in str(bad.error)
    assert (good.number, good.content) == (2, "fine")


def test_a_bad_row_keeps_its_id() -> None:
    (row,) = rows({"id": "k", "prompt": 3})
    assert row.error is not None
    assert row.id == "k"


def test_a_row_that_is_too_long_is_refused_and_not_held() -> None:
    raw = b'"' + b"x" * 3_000_000 + b'"\n"next"\n' + b'"0123456789"\n' + b'"01234567"'
    found = list(read_rows(io.BytesIO(raw), max_row=10))
    assert [row.number for row in found] == [1, 2, 3, 4]
    assert [row.error is None for row in found] == [False, True, False, True]


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "images", "x"]), inner),
    max_leaves=5,
)


@given(st.lists(st.binary(max_size=40) | json_values.map(lambda v: json.dumps(v).encode()), max_size=6))
def test_whatever_comes_in_every_line_that_is_not_blank_is_one_row(lines: list[bytes]) -> None:
    raw = b"\n".join(lines)
    found = list(read_rows(io.BytesIO(raw)))
    split = raw.split(b"\n")
    split[0] = split[0].removeprefix(b"\xef\xbb\xbf")
    assert [row.number for row in found] == [i for i, line in enumerate(split, 1) if line.strip()]
    assert all((row.content is None) == (row.error is not None) for row in found)


def test_read_json_names_the_place() -> None:
    with pytest.raises(ContentError, match=r"The file is not valid JSON: .* at character 5"):
        read_json(b'{"a":}', "The file")
