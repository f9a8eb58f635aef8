"""What a checkpoint says of itself beside its weights: the prompt format it was trained in, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guardrail_vl.errors import ConfigurationError

GUARD_JSON: Final = "guard.json"


@dataclass(frozen=True, slots=True)
class TrainedFormat:
    """The prompt format that a checkpoint was trained in."""

    format: str
    """Id of the format, such as `guardreasoner-vl/1`."""
    golden: str
    """Hash of a golden rendered turn; equal exactly when the words are."""


def read_guard_json(path: str | Path) -> TrainedFormat | None:
    """Read `guard.json` from a checkpoint folder, or that file itself.

    Returns:
        What it says; None when there is no such file.

    Raises:
        ConfigurationError: The file is not `{"format": "…", "golden": "…"}`.
    """
    file = Path(path)
    if file.is_dir():
        file = file / GUARD_JSON
    if not file.is_file():
        return None
    wrong = ConfigurationError(f'{file} is not of the form {{"format": "…", "golden": "…"}}.')
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise wrong from None
    if not isinstance(told, dict):
        raise wrong
    format_, golden = told.get("format"), told.get("golden")
    if not isinstance(format_, str) or not isinstance(golden, str):
        raise wrong
    return TrainedFormat(format_, golden)


def write_guard_json(folder: str | Path, trained: TrainedFormat, more: Mapping[str, object] | None = None) -> None:
    """Write `guard.json` into a checkpoint folder.

    Args:
        folder: Of the checkpoint.
        trained: The format.
        more: Other keys, as plain JSON; whoever serves the checkpoint reads none of them.

    Raises:
        OSError: It can't be written.
    """
    told = {**(more or {}), "format": trained.format, "golden": trained.golden}
    (Path(folder) / GUARD_JSON).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def model_name(model: str | Path, revision: str | None) -> str:
    """The name a person recognises: the folder's own name, or the hub id, with the revision where one was given."""
    name = Path(model).resolve().name if Path(model).is_dir() else str(model)
    return f"{name}@{revision}" if revision else name
