"""A LoRA adapter as peft writes it: a folder with `adapter_config.json` beside the weights. Loads none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from guardrail_vl.errors import ConfigurationError

_CONFIG: Final = "adapter_config.json"


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
