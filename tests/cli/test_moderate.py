from __future__ import annotations

import builtins
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guardrail_vl import bulk
from guardrail_vl.bulk import Progress
from guardrail_vl.cli import app
from tests.bulk.files import make_guard, read, write

ROOT = Path(__file__).parents[2]

# The package has the command by the name of the module.
moderate = importlib.import_module("guardrail_vl.cli.moderate")


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moderate, "make_guard", lambda options: make_guard())


def tried(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["moderate", *map(str, arguments)])


def rows(*prompts: str) -> list[dict[str, Any]]:
    return [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("prompts", "status", "says"),
    [
        (("a", "b"), 0, "2 rows: 2 allow, 0 annotate, 0 block, 0 error in "),
        (("a", "bomb"), 1, "2 rows: 1 allow, 0 annotate, 1 block, 0 error in "),
        (("crash", "bomb"), 2, "2 rows: 0 allow, 0 annotate, 1 block, 1 error in "),
        (("a",), 0, "1 row: 1 allow"),
    ],
)
def test_the_status_is_the_worst(prompts: tuple[str, ...], status: int, says: str, tmp_path: Path) -> None:
    done = tried(write(tmp_path / "in.jsonl", rows(*prompts)), "-o", tmp_path / "out.csv")
    assert (done.exit_code, done.stdout) == (status, "")
    assert done.stderr.startswith(says)
    assert len(read(tmp_path / "out.csv")) == len(prompts)


def test_every_option_arrives(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", [{"prompt": p, "kind": p} for p in ("a", "b", "c")])
    out = tmp_path / "out.jsonl"
    done = tried(source, "-o", out, "--keep", "kind", "--reasoning", "--limit", 2, "--batch", 1, "--no-progress")
    assert done.exit_code == 0
    assert [(row["kind"], "Looked for" in row["reasoning"]) for row in read(out)] == [("a", True), ("b", True)]
    assert tried(source, "-o", out).exit_code == 2
    assert tried(source, "-o", out, "--overwrite").exit_code == 0
    assert len(read(out)) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none.jsonl", "-o", "out.jsonl"), "no file that is there"),
        (("in.jsonl", "-o", "out.xyzzy"), "The output is in no format"),
        (("in.jsonl", "-o", "out.jsonl", "--workers", "2"), "--workers needs --engine ray"),
        (("in.jsonl", "-o", "out.jsonl", "--keep", "id"), "'id' can't be kept"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", rows("xyzzy"))
    done = tried(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "xyzzy" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("pyarrow", ("-o", "out.parquet"), "bulk"),
        ("ray", ("-o", "out.jsonl", "--engine", "ray"), "ray"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    package: str, arguments: tuple[str, ...], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", rows("a"))
    for name in ("guardrail_vl.bulk._parquet", "guardrail_vl.bulk._ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(bulk, name.rpartition(".")[2], raising=False)
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    done = tried("in.jsonl", *arguments)
    assert done.exit_code == 2
    assert f"pip install 'guardrail-vl[{extra}]'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(moderate.time, "monotonic", lambda: now[0])
    tick = moderate._lines()
    for at, done in ((0, 10), (1, 20), (11, 30), (12, 40), (21.5, 50)):
        now[0] = at
        tick(Progress(done, 10, 4000))
    assert capsys.readouterr().err.splitlines() == [
        "10 of 4000 rows were judged before",
        "30 of 4000 rows, 1.8 rows/s, 0:36:24 left",
        "50 of 4000 rows, 1.9 rows/s, 0:35:23 left",
    ]


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with moderate._shown(True) as tick:
        assert tick is not None
        tick(Progress(5, 0, 10))


INTERRUPTED = """
import sys
import importlib
from guardrail_vl import Guard
from guardrail_vl.cli import main
from guardrail_vl.testing import ScriptedEngine
from tests.bulk.files import keywords
command = importlib.import_module("guardrail_vl.cli.moderate")
command.make_guard = lambda options: Guard(engine=ScriptedEngine(keywords, delay=0.03))
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts as POSIX does")
def test_ctrl_c_leaves_what_the_same_command_goes_on_with(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", rows(*(f"question {i}" for i in range(60)))), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.partial" / "rows.jsonl"
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", INTERRUPTED, "moderate", str(source), "-o", str(out), "--batch", "2"]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as running:
        until = time.monotonic() + 60
        while not journal.exists() or not journal.read_bytes():
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines()[-2:] == ["What was judged is kept: the same command goes on from there.", "Interrupted."]
    assert json.loads(journal.read_text().splitlines()[0])["row"] == 1
    done = tried(source, "-o", out)
    assert done.exit_code == 0
    assert "of 60 rows were judged before" in done.stderr
    assert [row["id"] for row in read(out)] == list(range(60))


def test_what_is_left_of_another_guard_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path / "in.jsonl", rows("a", "b", "c")), tmp_path / "out.jsonl"

    def interrupt(told: Progress) -> None:
        if told.done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moderate, "_lines", lambda: interrupt)
        assert tried(source, "-o", out, "--batch", 1).exit_code == 130
    monkeypatch.setattr(moderate, "make_guard", lambda options: make_guard(fail="open"))
    done = tried(source, "-o", out)
    assert done.exit_code == 2
    assert "--restart" in done.stderr
    assert tried(source, "-o", out, "--restart").exit_code == 0
