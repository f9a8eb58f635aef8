"""`guardrail-vl audit` and `review` on the command line: counts, rows to train on, purges, and a page that is served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("sqlalchemy")

from guardrail_vl import Guard
from guardrail_vl.audit import Archive, AuditLog, Correction
from guardrail_vl.cli import app
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.training import dataset
from guardrail_vl.verdict import Label
from tests.evaluation.pictures import RED


def tried(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(params=["audit.jsonl", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    target = str(tmp_path / "audit.jsonl") if request.param != "sqlite" else f"sqlite:///{tmp_path / 'audit.db'}"
    with AuditLog(target, content=True) as log:
        guard = Guard(engine=ScriptedEngine(by_keyword("bomb")), pre_prompt=log, post_response=log)
        bomb = guard.check_prompt("a bath bomb", images=[RED])
        guard.check_prompt("a bath bomb", images=[RED])
        guard.check_prompt("bread")
        guard.check_response("a bomb", prompt="what?")
        guard.check([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}])  # fmt: skip
        guard.check_prompt(images=[b"no picture"])
        log.flush()
        said = Correction(bomb.id, "Ada", datetime.now(UTC), prompt=Label.UNHARMFUL, note="It fizzes.")
        log.archive.correct(replace(said, prompt=Label.HARMFUL))
        log.archive.correct(said)
    return target


def test_export(target: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    got = tried("audit", "export", "--audit", target, "-o", rows)
    assert got.exit_code == 0, got.output
    assert got.stdout.startswith("3 turns in ")
    for why in ("1 decisions, since their content is", "1 decisions, since they hold more", "another one has the same"):
        assert why in got.stderr
    assert tried("data", "validate", rows).exit_code == 0
    bath, bread, answer = sorted(dataset.read(rows), key=lambda turn: turn.prompt or "")
    assert (bath.prompt, bath.images, bath.prompt_label) == ("a bath bomb", (RED,), Label.UNHARMFUL)  # Ada's
    assert bath.reasoning is None
    assert (bread.prompt_label, bread.source) == (Label.UNHARMFUL, "audit")
    assert bread.reasoning
    assert (answer.response, answer.response_label) == ("a bomb", Label.HARMFUL)
    again = tried("audit", "export", "--audit", target, "-o", rows, "--reviewed-only")
    assert again.exit_code == 2
    assert "is there" in again.stderr
    assert tried("audit", "export", "--audit", target, "-o", rows, "--reviewed-only", "--overwrite").exit_code == 0
    assert [turn.prompt for turn in dataset.read(rows)] == ["a bath bomb"]


def test_export_of_nothing(tmp_path: Path) -> None:
    target = str(tmp_path / "audit.jsonl")
    with AuditLog(target) as log:
        Guard(engine=ScriptedEngine(by_keyword("bomb")), pre_prompt=log).check_prompt("bread")
    got = tried("audit", "export", "--audit", target, "-o", tmp_path / "rows.jsonl")
    assert got.exit_code == 2
    assert "their content is not stored" in got.stderr


def test_stats_and_purge(target: str) -> None:
    got = tried("audit", "stats", "--audit", target, "--json")
    assert json.loads(got.stdout) == {
        "records": 6, "allow": 2, "annotate": 0, "block": 4, "reviewed": 1, "to_review": 3, "contents": 5,
    }  # fmt: skip
    assert "to review" in tried("audit", "stats", "--audit", target).stdout
    assert tried("audit", "purge", "--audit", target, "--older-than", "30d").stdout.startswith(
        "0 records and 0 contents"
    )
    got = tried("audit", "purge", "--audit", target, "--older-than", "0h", "--content-only", "--json")
    assert json.loads(got.stdout) == {"records": 0, "contents": 5}
    with Archive(target) as archive:
        (said,) = archive.corrections([record.id for record in archive.find()]).values()
    assert (said.prompt, said.note) == (Label.UNHARMFUL, "")
    assert "6 records" in tried("audit", "purge", "--audit", target, "--older-than", "0d").stdout


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1.5d", "999999w"])
def test_ages_that_are_none(target: str, age: str) -> None:
    assert tried("audit", "purge", "--audit", target, "--older-than", age).exit_code == 2


@pytest.mark.parametrize("target", ["none.jsonl", "sqlite:///none.db", "sqlite+pysqlite:///none.db", "none.txt"])
def test_a_log_that_is_not_there_is_not_made(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    got = tried("audit", "stats", "--audit", target)
    assert got.exit_code == 2
    assert "no audit log" in got.stderr
    assert list(tmp_path.iterdir()) == []


# ---- review -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as POSIX does")
def test_review_serves_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    target = str(tmp_path / "audit.jsonl")
    with AuditLog(target) as log:
        Guard(engine=ScriptedEngine(by_keyword("bomb")), pre_prompt=log).check_prompt("a bomb")
    command = [sys.executable, "-m", "guardrail_vl", "review", "--audit", target, "--port", "0", "--reviewer", "Ada"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("Review at ").strip()
        try:
            about = httpx.get(f"{url}api/about", headers={"X-Guardrail-Review": "1"}, timeout=30).json()
        finally:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert about["reviewer"] == "Ada"
    assert (process.returncode, said) in [(0, ""), (130, "Interrupted.\n")]


def test_review_for_others_needs_a_token(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    (tmp_path / "audit.jsonl").touch()
    got = tried("review", "--audit", tmp_path / "audit.jsonl", "--host", "0.0.0.0")
    assert got.exit_code == 2
    assert "GUARDRAIL_VL_REVIEW_TOKEN" in got.stderr
