"""Reinforcement: a guard that already follows its format tries each turn many times, and what earns more gets likelier.

GRPO without KL, as GuardReasoner-VL does it (arXiv 2505.11049, sections 2.3.2 to 2.3.3 and A.5.2): the reward of
`rewards`, the falling clip of `clip`, prompts exactly as they are served. It knows no recipe and no other stage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._grpo import ROW, Rules, Trainer
from guardrail_vl.training._output import METRICS, Output, Step, digest_of_model, digest_of_turns
from guardrail_vl.training._processor import load_processor
from guardrail_vl.training._rl_config import RLConfig, VLLMConfig
from guardrail_vl.training._rollouts import Rows, order
from guardrail_vl.training._trainer import (
    Recorder,
    activation_arguments,
    begin,
    explained,
    save,
    shared_arguments,
    train,
    without_known_warnings,
)
from guardrail_vl.training.rewards import reward
from guardrail_vl.training.sft import check_memory, load_network
from guardrail_vl.training.turns import LabeledTurn

try:
    import datasets
    import torch
    import trl

    from guardrail_vl.engines import transformers as serving
except ImportError as error:
    raise MissingDependencyError(error.name or "trl", extra="train", needed_for="guardrail_vl.training.rl") from error

_trl: Any = trl
"""Only partly typed."""
_datasets: Any = datasets

__all__ = ["Judge", "RLConfig", "RLResult", "VLLMConfig", "rl"]

STAGE: Final = "rl"
LOSSES: Final = {"token-mean": "bnpo", "sequence-mean": "grpo", "rollout-token-mean": "dapo"}
"""TRL's names."""
NAMES: Final = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "accuracy": "accuracy",
    "format": "format",
    "frac_reward_zero_std": "alike",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "truncated",
    "clip_eps": "clip_eps",
    "clip_ratio/region_mean": "clipped",
    "kl": "kl",
    "entropy": "entropy",
    "step_time": "seconds",
}
"""What TRL calls our figures. `reward` to `truncated` are of a rollout, and stand in the line of its first update."""


@dataclass(frozen=True, slots=True)
class RLResult(Value):
    """What came of it. Shares and means are over whole rollouts."""

    rollouts: int
    updates: int
    prompts: int
    """Prompts that were completed, a turn once for each pass."""
    left_out: int
    """Turns that did not fill another rollout."""
    first_reward: float
    """Mean reward of the first rollout."""
    last_reward: float
    first_accuracy: float
    """Share of right labels in the first rollout's completions; a broken format has none."""
    last_accuracy: float
    first_tokens: float
    """Mean length of the first rollout's completions."""
    last_tokens: float
    clipped: float
    """Share of tokens whose ratio left the clip, over all updates."""
    alike: float
    """Share of groups in which all completions got the same reward, over all rollouts: they taught nothing."""
    truncated: float
    """Share of completions that reached `max_tokens`."""
    saved: Literal["model", "adapter"]
    """The folder in the output folder with what was trained."""


def rl(
    model: str | Path,
    turns: Sequence[LabeledTurn],
    output: str | Path,
    *,
    config: RLConfig | None = None,
    format: str = "guardreasoner-vl/1",
    progress: Callable[[Step], object] | None = None,
) -> RLResult:
    """Reinforce a guard on labelled turns; at best on those that it gets right sometimes (see `mine`).

    After a kill, the same call goes on from the last checkpoint, exactly as if nothing had happened: the rollouts since
    then are made again. A folder that is done is returned at once.

    Args:
        model: A whole checkpoint, folder or hub id, that already answers in the format.
        turns: With at least one label each. A label that is not known earns nothing.
        output: The folder: `model/` (or `adapter/`), `metrics.jsonl`, `result.json`, and `checkpoints/` meanwhile.
        config: None: the paper's.
        format: Id of the prompt format.
        progress: Called after each update.

    Returns:
        What came of it.

    Raises:
        ConfigurationError: Too few turns for a rollout, sizes that don't divide, pictures for a model that takes none,
            turns that can't be judged, a folder with other work in it, a loss that is no number, rewards that tell
            nothing apart, a full disk.
        EngineUnavailableError: It does not fit into memory.
        KeyboardInterrupt: Ctrl-C. Training ends after the running rollout, with a checkpoint.
    """
    config = config or RLConfig()
    plan = _plan(len(turns), config)
    place = Output(output, STAGE, _inputs(model, turns, config, format))
    done = begin(place, RLResult)
    if done is not None:
        return done
    encoder = Encoder(model, format)
    if not encoder.sees and any(turn.images for turn in turns):
        raise ConfigurationError("There are turns with pictures, and this model takes none.")
    check_memory(encoder, config.opened)
    rows = Rows(encoder, turns, release=config.layout == "release")
    rows.check()
    recorder = _Recorder(place, progress, config.updates_per_rollout)
    with without_known_warnings():
        with explained("load the model"):
            trainer = _trainer(model, rows, place, config, plan)
        train(trainer, recorder)
    saved: Literal["model", "adapter"] = "adapter" if config.lora else "model"
    trainer.forget_reference()
    save(trainer, encoder, model, place.folder / saved)
    result = _result(place, plan, saved)
    if trainer.is_world_process_zero():
        place.finish(result)
    return result


def _inputs(model: str | Path, turns: Sequence[LabeledTurn], config: RLConfig, format: str) -> dict[str, object]:
    return {
        "config": config.model_dump(mode="json"),
        "format": format,
        "turns": digest_of_turns(turns),
        "model": digest_of_model(model),
    }


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes that follow from the config, the turns and the devices."""

    order: list[int]
    accumulation: int
    """Forward passes of a device in an update."""
    passes_per_rollout: int
    """Forward passes of a device that share a rollout, each iteration by itself."""
    updates: int
    """In all."""
    left_out: int
    """Turns that fill no rollout."""


def _plan(count: int, config: RLConfig) -> _Plan:
    if count < config.prompts_per_rollout:
        raise ConfigurationError(
            f"There are {count} turns, and a rollout takes {config.prompts_per_rollout}.",
            hint="Give more turns, or make prompts_per_rollout and prompts_per_update smaller.",
        )
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    together = config.micro_batch * devices
    completions = config.prompts_per_update * config.group
    if completions % together:
        raise ConfigurationError(
            f"An update takes {completions} completions ({config.prompts_per_update} prompts, {config.group} each), "
            f"which is not a multiple of {together} (micro_batch {config.micro_batch} on {devices} devices)."
        )
    rows = order(count, passes=config.passes, size=config.prompts_per_rollout, seed=config.seed)
    left_out = count * config.passes - len(rows)
    if config.rollouts is not None:
        rows = rows[: config.rollouts * config.prompts_per_rollout]
    return _Plan(
        order=rows,
        accumulation=completions // together,
        passes_per_rollout=config.prompts_per_rollout * config.group // together,
        updates=len(rows) // config.prompts_per_rollout * config.updates_per_rollout,
        left_out=left_out,
    )


def _arguments(place: Output, config: RLConfig, plan: _Plan) -> Any:
    """What TRL is told."""
    device = serving.best_device()
    dtype = serving.best_dtype(device) if config.dtype == "auto" else getattr(torch, config.dtype)
    vllm = config.use_vllm
    return _trl.GRPOConfig(
        **shared_arguments(place, save_steps=config.updates_per_rollout * config.checkpoint_every),
        **activation_arguments(_trl.GRPOConfig, config.activation_checkpointing and device != "cpu"),
        **({} if vllm is None else _vllm_arguments(vllm)),
        max_steps=plan.updates,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        steps_per_generation=plan.passes_per_rollout,
        num_iterations=config.iterations,
        num_generations=config.group,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        beta=config.kl,
        epsilon=config.clip.epsilon,
        loss_type=LOSSES[config.loss],
        mask_truncated_completions=config.mask_truncated,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warm_up,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        # The rows are laid out in the order of training, so that a resumed run finds its place.
        shuffle_dataset=False,
        log_multimodal=False,
        logging_steps=1,
        dataloader_pin_memory=False,
        bf16=dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        seed=config.seed,
    )


def _vllm_arguments(vllm: VLLMConfig) -> dict[str, Any]:
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_gpu_memory_utilization": vllm.gpu_memory,
        "vllm_tensor_parallel_size": vllm.tensor_parallel,
        "vllm_enable_sleep_mode": vllm.sleep,
        "vllm_max_model_length": vllm.max_length,
        "vllm_server_base_url": vllm.url,
        "vllm_server_timeout": vllm.timeout,
        "vllm_importance_sampling_correction": vllm.correct,
    }


def _trainer(model: str | Path, rows: Rows, place: Output, config: RLConfig, plan: _Plan) -> Trainer:
    arguments = _arguments(place, config, plan)  # first: from here on ZeRO-3 loads weights in shards
    network = load_network(model, rows.encoder, config.opened)
    numbers = {"prompt": [str(row) for row in plan.order], ROW: plan.order}
    return Trainer(
        rows=rows,
        rules=Rules(config.clip.at, config.updates_per_rollout, config.generate_batch, config.patience),
        pixels=network.dtype,
        model=network,
        args=arguments,
        train_dataset=_datasets.Dataset.from_dict(numbers),
        processing_class=load_processor(rows.encoder),
        reward_funcs=Judge(rows.turns, config),
    )


class Judge:
    """The reward as TRL calls it: for each completion, what it earns against its row's labels.

    Args:
        turns: By number.
        config: `reward`.
    """

    __name__ = "safety"

    def __init__(self, turns: Sequence[LabeledTurn], config: RLConfig) -> None:
        self._turns = turns
        self._config = config.reward

    def __call__(
        self,
        *,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        log_metric: Callable[[str, float], object],
        **_: object,
    ) -> list[float]:
        """A reward for each completion."""
        turns = [self._turns[number] for number in row]
        earned = [
            reward(text, turn.prompt_label, turn.response_label, len(ids), self._config)
            for text, ids, turn in zip(completions, completion_ids, turns, strict=True)
        ]
        log_metric("accuracy", sum(one.safety for one in earned) / len(earned))
        log_metric("format", sum(one.format for one in earned) / len(earned))
        return [one.value for one in earned]


class _Recorder(Recorder):
    """Under our names, and with checkpoints only between rollouts, where a resumed run can begin."""

    def __init__(self, place: Output, progress: Callable[[Step], object] | None, updates: int) -> None:
        super().__init__(place, progress)
        self._updates = updates

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> Any:
        """Ctrl-C waits for the rollout's last update."""
        if self.interrupted and state.global_step % self._updates:
            return control
        return super().on_step_end(args, state, control, **rest)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any) -> None:
        """See `NAMES`."""
        told = logs or {}
        if "train_runtime" not in told:
            told = {NAMES[name]: value for name, value in told.items() if name in NAMES}
        super().on_log(args, state, control, logs=told, **rest)


def _result(place: Output, plan: _Plan, saved: Literal["model", "adapter"]) -> RLResult:
    """The figures of all lines of `metrics.jsonl`, those from before a kill included."""
    lines = [json.loads(line) for line in (place.folder / METRICS).read_text(encoding="utf-8").splitlines()]
    rollouts = [line for line in lines if line.get("reward") is not None]

    def mean(name: str, among: Sequence[dict[str, Any]]) -> float:
        values = [line[name] for line in among if line.get(name) is not None]
        return sum(values) / len(values) if values else 0.0

    first, last = rollouts[0], rollouts[-1]
    return RLResult(
        rollouts=len(rollouts),
        updates=plan.updates,
        prompts=len(plan.order),
        left_out=plan.left_out,
        first_reward=first["reward"],
        last_reward=last["reward"],
        first_accuracy=first["accuracy"],
        last_accuracy=last["accuracy"],
        first_tokens=first["tokens"],
        last_tokens=last["tokens"],
        clipped=mean("clipped", lines),
        alike=mean("alike", rollouts),
        truncated=mean("truncated", rollouts),
        saved=saved,
    )
