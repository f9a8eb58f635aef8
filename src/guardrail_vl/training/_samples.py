"""What was drawn for each turn and how it was judged (`SampleRecord`), its sums (`Tally`), its file (`SampleLog`).

A line a turn, on the disk for good before the next turns are sampled. A process that dies leaves at most one torn line,
which the next one cuts off. Judges nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from guardrail_vl._lock import FolderLock
from guardrail_vl._value import Value
from guardrail_vl._whole import written
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.evaluation._lines import Lines, read_lines

SAMPLES: Final = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class SampleRecord(Value):
    """One turn's samples, in the order of their numbers."""

    id: str
    digest: str
    """Of the turn's content: see `LabeledTurn.content_digest`. Empty: it could not be sampled."""
    right: tuple[bool, ...] = ()
    """Whether every label that had to be right was."""
    readable: tuple[bool, ...] = ()
    """Whether the sample followed the format; one that didn't is wrong."""
    tokens: tuple[int, ...] = ()
    """Lengths, end tokens included."""
    texts: tuple[str, ...] | None = field(default=None, repr=False)
    """What was drawn. None: it wasn't kept."""
    error: str = ""
    """Why the turn could not be sampled. It holds no content."""


@dataclass(frozen=True, slots=True)
class Tally(Value):
    """How some turns were answered."""

    turns: int = 0
    samples: int = 0
    right: int = 0
    readable: int = 0
    """Samples that followed the format."""
    tokens: int = 0
    """Of all samples together."""

    @property
    def pass_rate(self) -> float:
        """The share of samples that are right; NaN if there are none."""
        return self.right / self.samples if self.samples else float("nan")

    @property
    def readable_rate(self) -> float:
        """The share of samples that followed the format; NaN if there are none."""
        return self.readable / self.samples if self.samples else float("nan")

    @property
    def mean_tokens(self) -> float:
        """Length of a sample; NaN if there are none."""
        return self.tokens / self.samples if self.samples else float("nan")

    def plus(self, record: SampleRecord) -> Tally:
        """The same with one more turn."""
        return Tally(
            self.turns + 1,
            self.samples + len(record.right),
            self.right + sum(record.right),
            self.readable + sum(record.readable),
            self.tokens + sum(record.tokens),
        )


class SampleLog:
    """The samples of one folder, open for writing by this process alone. A context manager.

    Args:
        folder: An existing folder.

    Raises:
        ConfigurationError: On entering: the folder is in use, can't be written, or its file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.records: dict[str, SampleRecord] = {}
        """By id of the turn, in the order in which they were drawn."""

    def __enter__(self) -> Self:
        with written(SAMPLES), contextlib.ExitStack() as undo:
            self._lock = FolderLock(self._folder)
            self._lock.acquire()
            undo.callback(self._lock.release)
            records, length = _read(self._folder / SAMPLES)
            self.records = {record.id: record for record in records}
            self._lines = Lines(self._folder / SAMPLES, length)
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lines.close()
        with contextlib.suppress(OSError):  # a full disk was told when it mattered
            self._lock.release()

    def append(self, records: Sequence[SampleRecord]) -> None:
        """Write these for good: when it returns they survive a crash of the machine.

        Raises:
            ConfigurationError: They can't be written; what was written before is kept.
        """
        data = "".join(f"{record.to_json()}\n" for record in records).encode("utf-8", "surrogatepass")
        with written(SAMPLES):
            self._lines.append(data)
        self.records.update({record.id: record for record in records})


def read_samples(path: str | Path) -> tuple[SampleRecord, ...]:
    """Read a `samples.jsonl`, finished or not; nothing is written.

    Args:
        path: The file, or the folder that it is in.

    Raises:
        ConfigurationError: It isn't there, or is damaged.
    """
    path = Path(path)
    file = path / SAMPLES if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"There is no file {file.name}.")
    return tuple(_read(file)[0])


def _read(file: Path) -> tuple[list[SampleRecord], int]:
    """The records, and the length in bytes of the lines that hold them; a torn end is left out."""

    def damaged(number: int) -> ConfigurationError:
        return ConfigurationError(f"{file.name}: line {number} is damaged.", hint="Use another folder.")

    records: dict[str, SampleRecord] = {}
    length = 0
    for record, length in read_lines(file, _record, damaged):  # noqa: B007 - that of the last one
        if record.id in records:
            raise ConfigurationError(f"{file.name} has the turn {record.id!r} twice.", hint="Use another folder.")
        records[record.id] = record
    return list(records.values()), length


def _record(line: bytes) -> SampleRecord | None:
    try:
        return SampleRecord.from_json(line)
    except ContentError:
        return None
