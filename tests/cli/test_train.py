from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

for package in ("torch", "transformers", "trl", "peft", "matplotlib"):
    pytest.importorskip(package)

from guardrail_vl.cli.train import train_check, train_run, train_stages
from guardrail_vl.training import runs

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training" / "recipes"

app = typer.Typer(pretty_exceptions_enable=False)
app.command("run")(train_run)
app.command("check")(train_check)
app.command("status")(train_stages)


def tried(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path / "recipe.yaml")


def written(file: Path, **changes: Any) -> Path:
    whole = {"name": "toy", "base": {"tiny": {}}, "data": {"synthetic": {"train": 12, "held_out": 4}}, **changes}
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return file


# ---- check ----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_checked_without_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    got = tried("check", RECIPES / "smoke.yaml")
    assert got.exit_code == 0, got.output
    told = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in got.stdout.splitlines() if line.strip()}
    assert told["stages"] == "data, sft, mine, concat, rl, export, gate"
    assert told["base"] == "tiny, built here"
    assert "turns.jsonl" in told["data"]
    assert told["policy"].startswith("parcel-desk @")
    assert list(tmp_path.iterdir()) == []


def test_the_check_as_json() -> None:
    value = json.loads(tried("check", RECIPES / "house-policy-lora.yaml", "--json").stdout)
    assert value["name"] == "parcel-desk"
    assert value["stages"] == ["data", "sft", "mine", "concat", "rl", "export", "gate"]
    assert value["conditions"]["sft.lora.rank"] == 16


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"sft": {"max_step": 1}},
            "'recipe.yaml': unknown key 'sft.max_step', did you mean 'max_steps'? (allowed: learning",
        ),
        (
            {"data": {"train": ["a.jsonl"]}},
            "Error: The recipe names what is not there: a.jsonl.\nPaths are relative to",
        ),
        ({"policy": "p.yaml"}, "Error: Can't read the policy file 'p.yaml': No such file or directory."),
    ],
)
def test_a_recipe_that_cannot_be_run(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    file = written(tmp_path / "recipe.yaml", **changes)
    for command in (("check", file), ("run", file, "--output", tmp_path / "out")):
        got = tried(*command)
        assert got.exit_code == 2
        assert told in got.stderr
    assert not (tmp_path / "out").exists()


# ---- run and status -------------------------------------------------------------------------------------------------


def test_a_run_is_told_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    got = tried("run", recipe, "--output", out)
    assert got.exit_code == 0, got.output
    assert [line.partition(" in ")[0] for line in got.stderr.splitlines()] == ["data: begun", "data: done"]
    heads, row = (line.split() for line in got.stdout.splitlines()[:2])
    assert heads == ["stage", "state", "time", "figures"]
    assert row[:2] == ["data", "done"]
    assert " ".join(row).endswith("train 12, held_out 4, repeated 0, contradicting 0, leaked 0")
    again = tried("run", recipe, "--output", out, "--json")
    assert again.stderr == ""
    value = json.loads(again.stdout)
    assert (value["done"], value["passed"], value["recipe"]) == (True, None, "toy")
    status = tried("status", out)
    assert (status.exit_code, status.stdout) == (0, got.stdout)
    assert json.loads(tried("status", out, "--json").stdout) == value


def test_a_changed_recipe_is_refused(recipe: Path, tmp_path: Path) -> None:
    assert tried("run", recipe, "--output", tmp_path / "out").exit_code == 0
    written(recipe, base={"tiny": {"seed": 1}})
    got = tried("run", recipe, "--output", tmp_path / "out")
    assert got.exit_code == 2
    assert (
        "Error: The folder holds the run of another recipe. It differs in base.tiny.seed (0 there, 1 now)."
        in got.stderr
    )


def test_wrong_use(recipe: Path, tmp_path: Path) -> None:
    assert tried("run", recipe).exit_code == 2
    got = tried("run", recipe, "--output", tmp_path / "out", "--until", "rl")
    assert got.exit_code == 2
    assert "Error: The recipe has no stage 'rl'.\nIt has data." in got.stderr
    got = tried("status", tmp_path / "none")
    assert got.exit_code == 2
    assert "There is no training run in 'none'" in got.stderr


def left_running(recipe: Path, out: Path) -> None:
    """A run's folder as a process leaves it that works, or was killed."""
    assert tried("run", recipe, "--output", out).exit_code == 0
    found = runs.load(out)
    (out / "run.json").write_text(found.with_stage(replace(found.stages[0], state="running")).to_json(), "utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_process_that_works_is_told_from_one_that_was_killed(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    left_running(recipe, out)
    script = (
        "import sys, time; from pathlib import Path; from guardrail_vl._lock import FolderLock; "
        "FolderLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(100)"
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen([sys.executable, "-c", script, str(out)], env={**os.environ, "PYTHONPATH": path},
                          stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        living = tried("status", out)
        assert living.stdout.splitlines()[1].split()[:2] == ["data", "running"]
        process.send_signal(signal.SIGKILL)
    assert (out / "run.lock").read_text() == str(process.pid), "what it leaves"
    killed = tried("status", out)
    assert killed.stdout.splitlines()[1].split()[:2] == ["data", "stopped"]
    assert "data was stopped: the same train run command goes on from there." in killed.stdout
    assert json.loads((out / "run.json").read_text("utf-8"))["stages"][0]["state"] == "running", "nothing is written"
    assert tried("run", recipe, "--output", out).exit_code == 0
    assert tried("status", out).stdout.splitlines()[1].split()[:2] == ["data", "done"]


def test_the_status_needs_nothing_heavy(recipe: Path, tmp_path: Path) -> None:
    left_running(recipe, tmp_path / "out")
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'numpy', 'sklearn', 'matplotlib'))); "
        "sys.argv[0] = 'guardrail-vl'; from guardrail_vl.cli import main; main()"
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, "train", "status", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout == tried("status", tmp_path / "out").stdout


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_the_status_is_the_gates(recipe: Path, tmp_path: Path, passed: bool, status: int) -> None:
    out = tmp_path / "out"
    assert tried("run", recipe, "--output", out).exit_code == 0
    # As a gate leaves it.
    found = runs.load(out)
    gate = runs.StageRun(
        "gate", "8-gate", "done", figures={"passed": passed, "reasons": [] if passed else ["F1 fell."]}
    )
    (out / "run.json").write_text(replace(found, stages=(*found.stages, gate)).to_json(), encoding="utf-8")
    got = tried("status", out)
    assert got.exit_code == status
    assert ("The gate: F1 fell." in got.stdout) is not passed
    assert ("The gate passed." in got.stdout) is passed


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    sft = {"max_steps": 2000, "batch_size": 4, "accumulation": 1, "learning_rate": 1e-3, "train_vision": True}
    recipe, out = written(tmp_path / "recipe.yaml", sft=sft), tmp_path / "out"
    script = (
        "import typer; from guardrail_vl.cli.train import train_run; app = typer.Typer(); app.command()(train_run); "
        f"app([{str(recipe)!r}, '--output', {str(out)!r}])"
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, text=True, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    metrics = out / "3-sft" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()[-800:]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = told.splitlines()
    assert lines[-2:] == [f"What was done is kept in {out}: the same command goes on from there.", "Interrupted."]
    assert any(line.startswith("sft: stopped in ") for line in lines)
    assert "Traceback" not in told
    assert runs.load(out).stage("sft").state == "stopped"
    assert any((out / "3-sft" / "checkpoints").iterdir())
