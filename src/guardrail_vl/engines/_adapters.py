"""LoRA adapters as peft writes them: folders with `adapter_config.json` beside the weights. Loads none.

Also how much room vLLM sets aside for them. On a CPU one place stays empty: there vLLM (0.32) applies what is in the
last one to every prompt that asks for no adapter, and the checkpoint itself would answer as an adapter does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from guardrail_vl.errors import ConfigurationError

_CONFIG: Final = "adapter_config.json"
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""
_AT_ONCE: Final = 4
"""Adapters in one batch on a GPU, unless `max_loras` says otherwise: each place costs memory."""
_SPARE: Final = 4
"""Places on a CPU beyond the adapters that are known: for more of them, and the one that stays empty."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Where an adapter is, and how much room it needs."""

    name: str
    folder: str
    rank: int
    """Of its matrices."""

    @classmethod
    def read(cls, name: str, folder: str | Path) -> Self:
        """The adapter in a folder.

        Raises:
            ConfigurationError: The name is empty, or the folder holds no adapter.
        """
        if not name.strip():
            raise ConfigurationError("An adapter needs a name.")
        try:
            told = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
            rank = told["r"]
        except (OSError, ValueError, KeyError, TypeError):
            rank = None
        if not isinstance(rank, int) or rank < 1:
            raise ConfigurationError(
                f"The folder of the adapter {name!r} holds no LoRA adapter.",
                hint=f"It needs the {_CONFIG} that peft writes, with r in it, and the weights.",
            )
        return cls(name, str(Path(folder).absolute()), rank)


def room(adapters: Sequence[Adapter], options: Mapping[str, Any], *, cpu: bool) -> dict[str, Any]:
    """What vLLM must be told of adapters before it loads. Empty: it will take none.

    Args:
        adapters: Those that are known.
        options: What the user says, of vLLM's own.
        cpu: Whether it runs on one.

    Raises:
        ConfigurationError: They don't fit into what the user says.
    """
    if not adapters and not options.get("enable_lora"):
        return {}
    largest = max((adapter.rank for adapter in adapters), default=16)
    made = {
        "enable_lora": True,
        "max_loras": options.get("max_loras", len(adapters) + _SPARE if cpu else min(max(len(adapters), 1), _AT_ONCE)),
        "max_lora_rank": options.get("max_lora_rank", next((rank for rank in _RANKS if rank >= largest), largest)),
    }
    check_room(adapters, made, cpu=cpu)
    return made


def check_room(adapters: Sequence[Adapter], made: Mapping[str, Any], *, cpu: bool) -> None:
    """Check that these adapters fit.

    Args:
        adapters: All of them.
        made: From `room`.
        cpu: As for `room`.

    Raises:
        ConfigurationError: They don't.
    """
    if not made:
        raise ConfigurationError(
            "This vLLM was loaded without room for adapters.",
            hint="Make the engine with enable_lora=True and max_lora_rank=….",
        )
    for adapter in adapters:
        if adapter.rank > made["max_lora_rank"]:
            raise ConfigurationError(
                f"The adapter {adapter.name!r} has rank {adapter.rank}; this vLLM is loaded for "
                f"{made['max_lora_rank']} at most.",
                hint="Make the engine with a larger max_lora_rank.",
            )
    if cpu and len(adapters) >= made["max_loras"]:
        raise ConfigurationError(
            f"{len(adapters)} adapters need max_loras of {len(adapters) + 1} at least: on a CPU one place stays empty.",
            hint="Make the engine with a larger max_loras.",
        )
