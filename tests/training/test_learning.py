"""Does reinforcement teach anything? A few minutes on one core, so only on demand: `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

import torch

from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training.mining import MiningConfig, mine
from guardrail_vl.training.rewards import RewardConfig
from guardrail_vl.training.rl import RLConfig, rl
from guardrail_vl.training.sft import SFTConfig, sft

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    # TRL 1.16 calls a property by the name that transformers 5.23 deprecates.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

LONGEST = 96
"""Tokens of a completion: half as many again as the longest target."""


def sampled_accuracy(model: Path, output: Path) -> float:
    """Share of completions at temperature 1 in which every known label is right, on turns that are not trained on."""
    fresh = synthetic.turns(120, seed=12345)
    config = MiningConfig(samples=2, temperature=1.0, top_p=1.0, max_tokens=LONGEST, engine="transformers")
    return mine(model, fresh, output, config=config).figures.overall.pass_rate


def test_reinforcement_mends_what_noisy_examples_taught(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = tiny.build(tmp_path / "base")
    noisy = synthetic.noisy(synthetic.turns(4000, seed=0), seed=5)
    learnt = SFTConfig(
        max_steps=500, batch_size=32, accumulation=1, learning_rate=4e-3, warm_up=20, save_steps=0, dtype="float32",
        train_vision=True, train_projector=True,
    )  # fmt: skip
    sft(base, noisy, tmp_path / "sft", config=learnt)
    before = sampled_accuracy(tmp_path / "sft" / "model", tmp_path / "before")
    config = RLConfig(
        group=8, prompts_per_rollout=16, prompts_per_update=4, rollouts=16, micro_batch=32, max_tokens=LONGEST,
        temperature=1.0, learning_rate=3e-4, warm_up=8, dtype="float32",
        # Beyond a sixth of the limit, length earns nothing: this rewards right labels alone.
        reward=RewardConfig(beta=1 / 6, limit=LONGEST),
    )  # fmt: skip
    result = rl(tmp_path / "sft" / "model", synthetic.turns(400, seed=777), tmp_path / "rl", config=config)
    after = sampled_accuracy(tmp_path / "rl" / "model", tmp_path / "after")
    print(f"sampled accuracy {before:.3f} -> {after:.3f}; {result}")
    assert after >= before + 0.2
    assert result.last_accuracy > result.first_accuracy
