"""Reinforcement with EasyR1, which the paper used: its data, reward file, chat template and configs. Runs nothing.

EasyR1 makes one user message of a row, so the instruction is in a chat template of its own; with it a prompt has the
tokens that a guard is served with. Written against EasyR1 of July 2026 (after v0.3.2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from guardrail_vl._whole import whole_folder, write_whole
from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION, MAX_IMAGES, GuardReasonerVL
from guardrail_vl.training import _exporting
from guardrail_vl.training._exporting import LargeRunConfig, Phase, served
from guardrail_vl.training.rewards import PAPER, RewardConfig
from guardrail_vl.training.turns import LabeledTurn

TEMPLATE: Final = "chat_template.jinja"

_COLUMNS: Final = {"problem": "text", "answer": "text", "images": "pictures"}
_CALL: Final = '''REWARD_NAME = "guard"
REWARD_TYPE = "batch"


def compute_score(reward_inputs):
    """What EasyR1 calls: `overall` is the reward, the others are logged."""
    scores = [score(one["response"], one["ground_truth"], one["response_length"]) for one in reward_inputs]
    return [{"overall": one.pop("value"), **one} for one in scores]
'''
# ChatML, as Qwen's own template; only a conversation without a system message gets the instruction.
_TEMPLATE: Final = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + INSTRUCTION + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
_RUN: Final = """\
#!/bin/sh
# Trains with EasyR1, which has to be installed. Each part goes on from the checkpoint of the one before.
set -e
cd "$(dirname "$0")"
for config in config-*.yaml; do
    python3 -m verl.trainer.main config="$config"
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
    layout: Literal["served", "release"] = "served",
) -> Path:
    """Write what EasyR1 needs: `train.parquet`, `val.parquet`, `reward.py`, `chat_template.jinja`, `config-*.yaml` and
    `run.sh`.

    Args:
        turns: To train on. Their weights are not exported: EasyR1 has none.
        folder: Must not be there, or be empty. Its files name each other relatively, so it can be moved.
        model: What training starts from, as the machine that trains knows it: the checkpoint of R-SFT. Its chat
            template must be ChatML, as Qwen's is.
        held_out: To validate on at the end. Empty: a few training turns are written, as a file is demanded.
        format: The prompt format.
        rewards: What the reward file computes.
        config: None: the paper's numbers.
        layout: `served`: prompts as a guard is served them. `release`: the instruction in the user's turn, with
            `Task 1,`, as the released code has it; a guard is then served with other prompts than it was trained on.

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
        _exporting.write_rows(partial / _exporting.TRAIN, _rows(turns, layout), _COLUMNS)
        _exporting.write_rows(
            partial / _exporting.VALIDATION, _rows(_exporting.validation(turns, held_out), layout), _COLUMNS
        )
        write_whole(partial / _exporting.REWARD, _exporting.reward_file("EasyR1", rewards, _CALL))
        if layout == "served":
            write_whole(partial / TEMPLATE, chat_template())
        for phase in _exporting.phases(turns, config):
            about = f"Overrides of EasyR1's defaults, until step {phase.last}, with a clip of {phase.clip:.4g}."
            content = _settings(config, phase, model, layout)
            write_whole(partial / f"{phase.name}.yaml", _exporting.settings(content, about))
        write_whole(partial / _exporting.RUN, _RUN)
    return folder


def chat_template() -> str:
    """ChatML that begins with the guard's instruction, as a Jinja template."""
    return _TEMPLATE.replace("INSTRUCTION", json.dumps(INSTRUCTION))


def _rows(turns: Iterable[LabeledTurn], layout: str) -> Iterable[dict[str, Any]]:
    for turn in turns:
        asked = served(turn)
        yield {
            "problem": asked.user if layout == "served" else f"{_as_released(asked.system)} {asked.user}",
            "answer": asked.gold,
            "images": [_exporting.picture(data) for data in asked.images],
        }


def _as_released(instruction: str) -> str:
    return instruction.replace("Task 1:", "Task 1,").replace("Task 2:", "Task 2,").strip()


def _settings(config: LargeRunConfig, phase: Phase, model: str, layout: str) -> dict[str, Any]:
    return {
        "data": {
            "train_files": f"./{_exporting.TRAIN}",
            "val_files": f"./{_exporting.VALIDATION}",
            "prompt_key": "problem",
            "answer_key": "answer",
            "image_key": "images",
            "max_prompt_length": config.prompt_tokens,
            "max_response_length": config.completion_tokens,
            "rollout_batch_size": config.batch,
            "format_prompt": None,
            "override_chat_template": f"./{TEMPLATE}" if layout == "served" else None,
            "shuffle": True,
            "seed": config.seed,
            "min_pixels": config.min_pixels,
            "max_pixels": config.max_pixels,
            "filter_overlong_prompts": True,
        },
        "algorithm": {
            "adv_estimator": "grpo",
            "disable_kl": True,
            "use_kl_loss": False,
            # Off, as in the paper. By `overall`, which is never above 0, it would drop every group.
            "online_filtering": False,
            "filter_key": "safety",
        },
        "worker": {
            "actor": _actor(config, phase, model),
            "rollout": {
                "n": config.group,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "limit_images": MAX_IMAGES,
                "gpu_memory_utilization": config.gpu_memory,
                "tensor_parallel_size": config.tensor_parallel,
                "val_override_config": {"temperature": 1.0, "n": 1},
            },
            "reward": {"reward_function": f"./{_exporting.REWARD}:compute_score"},
        },
        "trainer": {
            "total_epochs": config.epochs,
            "max_steps": phase.last,
            "project_name": "guard",
            "experiment_name": "easyr1",
            "logger": ["console"],
            "nnodes": config.machines,
            "n_gpus_per_node": config.gpus,
            "val_before_train": False,
            "val_freq": -1,
            "save_freq": -1,  # at the end it is saved all the same
            "save_checkpoint_path": "./checkpoints",
            "find_last_checkpoint": True,
        },
    }


def _actor(config: LargeRunConfig, phase: Phase, model: str) -> dict[str, Any]:
    return {
        "global_batch_size": config.update,
        "micro_batch_size_per_device_for_update": 4,
        "micro_batch_size_per_device_for_experience": 16,
        "max_grad_norm": config.max_grad_norm,
        "clip_ratio_low": phase.clip,
        "clip_ratio_high": phase.clip,
        "loss_avg_mode": "token",
        "padding_free": True,
        "model": {
            "model_path": model,
            "enable_gradient_checkpointing": True,
            "trust_remote_code": False,
            "freeze_vision_tower": config.freeze_vision,
        },
        "optim": {"lr": config.learning_rate, "weight_decay": config.weight_decay, "lr_warmup_ratio": 0.0},
        "offload": {"offload_params": True, "offload_optimizer": True},
    }


__all__ = ["LargeRunConfig", "chat_template", "export"]
