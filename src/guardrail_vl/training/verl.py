"""Reinforcement with verl: its data, reward file and configs. Runs nothing.

Prompts are messages there, so a prompt has the tokens that a guard is served with. Written against verl 0.9.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from guardrail_vl._whole import whole_folder, write_whole
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
from guardrail_vl.training import _exporting
from guardrail_vl.training._exporting import LargeRunConfig, Phase, served
from guardrail_vl.training.rewards import PAPER, RewardConfig
from guardrail_vl.training.turns import LabeledTurn

_COLUMNS: Final = {
    "data_source": "text",
    "prompt": "messages",
    "images": "pictures",
    "ability": "text",
    "reward_model": {"style": "text", "ground_truth": "text"},
    "extra_info": {"index": "number", "id": "text"},
}
# verl tells a reward no length in tokens, so the text is counted again.
_CALL: Final = '''@functools.lru_cache(maxsize=None)
def _tokenizer(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, tokenizer=None, **ignored):
    """What verl calls: `score` is the reward, the others are logged. `tokenizer` is a path or a name on the Hub."""
    tokens = None
    if CONFIG.unit == "tokens":  # and one for the end token, which was not decoded
        tokens = len(_tokenizer(tokenizer).encode(solution_str, add_special_tokens=False)) + 1
    earned = score(solution_str, ground_truth, tokens)
    return {"score": earned.pop("value"), **earned}
'''
_RUN: Final = """\
#!/bin/sh
# Trains with verl, which has to be installed. Each part goes on from the checkpoint of the one before.
set -e
cd "$(dirname "$0")"
for config in config-*.yaml; do
    python3 -m verl.trainer.main_ppo --config-path "$PWD" --config-name "${config%.yaml}"
done
"""


def export(
    turns: Sequence[LabeledTurn],
    folder: str | Path,
    *,
    model: str,
    held_out: Sequence[LabeledTurn] = (),
    format: str = GuardReasonerVL.id,
    rewards: RewardConfig = PAPER,
    config: LargeRunConfig | None = None,
) -> Path:
    """Write what verl needs: `train.parquet`, `val.parquet`, `reward.py`, `config-*.yaml` and `run.sh`.

    Args:
        turns: To train on. Their weights are not exported: verl has none.
        folder: Must not be there, or be empty. Its files name each other relatively, so it can be moved.
        model: What training starts from, as the machine that trains knows it: the checkpoint of R-SFT. Its tokenizer
            counts the tokens of a completion for the reward.
        held_out: To validate on at the end. Empty: a few training turns are written, as a file is demanded.
        format: The prompt format.
        rewards: What the reward file computes.
        config: None: the paper's numbers. `min_pixels` and `max_pixels` are EasyR1's alone.

    Returns:
        The folder.

    Raises:
        ConfigurationError: Another prompt format, fewer turns than a step takes, or the folder can't be written.
        ContentError: A turn can't be judged; the message names it.
        MissingDependencyError: There is no pyarrow.
    """
    config = config or LargeRunConfig()
    _exporting.check(turns, format, config)
    folder = Path(folder)
    with whole_folder(folder) as partial:
        _exporting.write_rows(partial / _exporting.TRAIN, _rows(turns), _COLUMNS)
        _exporting.write_rows(partial / _exporting.VALIDATION, _rows(_exporting.validation(turns, held_out)), _COLUMNS)
        write_whole(partial / _exporting.REWARD, _exporting.reward_file("verl", rewards, _CALL))
        for phase in _exporting.phases(turns, config):
            about = f"Overrides of verl's defaults, until step {phase.last}, with a clip of {phase.clip:.4g}."
            content = _settings(config, phase, model, bool(held_out))
            write_whole(partial / f"{phase.name}.yaml", _exporting.settings(content, about))
        write_whole(partial / _exporting.RUN, _RUN)
    return folder


def _rows(turns: Iterable[LabeledTurn]) -> Iterable[dict[str, Any]]:
    for index, turn in enumerate(turns):
        asked = served(turn)
        yield {
            "data_source": "guard",
            "prompt": [{"role": "system", "content": asked.system}, {"role": "user", "content": asked.user}],
            "images": [_exporting.picture(data) for data in asked.images],
            "ability": "moderation",
            "reward_model": {"style": "rule", "ground_truth": asked.gold},
            "extra_info": {"index": index, "id": turn.id},
        }


def _settings(config: LargeRunConfig, phase: Phase, model: str, validate: bool) -> dict[str, Any]:
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "data": {
            "train_files": f"./{_exporting.TRAIN}",
            "val_files": f"./{_exporting.VALIDATION}",
            "train_batch_size": config.batch,
            "max_prompt_length": config.prompt_tokens,
            "max_response_length": config.completion_tokens,
            "filter_overlong_prompts": True,
            "seed": config.seed,
        },
        "algorithm": {"adv_estimator": "grpo", "use_kl_in_reward": False},
        "actor_rollout_ref": {
            "model": {"path": model, "enable_gradient_checkpointing": True},
            "actor": {
                "ppo_mini_batch_size": config.update,
                "ppo_micro_batch_size_per_gpu": 4,
                "clip_ratio": phase.clip,
                "clip_ratio_low": phase.clip,
                "clip_ratio_high": phase.clip,
                "loss_agg_mode": "token-mean",
                "freeze_vision_tower": config.freeze_vision,
                "use_kl_loss": False,
                "grad_clip": config.max_grad_norm,
                "optim": {"lr": config.learning_rate, "weight_decay": config.weight_decay},
                "fsdp_config": {"param_offload": True, "optimizer_offload": True},
            },
            "rollout": {
                "name": "vllm",
                "n": config.group,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "gpu_memory_utilization": config.gpu_memory,
                "tensor_model_parallel_size": config.tensor_parallel,
                "log_prob_micro_batch_size_per_gpu": 16,
            },
        },
        "reward": {
            "custom_reward_function": {
                "path": f"./{_exporting.REWARD}",
                "name": "compute_score",
                "reward_kwargs": {"tokenizer": model},
            }
        },
        "trainer": {
            "total_epochs": config.epochs,
            "total_training_steps": phase.last,
            "project_name": "guard",
            "experiment_name": "verl",
            "logger": ["console"],
            "nnodes": config.machines,
            "n_gpus_per_node": config.gpus,
            "val_before_train": False,
            "test_freq": phase.last if validate else -1,
            "save_freq": phase.last,
            "default_local_dir": "./checkpoints",
            "resume_mode": "auto",
        },
    }


__all__ = ["LargeRunConfig", "export"]
