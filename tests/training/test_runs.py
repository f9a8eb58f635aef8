from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError

for package in ("torch", "transformers", "trl", "peft", "matplotlib", "sklearn", "jinja2"):
    pytest.importorskip(package)

import torch

from guardrail_vl._lock import FolderLock
from guardrail_vl.training import dataset, runs, stages, synthetic
from guardrail_vl.training._output import Step
from guardrail_vl.training.recipe import Recipe
from guardrail_vl.training.runs import StageRun

ROOT = Path(__file__).parents[2]
QUICK_SFT = {
    "learning_rate": 5e-3, "max_steps": 4, "batch_size": 8, "accumulation": 1, "save_steps": 1, "train_vision": True,
}  # fmt: skip
TINY = {"base": {"tiny": {"window": 320}}, "data": {"synthetic": {"train": 24, "held_out": 8}}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(folder: Path | str = "", **sections: Any) -> Recipe:
    return Recipe.of({"name": "x", **TINY, **sections}, folder=folder)


def stamp(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns for file in sorted(folder.rglob("*")) if file.is_file()
    }


def turns_file(file: Path, count: int, seed: int, **changes: Any) -> Path:
    dataset.write(file, synthetic.turns(count, seed=seed))
    return file


# ---- one stage after the other ----------------------------------------------------------------------------------------


def test_a_run_keeps_its_state_and_does_no_stage_twice(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    steps: list[Step] = []
    given = recipe(sft=QUICK_SFT)
    first = runs.run(given, out, until="data", watch=lambda one: seen.append((one.stage, one.state)))
    assert seen == [("data", "running"), ("data", "done")]
    assert [(one.stage, one.state) for one in first.stages] == [("data", "done"), ("sft", "waiting")]
    assert not first.done
    made = stamp(out / "1-data")
    second = runs.run(given, out, progress=steps.append, watch=lambda one: seen.append((one.stage, one.state)))
    assert seen[2:] == [("sft", "running"), ("sft", "done")]
    assert second.done
    assert second.passed is None
    assert stamp(out / "1-data") == made
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert runs.load(out) == second
    assert second.stage("data").figures == first.stage("data").figures
    figures: Any = second.stage("data").figures
    assert figures["train"] + figures["repeated"] == 24
    assert (out / "plots" / "sft-loss.png").is_file()
    everything = stamp(out / "3-sft")
    assert runs.run(given, out) == second
    assert stamp(out / "3-sft") == everything


def test_the_recipe_as_it_ran_can_be_run(tmp_path: Path) -> None:
    turns_file(tmp_path / "turns.jsonl", 24, 0)
    given = recipe(tmp_path, data={"train": ["turns.jsonl"], "share": 0.25})
    first = runs.run(given, tmp_path / "out")
    text = (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")
    assert f"# data.train[0].file: {first.conditions['data.train[0].file']}\n" in text
    again = runs.run(tmp_path / "out" / "recipe.yaml", tmp_path / "out")
    assert again.conditions == first.conditions


def test_noise_is_for_fine_tuning_alone(tmp_path: Path) -> None:
    data = {"synthetic": {"train": 24, "noise": {"wrong": 1.0, "filler": 0}}}
    runs.run(recipe(data=data), tmp_path / "out")
    right, wrong = (dataset.read(tmp_path / "out" / "1-data" / f"{name}.jsonl") for name in ("train", "noisy"))
    assert all(
        (a.prompt_label, a.response_label) != (b.prompt_label, b.response_label)
        for a, b in zip(right, wrong, strict=True)
    )


# ---- what is held out -------------------------------------------------------------------------------------------------


def test_a_held_out_turn_that_is_trained_on_is_refused_or_dropped(tmp_path: Path) -> None:
    turns_file(tmp_path / "a.jsonl", 12, 0)
    dataset.write(tmp_path / "b.jsonl", [*synthetic.turns(12, seed=0)[:2], *synthetic.turns(6, seed=7, kind="image")])
    data: dict[str, Any] = {"train": ["a.jsonl"], "held_out": ["b.jsonl"]}
    with pytest.raises(ConfigurationError, match=r"2 held-out turns are trained on, such as 0-0, 0-1\..*leaks: drop"):
        runs.run(recipe(tmp_path, data=data), tmp_path / "out")
    failed = runs.load(tmp_path / "out").stage("data")
    assert (failed.state, failed.error) == ("failed", "2 held-out turns are trained on, such as 0-0, 0-1.")
    # The stage never came to its end, so its section may change.
    done = runs.run(recipe(tmp_path, data={**data, "leaks": "drop"}), tmp_path / "out").stage("data")
    assert (done.state, done.error) == ("done", "")
    assert done.figures is not None
    assert (done.figures["held_out"], done.figures["leaked"]) == (6, 2)


def test_files_that_number_their_turns_alike_go_together(tmp_path: Path) -> None:
    turns_file(tmp_path / "a.jsonl", 8, 0)
    others = [replace(one, id=f"0-{place}") for place, one in enumerate(synthetic.turns(8, seed=5))]
    dataset.write(tmp_path / "b.jsonl", others)
    runs.run(recipe(tmp_path, data={"train": ["a.jsonl", "b.jsonl"]}), tmp_path / "out")
    ids = [turn.id for turn in dataset.read(tmp_path / "out" / "1-data" / "train.jsonl")]
    assert len(ids) == len(set(ids)) == 16
    assert "0-3~2" in ids


# ---- another recipe for the same folder -------------------------------------------------------------------------------


def test_a_changed_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    turns_file(tmp_path / "turns.jsonl", 24, 0)
    data = {"train": ["turns.jsonl"]}
    runs.run(recipe(tmp_path, data=data, sft=QUICK_SFT), out, until="data")
    before = stamp(out)
    with pytest.raises(
        ConfigurationError, match=r"differs in base\.tiny\.seed \(0 there, 1 now\)\. Use another folder"
    ):
        runs.run(recipe(tmp_path, base={"tiny": {"window": 320, "seed": 1}}, data=data, sft=QUICK_SFT), out)
    turns_file(tmp_path / "turns.jsonl", 24, 1)
    with pytest.raises(ConfigurationError, match=r"differs in data\.train\[0\]\.file \('[0-9a-f]{12}' there"):
        runs.run(recipe(tmp_path, data=data, sft=QUICK_SFT), out)
    assert stamp(out).keys() == before.keys()
    turns_file(tmp_path / "turns.jsonl", 24, 0)
    # What has not come to its end may change; what has may not.
    other = {**QUICK_SFT, "max_steps": 2}
    assert runs.run(recipe(tmp_path, data=data, sft=other), out).done
    with pytest.raises(ConfigurationError, match=r"differs in sft\.max_steps \(2 there, 4 now\)"):
        runs.run(recipe(tmp_path, data=data, sft=QUICK_SFT), out)
    with pytest.raises(ConfigurationError, match="differs in sft"):
        runs.run(recipe(tmp_path, data=data), out)


def test_a_stage_that_was_deleted_under_a_later_one_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = recipe(sft=QUICK_SFT)
    runs.run(given, out)
    (out / "1-data" / "result.json").unlink()
    with pytest.raises(ConfigurationError, match="The stage data is not done, and sft, which comes after it, is"):
        runs.run(given, out)


def test_a_folder_that_is_no_run_or_is_in_use(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="There is no training run in 'out'"):
        runs.load(out)
    (out / "3-sft").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"has stages and no run\.json"):
        runs.run(recipe(), out)
    (out / "3-sft").rmdir()
    lock = FolderLock(out)
    lock.acquire()
    try:
        with pytest.raises(ConfigurationError, match="is writing to this run's folder"):
            runs.run(recipe(), out)
    finally:
        lock.release()
    runs.run(recipe(), out)
    (out / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"run\.json is damaged"):
        runs.run(recipe(), out)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="'out' is not empty, and not a training run"):
        runs.run(recipe(), out)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "run.lock"]
    (out / "notes.txt").rename(out / ".notes.txt")  # what is hidden disturbs nobody: an unfinished file of ours, say
    assert runs.run(recipe(), out).done


def test_half_a_surrogate_pair_does_not_stop_the_building_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a \\ud800 b", "label": "harmful"}\n', encoding="utf-8")
    assert runs.run(recipe(tmp_path, data={"train": ["t.jsonl"]}), tmp_path / "out").done


def test_an_unknown_last_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no stage 'rl'\. It has data\."):
        runs.run(recipe(), tmp_path / "out", until="rl")
    assert not (tmp_path / "out").exists()


# ---- stops ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = recipe(sft=QUICK_SFT)

    def stop(step: Step) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(given, out, progress=stop)
    stopped = runs.load(out).stage("sft")
    assert (stopped.state, stopped.error, stopped.figures) == ("stopped", "", None)
    steps: list[Step] = []
    done = runs.run(given, out, progress=steps.append)
    assert done.done
    assert steps[0].step > 1  # from its checkpoint
    assert done.stage("sft").seconds > stopped.seconds


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of a file")
def test_a_base_that_does_not_fit_on_the_disk_is_told(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(ConfigurationError, match="base can't be written: File too large"):
            runs.run(recipe(), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert runs.run(recipe(), tmp_path / "out").done


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = recipe(sft=QUICK_SFT)
    runs.run(given, out, until="data")
    script = (
        "import resource; from guardrail_vl.training import runs; from guardrail_vl.errors import ConfigurationError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"try:\n    runs.run({str(out / 'recipe.yaml')!r}, {str(out)!r})\n"
        "except ConfigurationError as error:\n    print('TOLD', error)\n"
    )
    got = subprocess.run(
        [sys.executable, "-c", script], env=_environment(), text=True, capture_output=True, check=False, timeout=150
    )
    assert "TOLD" in got.stdout, got.stderr[-800:]
    assert runs.load(out).stage("sft").state == "failed"
    assert not (out / "3-sft" / "model").exists()
    assert runs.run(given, out).done


# ---- several processes ------------------------------------------------------------------------------------------------


def test_one_of_several_processes_does_only_what_several_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(
        ConfigurationError, match=r"The stage data runs in one process, and this is one of 2.*--until data"
    ):
        runs.run(recipe(sft=QUICK_SFT), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("WORLD_SIZE")
    runs.run(recipe(), tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert runs.run(recipe(), tmp_path / "out").done


@pytest.mark.skipif(sys.platform == "win32", reason="torch has no gloo launcher there")
def test_two_processes_train_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rl = {
        "group": 2, "prompts_per_rollout": 4, "prompts_per_update": 2, "rollouts": 1, "max_tokens": 8, "micro_batch": 2,
        "reward": {"limit": 8},
    }  # fmt: skip
    runs.run(recipe(sft=QUICK_SFT, rl=rl), out, until="data")
    script = tmp_path / "launched.py"
    script.write_text(
        f"from guardrail_vl.training import runs\nruns.run({str(out / 'recipe.yaml')!r}, {str(out)!r})\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    for stage, last in (("sft", "rl"), ("rl", "sft")):
        got = subprocess.run(command, env=_environment() | {"ACCELERATE_USE_CPU": "true"}, text=True,
                             capture_output=True, check=False, timeout=150)  # fmt: skip
        assert got.returncode == 0, got.stderr[-1500:]
        state = runs.load(out)
        assert state.stage(stage).state == "done"
        assert state.stage(last).state == ("waiting" if last == "rl" else "done")
    assert json.loads((out / "3-sft" / "result.json").read_text(encoding="utf-8"))["steps"] == 4
    assert (out / "6-rl" / "model").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="torch has no gloo launcher there")
def test_an_adapter_is_merged_by_one_of_two_processes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sft = {**{k: v for k, v in QUICK_SFT.items() if k != "train_vision"}, "lora": {"rank": 4}}
    rl = {
        "group": 2, "prompts_per_rollout": 4, "prompts_per_update": 2, "rollouts": 1, "max_tokens": 8, "micro_batch": 2,
        "reward": {"limit": 8},
    }  # fmt: skip
    runs.run(recipe(sft=sft, rl=rl), out, until="sft")
    script = tmp_path / "launched.py"
    script.write_text(
        f"from guardrail_vl.training import runs\nruns.run({str(out / 'recipe.yaml')!r}, {str(out)!r})\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    got = subprocess.run(command, env=_environment() | {"ACCELERATE_USE_CPU": "true"}, text=True,
                         capture_output=True, check=False, timeout=150)  # fmt: skip
    assert got.returncode == 0, got.stderr[-1500:]
    assert runs.load(out).done
    assert (out / "3-sft" / "merged" / "guard.json").is_file()


# ---- the gate ---------------------------------------------------------------------------------------------------------


def test_the_gate_loads_one_model_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: set[Any] = set()
    most = 0

    class Counted(Guard):
        def __init__(self, *args: Any, **options: Any) -> None:
            nonlocal most
            super().__init__(*args, **options)
            loaded.add(self.engine)
            most = max(most, len(loaded))

        def close(self) -> None:
            super().close()
            loaded.discard(self.engine)

    monkeypatch.setattr(stages, "Guard", Counted)
    assert runs.run(recipe(sft=QUICK_SFT, export={}, gate={"min_samples": 0}), tmp_path / "out").done
    assert (most, loaded) == (1, set())


# ---- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_are_merged_on_the_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    lora = {"rank": 4, "alpha": 8}
    sft = {**{k: v for k, v in QUICK_SFT.items() if k != "train_vision"}, "lora": lora}
    rl = {
        "lora": lora, "group": 4, "prompts_per_rollout": 4, "prompts_per_update": 2, "rollouts": 1, "max_tokens": 8,
        "micro_batch": 8, "learning_rate": 1e-3, "reward": {"limit": 8},
    }  # fmt: skip
    whole = recipe(sft=sft, rl=rl, export={"dtype": "float32"})
    done = runs.run(whole, out)
    assert done.done
    assert (out / "3-sft" / "adapter").is_dir()
    assert (out / "3-sft" / "merged" / "guard.json").is_file()
    assert (out / "6-rl" / "adapter").is_dir()
    card = (out / "model" / "README.md").read_text(encoding="utf-8")
    assert "### sft" in card
    assert "### rl" in card
    with Guard(out / "model") as guard:
        assert guard.engine.trained_format is not None


# ---- kill -9 ----------------------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _start(file: Path, out: Path) -> subprocess.Popen[str]:
    script = f"from guardrail_vl.training import runs; runs.run({str(file)!r}, {str(out)!r})"
    return subprocess.Popen([sys.executable, "-c", script], env=_environment(), text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip


def _until(process: subprocess.Popen[str], out: Path, stage: str, lines: int) -> None:
    """Wait until a stage has written so many lines of metrics."""
    metrics = out / stage / "metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr and process.stderr.read()[-800:]
        assert time.monotonic() < end, f"{stage} took too long"
        time.sleep(0.02)


@pytest.mark.timeout(600)  # four processes, which load torch each time
def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "smoke.yaml"
    smoke = yaml.safe_load((ROOT / "training" / "recipes" / "smoke.yaml").read_text(encoding="utf-8"))
    # The smoke recipe with less of everything, and turns that are made there.
    smoke |= {"data": {"synthetic": {"train": 64, "held_out": 8, "seed": 1, "noise": {"wrong": 0.1, "filler": 1}}}}
    del smoke["policy"]
    smoke["sft"] |= {"max_steps": 30, "save_steps": 5, "batch_size": 8}
    smoke["mine"] |= {"samples": 2, "max_tokens": 16, "chunk": 8, "limit": 32}
    smoke["rl"] |= {"group": 2, "max_tokens": 16, "micro_batch": 4, "rollouts": 3, "patience": 9}
    smoke["gate"] |= {"min_samples": 0}
    file.write_text(yaml.safe_dump(smoke), encoding="utf-8")
    kept: dict[str, dict[str, int]] = {}
    for stage, lines in (("3-sft", 12), ("4-mine", 3), ("6-rl", 2)):
        process = _start(file, out)
        _until(process, out, stage, lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        state = runs.load(out)
        name = stage.partition("-")[2]
        assert state.stage(name).state == "stopped"
        for one in state.stages:
            if one.state == "done":
                kept.setdefault(one.folder, stamp(out / one.folder))
        assert name not in [folder.partition("-")[2] for folder in kept]
    process = _start(file, out)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-800:]
    done = runs.load(out)
    assert done.done
    assert isinstance(done.passed, bool)
    assert kept.keys() == {"1-data", "3-sft", "4-mine", "5-concat"}
    assert {folder: stamp(out / folder) for folder in kept} == kept  # a stage that is done was never run again
    steps = [json.loads(line)["step"] for line in (out / "3-sft" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert {path.name for path in (out / "plots").iterdir()} >= {"sft-loss.png", "rl-reward.png", "rl-clip.png"}
    with Guard(out / "model") as guard:
        assert guard.check("How do I paint the box?").action is not None


def test_samples_are_written_only_when_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = recipe(base={"tiny": {"window": 256}}, sft=QUICK_SFT, export={})
    runs.run(given, out)
    assert not (out / "samples.md").exists()
    runs.run(given, out, samples=2)
    text = (out / "samples.md").read_text(encoding="utf-8")
    held_out = dataset.read(out / "1-data" / "held_out.jsonl")[:2]
    assert text.count("\n## ") == 2
    assert all(turn.prompt is None or turn.prompt in text for turn in held_out)


def test_states_are_values() -> None:
    one = StageRun("sft", "3-sft", figures={"loss": 1.0})
    assert StageRun.from_json(one.to_json()) == one
