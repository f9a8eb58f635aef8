"""`train gate` on the command line: its status, what it shows, and that it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from guardrail_vl import Guard
from guardrail_vl.cli.gate import train_gate
from guardrail_vl.evaluation import seen
from guardrail_vl.evaluation.readers import read_own
from guardrail_vl.evaluation.running import run
from guardrail_vl.testing import ScriptedEngine
from guardrail_vl.training.dataset import write
from guardrail_vl.training.gate import sets_of
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label
from tests.evaluation.asked import Server, questions, serve

app = typer.Typer()
app.command()(train_gate)


def tried(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def server() -> Iterator[Server]:
    """The new guard: it finds every bomb."""
    with serve() as one:
        yield one


@pytest.fixture
def turns(tmp_path: Path) -> Path:
    """300 requests; every third is of a bomb."""
    file = tmp_path / "held-out.jsonl"
    write(file, [
        LabeledTurn(case.id, prompt=case.prompt, prompt_label=case.gold, source="ours")
        for case in questions(300).cases
    ])  # fmt: skip
    return file


@pytest.fixture
def old(turns: Path, tmp_path: Path) -> Path:
    """A saved run of a guard that misses two bombs of three."""

    def script(prompt: Any) -> str:
        text = prompt.messages[-1].text
        number = int(text.partition("question ")[2].split()[0])
        label = "harmful" if "bomb" in text and number % 9 == 0 else "unharmful"
        return f"<think>Looked.\n</think>\n\n<result>\nRequest: {label}\nResponse: None\n</result>"

    from guardrail_vl.training.dataset import read

    guard = Guard(engine=ScriptedEngine(script, model="old-guard"))
    return run(guard, sets_of(read(turns)), tmp_path / "old-run").folder


def test_a_better_guard_passes_and_all_is_told(server: Server, turns: Path, old: Path, tmp_path: Path) -> None:
    out = tmp_path / "gate"
    got = tried(old, server.url, "--turns", turns, "--margin", "0.01", "--out", out)
    assert got.exit_code == 0, got.output
    lines = got.stdout.splitlines()
    assert lines[0] == "Old: old-guard"
    row = next(line.split() for line in lines if line.startswith("prompt") and " all " in line)
    assert row[2:5] == ["300", "50.7", "100.0"]
    heads = next(line for line in lines if line.startswith("task"))
    assert "F1 change" in heads
    assert float(row[5]) == pytest.approx(49.3, abs=0.1)
    assert row[-9:-6] == ["0", "→", "0"], "no verdict"
    assert "Passed: the new guard is better." in lines
    assert json.loads((out / "gate.json").read_text("utf-8"))["passed"] is True
    assert (out / "report.html").is_file()
    assert "300 of 300 samples" in got.stderr
    # The same again asks nobody.
    asked = len(server.asked)
    assert tried(old, server.url, "--turns", turns, "--margin", "0.01", "--out", out).exit_code == 0
    assert len(server.asked) == asked


def test_a_guard_that_is_not_better_has_its_own_status(server: Server, turns: Path, old: Path, tmp_path: Path) -> None:
    command = (old, server.url, "--turns", turns)
    got = tried(*command, "--margin", "0.9", "--out", tmp_path / "a")
    assert got.exit_code == 1
    assert "Not passed: prompt: F1 rose by 49." in got.stdout
    value = json.loads(tried(*command, "--min-samples", "150", "--out", tmp_path / "b", "--json").stdout)
    assert value["passed"] is False
    assert value["reasons"] == [
        "prompt: 100 harmful and 200 harmless samples are too few to tell; 50 more harmful ones are needed."
    ]
    assert value["config"]["min_samples"] == 150
    assert value["folder"] == str(tmp_path / "b")


def test_samples_without_a_verdict_are_counted(turns: Path, old: Path, tmp_path: Path) -> None:
    from guardrail_vl.training.dataset import read

    broken = Guard(engine=ScriptedEngine(lambda prompt: "no idea", model="broken"))
    saved = run(broken, sets_of(read(turns)[:30]), tmp_path / "broken").folder
    some = tmp_path / "some.jsonl"
    write(some, read(turns)[:30])
    command = (old, saved, "--turns", some, "--min-samples", "0", "--out", tmp_path / "gate")
    got = tried(*command)
    assert got.exit_code == 1
    row = next(line.split() for line in got.stdout.splitlines() if line.startswith("prompt") and " all " in line)
    assert row[-9:-6] == ["0", "→", "30"]
    value = json.loads(tried(*command, "--json").stdout)
    assert [value["slices"][0][side]["no_verdict"] for side in ("old", "new")] == [0, 30]


@pytest.mark.parametrize("name", ["max-fpr-increase", "max-slice-loss"])
def test_a_limit_can_be_switched_off(name: str, turns: Path, old: Path, tmp_path: Path) -> None:
    def alarmed(prompt: Any) -> str:
        text = prompt.messages[-1].text
        number = int(text.partition("question ")[2].split()[0])
        label = "harmful" if "bomb" in text or number % 10 == 1 else "unharmful"
        return f"<think>Looked.\n</think>\n\n<result>\nRequest: {label}\nResponse: None\n</result>"

    from guardrail_vl.training.dataset import read

    new = run(Guard(engine=ScriptedEngine(alarmed, model="new")), sets_of(read(turns)), tmp_path / "new").folder
    command = (old, new, "--turns", turns, "--out", tmp_path / "gate")
    got = tried(*command)
    assert got.exit_code == 1
    assert "false alarms rose" in got.stdout
    off = tried(*command, f"--{name}", "None", "--json")
    config = json.loads(off.stdout)["config"]
    assert config[name.replace("-", "_")] is None
    assert off.exit_code == (0 if name == "max-fpr-increase" else 1)
    for wrong in ("1", "-0.1", "nan", "some"):
        assert tried(*command, f"--{name}", wrong).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("embedded", "embedded"),
            "There is nothing to judge.\nName a folder of benchmarks by --data, or your own file by --turns",
        ),
        (("nowhere", "embedded", "--turns", "TURNS"), "The checkpoint nowhere can't be loaded"),
        (("embedded", "embedded", "--turns", "missing.jsonl"), "missing.jsonl"),
        (("OLD", "OLD", "--turns", "OTHER"), "of the old guard lacks 5 of 5 samples"),
    ],
)
def test_errors_have_theirs(arguments: tuple[str, ...], message: str, turns: Path, old: Path, tmp_path: Path) -> None:
    if "nowhere" in arguments:
        pytest.importorskip("transformers")
    other = tmp_path / "other.jsonl"
    write(other, [LabeledTurn(f"o{i}", prompt=f"another {i}", prompt_label=Label.HARMFUL) for i in range(5)])
    given = {"TURNS": turns, "OLD": old, "OTHER": other}
    got = tried(*(given.get(one, one) for one in arguments), "--out", tmp_path / "gate")
    assert got.exit_code == 2, got.output
    assert message in got.stderr
    assert not (tmp_path / "gate" / "gate.json").exists()


def test_tables_are_taken_too_and_stages_can_be_named(server: Server, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    rows = [f"{case.id},{case.prompt},{case.gold}" for case in questions(150).cases]
    table.write_text("\n".join(["id,prompt,label", *rows]), encoding="utf-8")
    silent = "<think>No.\n</think>\n\n<result>\nRequest: unharmful\nResponse: None\n</result>"
    saved = run(Guard(engine=ScriptedEngine(lambda prompt: silent)), [read_own(table)[0]], tmp_path / "saved")
    command = (saved.folder, server.url, "--table", table, "--stage", "prompt", "--out", tmp_path / "gate")
    assert tried(*command).exit_code == 0
    assert tried(*command, "--stage", "response").exit_code == 1


def test_what_a_guard_was_trained_on_is_left_out(
    server: Server, turns: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = questions(300).cases
    seen.write(old / "seen.txt", [replace(case, group="") for case in cases[:60]])
    more = tmp_path / "more.txt"
    seen.write(more, [replace(case, group="") for case in cases[60:90]])
    got = tried(old, server.url, "--turns", turns, "--seen", more)
    assert got.exit_code == 0, got.output
    assert "Left out: 90 samples that the guards were trained on." in got.stderr
    assert sorted(server.asked) == list(range(90, 300))
    (folder,) = (tmp_path / "gates").iterdir()
    assert (folder / "gate.json").is_file()
    seen.write(more, [replace(case, group="") for case in cases])
    assert tried(old, server.url, "--turns", turns, "--seen", more).exit_code == 2
