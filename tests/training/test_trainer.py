from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.checkpoints import same, weights  # isort: skip - skips where the extra is missing

import torch

from guardrail_vl import Guard
from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._memory import Need, check_fits, need
from guardrail_vl.training._sft_config import TARGETS
from guardrail_vl.training._trainer import Output, Step, digest_of_model, digest_of_turns, explained
from guardrail_vl.training.sft import LoRAConfig, SFTConfig, sft, trains
from tests.training.killed import CONFIG, TURNS


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("trainer") / "base")


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    output = tmp_path_factory.mktemp("trainer") / "uninterrupted"
    sft(base, TURNS, output, config=CONFIG)
    return output


@dataclass(frozen=True, slots=True)
class Small(Value):
    count: int


def run(folder: Path, **inputs: object) -> Output:
    return Output(folder, "small", {"turns": "3 turns abc", **inputs})


# --- the output folder -------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    output = run(tmp_path / "out", config={"seed": 1})
    assert output.begin(Small) is None
    output.log(Step("small", 1, 2, {"loss": 0.5, "other": float("nan")}))
    output.finish(Small(7))
    assert run(tmp_path / "out", config={"seed": 1}).begin(Small) == Small(7)
    (line,) = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "total": 2, "loss": 0.5, "other": None}


@pytest.mark.parametrize("kept", ["result", "checkpoint"])
def test_work_on_other_inputs_is_refused_and_says_which(tmp_path: Path, kept: str) -> None:
    output = run(tmp_path / "out", config={"seed": 1, "inner": {"rate": 0.1}})
    output.begin(Small)
    if kept == "result":
        output.finish(Small(7))
    else:
        (output.checkpoints / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"config\.inner\.rate was 0\.1, is 0\.2\."):
        run(tmp_path / "out", config={"seed": 1, "inner": {"rate": 0.2}}).begin(Small)
    with pytest.raises(ConfigurationError, match="turns was 3 turns abc, is 4 turns"):
        run(tmp_path / "out", config={"seed": 1, "inner": {"rate": 0.1}}, turns="4 turns").begin(Small)


def test_other_inputs_are_fine_while_there_is_nothing_to_lose(tmp_path: Path) -> None:
    run(tmp_path / "out", config={"batch": 6}).begin(Small)
    again = run(tmp_path / "out", config={"batch": 2})
    assert again.begin(Small) is None
    again.finish(Small(1))
    assert run(tmp_path / "out", config={"batch": 2}).begin(Small) == Small(1)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="not empty, and not a run of small"):
        run(tmp_path).begin(Small)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_damaged_result_is_told(tmp_path: Path) -> None:
    output = run(tmp_path / "out")
    output.begin(Small)
    (tmp_path / "out" / "result.json").write_text('{"count": "many"}')
    with pytest.raises(ConfigurationError, match="not one of this version"):
        run(tmp_path / "out").begin(Small)


def test_going_on_forgets_the_lines_that_will_be_written_again(tmp_path: Path) -> None:
    output = run(tmp_path / "out")
    output.begin(Small)
    for step in range(1, 6):
        output.log(Step("small", step, 9, {"loss": 1.0}))
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # where the process was killed
    output.rewind(3)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_digests_follow_what_is_in(base: Path, tmp_path: Path) -> None:
    turns = synthetic.turns(3, seed=1, kind="text-image")
    changes: list[Mapping[str, Any]] = [{"weight": 2.0}, {"reasoning": "So."}, {"prompt_label": None}, {"id": "other"}]
    digests = {digest_of_turns(turns), digest_of_turns(turns[:2]), digest_of_turns(turns[::-1])}
    for change in changes:
        digests.add(digest_of_turns([replace(turns[0], **change), *turns[1:]]))
    assert len(digests) == 3 + len(changes)
    gone = [replace(turns[0], images=(tmp_path / "gone.png",)), *turns[1:]]
    assert digest_of_turns(gone) not in digests

    copy = tmp_path / base.name
    shutil.copytree(base, copy)
    assert digest_of_model(copy) == digest_of_model(base)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert digest_of_model(copy) != digest_of_model(base)
    assert digest_of_model("owner/name") == "owner/name"


# --- killed, interrupted, and going on ---------------------------------------------------------------------------------


def in_a_process(base: Path, output: Path, *more: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    places = os.pathsep.join([str(root / "src"), str(root)])
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.training.killed", str(base), str(output), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(base: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 in the midst of step 5, after the checkpoint of step 4, in the middle of the second epoch."""
    output = tmp_path / "out"
    process = in_a_process(base, output)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "step 5\n":
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    assert not (output / "model").exists()
    # What a process was writing when it was killed is hidden, is not gone on from, and goes.
    (output / "checkpoints" / ".staged" / "checkpoint-6").mkdir(parents=True)
    steps: list[int] = []
    result = sft(base, TURNS, output, config=CONFIG, progress=lambda step: steps.append(step.step))
    assert steps == [5, 6, 7, 8, 9]
    assert result.steps == 9
    assert same(weights(output / "model"), weights(uninterrupted / "model"))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert lines == wanted
    assert not (output / "checkpoints").exists()
    assert not (base / "checkpoints").exists()


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(base: Path, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = signal.getsignal(signal.SIGINT)

    def press(step: Step) -> None:
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 3 of 9\. .*the same command goes on"):
        sft(base, TURNS, output, config=CONFIG.model_copy(update={"save_steps": 0}), progress=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (output / "result.json").exists()
    with pytest.raises(ConfigurationError, match=r"config\.seed was 42, is 1"):
        sft(base, TURNS, output, config=CONFIG.model_copy(update={"save_steps": 0, "seed": 1}))
    # As two processes leave it: their steps are twice as large.
    state = output / "checkpoints" / "checkpoint-3" / "rng_state.pth"
    shutil.copy(state, state.with_name("rng_state_1.pth"))
    with pytest.raises(ConfigurationError, match="to go on was of 2 processes, and this one is of 1"):
        sft(base, TURNS, output, config=CONFIG.model_copy(update={"save_steps": 0}))
    state.with_name("rng_state_1.pth").unlink()
    sft(base, TURNS, output, config=CONFIG.model_copy(update={"save_steps": 0}))
    assert same(weights(output / "model"), weights(uninterrupted / "model"))


def test_ctrl_c_at_the_last_step_loses_nothing(base: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_steps": 2})

    def press(step: Step) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="just ended: its result is kept"):
        sft(base, TURNS, tmp_path / "out", config=config, progress=lambda s: press(s) if s.step == 2 else None)
    assert sft(base, TURNS, tmp_path / "out", config=config).steps == 2


def test_a_run_that_is_done_is_returned_at_once(base: Path, uninterrupted: Path) -> None:
    stamp = (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns
    again = sft(base, TURNS, uninterrupted, config=CONFIG)
    assert again.steps == 9
    assert again.dropped == {}
    assert (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns == stamp


def test_two_processes_take_the_step_that_one_takes(base: Path, tmp_path: Path) -> None:
    """The same turns in the same step, over two processes or accumulated in one: the same loss, gradient and model."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = in_a_process(base, tmp_path / "two", "1", launcher=launcher)
    out, _ = process.communicate(timeout=150)
    assert (process.returncode, out) == (0, "step 1\n")  # one of the two reports
    sft(base, TURNS, tmp_path / "one", config=CONFIG.model_copy(update={"max_steps": 1, "accumulation": 4}))
    one, two = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], abs=1e-4)
    assert weights(tmp_path / "one" / "model").keys() == weights(tmp_path / "two" / "model").keys()
    assert [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith(".")] == []


# --- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 1e10], ids=["the loss first", "the weights first"])
def test_a_loss_that_is_no_number_stops_the_run_and_spoils_no_checkpoint(
    base: Path, tmp_path: Path, decay: float
) -> None:
    output = tmp_path / "out"
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "save_steps": 1, "weight_decay": decay})
    with pytest.raises(ConfigurationError, match=r"At step \d .* became not a number, so training was stopped\. Lower"):
        sft(base, TURNS, output, config=config)
    for kept in (output / "checkpoints").glob("checkpoint-*"):
        assert all(tensor.isfinite().all() for tensor in weights(kept).values())
    assert not (output / "model").exists()
    assert not (output / "result.json").exists()
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert (None in last.values()) is (decay == 0.0)


@pytest.mark.parametrize("room", [150_000, 900_000, 2_000_000])
def test_a_full_disk_is_told_and_nothing_half_written_is_left(base: Path, tmp_path: Path, room: int) -> None:
    """A limit on the size of a file, which the weights, or the optimizer's state, don't keep."""
    output = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        if room == 2_000_000:  # enough for all
            sft(base, TURNS, output, config=CONFIG.model_copy(update={"max_steps": 4}))
            return
        with pytest.raises(ConfigurationError, match=r"can't be written.* goes on from there"):
            sft(base, TURNS, output, config=CONFIG.model_copy(update={"max_steps": 4}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(output.glob("checkpoints/checkpoint-*"))
    assert not (output / "model").exists()
    assert sft(base, TURNS, output, config=CONFIG.model_copy(update={"max_steps": 4})).steps == 4


def test_too_little_memory_is_told() -> None:
    with (
        pytest.raises(EngineUnavailableError, match="not enough memory to go on with sft"),
        explained("go on with sft"),
    ):
        torch.empty(2**60)
    with pytest.raises(ValueError, match="something else"), explained("go on with sft"):
        raise ValueError("something else")


@pytest.fixture(scope="module")
def huge(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a model as large as a 72B, and no weights."""
    folder = tmp_path_factory.mktemp("trainer") / "huge"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "layer_types": ["full_attention"] * 80,
    }
    config["vision_config"]["out_hidden_size"] = 8192
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_can_t_fit_is_refused_before_it_is_loaded(huge: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"at least 1\d{3}\.\d GiB.*GiB free\. Train with LoRA, shard"):
        sft(huge, TURNS, tmp_path / "out", config=CONFIG)
    wanted = need(Encoder(huge), lambda name: trains(name, CONFIG), bytes_each=4)
    assert wanted.total == 4 * wanted.parameters + 12 * wanted.trained
    adapters = need(Encoder(huge), lambda name: True, bytes_each=2, rank=8, targets=TARGETS)
    # By hand: rank times the sides of q, k, v, o, gate, up and down in each of 80 layers.
    sides = (8192 + 8192) * 2 + (8192 + 1024) * 2 + (8192 + 29568) * 3
    assert adapters.trained == 80 * 8 * sides
    with pytest.raises(EngineUnavailableError, match=rf"Training {adapters.trained:,} of"):
        check_fits(adapters, "cpu")


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ({}, 16),
        ({"ACCELERATE_USE_FSDP": "true"}, 4),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, 0),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, 16),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, 10),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, 7),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 4),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, 0),
    ],
)
def test_shards_share_what_is_kept(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], share: int) -> None:
    """Weights 4, gradients 4, optimizer 8 TiB, over four processes."""
    for name, value in {"WORLD_SIZE": "4", **told}.items():
        monkeypatch.setenv(name, value)
    wanted = Need(parameters=2**40, trained=2**40, weights=4 * 2**40, gradients=4 * 2**40, optimizer=8 * 2**40)
    if share:
        with pytest.raises(EngineUnavailableError, match=rf"at least {share * 1024}\.0 GiB"):
            check_fits(wanted, "cpu")
    else:
        check_fits(wanted, "cpu")


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)])
@pytest.mark.parametrize("vision", [False, True])
def test_what_is_counted_beforehand_is_what_is_trained(
    base: Path, tmp_path: Path, lora: LoRAConfig | None, vision: bool
) -> None:
    if lora is not None and vision:
        with pytest.raises(ValueError, match="LoRA adapts the text model alone"):
            SFTConfig(lora=lora, train_vision=True)
        return
    config = SFTConfig(lora=lora, train_vision=vision, max_steps=1, batch_size=2, accumulation=1, save_steps=0)
    told = sft(base, TURNS, tmp_path / "out", config=config)
    counted = need(
        Encoder(base), lambda name: trains(name, config), bytes_each=4, rank=lora.rank if lora else 0, targets=TARGETS
    )
    assert (counted.parameters, counted.trained) == (told.parameters, told.trained_parameters)


def test_the_model_keeps_its_reading_and_says_its_format(base: Path, uninterrupted: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        assert (uninterrupted / "model" / name).read_bytes() == (base / name).read_bytes()
    with Guard(uninterrupted / "model", dtype="float32") as guard:
        assert guard.engine.trained_format is not None
        assert guard.engine.trained_format.format == "guardreasoner-vl/1"
