"""The trainer itself: what it feeds the model, and what its loss is made of."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.engines.base import Deadline
from guardrail_vl.engines.transformers import TransformersEngine
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._output import Output
from guardrail_vl.training._rollouts import Rows, order
from guardrail_vl.training.clip import DynamicClip, FixedClip
from guardrail_vl.training.rewards import RewardConfig, reward
from guardrail_vl.training.rl import RLConfig, _plan, _trainer
from guardrail_vl.training.turns import LabeledTurn

# TRL 1.16 calls a property by the name that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CHARACTERS = RewardConfig(unit="characters", limit=80)
"""Random weights never follow the format, so that only length tells completions apart."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    torch.set_num_threads(1)
    return tiny.build(tmp_path_factory.mktemp("grpo") / "base")


@pytest.fixture
def made(base: Path, tmp_path: Path) -> Callable[..., Any]:
    """Makes a trainer for turns and settings, ready for a batch without `train()`."""

    def make(turns: tuple[LabeledTurn, ...], **settings: Any) -> Any:
        chosen: dict[str, Any] = {
            "group": 2,
            "prompts_per_rollout": len(turns),
            "prompts_per_update": len(turns) // 2,
            "micro_batch": 2,
            "max_tokens": 12,
            "learning_rate": 1e-3,
            "reward": CHARACTERS,
            "clip": FixedClip(epsilon=0.1),
            "dtype": "float32",
        }
        config = RLConfig(**{**chosen, **settings})
        plan = _plan(len(turns), config)
        trainer = _trainer(base, Rows(Encoder(base), turns), Output(tmp_path / "out", "rl", {}), config, plan)
        trainer.current_gradient_accumulation_steps = 1
        trainer.state.max_steps = plan.updates
        trainer.model.train()
        return trainer

    return make


def rollout(trainer: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A whole rollout: the rows as the sampler hands them out, and what comes of them."""
    rows = [dict(row) for row in trainer.train_dataset for _ in range(trainer.num_generations)]
    return rows, trainer._generate_and_score_completions(rows)


def mixed(count: int = 4) -> tuple[LabeledTurn, ...]:
    """Texts, pictures and both, of unlike lengths."""
    kinds: tuple[Any, ...] = ("text", "text-image", "image", "text-image")
    return tuple(synthetic.turns(1, seed=n, kind=kinds[n % 4])[0] for n in range(count))


def without_padding(ids: Any, mask: Any) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def spied(module: Any, name: str, seen: list[dict[str, Any]]) -> None:
    """Remember the keyword arguments of each call."""
    stock = getattr(module, name)

    @functools.wraps(stock)  # transformers reads the names of its arguments
    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return stock(*args, **kwargs)

    setattr(module, name, spy)


def test_rollouts_and_loss_see_the_ids_and_pixels_of_serving(base: Path, made: Callable[..., Any]) -> None:
    turns = mixed()
    engine = TransformersEngine(base, device="cpu", dtype="float32", max_batch=1)
    served: list[dict[str, Any]] = []
    assert engine._loaded is not None
    spied(engine._loaded.generator.model, "generate", served)
    encoder = Encoder(base)
    for turn in turns:
        prompt = replace(encoder.prompt(turn), max_tokens=1)
        engine.generate([prompt], deadline=Deadline.after(60))
    engine.close()

    trainer = made(turns, generate_batch=8)
    generated: list[dict[str, Any]] = []
    spied(trainer.model, "generate", generated)
    rows, output = rollout(trainer)
    expected = [served[int(row["row"])]["input_ids"][0].tolist() for row in rows]
    (batch,) = generated
    assert without_padding(batch["input_ids"], batch["attention_mask"]) == expected
    assert without_padding(output["prompt_ids"], output["prompt_mask"]) == expected
    pixels = torch.cat([served[int(r["row"])]["pixel_values"] for r in rows if "pixel_values" in served[int(r["row"])]])
    torch.testing.assert_close(batch["pixel_values"], pixels, rtol=0, atol=0)
    lost: list[dict[str, Any]] = []
    spied(trainer.model, "forward", lost)
    trainer._get_per_token_logps_and_entropies(trainer.model, *_sequence(output))
    (call,) = lost
    torch.testing.assert_close(call["pixel_values"], pixels, rtol=0, atol=0)


def _sequence(output: dict[str, Any]) -> tuple[Any, Any, int]:
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    return ids, mask, output["completion_ids"].shape[1]


@pytest.mark.parametrize("turns", [mixed(), synthetic.turns(4, seed=6, kind="text-image"), mixed(1) * 4])
def test_rollouts_and_loss_agree_on_probabilities(turns: tuple[LabeledTurn, ...], made: Callable[..., Any]) -> None:
    trainer = made(turns, temperature=1.2, generate_batch=8, micro_batch=4)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if re.search(r"language_model.*_proj", name):
                weight *= 5  # small random weights hardly mind where a token stands
    stock, logits = trainer.model.generate, []

    def generate(**given: Any) -> Any:
        output = stock(**given, return_dict_in_generate=True, output_logits=True)
        logits.append(torch.stack(output.logits, dim=1))
        return output.sequences

    trainer.model.generate = generate
    _, output = rollout(trainer)
    completions, mask = output["completion_ids"], output["completion_mask"].bool()
    lengths = output["prompt_mask"].sum(1)
    assert len(turns) != len({turn.id for turn in turns}) or len(set(lengths.tolist())) > 1  # there is padding
    sampled = (logits[0][:, : mask.shape[1]] / 1.2).log_softmax(-1).gather(-1, completions.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(output["old_per_token_logps"][mask], sampled[mask], rtol=0, atol=1e-3)
    # Both as one row alone, without padding and as serving feeds it, would have them.
    encoder = trainer._rows.encoder
    for n, row in enumerate(trainer._in_hand):
        fed = encoder.collate([encoder.encode(turns[row], target=None)])
        del fed["labels"]
        written = completions[n][mask[n]][None]
        for name, value in {"input_ids": written, "attention_mask": 1, "mm_token_type_ids": 0}.items():
            if name in fed:
                fed[name] = torch.cat([fed[name], torch.ones_like(written) * value], dim=1).to(fed[name].dtype)
        with torch.no_grad():
            alone = (trainer.model(**fed).logits[:, -written.shape[1] - 1 : -1] / 1.2).log_softmax(-1)
        alone = alone.gather(-1, written.unsqueeze(-1)).squeeze(-1)[0]
        torch.testing.assert_close(output["old_per_token_logps"][n][mask[n]], alone, rtol=0, atol=1e-3)


def test_generation_in_small_batches_is_complete(made: Callable[..., Any]) -> None:
    trainer = made(mixed(), generate_batch=3)
    generated: list[dict[str, Any]] = []
    spied(trainer.model, "generate", generated)
    rows, output = rollout(trainer)
    assert [len(batch["input_ids"]) for batch in generated] == [3, 3, 2]
    assert len(output["completion_ids"]) == len(rows)
    ids = [trainer._rows.ids(int(row["row"])) for row in rows]
    assert without_padding(output["prompt_ids"], output["prompt_mask"]) == ids


def test_rewards_reach_the_loss(made: Callable[..., Any]) -> None:
    turns = tuple(replace(turn, weight=weight) for turn, weight in zip(mixed(), (1.0, 2.0, 0.5, 1.0), strict=True))
    trainer = made(turns, group=4, micro_batch=4)
    rows, output = rollout(trainer)
    decode = trainer.processing_class.batch_decode
    texts = decode([c[m.bool()] for c, m in zip(output["completion_ids"], output["completion_mask"], strict=True)],
                   skip_special_tokens=True)  # fmt: skip
    judged = [turns[int(row["row"])] for row in rows]
    earned = np.array(
        [
            reward(x, t.prompt_label, t.response_label, None, CHARACTERS).value
            for x, t in zip(texts, judged, strict=True)
        ]
    ).reshape(-1, 4)
    assert np.ptp(earned, axis=1).min() > 0
    expected = (earned - earned.mean(1, keepdims=True)) / (earned.std(1, ddof=1, keepdims=True) + 1e-4)
    expected *= np.array([turns[int(row["row"])].weight / 1.125 for row in rows[::4]])[:, None]  # their mean
    np.testing.assert_allclose(output["advantages"].numpy(), expected.ravel(), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_clipped_objective(made: Callable[..., Any]) -> None:
    # One rollout in all, so that the floor holds.
    trainer = made(mixed(), clip=DynamicClip(epsilon=0.2, floor=0.1), micro_batch=4)
    _, output = rollout(trainer)
    now = output["old_per_token_logps"]
    mask = output["completion_mask"]
    # As if the policy had moved since the rollout: up to 40% each way, far beyond the clip.
    moved = torch.empty_like(now).uniform_(-0.4, 0.4, generator=torch.Generator().manual_seed(1))
    inputs = {**output, "old_per_token_logps": now - moved}
    loss = trainer.compute_loss(trainer.model, inputs)
    ratio, gain = np.exp(moved.numpy().astype(float)), output["advantages"].numpy()[:, None].astype(float)
    kept = mask.numpy().astype(float)
    tokens = -np.minimum(ratio * gain, np.clip(ratio, 0.9, 1.1) * gain) * kept
    assert loss.item() == pytest.approx(tokens.sum() / kept.sum(), abs=1e-5)
    clipped = (((ratio < 0.9) & (gain < 0)) | ((ratio > 1.1) & (gain > 0))) * kept
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [pytest.approx(clipped.sum() / kept.sum(), abs=1e-6)]
    assert clipped.sum() > 0
    assert trainer._metrics["train"]["clip_eps"] == [0.1]


def test_a_batch_of_texts_alone_has_no_pixels(made: Callable[..., Any]) -> None:
    turns = mixed()
    trainer = made(turns, micro_batch=1)
    lost: list[dict[str, Any]] = []
    spied(trainer.model, "forward", lost)
    rows, _ = rollout(trainer)
    calls = [call for call in lost if call.get("fused_lm_head")]
    assert [("pixel_values" in call) for call in calls] == [bool(turns[int(row["row"])].images) for row in rows]
    assert len({("pixel_values" in call) for call in calls}) == 2
    assert all(call["mm_token_type_ids"].any() for call in calls if "pixel_values" in call)


def test_a_spare_picture_changes_nothing(made: Callable[..., Any]) -> None:
    trainer = made(synthetic.turns(4, seed=3, kind="text"))
    _, output = rollout(trainer)
    alone, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, *_sequence(output), compute_entropy=True
    )
    # As where the weights are in shards.
    trainer.share_pictures(always=True)
    seen: list[dict[str, Any]] = []
    spied(trainer.model, "forward", seen)
    shared, also, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, *_sequence(output), batch_size=2, compute_entropy=True
    )
    assert len(seen) == 4
    assert all("pixel_values" in call for call in seen)
    mask = output["completion_mask"].bool()
    torch.testing.assert_close(shared[mask], alone[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(also[mask], entropies[mask], rtol=0, atol=1e-5)
    shared[mask].sum().backward()
    tower = [w.grad for name, w in trainer.model.named_parameters() if "visual." in name]
    assert all(grad is not None and not grad.any() for grad in tower)


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_is_asked_with_the_ids_that_it_makes_room_in(mode: str, made: Callable[..., Any]) -> None:
    turns = mixed()
    trainer = made(turns)
    encoder, image = trainer._rows.encoder, trainer._rows.encoder.reader.image_token
    trainer.vllm_mode = mode
    trainer._in_hand = [row for row in range(len(turns)) for _ in range(2)]
    given = [trainer._rows.ids(row) for row in trainer._in_hand]
    ids, pictures = trainer._for_vllm(given)
    for row, asked, shown in zip(trainer._in_hand, ids, pictures, strict=True):
        assert (0 if shown is None else len(shown)) == len(turns[row].images)
        if mode == "server":  # where TRL looks for one run of placeholders a picture
            assert asked == trainer._rows.ids(row)
        else:  # as the serving engine asks
            assert asked == encoder.reader.chat.ids(encoder.prompt(turns[row]))
            assert asked.count(image) == len(turns[row].images)
    assert pictures[2] is pictures[3]  # read once for the group


def test_a_picture_that_the_model_writes_is_no_picture(made: Callable[..., Any]) -> None:
    trainer = made(mixed())
    encoder = trainer._rows.encoder
    picture = encoder.reader.image_token
    assert trainer._without_pictures([5, picture, 7]) == [5, encoder.pad, 7]
    assert picture in trainer.generation_config.suppress_tokens


def test_spoilt_weights_are_told(made: Callable[..., Any]) -> None:
    trainer = made(mixed())
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="no numbers any more"):
        rollout(trainer)


def test_a_group_s_pixels_stand_as_often_and_where_its_rows_do(base: Path) -> None:
    turns = synthetic.turns(3, seed=2, kind="image")
    rows = [2, 2, 0, 1, 1, 1, 2]
    for memory in (10**9, 0):
        known = Rows(Encoder(base), turns, memory=memory)
        ids = torch.zeros(len(rows), 3, dtype=torch.long)
        for dtype in (torch.float32, torch.bfloat16):
            seen = known.seen(rows, ids, dtype=dtype)
            wanted = [known.encoded(row) for row in rows]
            assert torch.equal(seen["pixel_values"], torch.cat([one.pixels for one in wanted]).to(dtype))
            assert torch.equal(seen["image_grid_thw"], torch.cat([one.grid for one in wanted]))


def test_pixels_beyond_the_memory_are_made_again(base: Path) -> None:
    turns = synthetic.turns(3, seed=2, kind="image")
    plenty, none = Rows(Encoder(base), turns), Rows(Encoder(base), turns, memory=0)
    for row in (0, 1, 2, 0):
        assert torch.equal(plenty.encoded(row).pixels, none.encoded(row).pixels)
        assert len(none._kept) == 1
    assert len(plenty._kept) == 3


def test_the_released_layout_has_the_instruction_in_the_users_turn(base: Path) -> None:
    (turn,) = synthetic.turns(1, seed=5, kind="text-image")
    encoder = Encoder(base)
    rows = Rows(encoder, [turn], release=True)
    text = encoder.tokenizer.decode(rows.ids(0))
    assert text.startswith("<|im_start|>user\nYou are a classifier")
    assert "\n\nTask 1, determine" in text
    assert "\nTask 2, determine" in text
    assert "</result>. Human user:\n<|vision_start|><|image_pad|>" in text
    assert f"{turn.prompt}\n\nAI assistant:\n{turn.response}\n<|im_end|>" in text
    assert rows.images(0) == 1
    assert rows.ids(0) != Rows(encoder, [turn]).ids(0)


@given(count=st.integers(1, 40), passes=st.integers(1, 4), size=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_the_order_is_whole_rollouts_of_whole_passes(count: int, passes: int, size: int, seed: int) -> None:
    rows = order(count, passes=passes, size=size, seed=seed)
    assert len(rows) == count * passes // size * size
    assert rows == order(count, passes=passes, size=size, seed=seed)
    for start in range(0, len(rows) - count + 1, count):
        assert sorted(rows[start : start + count]) == list(range(count))
