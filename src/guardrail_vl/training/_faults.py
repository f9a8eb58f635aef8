"""What ends a training run, told in words of ours: numbers that are none, too little memory, a disk that takes no more.

It knows no trainer and no checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from guardrail_vl.errors import ConfigurationError, EngineUnavailableError, GuardrailError, MissingDependencyError

try:
    import safetensors
    import torch

    from guardrail_vl.engines import transformers as serving
except ImportError as error:
    raise MissingDependencyError(
        error.name or "transformers", extra="train", needed_for="guardrail_vl.training"
    ) from error


def lost(what: str, step: int) -> ConfigurationError:
    """The error of a run whose figures are no numbers any more."""
    return ConfigurationError(
        f"At step {step} {what} became not a number, so training was stopped.",
        hint="Lower the learning rate, or compute in float32; then start again in another folder.",
    )


def check_finite(named: Iterable[tuple[str, Any]], step: int) -> None:
    """Raise `lost` if one of these tensors holds what is no number."""
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            raise lost(name, step)


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what torch and transformers raise for want of memory or disk into errors of ours.

    Args:
        doing: Such as `go on with sft`, for the message.

    Raises:
        EngineUnavailableError: There is not enough memory.
        ConfigurationError: Something can't be written.
    """
    try:
        yield
    except GuardrailError:
        raise
    except Exception as error:
        if serving._is_out_of_memory(error):
            raise EngineUnavailableError(
                f"There is not enough memory to {doing}.",
                hint="Use a smaller batch_size with more accumulation, activation_checkpointing, a smaller max_length, "
                "or LoRA.",
            ) from error
        why = _unwritten(error)
        if why is None:
            raise
        raise ConfigurationError(
            f"There is no way to {doing}: a file can't be written ({why}).",
            hint="The last whole checkpoint is kept: make room, and the same command goes on from there.",
        ) from error


def _unwritten(error: Exception) -> str | None:
    """Why a file could not be written, if that is what happened."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    text = str(error)
    if isinstance(error, safetensors.SafetensorError) and "os error" in text:
        return text.partition("I/O error: ")[2] or text
    # What torch.save says. It does not say why.
    return "the disk may be full" if "PytorchStreamWriter" in text or "inline_container" in text else None
