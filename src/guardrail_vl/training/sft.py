"""Supervised fine-tuning on reasoning (R-SFT): a guard learns to write each turn's target, loss on the target alone.

GuardReasoner-VL's first stage (arXiv 2505.11049, section 2.2 and A.5.2). Built on the Trainer of transformers: its
collator, its loss function and its callbacks are public seams, and that is all that is needed. TRL's SFTTrainer would
render and tokenise once more in a way of its own, and then the ids would not be those that serving sends. It knows no
reward and no other stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from guardrail_vl._value import Value
from guardrail_vl.engines._checkpoint import model_name
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._sft_config import LoRAConfig, SFTConfig
from guardrail_vl.training._trainer import (
    Output,
    Recorder,
    Step,
    activation_arguments,
    begin,
    digest_of_model,
    digest_of_turns,
    explained,
    hf,
    last_logged,
    save,
    shared_arguments,
    train,
    without_known_warnings,
)
from guardrail_vl.training.turns import LabeledTurn

try:
    import safetensors
    import torch

    from guardrail_vl.engines import transformers as serving
    from guardrail_vl.engines._bars import without_bars
    from guardrail_vl.training._memory import check_fits, need
    from guardrail_vl.training._tuning import Collator, Prepared, Rows, Trainer, helpers, prepare
except ImportError as error:
    raise MissingDependencyError(
        error.name or "torch", extra="train", needed_for="guardrail_vl.training.sft"
    ) from error

__all__ = ["LoRAConfig", "SFTConfig", "SFTResult", "check_memory", "load_network", "sft", "trains"]

STAGE: Final = "sft"


@dataclass(frozen=True, slots=True)
class SFTResult(Value):
    """What came of a fine-tuning."""

    steps: int
    turns: int
    """Trained on."""
    fast: int
    """Of these, with an empty think."""
    dropped: Mapping[str, int]
    """Left out, by the reason: `labels`, `reasoning`, `length`, `content`."""
    loss: float
    """Of the last logged step, nats a token of the target."""
    held_out_loss: float | None
    """The same on the held-out turns at the end; None: there are none."""
    parameters: int
    trained_parameters: int
    seconds: float
    """Of this process: less than the whole if it went on from a checkpoint."""
    saved: Literal["model", "adapter"]
    """The folder in the output folder with what was trained."""


def sft(
    model: str | Path,
    turns: Sequence[LabeledTurn],
    output: str | Path,
    *,
    config: SFTConfig | None = None,
    held_out: Sequence[LabeledTurn] = (),
    format: str = "guardreasoner-vl/1",
    progress: Callable[[Step], object] | None = None,
) -> SFTResult:
    """Fine-tune a model on turns. Goes on where it was stopped; returns at once where it is done.

    Args:
        model: A checkpoint folder or hub id, of a kind that `Guard` can run.
        turns: What to train on, with labels and reasoning.
        output: A folder for `model/` or `adapter/`, `metrics.jsonl` and `result.json`.
        config: None: the paper's.
        held_out: Not trained on; their loss is measured after each epoch.
        format: Id of the prompt format to train in.
        progress: Called with each logged step.

    Raises:
        ConfigurationError: Turns that can't be trained on, a folder of another run, a loss that is not a number, or
            something can't be written.
        EngineUnavailableError: It can't fit into memory, or did not.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    config = config or SFTConfig()
    begun = time.monotonic()
    out = Output(output, STAGE, _inputs(model, turns, held_out, config, format))
    done = begin(out, SFTResult)
    if done is not None:
        return done
    encoder = Encoder(model, format)
    trained = _prepared(encoder, turns, config)
    measured = _prepared(encoder, held_out, config) if held_out else None
    check_memory(encoder, config)
    # Between the two: from here on ZeRO-3 shares out each model that is made, and the one counted above has no weights.
    arguments = _arguments(out, config, evaluates=measured is not None)
    with explained("load the model"):
        network = load_network(model, encoder, config)
    trainer = Trainer(
        model=network,
        args=arguments,
        data_collator=Collator(encoder, mean_weight=trained.mean_weight),
        train_dataset=Rows(encoder, trained.examples),
        eval_dataset=Rows(encoder, measured.examples) if measured else None,
    )
    trainer.share_pictures(encoder, trained=config.train_vision or config.train_projector)
    recorder = Recorder(out, progress)
    train(trainer, recorder)
    saved: Literal["model", "adapter"] = "adapter" if config.lora else "model"
    save(trainer, encoder, model, out.folder / saved)
    result = _result(trainer, network, trained, saved, seconds=time.monotonic() - begun)
    if trainer.is_world_process_zero():
        out.finish(result)
    if recorder.interrupted:
        raise KeyboardInterrupt("sft was stopped when it had just ended: its result is kept.")
    return result


def _result(
    trainer: Any, network: Any, trained: Prepared, saved: Literal["model", "adapter"], *, seconds: float
) -> SFTResult:
    return SFTResult(
        steps=trainer.state.global_step,
        turns=len(trained.examples),
        fast=trained.fast,
        dropped=trained.dropped,
        loss=last_logged(trainer, "loss") or 0.0,
        held_out_loss=last_logged(trainer, "eval_loss"),
        parameters=sum(map(_size, network.parameters())),
        trained_parameters=sum(_size(p) for p in network.parameters() if p.requires_grad),
        seconds=seconds,
        saved=saved,
    )


def _size(parameter: Any) -> int:
    """How many numbers it has, also where ZeRO-3 leaves none of them in this process."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _prepared(encoder: Encoder, turns: Sequence[LabeledTurn], config: SFTConfig) -> Prepared:
    return prepare(
        encoder,
        turns,
        fast_share=config.fast_share,
        seed=config.seed,
        max_length=config.max_length,
        drop=config.unfit == "drop",
        workers=helpers(config.workers),
    )


def load_network(model: str | Path, encoder: Encoder, config: SFTConfig) -> Any:
    """The weights, with only those that are to be trained open to it.

    Raises:
        ConfigurationError: They can't be loaded.
    """
    hf.set_seed(config.seed)
    try:
        with without_bars():
            network = encoder.auto_class.from_pretrained(str(model), dtype=_stored(config))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigurationError(
            f"The weights of {model_name(model, None)} can't be loaded: {error}",
            hint="The checkpoint lacks files, or one of them is damaged: fetch or copy it again.",
        ) from error
    if hf.integrations.is_deepspeed_zero3_enabled():
        # Transformers 5.23 keeps what it renames in any checkpoint, and would save this one under names of no one's.
        network._weight_conversions = [one for one in network._weight_conversions if one.was_used()]
    if config.lora is None:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(trains(name, config))
        return network
    import peft

    lora = config.lora
    with without_known_warnings():
        return peft.get_peft_model(
            network,
            peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets),
        )


def trains(name: str, config: SFTConfig) -> bool:
    """Whether a parameter of this name is trained: always in the text model, by switches in the vision part."""
    if "visual." not in name:
        return True
    return config.train_projector if "merger" in name else config.train_vision


def check_memory(encoder: Encoder, config: SFTConfig) -> None:
    """See `check_fits`."""
    lora, stored = config.lora, _stored(config)
    # In bfloat16 the weights are there once more, cast for the forward pass.
    cast = 2 if stored == torch.float32 and _computed(config) == torch.bfloat16 else 0
    wanted = need(
        encoder,
        lambda name: trains(name, config),
        bytes_each=stored.itemsize + cast,
        rank=lora.rank if lora else 0,
        targets=lora.targets if lora else "",
    )
    check_fits(wanted, serving.best_device())


def _computed(config: SFTConfig) -> torch.dtype:
    named: torch.dtype | None = None if config.dtype == "auto" else getattr(torch, config.dtype)
    return named or serving.best_dtype(serving.best_device())


def _stored(config: SFTConfig) -> torch.dtype:
    return torch.float32 if config.lora is None else _computed(config)


def _arguments(out: Output, config: SFTConfig, *, evaluates: bool) -> Any:
    device = serving.best_device()
    return hf.TrainingArguments(
        **shared_arguments(out, save_steps=config.save_steps),
        **activation_arguments(hf.TrainingArguments, config.activation_checkpointing),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warm_up,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.seed,
        bf16=_computed(config) == torch.bfloat16,
        use_cpu=device == "cpu",
        logging_steps=config.logging_steps,
        ddp_find_unused_parameters=False,  # see Trainer.share_pictures
        eval_strategy="epoch" if evaluates else "no",
        prediction_loss_only=True,
        dataloader_num_workers=helpers(config.workers),
        dataloader_pin_memory=device.startswith("cuda"),
    )


def _inputs(
    model: str | Path,
    turns: Sequence[LabeledTurn],
    held_out: Sequence[LabeledTurn],
    config: SFTConfig,
    format: str,
) -> dict[str, object]:
    return {
        "model": digest_of_model(model),
        "turns": digest_of_turns(turns),
        "held_out": digest_of_turns(held_out),
        "format": format,
        "config": config.model_dump(mode="json", exclude=set(config.HOW)),
    }
