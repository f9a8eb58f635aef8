"""Labelled turns on the command line: what is wrong with them, what there is, in another form, divided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from guardrail_vl.cli.data import data_convert, data_split, data_stats, data_validate
from guardrail_vl.training.dataset import leaks, read, write
from guardrail_vl.training.synthetic import turns as synthetic
from tests.evaluation.files import SECRET, lines, table
from tests.evaluation.pictures import RED

app = typer.Typer(pretty_exceptions_enable=False)
for name, command in (
    ("validate", data_validate),
    ("stats", data_stats),
    ("convert", data_convert),
    ("split", data_split),
):
    app.command(name)(command)


def tried(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write(tmp_path / "good.jsonl", synthetic(40))
    return tmp_path / "good.jsonl"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "prompt": "fine", "label": "safe", "remark": SECRET},
        {"id": "b", "prompt": SECRET, "label": SECRET},
        {"id": "c", "prompt": "c", "label": "harmful", "reasoning": "Request: unharmful"},
        {"id": SECRET * 2, "prompt": "Fine!", "label": "safe", "reasoning": "<think>"},
        {"id": "e", "prompt": "fine", "label": "safe"},
    ]
    return lines(tmp_path / "bad.jsonl", rows)


# ---- validate -----------------------------------------------------------------------------------------------------


def test_nothing_is_wrong(good: Path) -> None:
    got = tried("validate", good)
    assert (got.exit_code, got.stdout) == (0, "good.jsonl: 40 rows, 0 of them with problems\n")


def test_problems_by_row(good: Path, bad: Path) -> None:
    got = tried("validate", good, bad)
    assert got.exit_code == 1
    assert got.stdout.splitlines()[1:] == [
        "bad.jsonl, row 2: the field 'label' holds an unknown label.",
        "bad.jsonl, row 3 (c): the reasoning concludes otherwise than the label of the prompt, which is harmful.",
        "bad.jsonl, row 4 (a long name): the reasoning is empty or holds a <think> or <result> tag.",
        "bad.jsonl: 5 rows, 3 of them with problems",
    ]
    assert got.stderr == "Columns of bad.jsonl that are not read: remark\n"
    short = tried("validate", bad, "--limit", 1)
    assert "bad.jsonl: and 2 more" in short.stdout
    assert short.stdout.count("row ") == 1


def test_problems_as_json(bad: Path) -> None:
    got = tried("validate", bad, "--json")
    assert got.exit_code == 1
    value = json.loads(got.stdout)
    assert [(p["file"], p["row"], p["kind"]) for p in value["problems"]] == [
        ("bad.jsonl", 2, "row"),
        ("bad.jsonl", 3, "label"),
        ("bad.jsonl", 4, "reasoning"),
    ]
    assert value["leaks"] == []


def test_what_leaks(good: Path, tmp_path: Path) -> None:
    unlike = lines(tmp_path / "unlike.jsonl", [{"prompt": "quite unlike", "label": "safe"}])
    got = tried("validate", unlike, "--against", good)
    assert (got.exit_code, got.stdout.splitlines()[-1]) == (0, "0 tested turns leak")
    assert tried("validate", unlike, "--against", good, "--json").stdout == '{"problems": [], "leaks": []}\n'
    write(tmp_path / "test.jsonl", synthetic(40)[:1])
    got = tried("validate", good, "--against", tmp_path / "test.jsonl")
    assert got.exit_code == 1
    assert got.stdout.splitlines()[1:] == ["0-0 is tested on, and 0-0 has the same content", "1 tested turns leak"]


@pytest.mark.parametrize("command", ["validate", "stats", "convert", "split"])
def test_a_file_that_can_not_be_read(command: str, tmp_path: Path) -> None:
    broken = tmp_path / "t.jsonl"
    broken.write_bytes(b"\xff\xfe")
    for path in (broken, tmp_path / "gone.jsonl"):
        got = tried(command, path, *(() if command in ("validate", "stats") else ("--output", tmp_path / "out.jsonl")))
        assert (got.exit_code, got.stdout) == (2, "")
        assert got.stderr.startswith(f"Error: {path.name} ")
    assert not (tmp_path / "out.jsonl").exists()


# ---- stats --------------------------------------------------------------------------------------------------------


def test_what_there_is(good: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": str(n), "label": "safe", "category": f"{SECRET} {SECRET}"} for n in range(3)]
    got = tried("stats", good, lines(tmp_path / "more.jsonl", rows))
    assert got.exit_code == 0
    found = [line.split() for line in got.stdout.splitlines()]
    assert found[0] == ["what", "how", "many"]
    assert ["turns", "43"] in found
    assert ["(1", "others)", "3"] in found
    assert ["Apache-2.0", "40"] in found
    assert ["(none)", "3"] in found
    assert SECRET not in got.stdout
    value = json.loads(tried("stats", good, "--json").stdout)
    assert value["turns"] == 40
    assert sum(value["modalities"].values()) == 40
    assert value["lengths"]["reasoning"]["count"] == 40


# ---- convert ------------------------------------------------------------------------------------------------------


def test_a_table_becomes_ours(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.png").write_bytes(RED)
    rows = [{"prompt": "a", "label": "harmful", "images": ""}, {"prompt": "", "label": "safe", "images": "a.png"}]
    out = tmp_path / "out" / "t.parquet"
    got = tried("convert", table(tmp_path / "mine.csv", rows), "--output", out, "--pictures", "inside")
    assert got.exit_code == 0, got.stderr
    assert got.stdout == f"2 turns in {out}\n"
    assert [(t.id, t.prompt, t.images) for t in read(out)] == [
        ("mine-000000", "a", ()),
        ("mine-000001", None, (RED,)),
    ]


def test_bad_rows_stop_it_or_are_left_out(good: Path, bad: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    got = tried("convert", good, bad, "--output", out)
    assert (got.exit_code, out.exists()) == (2, False)
    assert "Error: bad.jsonl, row 2: " in got.stderr
    assert SECRET not in got.stderr
    got = tried("convert", good, bad, "--output", out, "--leave-out")
    assert (got.exit_code, len(read(out))) == (1, 42)
    assert "Left out: 3 rows with problems." in got.stderr


@pytest.mark.parametrize(("choice", "left", "word"), [("drop", ["a"], "dropped"), ("keep", ["a", "c", "d"], "kept")])
def test_each_content_once(tmp_path: Path, choice: str, left: list[str], word: str) -> None:
    labels = {"a": ("one", "safe"), "b": ("one", "safe"), "c": ("two", "safe"), "d": ("two", "unsafe")}
    rows = [{"id": id, "prompt": prompt, "label": label} for id, (prompt, label) in labels.items()]
    out = tmp_path / "out.jsonl"
    got = tried("convert", lines(tmp_path / "t.jsonl", rows), "--output", out, "--dedupe", choice)
    assert (got.exit_code, [turn.id for turn in read(out)]) == (1, left)
    assert got.stderr.splitlines() == [
        "Left out: 1 turns that repeat another.",
        "The same content with other labels: c, d",
        f"2 turns contradict each other; {word}.",
    ]
    command = ("convert", lines(tmp_path / "t.jsonl", rows[:2]), "--output", out, "--dedupe", choice)
    before = out.read_bytes()
    refused = tried(*command)
    assert (refused.exit_code, out.read_bytes()) == (2, before)
    assert refused.stderr == "Error: The file 'out.jsonl' is there.\n--overwrite writes over it.\n"
    assert tried(*command, "--overwrite").exit_code == 0


# ---- split --------------------------------------------------------------------------------------------------------


def test_sides_get_a_file_each(good: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "sides"
    assert tried("split", good, "--output", out).exit_code == 0
    train, held = read(out / "train.jsonl"), read(out / "held_out.jsonl")
    assert {*train, *held} == {*read(good)}
    assert leaks(train, held) == ()
    assert tried("split", good, "--output", out).exit_code == 2
    assert tried("split", good, "--output", out, "--overwrite").exit_code == 0
    write(tmp_path / "good.parquet", read(good))
    got = tried("split", tmp_path / "good.parquet", "--output", out, "--share", "a=.5", "--share", "b=.5", "--seed", 4)
    assert got.exit_code == 0
    sizes = [len(read(out / f"{side}.parquet")) for side in "ab"]
    assert sum(sizes) == 40
    assert min(sizes) > 12


@pytest.mark.parametrize("share", ["a", "a=x", "../a=0.5", "=0.5"])
def test_shares_that_are_none(good: Path, tmp_path: Path, share: str) -> None:
    got = tried("split", good, "--output", tmp_path / "sides", "--share", share, "--share", "b=0.5")
    assert (got.exit_code, got.stdout) == (2, "")
    assert "is not NAME=SHARE" in got.stderr
    assert not (tmp_path / "sides").exists()
