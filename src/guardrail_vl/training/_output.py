"""A stage's output folder: what it is made from, how far it came (`metrics.jsonl`), whether it is done (`result.json`).

Needs no torch, so that every stage can use it. It knows no stage.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from guardrail_vl._value import Value
from guardrail_vl._whole import write_whole, written
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.training.turns import LabeledTurn

R = TypeVar("R", bound=Value)

INPUTS: Final = "inputs.json"
METRICS: Final = "metrics.jsonl"
RESULT: Final = "result.json"
CHECKPOINTS: Final = "checkpoints"


@dataclass(frozen=True, slots=True)
class Step:
    """How far a stage is: what a progress bar shows and `metrics.jsonl` holds."""

    stage: str
    """Such as `sft`."""
    step: int
    """Done so far, from 0 to `total`."""
    total: int
    values: Mapping[str, float]
    """Figures by name, such as `loss`. May hold a NaN: that is how it is seen."""


class Output:
    """The output folder of one run of one stage.

    Args:
        folder: Where to; made if it is not there.
        stage: Such as `sft`.
        inputs: What the result depends on, as plain JSON: the config, and digests of the data and the model.
    """

    def __init__(self, folder: str | Path, stage: str, inputs: Mapping[str, object]) -> None:
        self.folder = Path(folder)
        self.stage = stage
        # As it will be read again: tuples are lists there, and paths are words.
        self.inputs: dict[str, Any] = json.loads(json.dumps({"stage": stage, **inputs}, default=str))

    @property
    def checkpoints(self) -> Path:
        """Where a stage keeps what it needs to go on."""
        return self.folder / CHECKPOINTS

    def begin(self, kind: type[R], *, write: bool = True) -> R | None:
        """Start, or go on, or find that it is done.

        Args:
            kind: Of the result.
            write: False in all processes of a run but one.

        Returns:
            The result of a run with the same inputs that came to its end; None: there is work to do.

        Raises:
            ConfigurationError: The folder holds work on other inputs (says which), or something else, or can't be
                written.
        """
        before = self._before()
        if before is None:
            with written(self.folder.name):
                if self.folder.exists() and any(path.name != METRICS for path in self.folder.iterdir()):
                    raise ConfigurationError(
                        f"The folder {self.folder.name!r} is not empty, and not a run of {self.stage}.",
                        hint="Name another one.",
                    )
        elif before != self.inputs:
            if self._has_work():
                unlike = ", ".join(_unlike(before, self.inputs))
                raise ConfigurationError(
                    f"The folder {self.folder.name!r} holds a run of other inputs: {unlike}.",
                    hint="Give the same ones to go on, or name another folder.",
                )
            if write:
                with written(self.folder.name):
                    (self.folder / METRICS).unlink(missing_ok=True)
        done = self._result(kind)
        if done is None and write:
            write_whole(self.folder / INPUTS, json.dumps(self.inputs, indent=1) + "\n")
        return done

    def log(self, step: Step) -> None:
        """Append a line to `metrics.jsonl`, on the disk at once. What is not a number is null.

        Raises:
            ConfigurationError: It can't be written: a full disk, for example.
        """
        values = {name: value if math.isfinite(value) else None for name, value in step.values.items()}
        line = json.dumps({"step": step.step, "total": step.total, **values})
        with written(METRICS), (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewind(self, step: int) -> None:
        """Forget the lines after this step: it goes on from here, and writes them again.

        Raises:
            ConfigurationError: The file can't be written.
        """
        file = self.folder / METRICS
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the line that a killed process was writing
        write_whole(file, "".join(kept))

    def finish(self, result: Value) -> None:
        """Write `result.json`, the last of all, and drop the checkpoints.

        Raises:
            ConfigurationError: It can't be written.
        """
        write_whole(self.folder / RESULT, result.to_json())
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _before(self) -> dict[str, Any] | None:
        try:
            before = json.loads((self.folder / INPUTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise ConfigurationError(f"{INPUTS} in the folder {self.folder.name!r} can't be read.")
        return before

    def _has_work(self) -> bool:
        kept = self.checkpoints
        return (self.folder / RESULT).exists() or (kept.is_dir() and any(kept.iterdir()))

    def _result(self, kind: type[R]) -> R | None:
        try:
            data = (self.folder / RESULT).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{RESULT} in the folder {self.folder.name!r} can't be read.") from error
        try:
            return kind.from_json(data)
        except ContentError:
            raise ConfigurationError(
                f"{RESULT} in the folder {self.folder.name!r} is not one of this version.", hint="Name another folder."
            ) from None


def digest_of_turns(turns: Iterable[LabeledTurn]) -> str:
    """How many turns, and 16 hex digits of everything that is in them, in their order.

    A picture whose file can't be read is no error here: who reads the turn tells, or leaves it out.
    """
    state, count = hashlib.blake2b(digest_size=8), 0
    for turn in turns:
        count += 1
        try:
            content = turn.content_digest
        except OSError:
            content = "unreadable"
        labels = [str(turn.prompt_label), str(turn.response_label)]
        state.update(json.dumps([turn.id, content, *labels, turn.reasoning, turn.weight]).encode())
    return f"{count} turns {state.hexdigest()}"


def digest_of_model(model: str | Path) -> str:
    """What a model is: a hub id as it stands; of a folder, 16 hex digits of all that is in its files.

    Raises:
        ConfigurationError: A file can't be read.
    """
    folder = Path(model)
    if not folder.is_dir():
        return str(model)
    state = hashlib.blake2b(digest_size=8)
    try:
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            with file.open("rb") as opened:
                state.update(file.name.encode() + hashlib.file_digest(opened, "blake2b").digest())
    except OSError as error:
        raise ConfigurationError(f"The checkpoint {folder.name!r} can't be read.") from error
    return f"{folder.name} {state.hexdigest()}"


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any], under: str = "") -> Sequence[str]:
    """Names of what is not the same, as a person set it; values only of what is short."""
    out: list[str] = []
    for name in sorted({*one, *other}):
        before, now = one.get(name), other.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            out += _unlike(before, now, f"{under}{name}.")
        elif before != now:
            out.append(f"{under}{name} was {before}, is {now}")
    return out
