from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrail_vl.bulk._output import COLUMNS, Shape, as_line, convert
from guardrail_vl.bulk._sources import JsonLines
from tests.bulk.files import read

# Half surrogate pairs too: JSON has them.
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=5))
def test_a_line_gives_back_the_values(row: dict[str, Any]) -> None:
    line = as_line(row)
    assert line.count(b"\n") == 1
    line.decode()
    assert json.loads(line) == row


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_is_null(number: float) -> None:
    assert as_line({"a": number, "b": [1, {"c": number}]}) == b'{"a": null, "b": [1, {"c": null}]}\n'


@example(kept="\r")
@given(kept=st.none() | st.text())
@pytest.mark.parametrize("form", [".csv", ".parquet"])
def test_a_kept_text_survives_the_format(form: str, kept: str | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    if form == ".parquet":
        pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("kept")
    (folder / "in.jsonl").touch()
    row = {**dict.fromkeys(COLUMNS), "row": 1, "categories": ["a, b"], "text": kept}
    (folder / "rows.jsonl").write_bytes(as_line(row) * 2)
    out = folder / f"out{form}"
    convert(folder / "rows.jsonl", out, Shape(("text",)), JsonLines(folder / "in.jsonl", ["text"]), form)
    shown = kept and kept.encode("utf-8", "backslashreplace").decode()
    expected = {**row, "text": (shown or None) if form == ".csv" else shown}
    assert read(Path(out)) == [expected, expected]
