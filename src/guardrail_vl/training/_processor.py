"""A processor for trainers of TRL: the checkpoint's own class, less its video part. Knows no trainer.

Upstream's processors of Qwen2-VL and its kin want a video processor, which needs torchvision; a guard sees no video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training._encoding import Encoder

__all__ = ["load_processor"]


def load_processor(checkpoint: str | Path | Encoder, *, revision: str | None = None) -> Any:
    """What TRL takes as `processing_class`: pads left, and prepares text and pictures as serving does.

    Left, because TRL does not set the side of a processor that it is given, and then gives padded rows with pictures
    wrong positions without a word.

    Args:
        checkpoint: A folder, a hub id, or an encoder that was made for one.
        revision: Commit, tag or branch of the hub id.

    Returns:
        A processor; for a checkpoint that takes no pictures, its tokenizer.

    Raises:
        ConfigurationError: The checkpoint can't be read, or has no processor class in transformers.
    """
    encoder = checkpoint if isinstance(checkpoint, Encoder) else Encoder(checkpoint, revision=revision)
    tokenizer = encoder.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not encoder.sees:
        return tokenizer
    kind = _without_video(_upstream(encoder.config))
    return kind(image_processor=encoder.reader.pictures, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def _upstream(config: Any) -> Any:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return PROCESSOR_MAPPING[type(config)]
    except KeyError:
        raise ConfigurationError(f"Transformers has no processor for {type(config).__name__}.") from None


def _without_video(base: Any) -> Any:
    # The mixin reads a processor's parts from the names of these arguments.
    def init(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        base.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    # Under the upstream name, which is what a saved processor says it is.
    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})
