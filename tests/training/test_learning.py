"""Does reinforcement teach anything? A few minutes on one core, so only on demand: `pytest -m slow`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

import torch

from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training.clip import FixedClip
from guardrail_vl.training.mining import MiningConfig, mine
from guardrail_vl.training.rewards import RewardConfig
from guardrail_vl.training.rl import RLConfig, rl
from guardrail_vl.training.sft import SFTConfig, sft
from guardrail_vl.training.turns import LabeledTurn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    # TRL 1.16 calls a property by the name that transformers 5.23 deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

LONGEST = 96
"""Tokens of a completion: half as many again as the longest target."""


def turns(count: int, seed: int) -> tuple[LabeledTurn, ...]:
    """Half texts, half pictures: what a model this small learns in minutes. Of both together it learns much later."""
    half = count // 2
    both = (*synthetic.turns(half, seed=seed, kind="text"), *synthetic.turns(half, seed=seed + 1, kind="image"))
    return tuple(random.Random(seed).sample(both, count))


def sampled_accuracy(model: Path, output: Path) -> float:
    """Share of completions at temperature 1 in which every known label is right, on turns that are not trained on."""
    config = MiningConfig(samples=2, temperature=1.0, top_p=1.0, max_tokens=LONGEST, engine="transformers")
    return mine(model, turns(120, 12345), output, config=config).figures.overall.pass_rate


def fine_tuned(model: Path, given: tuple[LabeledTurn, ...], output: Path, *, steps: int, rate: float) -> Path:
    config = SFTConfig(
        max_steps=steps, batch_size=32, accumulation=1, learning_rate=rate, warm_up=5, save_steps=0, dtype="float32",
        train_vision=True, train_projector=True,
    )  # fmt: skip
    sft(model, given, output, config=config)
    return output / "model"


def test_reinforcement_mends_what_noisy_examples_taught(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = tiny.build(tmp_path / "base")
    # It has to know the task: reinforcement makes likelier what is sampled already, and finds nothing new.
    able = fine_tuned(base, turns(4000, 0), tmp_path / "able", steps=450, rate=4e-3)
    noisy = synthetic.noisy(turns(1500, 31), seed=5, wrong=0.4)
    start = fine_tuned(able, noisy, tmp_path / "noisy", steps=60, rate=1e-3)
    before = sampled_accuracy(start, tmp_path / "before")
    config = RLConfig(
        group=8, prompts_per_rollout=16, prompts_per_update=4, rollouts=16, micro_batch=32, max_tokens=LONGEST,
        temperature=1.0, learning_rate=3e-4, warm_up=8, dtype="float32",
        # The falling clip is next to nothing from the middle of so short a run.
        clip=FixedClip(epsilon=0.2),
        # Beyond a sixth of the limit, length earns nothing: this rewards right labels alone.
        reward=RewardConfig(beta=1 / 6, limit=LONGEST),
    )  # fmt: skip
    result = rl(start, turns(400, 777), tmp_path / "rl", config=config)
    after = sampled_accuracy(tmp_path / "rl" / "model", tmp_path / "after")
    print(f"sampled accuracy {before:.3f} -> {after:.3f}; {result}")
    assert after >= before + 0.2
    assert result.last_accuracy > result.first_accuracy
