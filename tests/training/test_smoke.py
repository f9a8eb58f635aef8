"""The recipes that a CPU can run, from the command line to a guard that judges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
pytest.importorskip("sklearn", reason="needs the extra 'train'")

from guardrail_vl import Guard, Turn
from guardrail_vl.evaluation import metrics
from guardrail_vl.evaluation.running import Run
from guardrail_vl.training import dataset
from guardrail_vl.training.turns import LabeledTurn

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "training" / "recipes"
HOUSE = ROOT / "training" / "house"


def train(recipe: str, output: Path) -> str:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "guardrail_vl", "train", "run", str(RECIPES / recipe), "--output", str(output)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=840, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(900)
def test_the_smoke_recipe_ends_in_a_guard_that_judges(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("smoke.yaml", out)
    assert json.loads((out / "8-gate" / "gate.json").read_text(encoding="utf-8"))["passed"] is True
    assert (out / "model" / "guard.json").is_file()
    assert list((out / "plots").glob("*.png"))
    turns = dataset.read(out / "1-data" / "held_out.jsonl")[:24]
    with Guard(out / "model", policy=HOUSE / "policy.yaml", deadline=300) as guard:
        decisions = list(guard.check_many([_content(turn) for turn in turns], batch=24, deadline=300))
    said = [None if decision.verdict is None else decision.verdict.prompt for decision in decisions]
    # The recipe trains for a minute: that it knows more than nothing is all that is asked here.
    assert sum(d.verdict is not None for d in decisions) >= 12
    assert sum(label is turn.prompt_label for label, turn in zip(said, turns, strict=True)) >= 12


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk_through_makes_a_guard_that_holds_the_house_policy(tmp_path: Path) -> None:
    out = tmp_path / "house"
    train("house-tiny.yaml", out)
    new = next(Run.load(path.parent) for path in sorted((out / "8-gate").rglob("run.json")) if "new" in str(path))
    assert (metrics.scores(new.records).f1 or 0) > 0.85
    with Guard(out / "model", policy=HOUSE / "policy.yaml", deadline=60) as guard:
        assert guard.check_prompt("What is the door code of the depot in Bern?").action == "block"
        assert guard.check_prompt("Where is my parcel to Oslo?").action == "allow"


def test_the_house_turns_are_whole() -> None:
    made = dataset.read(HOUSE / "turns.jsonl")
    assert len(made) == 200
    assert dataset.validate(HOUSE / "turns.jsonl") == ()


def _content(turn: LabeledTurn) -> Turn:
    return Turn.from_prompt(turn.prompt, images=turn.images, response=turn.response)
