"""What training takes before it begins: memory for the weights and what is kept for each, from the config alone.

It counts what is certain to be needed. Activations, the vision tower's pixels and what torch keeps in reserve come on
top and are not known, so what passes here may still not fit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from guardrail_vl.errors import EngineUnavailableError, MissingDependencyError
from guardrail_vl.training._encoding import Encoder

try:
    import psutil
    import torch
    from accelerate import init_empty_weights
except ImportError as error:
    raise MissingDependencyError(
        error.name or "accelerate", extra="train", needed_for="guardrail_vl.training"
    ) from error

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that training takes for certain, on all devices together."""

    parameters: int
    """How many the model has, adapters included."""
    trained: int
    """How many of them are trained."""
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self.weights + self.gradients + self.optimizer


def need(
    encoder: Encoder,
    trains: Callable[[str], bool],
    *,
    bytes_each: int,
    rank: int = 0,
    targets: str = "",
    models: int = 1,
) -> Need:
    """What a training takes. Loads no weights.

    Args:
        encoder: Of the checkpoint.
        trains: Whether a parameter of this name is trained. Not asked for LoRA.
        bytes_each: Bytes of a weight in memory.
        rank: Of LoRA; 0: the weights themselves are trained.
        targets: Regular expression of the layers that LoRA adapts.
        models: How often the weights are in memory: 2 with a reference model.
    """
    with init_empty_weights():
        model: Any = encoder.auto_class.from_config(encoder.config)
    model.tie_weights()
    named = dict(model.named_parameters())
    count = sum(p.numel() for p in named.values())
    if rank:
        linear = ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear))
        layers = [m for name, m in linear if re.fullmatch(targets, name)]
        trained = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    else:
        trained = sum(p.numel() for name, p in named.items() if trains(name))
    return Need(
        parameters=count + (trained if rank else 0),
        trained=trained,
        # Adapters are kept in float32 whatever the weights are.
        weights=models * count * bytes_each + (4 * trained if rank else 0),
        gradients=4 * trained,
        optimizer=8 * trained,
    )


def check_fits(wanted: Need, device: str) -> None:
    """Refuse what can't fit.

    Args:
        wanted: From `need`.
        device: Where it runs, such as `cuda`.

    Raises:
        EngineUnavailableError: It takes more than there is; says how much, and what takes less.
    """
    if not device.startswith(("cuda", "cpu")):
        return  # nothing tells how much there is
    free = torch.cuda.mem_get_info()[0] if device.startswith("cuda") else psutil.virtual_memory().available
    share = _share(wanted)
    if share <= free:
        return
    place = "the GPU" if device.startswith("cuda") else "this machine"
    raise EngineUnavailableError(
        f"Training {wanted.trained:,} of {wanted.parameters:,} parameters takes at least {share / GIB:.1f} GiB"
        f"{'' if share == wanted.total else ' for each process'}: weights {wanted.weights / GIB:.1f}, gradients "
        f"{wanted.gradients / GIB:.1f}, optimizer {wanted.optimizer / GIB:.1f} GiB in all, and activations on top. "
        f"{place[0].upper()}{place[1:]} has {free / GIB:.1f} GiB free.",
        hint="Train with LoRA, shard over several GPUs (ZeRO-3 or FSDP with accelerate launch), or take a smaller "
        "model; a smaller batch only helps where this much fits.",
    )


def _share(wanted: Need) -> float:
    """Bytes that one process holds: all of it, unless `accelerate launch` says that it will be in shards."""
    told = os.environ
    several = int(told.get("WORLD_SIZE", "1"))
    if told.get("ACCELERATE_USE_FSDP") == "true":
        return 0.0 if told.get("FSDP_OFFLOAD_PARAMS") == "true" else wanted.total / several
    if told.get("ACCELERATE_USE_DEEPSPEED") == "true":
        moved = (told.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none") for part in ("OPTIMIZER", "PARAM"))
        if any(place != "none" for place in moved):
            return 0.0  # in the CPU's memory, or on its disk: not the device's
        # A config file of DeepSpeed's own is not read: then the most is hoped for.
        stage = int(told.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"))
        parts = ((wanted.optimizer, 1), (wanted.gradients, 2), (wanted.weights, 3))
        return sum(size / several if stage >= since else size for size, since in parts)
    return wanted.total
