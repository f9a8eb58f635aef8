"""A run's folder: what is in it (`Run`), and how it is written so that nothing is lost (`RunWriter`). Judges nothing.

`run.json` says under which conditions and on which data; `records.jsonl` has a line for each judged sample, in the
order in which they were done. A process that dies leaves at most one torn line, which the next one cuts off.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from guardrail_vl._lock import FolderLock
from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.evaluation._lines import Lines, read_lines
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.evaluation.records import Cohort, Record

MANIFEST: Final = "run.json"
RECORDS: Final = "records.jsonl"
LAYOUT: Final = 1
"""Of the folder; another number is another way to write it."""

_OTHER_FOLDER: Final = "Use another folder, or delete this one."


@dataclass(frozen=True, slots=True)
class SetInfo(Value):
    """Which data a set was."""

    hash: str
    """See `CaseSet.hash`."""
    size: int
    """Samples to judge, those without a label included."""


@dataclass(frozen=True, slots=True)
class Manifest(Value):
    """What `run.json` holds."""

    cohort: Cohort
    sets: dict[str, SetInfo]
    started: str
    """When the folder was begun: UTC, ISO 8601."""
    layout: int = LAYOUT


@dataclass(frozen=True, slots=True)
class Run:
    """What was judged, and under which conditions."""

    folder: Path
    cohort: Cohort
    sets: Mapping[str, SetInfo]
    """By name."""
    started: str
    """UTC, ISO 8601."""
    records: tuple[Record, ...] = field(repr=False)
    """In the order in which they were done, which need not be the samples'."""

    @property
    def missing(self) -> int:
        """Samples that are not judged yet."""
        return sum(info.size for info in self.sets.values()) - len(self.records)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run, finished or not; nothing is written.

        Raises:
            ConfigurationError: There is none, or its files are damaged.
        """
        folder = Path(folder)
        with _refused("read"):
            manifest = _read_manifest(folder)
            if manifest is None:
                raise ConfigurationError(f"There is no run in {folder.name!r}: it has no {MANIFEST}.")
            records, _ = _read_records(folder)
        _check_data(records, manifest.sets)
        return cls(folder, manifest.cohort, manifest.sets, manifest.started, tuple(records))


class RunWriter:
    """A run's folder, open for writing by this process alone. A context manager.

    Args:
        folder: Made if it is not there.
        cohort: The conditions of every record.
        sets: The data.

    Raises:
        ConfigurationError: On entering: the folder holds another cohort's run or other data (says what differs), is
            in use, or can't be written.
    """

    def __init__(self, folder: str | Path, cohort: Cohort, sets: Sequence[CaseSet]) -> None:
        self.folder = Path(folder)
        self.done: Mapping[tuple[str, str], str] = {}
        """Digest of each sample that is judged, by set and id."""
        with _refused("read", what="A picture of the data"):
            infos = {one.name: SetInfo(one.hash, len(one.cases)) for one in sets}
        self._manifest = Manifest(cohort, infos, datetime.now(UTC).isoformat(timespec="seconds"))

    def __enter__(self) -> Self:
        with _refused("written"), contextlib.ExitStack() as undo:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
            self._lock.acquire()
            undo.callback(self._lock.release)
            self._lines = Lines(self.folder / RECORDS, self._begin())
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lines.close()
        with contextlib.suppress(OSError):  # a full disk was told when it mattered
            self._lock.release()

    def append(self, records: Sequence[Record]) -> None:
        """Write these for good: when it returns they survive a crash of the machine.

        Raises:
            ConfigurationError: They can't be written; what was written before is kept.
        """
        if not records:
            return
        data = "".join(f"{record.to_json()}\n" for record in records).encode("utf-8", "surrogatepass")
        with _refused("written"):
            self._lines.append(data)

    def _begin(self) -> int:
        """See that the folder is this run's, or make it so; the length in bytes of its records comes back."""
        there = _read_manifest(self.folder)
        if there is None:
            if (self.folder / RECORDS).exists():
                raise ConfigurationError(f"The folder has a {RECORDS} and no {MANIFEST}.", hint=_OTHER_FOLDER)
            _write_whole(self.folder / MANIFEST, self._manifest.to_json() + "\n")
            return 0
        if differs := [*_other_conditions(there.cohort, self._manifest.cohort), *_other_data(there, self._manifest)]:
            raise ConfigurationError(
                f"The folder holds another run. It differs in {'; '.join(differs)}.", hint=_OTHER_FOLDER
            )
        records, length = _read_records(self.folder)
        _check_data(records, there.sets)
        self.done = {(record.set, record.id): record.digest for record in records}
        return length


def _other_conditions(there: Cohort, here: Cohort) -> Iterator[str]:
    for one in fields(Cohort):
        old, new = getattr(there, one.name), getattr(here, one.name)
        if old != new:
            yield f"{one.name} ({old!r} there, {new!r} now)"


def _other_data(there: Manifest, here: Manifest) -> Iterator[str]:
    if gone := sorted(there.sets.keys() - here.sets.keys()):
        yield f"the sets (there also {', '.join(gone)})"
    if new := sorted(here.sets.keys() - there.sets.keys()):
        yield f"the sets (now also {', '.join(new)})"
    for name in sorted(there.sets.keys() & here.sets.keys()):
        old, now = there.sets[name], here.sets[name]
        if old != now:
            yield f"the set {name} ({old.size} samples @{old.hash} there, {now.size} @{now.hash} now)"


def _check_data(records: Sequence[Record], sets: Mapping[str, SetInfo]) -> None:
    seen: set[tuple[str, str]] = set()
    for record in records:
        if record.set not in sets:
            raise ConfigurationError(f"{RECORDS} has a record of {record.set!r}, a set that {MANIFEST} does not name.")
        if (record.set, record.id) in seen:
            raise ConfigurationError(f"{RECORDS} has two records of {record.id!r} in {record.set!r}.")
        seen.add((record.set, record.id))


def _read_manifest(folder: Path) -> Manifest | None:
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = Manifest.from_json(file.read_bytes())
    except ContentError as error:
        raise ConfigurationError(f"{MANIFEST} is damaged, or of another version. {error.message}") from None
    if manifest.layout != LAYOUT:
        raise ConfigurationError(f"{MANIFEST} is of layout {manifest.layout}; this version reads {LAYOUT}.")
    return manifest


def _read_records(folder: Path) -> tuple[list[Record], int]:
    """The records, and the length in bytes of the lines that hold them; a torn end is left out.

    Raises:
        ConfigurationError: A line before the end is damaged.
    """
    records: list[Record] = []
    length = 0
    for record, length in read_lines(folder / RECORDS, _read_line, _damaged):  # noqa: B007 - that of the last one
        records.append(record)
    return records, length


def _damaged(number: int) -> ConfigurationError:
    return ConfigurationError(f"Line {number} of {RECORDS} is damaged.", hint=_OTHER_FOLDER)


def _read_line(line: bytes) -> Record | None:
    try:
        return Record.from_json(line)
    except ContentError:
        return None


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whenever the machine stops."""
    # Nobody else writes here: the folder is locked.
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _refused(verb: str, *, what: str = "The run's folder") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{what} can't be {verb}: {error.strerror or type(error).__name__}.",
            hint="What was judged before is kept: the same command goes on from there." if verb == "written" else "",
        ) from error
