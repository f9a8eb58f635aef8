"""Does training teach anything? A few minutes on one core, so only on demand: `pytest -m slow`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
pytest.importorskip("sklearn", reason="needs the extra 'train'")

import torch

from guardrail_vl import Guard, Stage
from guardrail_vl.evaluation import metrics
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.evaluation.running import run
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training.clip import FixedClip
from guardrail_vl.training.mining import MiningConfig, mine
from guardrail_vl.training.rewards import RewardConfig
from guardrail_vl.training.rl import RLConfig, RLResult, rl
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


def fine_tuned(
    model: Path, given: tuple[LabeledTurn, ...], output: Path, *, steps: int, rate: float, warm_up: int = 5
) -> Path:
    config = SFTConfig(
        max_steps=steps, batch_size=32, accumulation=1, learning_rate=rate, warm_up=warm_up, save_steps=0, dtype="float32",
        train_vision=True, train_projector=True,
    )  # fmt: skip
    sft(model, given, output, config=config)
    return output / "model"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the task of texts and of pictures, and was then taught wrong labels and idle sentences."""
    place = tmp_path_factory.mktemp("start")
    torch.set_num_threads(1)
    base = tiny.build(place / "base")
    # It has to know the task: reinforcement makes likelier what is sampled already, and finds nothing new.
    able = fine_tuned(base, turns(4000, 0), place / "able", steps=450, rate=4e-3)
    noisy = synthetic.noisy(turns(1500, 31), seed=5, wrong=0.4)
    return fine_tuned(able, noisy, place / "noisy", steps=60, rate=1e-3)


def reinforced(start: Path, output: Path, *, beta: float) -> RLResult:
    config = RLConfig(
        group=8, prompts_per_rollout=16, prompts_per_update=4, rollouts=16, micro_batch=32, max_tokens=LONGEST,
        temperature=1.0, learning_rate=3e-4, warm_up=8, dtype="float32",
        # The falling clip is next to nothing from the middle of so short a run.
        clip=FixedClip(epsilon=0.2),
        reward=RewardConfig(beta=beta, limit=LONGEST),
    )  # fmt: skip
    return rl(start, turns(400, 777), output, config=config)


def test_fine_tuning_teaches_texts_pictures_and_both_from_nothing(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    # Half of those with words have no response: a guard that only ever saw exchanges does badly on requests alone.
    given = synthetic.turns(8000, seed=0, answered=0.5)
    model = fine_tuned(tiny.build(tmp_path / "base"), given, tmp_path / "sft", steps=3000, rate=4e-3, warm_up=20)
    held_out = CaseSet("held-out", tuple(turn.case(Stage.PROMPT) for turn in synthetic.turns(160, seed=12345)))
    with Guard(model, deadline=120) as guard:
        records = run(guard, [held_out], tmp_path / "run").records
    by = {name: scores.f1 for name, scores in metrics.by(records, "modality").items()}
    f1 = metrics.scores(records).f1
    print(f"request F1 {f1} {by}")
    assert f1 is not None
    assert f1 >= 0.95


def test_reinforcement_mends_what_noisy_examples_taught(start: Path, tmp_path: Path) -> None:
    before = sampled_accuracy(start, tmp_path / "before")
    result = reinforced(start, tmp_path / "rl", beta=1 / 6)
    after = sampled_accuracy(tmp_path / "rl" / "model", tmp_path / "after")
    print(f"sampled accuracy {before:.3f} -> {after:.3f}; {result}")
    assert after >= before + 0.2
    assert result.last_accuracy > result.first_accuracy


def test_the_eco_reward_makes_answers_shorter_than_the_plain_one(start: Path, tmp_path: Path) -> None:
    plain = reinforced(start, tmp_path / "plain", beta=1.0)
    eco = reinforced(start, tmp_path / "eco", beta=1 / 6)
    print(f"tokens: plain {plain.first_tokens:.1f} -> {plain.last_tokens:.1f}, eco -> {eco.last_tokens:.1f}")
    print(f"accuracy: plain -> {plain.last_accuracy:.3f}, eco -> {eco.last_accuracy:.3f}")
    assert eco.last_tokens < plain.last_tokens
