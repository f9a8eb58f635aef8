"""What came of each turn that a teacher was asked for (`Outcome`), and the file that keeps it (`Journal`).

One process writes; whatever ends it, the lines before are kept. Knows no teacher and no turn.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from guardrail_vl._lock import FolderLock
from guardrail_vl._value import Value
from guardrail_vl._whole import written
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.verdict import Label

ANSWERS: Final = "answers.jsonl"

_SYNC_EVERY: Final = 16
"""Outcomes that a crash of the machine may cost; a crash of the process costs none."""


@dataclass(frozen=True, slots=True)
class Outcome(Value):
    """A turn's line in the journal: its reasoning and labels, or why there is none."""

    id: str
    reasoning: str | None = field(default=None, repr=False)
    prompt: Label | None = None
    response: Label | None = None
    rejected: str = ""
    """A `Reason`; empty: it can be used."""
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Journal:
    """The outcomes so far, in a file of which a killed process loses nothing. A context manager.

    Args:
        folder: Its folder; made, and locked for this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._folder = folder
        self._file = -1
        self._length = 0
        self._unsynced = 0

    def __enter__(self) -> Self:
        with written(ANSWERS):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self._folder)
            self._lock.acquire()
            try:
                self._file = os.open(self._folder / ANSWERS, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                self._load()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        if not self.outcomes:  # nothing to go on from: other inputs may have the folder
            shutil.rmtree(self._folder, ignore_errors=True)
        with written(ANSWERS):
            os.fsync(self._file)
        self._close()

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Write these, a line each.

        Raises:
            ConfigurationError: They can't be written; those before are kept.
        """
        data = "".join(f"{outcome.to_json()}\n" for outcome in outcomes).encode()
        with written(ANSWERS):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._length += len(data)
            self._unsynced += len(outcomes)
            if self._unsynced >= _SYNC_EVERY:
                os.fsync(self._file)
                self._unsynced = 0
        self.outcomes |= {outcome.id: outcome for outcome in outcomes}

    def _load(self) -> None:
        *lines, torn = (self._folder / ANSWERS).read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                outcome = Outcome.from_json(line)
            except ContentError:
                raise ConfigurationError(
                    f"Line {number} of {ANSWERS} is damaged.", hint="Name another folder."
                ) from None
            self.outcomes[outcome.id] = outcome
        if torn:
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(torn))

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._lock.release()
