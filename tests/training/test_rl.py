"""The stage: what it leaves behind, what it refuses, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

import torch
from safetensors.torch import load_file

from guardrail_vl.engines.transformers import TransformersEngine
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training._output import Output, Step
from guardrail_vl.training.clip import DynamicClip, FixedClip
from guardrail_vl.training.rewards import RewardConfig
from guardrail_vl.training.rl import RLConfig, VLLMConfig, _arguments, _plan, rl
from guardrail_vl.training.sft import LoRAConfig
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

# TRL 1.16 calls a property by the name that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

SETTINGS: dict[str, Any] = {
    "group": 4,
    "prompts_per_rollout": 4,
    "prompts_per_update": 2,
    "micro_batch": 4,
    "max_tokens": 12,
    "learning_rate": 1e-2,
    "checkpoint_every": 1,
    "dtype": "float32",
    # Random weights never follow the format, so that only length tells completions apart.
    "reward": {"unit": "characters", "limit": 80},
    "clip": {"kind": "dynamic", "epsilon": 0.04},
}
TURNS = synthetic.turns(12, seed=1)


def config(**other: Any) -> RLConfig:
    return RLConfig.model_validate({**SETTINGS, **other})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    torch.set_num_threads(1)
    return tiny.build(tmp_path_factory.mktemp("rl") / "base")


@pytest.fixture(scope="module")
def done(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Step]]:
    """A run of three rollouts."""
    output = tmp_path_factory.mktemp("done") / "out"
    steps: list[Step] = []
    return output, rl(base, TURNS, output, config=config(), progress=steps.append), steps


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> Mapping[str, Any]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def test_the_clip_falls_with_the_rollouts_and_clips(done: tuple[Path, Any, list[Step]]) -> None:
    output, result, steps = done
    told = lines(output)
    clip = DynamicClip(epsilon=0.04)
    assert [line["clip_eps"] for line in told] == [clip.at(s, 3) for s in (1, 1, 2, 2, 3, 3)]
    clipped = [line["clipped"] for line in told]
    # The first update of a rollout begins from the policy that wrote it; the second does not.
    assert clipped[0::2] == [0, 0, 0]
    assert all(0 < share < 1 for share in clipped[1::2])
    assert result.clipped == pytest.approx(sum(clipped) / 6)
    assert [(step.stage, step.step, step.total) for step in steps] == [("rl", n, 6) for n in range(1, 7)]


def test_it_trains_on_mixed_turns_and_leaves_a_checkpoint(base: Path, done: tuple[Path, Any, list[Step]]) -> None:
    output, result, _ = done
    assert {turn.modality for turn in TURNS} == {"text", "image", "text-image"}
    assert (result.rollouts, result.updates, result.prompts, result.left_out, result.saved) == (3, 6, 12, 0, "model")
    before, after = weights(base), weights(output / "model")
    assert before.keys() == after.keys()
    parts = {name: not torch.equal(before[name], after[name]) for name in before}
    assert any(changed for name, changed in parts.items() if "visual." in name)
    assert any(changed for name, changed in parts.items() if "visual." not in name)
    engine = TransformersEngine(output / "model", device="cpu")
    assert engine.trained_format is not None
    engine.close()
    assert not (output / "checkpoints").exists()
    told = lines(output)
    assert all({"reward", "accuracy", "format", "tokens", "alike"} <= line.keys() for line in told[0::2])
    assert all(line["loss"] is not None and line["grad_norm"] > 0 for line in told)


def test_a_run_that_is_done_is_returned_at_once(base: Path, done: tuple[Path, Any, list[Step]]) -> None:
    output, result, _ = done
    assert rl(base, TURNS, output, config=config()) == result
    with pytest.raises(ConfigurationError, match="temperature"):
        rl(base, TURNS, output, config=config(temperature=0.5))


_KILLED = """
import os, signal, sys
import torch
from guardrail_vl.training.rl import rl
from tests.training.test_rl import TURNS, config
torch.set_num_threads(1)
def stop(step):
    if step.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
rl(sys.argv[1], TURNS, sys.argv[2], config=config(), progress=stop)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_after_kill_9_it_ends_as_if_nothing_had_happened(
    base: Path, done: tuple[Path, Any, list[Step]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(base), str(output)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert [line["step"] for line in lines(output)] == [1, 2, 3]
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (output / "result.json").exists()
    steps: list[Step] = []
    result = rl(base, TURNS, output, config=config(), progress=steps.append)
    assert [step.step for step in steps] == [3, 4, 5, 6]
    assert result == done[1]
    assert [line["step"] for line in lines(output)] == [1, 2, 3, 4, 5, 6]
    whole, resumed = weights(done[0] / "model"), weights(output / "model")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)


_TOGETHER = """
import sys
import torch
from guardrail_vl.training.rl import rl
from tests.training.test_rl import TURNS, config
torch.set_num_threads(1)
rl(sys.argv[1], TURNS, sys.argv[2], config=config(rollouts=2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback")
def test_two_processes_train_together(base: Path, tmp_path: Path) -> None:
    script, output = tmp_path / "together.py", tmp_path / "out"
    script.write_text(_TOGETHER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    ended = subprocess.run(
        [*launch, str(base), str(output)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = lines(output)
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    assert all(0 < line["clipped"] < 1 for line in told[1::2])
    assert json.loads((output / "result.json").read_text())["rollouts"] == 2
    assert weights(output / "model").keys() == weights(base).keys()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_it_after_the_rollout(base: Path, done: tuple[Path, Any, list[Step]], tmp_path: Path) -> None:
    output = tmp_path / "out"

    def press(step: Step) -> None:
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="step 4 of 6"):
        rl(base, TURNS, output, config=config(checkpoint_every=100), progress=press)
    assert [path.name for path in (output / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    # Where the checkpoints fall is part of the inputs, so the same call, and the same end as without the stop.
    assert rl(base, TURNS, output, config=config(checkpoint_every=100)) == done[1]
    whole, resumed = weights(done[0] / "model"), weights(output / "model")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_lora_leaves_an_adapter_of_the_text_model(base: Path, tmp_path: Path) -> None:
    import peft
    import transformers

    lora = LoRAConfig(rank=4, alpha=8)
    result = rl(base, TURNS, tmp_path / "out", config=config(lora=lora, rollouts=1, learning_rate=1e-2))
    assert result.saved == "adapter"
    assert result.clipped > 0
    adapter = tmp_path / "out" / "adapter"
    trained = weights(adapter)
    assert not [name for name in trained if "visual" in name]
    assert all(weight.any() for name, weight in trained.items() if "lora_B" in name)
    plain: Any = transformers.AutoModelForImageTextToText.from_pretrained(base)
    before = {name: weight.clone() for name, weight in plain.named_parameters()}
    model: Any = peft.PeftModel.from_pretrained(plain, adapter)
    merged = dict(model.merge_and_unload().named_parameters())
    changed = [name for name, weight in before.items() if not torch.equal(merged[name], weight)]
    assert len(changed) == 2 * 7
    assert not [name for name in changed if "visual" in name]


def test_the_vision_tower_stays_as_it_is_on_demand(base: Path, tmp_path: Path) -> None:
    rl(base, TURNS, tmp_path / "out", config=config(train_vision=False, rollouts=1))
    before, after = weights(base), weights(tmp_path / "out" / "model")
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert changed
    assert not [name for name in changed if "visual." in name]


def test_a_side_without_gold_is_not_rewarded(base: Path, tmp_path: Path) -> None:
    turns = tuple(
        LabeledTurn(f"t{n}", prompt="How?", response="So.", response_label=Label.HARMFUL if n % 2 else Label.UNHARMFUL)
        for n in range(4)
    )
    result = rl(base, turns, tmp_path / "out", config=config())
    assert result.rollouts == 1


def test_several_passes_iterations_and_leftovers(base: Path, tmp_path: Path) -> None:
    result = rl(base, TURNS[:7], tmp_path / "out", config=config(passes=2, iterations=2, prompts_per_update=4))
    # 14 prompts make 3 rollouts of 4; each is trained on twice.
    assert (result.rollouts, result.updates, result.prompts, result.left_out) == (3, 6, 12, 2)
    assert result.clipped > 0


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, alpha=8)])
def test_with_a_divergence(lora: LoRAConfig | None, base: Path, tmp_path: Path) -> None:
    result = rl(base, TURNS, tmp_path / "out", config=config(kl=0.1, rollouts=1, lora=lora))
    assert not [path for path in (tmp_path / "out" / result.saved).iterdir() if path.is_dir()]
    told = lines(tmp_path / "out")
    assert told[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert told[1]["kl"] > 0


def test_rewards_that_are_all_alike_stop_it(base: Path, tmp_path: Path) -> None:
    same = {"unit": "tokens", "limit": 12}  # every completion has 12 tokens, and none follows the format
    with pytest.raises(ConfigurationError, match="In 2 rollouts in a row"):
        rl(base, TURNS, tmp_path / "out", config=config(reward=same, patience=2))
    told = lines(tmp_path / "out")
    assert [line["alike"] for line in told if "alike" in line] == [1.0]
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-2").is_dir()


def test_a_loss_that_is_no_number_stops_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not a number|no numbers"):
        rl(base, TURNS, tmp_path / "out", config=config(learning_rate=1e30, checkpoint_every=1))
    assert not (tmp_path / "out" / "model").exists()
    for kept in (tmp_path / "out" / "checkpoints").glob("checkpoint-*"):
        assert all(torch.isfinite(weight).all() for weight in weights(kept).values())


@pytest.mark.parametrize(
    ("count", "other", "said"),
    [
        (3, {}, "There are 3 turns, and a rollout takes 4"),
        (4, {"micro_batch": 3}, "not a multiple of 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_loading(
    count: int, other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        rl(tmp_path / "no-such-model", TURNS[:count], tmp_path / "out", config=config(**other))
    assert not (tmp_path / "out").exists()


def test_turns_that_cannot_be_judged_are_named_before_training(base: Path, tmp_path: Path) -> None:
    bad = LabeledTurn("no-picture", images=(b"this is none",), prompt_label=Label.HARMFUL)
    with pytest.raises(ConfigurationError, match="2 of 6 turns can't be judged: 'no-picture'"):
        rl(base, (*TURNS[:4], bad, replace(bad, id="another")), tmp_path / "out", config=config())
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_pictures_need_a_model_that_takes_them(tmp_path: Path) -> None:
    text_model(tmp_path / "text")
    with pytest.raises(ConfigurationError, match="takes none"):
        rl(tmp_path / "text", TURNS, tmp_path / "out", config=config())


def test_a_text_model_is_trained_too(tmp_path: Path) -> None:
    text_model(tmp_path / "text")
    turns = synthetic.turns(4, seed=1, kind="text")
    result = rl(tmp_path / "text", turns, tmp_path / "out", config=config())
    assert result.rollouts == 1
    assert result.clipped > 0


def text_model(folder: Path) -> None:
    """A tiny causal model with the tokenizer of the other."""
    import transformers

    base = tiny.build(folder.parent / "vision")
    hf: Any = transformers
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    made = hf.Qwen2ForCausalLM(
        hf.Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_falling_clip_needs_more_than_one_update() -> None:
    with pytest.raises(ConfigurationError, match="nothing would ever be clipped"):
        RLConfig(prompts_per_rollout=4, prompts_per_update=4)
    assert RLConfig(prompts_per_rollout=4, prompts_per_update=4, iterations=2).updates_per_rollout == 2
    assert RLConfig(prompts_per_rollout=4, prompts_per_update=4, clip=FixedClip()).updates_per_rollout == 1
    with pytest.raises(ConfigurationError, match="multiple"):
        RLConfig(prompts_per_rollout=6, prompts_per_update=4)
    with pytest.raises(ConfigurationError, match="LoRA"):
        RLConfig(lora=LoRAConfig(), train_vision=True)


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    paper = RLConfig()
    plan = _plan(12_000, paper)
    assert (len(plan.order) // 512, plan.updates, plan.left_out) == (23, 46, 224)
    told = _arguments(Output(tmp_path, "rl", {}), paper, plan)
    assert (told.num_generations, told.temperature, told.top_p, told.top_k) == (16, 1.2, 1.0, 0)
    assert (told.learning_rate, told.weight_decay, told.adam_beta1, told.adam_beta2) == (1e-6, 1e-2, 0.9, 0.999)
    assert (told.beta, told.epsilon, told.loss_type, told.max_completion_length) == (0.0, 0.2, "bnpo", 3072)
    assert told.generation_batch_size == 512 * 16
    assert told.per_device_train_batch_size * told.gradient_accumulation_steps == 256 * 16
    assert paper.reward == RewardConfig()
    assert paper.clip == DynamicClip(epsilon=0.2)


@pytest.mark.parametrize(
    ("vllm", "told"),
    [
        (VLLMConfig(gpu_memory=0.4, tensor_parallel=2, sleep=True, max_length=5000),
         {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4, "vllm_tensor_parallel_size": 2,
          "vllm_enable_sleep_mode": True, "vllm_max_model_length": 5000}),
        (VLLMConfig(mode="server", url="http://127.0.0.1:8000", timeout=9),
         {"vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:8000", "vllm_server_timeout": 9}),
    ],
)  # fmt: skip
def test_vllm_settings_reach_the_trainer(vllm: VLLMConfig, told: dict[str, Any], tmp_path: Path) -> None:
    chosen = config(use_vllm=vllm)
    made = _arguments(Output(tmp_path, "rl", {}), chosen, _plan(4, chosen))
    assert made.use_vllm
    assert {name: getattr(made, name) for name in told} == told


def test_vllm_may_be_named_by_its_mode() -> None:
    assert config(use_vllm="server").use_vllm == VLLMConfig(mode="server")


def test_messages_hold_no_content(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "xyzzy-plugh"
    turns = tuple(replace(turn, prompt=f"{turn.prompt} {secret}") for turn in TURNS[:4])
    rl(base, turns, tmp_path / "out", config=config())
    shown = capfd.readouterr()
    kept = [file.read_bytes() for file in (tmp_path / "out").glob("*.json*")]
    assert secret not in shown.out + shown.err
    assert not any(secret.encode() in data for data in kept)
