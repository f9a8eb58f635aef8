"""A user's own table is read as it was written, and what would not be judged is refused."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.readers import once, read, read_table, request_group
from guardrail_vl.verdict import Label, Stage
from tests.evaluation.files import BY_NAME, SECRET, H, U, golds, lines, table
from tests.evaluation.pictures import GREEN, RED

TEXT = st.text(min_size=1, max_size=40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, st.text(max_size=40), st.sampled_from([H, U]), st.text(max_size=9)), min_size=1),
    form=st.sampled_from(["csv", "jsonl", "json", "jsonl.gz"]),
)
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[str, str, Label, str]], form: str) -> None:
    path = tmp_path / f"mine.{form}"
    written = [{"q": q, "a": a, "y": str(y), "c": c} for q, a, y, c in rows]
    if form == "csv":
        table(path, written)
    elif form == "json":
        path.write_text(json.dumps(written), encoding="utf-8")
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written).encode()
        path.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    cases = read_table(path, prompt="q", response="a", label="y", category="c")
    assert cases.name == "mine"
    assert [(c.prompt, c.response, c.gold, c.category) for c in cases.cases] == rows
    assert {c.stage for c in cases.cases} == {Stage.RESPONSE}
    assert [c.id for c in cases.cases] == [f"{n:05}" for n in range(len(rows))]
    prompts = read_table(path, prompt="q", label="y")
    assert [(c.prompt, c.response, c.gold) for c in prompts.cases] == [(q, None, y) for q, _, y, _ in rows]


@given(st.text())
def test_groups_go_by_words(text: str) -> None:
    assert request_group(text) == request_group(f"  {text.upper().lower()}?! ") or text.lower() != text.upper().lower()
    assert re.fullmatch("[0-9a-f]{12}", request_group(text))


def test_groups_keep_other_scripts_apart() -> None:
    assert request_group("你好") != request_group("再见")
    assert request_group("How can I kill a Python process?") == "1d9cef3fb135"  # as the data folder has it


@pytest.mark.parametrize(("word", "gold"), [(True, H), (1, H), (0.0, U), ("UNSAFE ", H), ("safe", U), ("false", U)])
def test_words_for_labels(tmp_path: Path, word: object, gold: Label) -> None:
    assert golds(read_table(lines(tmp_path / "t.jsonl", [{"q": "a", "label": word}]), prompt="q")) == [gold]


def test_ones_own_words_for_labels(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"q": "a", "label": "spam"}, {"q": "b", "label": "ham"}])
    assert golds(read_table(path, prompt="q", labels={"spam": H, "ham": U})) == [H, U]
    with pytest.raises(ConfigurationError, match=r"row 1: .*unknown label \('spam'\)\. Known are .*harmful"):
        read_table(path, prompt="q")


def test_rows_without_a_label(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t.jsonl", [{"q": "a", "label": None}, {"q": "b", "label": "safe"}, {"q": "c", "label": ""}]
    )
    assert [case.id for case in read_table(path, prompt="q").cases] == ["00001"]
    assert golds(read_table(path, prompt="q", unlabelled=True)) == [None, U, None]
    assert golds(read_table(path, prompt="q", label=None, unlabelled=True)) == [None, None, None]
    with pytest.raises(ConfigurationError, match="No column of labels"):
        read_table(path, prompt="q", label=None)


def test_ids_groups_licence_and_name(tmp_path: Path) -> None:
    rows = [{"q": "a", "label": 1, "n": 4, "g": "x"}, {"q": "b", "label": 0, "n": "five", "g": "x"}]
    path = lines(tmp_path / "t.jsonl", rows)
    cases = read_table(path, prompt="q", id="n", group="g", licence="MIT", name="named")
    assert (cases.name, [(c.id, c.group, c.licence) for c in cases.cases]) == (
        "named", [("4", "x", "MIT"), ("five", "x", "MIT")],
    )  # fmt: skip
    for n, match in ((4, "row 2: it has the same id as row 1"), (None, "row 2: it has no id"), ([], "row 2: .*'n' is")):
        lines(path, [rows[0], rows[1] | {"n": n}])
        with pytest.raises(ConfigurationError, match=match):
            read_table(path, prompt="q", id="n")


def test_pictures_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(RED)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "c.png").write_bytes(GREEN)
    red, green = tmp_path / "a b.png", tmp_path / "in" / "c.png"
    given_as: list[tuple[object, tuple[Path, ...]]] = [
        ("a b.png", (red,)), (["a b.png", "in/c.png"], (red, green)), ('["./in/c.png"]', (green,)), (None, ()), ([], ()),
    ]  # fmt: skip
    rows = [{"q": "x", "label": 1, "i": value} for value, _ in given_as]
    cases = read_table(lines(tmp_path / "t.jsonl", rows), prompt="q", images="i")
    assert [case.images for case in cases.cases] == [images for _, images in given_as]
    in_csv = table(tmp_path / "t.csv", [{"label": 1, "i": '["a b.png", "in/c.png"]'}, {"label": 0, "i": "a b.png"}])
    assert [c.images for c in read_table(in_csv, images="i").cases] == [(red, green), (red,)]
    assert {c.modality for c in read_table(in_csv, images="i").cases} == {"image"}


@pytest.mark.parametrize(
    ("image", "match"),
    [("gone.png", "'gone.png' isn't there; 1 of 1"), ("[1", "no list in JSON"), ("data:image/png;base64,AA", "a URL"),
     (5, "not named by a path"), ("a/../../b.png", "outside the folder")],
)  # fmt: skip
def test_pictures_that_cant_be_had(tmp_path: Path, image: object, match: str) -> None:
    path = lines(tmp_path / "t.jsonl", [{"q": "x", "label": 1, "i": image}])
    with pytest.raises(ConfigurationError, match=f"t.jsonl, row 1: .*{match}"):
        read_table(path, prompt="q", images="i")


def test_columns_that_would_not_be_judged_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"q": "x", "a": "y", "label": 1}])
    with pytest.raises(ConfigurationError, match="No column is named that could be judged"):
        read_table(path)
    with pytest.raises(ConfigurationError, match="To judge the prompt, leave out the response"):
        read_table(path, prompt="q", response="a", stage=Stage.PROMPT)
    with pytest.raises(ConfigurationError, match="To judge the response, name the response"):
        read_table(path, prompt="q", stage=Stage.RESPONSE)
    with pytest.raises(ConfigurationError, match="row 1: there is no field 'question'"):
        read_table(path, prompt="question")


def test_once_keeps_a_request_under_both_of_its_labels() -> None:
    cases = tuple(Case(str(n), Stage.PROMPT, gold, prompt) for n, (prompt, gold) in enumerate(
        [("a", H), ("b", U), ("a", U), ("a", H), ("b", None)]
    ))  # fmt: skip
    assert [case.id for case in once(CaseSet("x", cases)).cases] == ["0", "1", "2", "4"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b\n1\n", r"row 1: 1 fields, and the header has 2"),
        (f'a,b\n"{SECRET}"x,1\n', r"row 1: not valid CSV"),
        ("a,a\n1,2\n", "two columns have the same name"),
        ("a,b\n", "holds no rows"),
        ("", "holds no rows"),
        (f"text,label\n{'x' * 200_000},safe\n", r"row 1: not valid CSV: field larger"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=match) as caught:
        read_table(path, prompt="text")
    assert SECRET not in str(caught.value)


# ---- Parquet --------------------------------------------------------------------------------------------------------


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    wildguard = [{"prompt": "hi", "response": None, "prompt_harm_label": label} for label in ("harmful", None)]
    parquet.write_table(pyarrow.Table.from_pylist(wildguard), tmp_path / "wildguard_test.parquet")
    assert golds(read(BY_NAME["wildguard_test_prompt"], tmp_path)) == [H]
    rows = [{"label": True, "i": {"bytes": RED, "path": "a.png"}}, {"label": False, "i": {"bytes": GREEN, "path": ""}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    assert [case.images for case in read_table(tmp_path / "mine.parquet", images="i").cases] == [(RED,), (GREEN,)]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ConfigurationError, match=r"bad.parquet is no Parquet file"):
        read_table(tmp_path / "bad.parquet", prompt="q")


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path) -> None:
    # A child process, so that no other test finds the package hidden.
    (tmp_path / "t.parquet").touch()
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\nfrom guardrail_vl.evaluation.readers import read_table\n"
        "read_table(Path('t.parquet'), prompt='q')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert "pip install pyarrow" in done.stderr
    assert done.returncode == 1
