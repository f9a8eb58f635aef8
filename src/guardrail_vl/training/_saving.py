"""The trained model as a checkpoint that serves: its weights as they were stored before, and what reads prompts.

It knows no step and no figure.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from guardrail_vl._whole import remove_folder, whole_folder
from guardrail_vl.engines._checkpoint import GUARD_JSON
from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._faults import check_finite, explained

try:
    import torch
    from transformers.utils.hub import cached_file

    from guardrail_vl.engines._bars import without_bars
except ImportError as error:
    raise MissingDependencyError(
        error.name or "transformers", extra="train", needed_for="guardrail_vl.training"
    ) from error

_READING: Final = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "LICENSE*",
)  # fmt: skip
"""Files of a checkpoint that training does not change."""


def save(trainer: Any, encoder: Encoder, source: str | Path, folder: Path) -> None:
    """Write the trained model, whole or not at all. Every process of a run has to call it; then it is there for all.

    Args:
        trainer: After training.
        encoder: Of the checkpoint it began with.
        source: That checkpoint, whose tokenizer and picture settings are copied as they are.
        folder: Where to. An adapter alone, if LoRA was trained.

    Raises:
        ConfigurationError: It can't be written.
    """
    # Gathered by all, where the weights are in shards; of ZeRO's, only what DeepSpeed has wrapped them in knows how.
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        _write(state, trainer, encoder, source, folder)
    trainer.accelerator.wait_for_everyone()


def _write(state: dict[str, Any], trainer: Any, encoder: Encoder, source: str | Path, folder: Path) -> None:
    """See `save`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = hasattr(model, "peft_config")
    if not adapter:
        # As it was stored before: what was trained in float32 is not served so.
        dtype = encoder.config.dtype or torch.float32
        state = {
            name: tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
    check_finite(((n, t) for n, t in state.items() if t.is_floating_point()), trainer.state.global_step)
    if folder.exists():
        remove_folder(folder)
    with explained(f"save {folder.name}"), whole_folder(folder) as place, without_bars():
        model.save_pretrained(place, state_dict=state)
        if not adapter:
            model.config.dtype = dtype  # not the one that it was trained in, which has just been written
            model.config.save_pretrained(place)
        _copy_reading(source, place)
        told = {"format": encoder.format.id, "golden": encoder.format.golden}
        (place / GUARD_JSON).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _copy_reading(source: str | Path, place: Path) -> None:
    """Copy what reads prompts: the files themselves, because saving them again may change them."""
    folder = Path(source)
    if not folder.is_dir():  # a hub id, which is in the cache by now
        folder = Path(cached_file(str(source), "config.json") or "").parent
    for pattern in _READING:
        for file in folder.glob(pattern):
            shutil.copyfile(file, place / file.name)
