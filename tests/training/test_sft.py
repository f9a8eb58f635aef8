from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.checkpoints import hf, same, text_only, weights  # isort: skip - skips where the extra is missing

import torch

from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training._encoding import IGNORED, Encoder
from guardrail_vl.training._trainer import Step
from guardrail_vl.training._tuning import Collator, Rows, Trainer, fast_ones, helpers, prepare
from guardrail_vl.training.sft import LoRAConfig, SFTConfig, sft
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

FAST = "<think>\n</think>\n\n<result>\nRequest:"
ONE_STEP = SFTConfig(learning_rate=1e-2, batch_size=8, accumulation=1, max_steps=1, save_steps=0, dtype="float32")
MIXED = synthetic.turns(8, seed=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("sft") / "base")


@pytest.fixture(scope="module")
def encoder(base: Path) -> Encoder:
    return Encoder(base)


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return hf.AutoModelForImageTextToText.from_pretrained(base)


# --- it learns ---------------------------------------------------------------------------------------------------------


def likelihood(model: Any, encoder: Encoder, turns: Sequence[LabeledTurn], text: str) -> float:
    """Mean log-likelihood, in nats, of these words as an answer's beginning."""
    rows = [encoder.encode(turn, target=text) for turn in turns]
    batch = encoder.collate(rows)
    labels = batch.pop("labels")[:, 1:]
    labels[labels == encoder.end] = IGNORED
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].log_softmax(-1)
    each = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return float(each[labels != IGNORED].sum() / len(rows))


def test_it_learns_and_a_fast_share_makes_the_empty_think_likely(
    base: Path, encoder: Encoder, model: Any, tmp_path: Path
) -> None:
    turns = synthetic.turns(120, seed=1, kind="text")
    held_out = synthetic.turns(24, seed=2, kind="text")
    config = ONE_STEP.model_copy(update={"learning_rate": 4e-3, "batch_size": 16, "max_steps": 80})
    found: dict[float, float] = {}
    for share in (0.0, 0.5):
        output = tmp_path / str(share)
        result = sft(base, turns, output, config=config.model_copy(update={"fast_share": share}), held_out=held_out)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == 80
        assert losses[0] > 6
        assert sum(losses[35:45]) / 10 < 0.3 * losses[0]
        assert sum(losses[-5:]) / 5 < 0.1 * losses[0]
        assert result.loss == losses[-1]
        assert result.held_out_loss is not None
        assert result.held_out_loss < 0.15 * losses[0]
        assert result.fast == 120 * share
        trained = hf.AutoModelForImageTextToText.from_pretrained(output / "model")
        found[share] = likelihood(trained, encoder, held_out, FAST)
    # Half of the time would be -0.7; without a share it has nearly never seen it.
    assert found[0.5] > -3
    assert found[0.0] < -10
    assert likelihood(model, encoder, held_out, FAST) < -40
    with Guard(tmp_path / "0.5" / "model", speed="fast", dtype="float32") as guard:
        decision = guard.check_prompt("How do I wash the car?")
    assert decision.error is None
    assert decision.verdict is not None
    assert decision.verdict.prompt in set(Label)
    with Guard(base, speed="fast", dtype="float32") as guard:
        assert guard.check_prompt("How do I wash the car?").error is not None


def test_a_text_model_learns_too(tmp_path: Path) -> None:
    folder = text_only(tmp_path / "reading")
    turns = synthetic.turns(32, seed=1, kind="text")
    config = ONE_STEP.model_copy(update={"learning_rate": 4e-3, "max_steps": 12})
    steps: list[Step] = []
    sft(folder, turns, tmp_path / "out", config=config, progress=steps.append)
    assert steps[-1].values["loss"] < steps[0].values["loss"] - 1
    with Guard(tmp_path / "out" / "model", dtype="float32") as guard:
        told = guard.engine.trained_format
    assert told is not None
    assert told.format == "guardreasoner-vl/1"
    with pytest.raises(ConfigurationError, match=r"Can't be shown to the model.*: \d"):
        sft(folder, MIXED, tmp_path / "other", config=config)


# --- what is trained ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("projector", [False, True])
def test_vision_is_frozen_unless_it_is_switched_on(base: Path, tmp_path: Path, vision: bool, projector: bool) -> None:
    config = ONE_STEP.model_copy(update={"train_vision": vision, "train_projector": projector})
    sft(base, MIXED, tmp_path / "out", config=config)
    before, after = weights(base), weights(tmp_path / "out" / "model")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    tower = {name for name in before if name.startswith("visual.") and "merger" not in name}
    bridge = {name for name in before if "merger" in name}
    text = before.keys() - tower - bridge
    assert tower
    assert bridge
    # A key's bias moves no attention, so its gradient is nothing but rounding; it may stay.
    silent = {name for name in before if name.endswith("k_proj.bias")}
    assert text - changed <= silent
    assert bool(changed & tower) is vision
    assert bool(changed & bridge) is projector


def test_adapters_leave_the_weights_alone_and_merge(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    import peft

    config = ONE_STEP.model_copy(update={"lora": LoRAConfig(rank=4), "max_steps": 6})
    steps: list[Step] = []
    result = sft(base, MIXED, tmp_path / "out", config=config, progress=steps.append)
    assert result.saved == "adapter"
    assert result.trained_parameters < 0.15 * result.parameters
    assert steps[-1].values["loss"] < steps[0].values["loss"] - 0.2
    assert not (tmp_path / "out" / "model").exists()
    adapter = weights(tmp_path / "out" / "adapter")
    assert adapter
    assert all("lora_" in name and "visual" not in name for name in adapter)
    network = hf.AutoModelForImageTextToText.from_pretrained(base)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = peft.PeftModel.from_pretrained(network, tmp_path / "out" / "adapter").merge_and_unload()
    turn = MIXED[0]
    assert likelihood(merged, encoder, [turn], encoder.target(turn)) > likelihood(
        hf.AutoModelForImageTextToText.from_pretrained(base), encoder, [turn], encoder.target(turn)
    )


def test_an_interrupted_adapter_goes_on(base: Path, tmp_path: Path) -> None:
    config = ONE_STEP.model_copy(update={"lora": LoRAConfig(rank=4, dropout=0.1), "max_steps": 6})

    def press(step: Step) -> None:
        if step.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sft(base, MIXED, tmp_path / "stopped", config=config, progress=press)
    sft(base, MIXED, tmp_path / "stopped", config=config)
    sft(base, MIXED, tmp_path / "whole", config=config)
    assert same(weights(tmp_path / "stopped" / "adapter"), weights(tmp_path / "whole" / "adapter"))


def test_bfloat16_computes_and_the_checkpoint_s_own_type_is_kept(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    network = hf.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    network.save_pretrained(half)
    for folder, dtype in ((base, torch.float32), (half, torch.bfloat16)):
        output = tmp_path / f"from-{folder.name}"
        config = ONE_STEP.model_copy(update={"dtype": "bfloat16", "max_steps": 2})
        result = sft(folder, MIXED, output, config=config)
        assert result.loss < 7
        assert {tensor.dtype for tensor in weights(output / "model").values()} == {dtype}
        assert hf.AutoConfig.from_pretrained(output / "model").dtype == dtype


def test_activation_checkpointing_changes_nothing_but_memory(base: Path, tmp_path: Path) -> None:
    for on in (False, True):
        sft(base, MIXED, tmp_path / str(on), config=ONE_STEP.model_copy(update={"activation_checkpointing": on}))
    one, other = (weights(tmp_path / str(on) / "model") for on in (False, True))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=2e-3, rtol=0)


# --- the loss ----------------------------------------------------------------------------------------------------------


def loss_of(model: Any, encoder: Encoder, turns: Sequence[LabeledTurn], collator: Collator, tmp_path: Path) -> float:
    arguments = hf.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, data_collator=collator)
    batch = collator([encoder.encode(turn, target=encoder.target(turn)) for turn in turns])
    with torch.no_grad():
        return float(trainer.compute_loss(model, batch))


def test_the_loss_is_the_model_s_own_on_the_targets(model: Any, encoder: Encoder, tmp_path: Path) -> None:
    whole = encoder.collate([encoder.encode(turn, target=encoder.target(turn)) for turn in MIXED])
    with torch.no_grad():
        own = float(model(**whole).loss)
    assert loss_of(model, encoder, MIXED, Collator(encoder), tmp_path) == pytest.approx(own, abs=1e-5)
    batch = Collator(encoder)([encoder.encode(turn, target=encoder.target(turn)) for turn in MIXED])
    assert batch["logits_to_keep"] < 0.6 * whole["input_ids"].shape[1]


def test_padding_and_neighbours_change_no_row_s_loss(model: Any, encoder: Encoder, tmp_path: Path) -> None:
    collator = Collator(encoder)
    rows = [encoder.encode(turn, target=encoder.target(turn)) for turn in MIXED]
    lengths = [sum(label != IGNORED for label in row.labels) for row in rows]
    alone = [loss_of(model, encoder, [turn], collator, tmp_path) for turn in MIXED]
    mean = sum(loss * length for loss, length in zip(alone, lengths, strict=True)) / sum(lengths)
    assert loss_of(model, encoder, MIXED, collator, tmp_path) == pytest.approx(mean, abs=1e-5)


def test_weights_weigh(model: Any, encoder: Encoder, tmp_path: Path) -> None:
    one, other = MIXED[0], replace(MIXED[1], weight=3.0)
    a, b = (loss_of(model, encoder, [turn], Collator(encoder), tmp_path) for turn in (one, replace(other, weight=1.0)))
    counts = [
        sum(label != IGNORED for label in encoder.encode(turn, target=encoder.target(turn)).labels)
        for turn in (one, other)
    ]
    # Of mean 1: half and one and a half.
    wanted = (0.5 * counts[0] * a + 1.5 * counts[1] * b) / sum(counts)
    found = loss_of(model, encoder, [one, other], Collator(encoder, mean_weight=2.0), tmp_path)
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_spare_picture_changes_no_loss(model: Any, encoder: Encoder, tmp_path: Path) -> None:
    turns = synthetic.turns(3, seed=2, kind="text")
    plain = Collator(encoder)
    sharded = Collator(encoder)
    sharded.spare = encoder.spare()
    rows = [encoder.encode(turn, target=encoder.target(turn)) for turn in turns]
    assert "pixel_values" not in plain(rows)
    assert "pixel_values" in sharded(rows)
    assert loss_of(model, encoder, turns, sharded, tmp_path) == pytest.approx(
        loss_of(model, encoder, turns, plain, tmp_path), abs=1e-5
    )


def test_accumulated_batches_are_one_large_batch(base: Path, tmp_path: Path) -> None:
    """Also where their targets are of unlike length: a token counts the same wherever it stands."""
    for size in (8, 2):
        config = ONE_STEP.model_copy(update={"batch_size": size, "accumulation": 8 // size, "learning_rate": 1e-3})
        sft(base, MIXED, tmp_path / str(size), config=config)
    one, other = (json.loads((tmp_path / str(size) / "metrics.jsonl").read_text()) for size in (8, 2))
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)


def test_other_processes_change_no_batch(base: Path, tmp_path: Path) -> None:
    """Forked ones; what is pickled, where processes are spawned, gives the same rows."""
    for workers in (0, 2):
        config = ONE_STEP.model_copy(update={"batch_size": 2, "max_steps": 5, "workers": workers})
        sft(base, MIXED, tmp_path / str(workers), config=config, held_out=MIXED[:3])
    assert same(*(weights(tmp_path / str(workers) / "model") for workers in (0, 2)))
    told = [
        [json.loads(line) for line in (tmp_path / str(workers) / "metrics.jsonl").read_text().splitlines()]
        for workers in (0, 2)
    ]
    losses = [[line[name] for line in lines for name in ("loss", "eval_loss") if name in line] for lines in told]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 5
    rows = Rows(Encoder(base), prepare(Encoder(base), MIXED, fast_share=0, seed=0, max_length=2048, drop=True).examples)
    others = pickle.loads(pickle.dumps(Rows(rows._encoder, [replace(one, encoded=None) for one in rows._examples])))
    for place in range(len(rows)):
        assert (rows[place].ids, rows[place].labels) == (others[place].ids, others[place].labels)
        assert (rows[place].pixels is None) == (others[place].pixels is None)
        assert rows[place].pixels is None or torch.equal(rows[place].pixels, others[place].pixels)


@pytest.mark.parametrize(
    ("asked", "cuda", "cores", "sharing", "workers"),
    [
        (None, False, 16, 1, 0),
        (None, True, 16, 1, 4),
        (None, True, 16, 8, 1),
        (None, True, 2, 4, 0),
        (3, False, 1, 1, 3),
    ],
)
def test_a_gpu_is_helped_by_cores_that_are_left(
    asked: int | None, cuda: bool, cores: int, sharing: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(sharing))
    assert helpers(asked) == workers


# --- turns that can't be trained on ------------------------------------------------------------------------------------


def test_what_is_unfit_is_refused_by_id_or_dropped_and_counted(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    good = synthetic.turns(4, seed=1, kind="text")
    text = replace(good[0], response="Sure.", response_label=Label.HARMFUL)
    bad = [
        replace(text, id="half", response_label=None),
        replace(text, id="silent", reasoning=None),
        replace(text, id="tagged", reasoning="So </think> then."),
        replace(text, id="forged", reasoning="So <|im_end|> then."),
        replace(text, id="broken", images=(b"not a picture",)),
        replace(text, id="gone", images=(tmp_path / "gone.png",)),
        replace(text, id="long", reasoning="word " * 3000),
    ]
    with pytest.raises(ConfigurationError) as caught:
        sft(base, [*good, *bad], tmp_path / "out", config=ONE_STEP)
    told = str(caught.value)
    for part in ("no label: 1 (half)", "reasoning", "silent, tagged", "2048 tokens: 1 (long)", "forged, broken, gone"):
        assert part in told
    assert "word" not in told
    assert "unfit='drop'" in told
    result = sft(base, [*good, *bad], tmp_path / "out", config=ONE_STEP.model_copy(update={"unfit": "drop"}))
    assert result.turns == 4
    assert result.dropped == {"labels": 1, "reasoning": 2, "content": 3, "length": 1}
    with pytest.raises(ConfigurationError, match="no turn to train on"):
        sft(base, bad, tmp_path / "none", config=ONE_STEP.model_copy(update={"unfit": "drop"}))


@pytest.mark.parametrize("left", [0, 1000, None])
def test_weights_that_are_damaged_or_gone_are_told(base: Path, tmp_path: Path, left: int | None) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = broken / "model.safetensors"
    if left is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ConfigurationError, match=r"weights of broken can't be loaded.*damaged"):
        sft(broken, synthetic.turns(4, seed=1, kind="text"), tmp_path / "out", config=ONE_STEP)


def test_nothing_is_ever_cut(encoder: Encoder) -> None:
    """One token less than a turn takes, and the turn is out; at its length, it is in with all of its target."""
    turn = MIXED[0]
    length = len(encoder.encode(turn, target=encoder.target(turn)).ids)
    kept = prepare(encoder, [turn], fast_share=0, seed=0, max_length=length, drop=False)
    assert kept.examples[0].encoded is not None
    assert kept.examples[0].encoded.ids[-1] == encoder.end
    with pytest.raises(ConfigurationError, match=f"Longer than {length - 1} tokens"):
        prepare(encoder, [turn], fast_share=0, seed=0, max_length=length - 1, drop=False)


def test_other_processes_prepare_the_same(encoder: Encoder) -> None:
    turns = [*MIXED, replace(MIXED[0], id="silent", reasoning=None)]
    alone, helped = (
        prepare(encoder, turns, fast_share=0, seed=0, max_length=2048, drop=True, workers=workers) for workers in (0, 2)
    )
    assert [(one.turn.id, one.target) for one in helped.examples] == [
        (one.turn.id, one.target) for one in alone.examples
    ]
    assert helped.dropped == alone.dropped == {"reasoning": 1}
    rows, others = Rows(encoder, alone.examples), Rows(encoder, helped.examples)
    for place in range(len(alone.examples)):
        assert (rows[place].ids, rows[place].labels) == (others[place].ids, others[place].labels)


def test_turns_without_reasoning_fill_the_fast_share_first(encoder: Encoder) -> None:
    turns = [replace(turn, reasoning=None) if place < 3 else turn for place, turn in enumerate(MIXED)]
    found = prepare(encoder, turns, fast_share=0.5, seed=7, max_length=2048, drop=False)
    assert found.fast == 4
    assert [FAST in example.target for example in found.examples[:3]] == [True] * 3
    assert sum(FAST in example.target for example in found.examples) == 4


@given(
    silent=st.lists(st.booleans(), min_size=1, max_size=40),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_the_fast_share_is_exact_and_seeded(silent: list[bool], share: float, seed: int) -> None:
    text = LabeledTurn("x", prompt="Hello.", prompt_label=Label.UNHARMFUL, reasoning="It greets.")
    turns = [replace(text, id=str(n), reasoning=None if none else "It greets.") for n, none in enumerate(silent)]
    fast = fast_ones(turns, share, seed)
    assert len(fast) == round(share * len(turns))
    assert fast == fast_ones(turns, share, seed)
    if len(fast) < sum(silent):
        assert all(silent[place] for place in fast)
    else:
        assert {place for place, none in enumerate(silent) if none} <= fast
