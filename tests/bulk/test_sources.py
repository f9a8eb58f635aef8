from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.bulk._sources import Record, Source, Span, open_source
from guardrail_vl.turn import Turn
from tests.bulk.files import write

# What Unicode text is: no half of a surrogate pair.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: f"q{text}q")  # never blank
FORMATS = ("jsonl", "csv", "parquet")


def everything(source: Source, spans: list[Span]) -> list[Record]:
    return [record for span in spans for record in source.read(span)]


@pytest.mark.parametrize("form", FORMATS)
@given(
    prompts=st.lists(texts, min_size=1, max_size=20),
    skip=st.integers(0, 8),
    limit=st.none() | st.integers(1, 24),
    length=st.integers(1, 9),
)
def test_however_a_file_is_cut_its_rows_are_the_same(
    form: str, prompts: list[str], skip: int, limit: int | None, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("cut") / f"in.{form}"
    source = open_source(
        write(path, [{"id": f"r{i}", "prompt": p, "kept": p} for i, p in enumerate(prompts)]), ["kept"]
    )
    whole = source.spans(skip=0, limit=None, length=10**9)
    records = everything(source, whole)
    assert [record.row.error for record in records] == [None] * len(prompts)
    assert [record.kept["kept"] for record in records] == prompts
    assert [record.row.id for record in records] == [f"r{i}" for i in range(len(prompts))]
    assert [Turn.of(record.row.content) for record in records] == [Turn.from_prompt(prompt) for prompt in prompts]
    spans = source.spans(skip=skip, limit=limit, length=length)
    assert everything(source, spans) == records[skip:limit]
    assert all(span.rows == length for span in spans[:-1])
    # Another process begins anywhere, and takes spans in any order.
    elsewhere: Source = pickle.loads(pickle.dumps(source))
    backwards = [list(elsewhere.read(span)) for span in reversed(spans)]
    assert [record for part in reversed(backwards) for record in part] == records[skip:limit]


@given(st.binary(max_size=120), st.integers(1, 4))
def test_any_bytes_as_csv_are_rows_or_errors_and_never_depend_on_the_cut(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "in.csv"
    path.write_bytes(b"prompt,response\n" + raw)
    source = open_source(path, [])
    records = everything(source, source.spans(skip=0, limit=None, length=10**9))
    again = everything(source, source.spans(skip=0, limit=None, length=length))
    assert [(r.row.number, r.row.content, str(r.row.error)) for r in records] == [
        (r.row.number, r.row.content, str(r.row.error)) for r in again
    ]
    assert [record.row.number for record in records] == list(range(1, len(records) + 1))


def test_csv_takes_a_field_as_large_as_a_picture(tmp_path: Path) -> None:
    large, limit = "x" * 300_000, csv.field_size_limit()
    text = io.StringIO()
    csv.writer(text).writerow([large])
    (tmp_path / "in.csv").write_text("prompt\n" + text.getvalue())
    source = open_source(tmp_path / "in.csv", ["prompt"])
    (record,) = everything(source, source.spans(skip=0, limit=None, length=9))
    assert record.kept["prompt"] == large
    assert csv.field_size_limit() == limit  # the process's: other readers of CSV have it too


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbf"prompt",id\r\na,1\r\n\r\n"b\r\nb",2\r\n')
    source = open_source(tmp_path / "in.csv", ["prompt"])
    records = everything(source, source.spans(skip=0, limit=None, length=1))
    assert [(r.row.number, r.kept["prompt"], r.row.id) for r in records] == [(1, "a", "1"), (2, "b\r\nb", "2")]
