"""What is known of a run that is not finished: a folder beside the output, which one process holds. Knows no guard.

`rows.jsonl` grows by the rows that were judged, in the order of the input; `run.json` says of what; `done.json` says
which file became the output. Kill the process anywhere, and what is here is enough to go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from guardrail_vl._lock import LOCK_FILE, FolderLock
from guardrail_vl._whole import write_whole, written
from guardrail_vl.bulk._output import word
from guardrail_vl.errors import ConfigurationError

SUFFIX: Final = ".partial"
_RUN, _ROWS, _DONE, _JOINED = "run.json", "rows.jsonl", "done.json", "output"
_SYNC: Final = 1.0
"""Seconds that rows may be lost by a crash of the machine; none are by a crash of the process."""
_HASHED: Final = 2**20


def about_file(path: Path) -> dict[str, Any]:
    """What tells whether a file is still the same: size, time, and a hash of both its ends."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(_HASHED))
        file.seek(max(0, facts.st_size - _HASHED))
        digest.update(file.read(_HASHED))
    return {"size": facts.st_size, "modified": facts.st_mtime_ns, "sha256_of_ends": digest.hexdigest()}


class Journal:
    """The folder, held from `with` to its end.

    Args:
        output: The file that is to be.
        run: What the rows depend on, by name: JSON values.
        overwrite: Whether a finished output may be replaced.
        restart: Whether what an earlier run left is thrown away.
    """

    def __init__(self, output: Path, run: Mapping[str, Any], *, overwrite: bool, restart: bool) -> None:
        self._output = output
        self._run = dict(run)
        self._overwrite = overwrite
        self._restart = restart
        self._folder = output.with_name(output.name + SUFFIX)
        self._lock = FolderLock(self._folder)
        self._file: int | None = None
        self._synced = time.monotonic()
        self._ended = False
        self.counts: Counter[str] = Counter()
        """Rows judged: allow, annotate, block, error."""
        self.finished = False
        """Whether an earlier run came to its end and was stopped while it cleared up."""

    def __enter__(self) -> Self:
        if not self._folder.exists():
            self._refuse_output()
        with written(self._output.name):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def append(self, lines: bytes, counts: Mapping[str, int]) -> None:
        """Add rows; a crash of this process doesn't lose them.

        Raises:
            ConfigurationError: They can't be written.
        """
        assert self._file is not None
        with written(self._output.name):
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if time.monotonic() - self._synced >= _SYNC:
                os.fsync(self._file)
                self._synced = time.monotonic()
        self.counts.update(counts)

    def finish(self, convert: Callable[[Path, Path], None] | None) -> None:
        """Make the output of the rows, all at once, and clear up.

        Args:
            convert: Writes the output from the file of rows. None: the file of rows is the output.

        Raises:
            ConfigurationError: It can't be written.
        """
        assert self._file is not None
        with written(self._output.name):
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
            made = self._folder / _ROWS
            if convert is not None:
                made = self._folder / _JOINED
                convert(self._folder / _ROWS, made)
            # Whoever finds this, and a file like it in the output's place, has nothing left to do but to clear up.
            write_whole(self._folder / _DONE, json.dumps({"file": _identity(made), "counts": dict(self.counts)}))
            os.replace(made, self._output)
            self._clear()

    def _open(self) -> None:
        if not self._restart and (done := self._done()) is not None:
            self.counts = Counter(done)
            self.finished = True
            self._clear()
            return
        self._refuse_output()
        rows = self._folder / _ROWS
        if self._restart:
            rows.unlink(missing_ok=True)
        found = self._read(rows)
        if found:
            self._compare()
        else:
            write_whole(self._folder / _RUN, json.dumps(self._run, indent=2))
        with written(self._output.name):
            (self._folder / _DONE).unlink(missing_ok=True)
            self._file = os.open(rows, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            os.ftruncate(self._file, found)

    def _refuse_output(self) -> None:
        if self._output.exists() and not self._overwrite:
            raise ConfigurationError(
                f"{self._output.name} is there already.", hint="Use --overwrite (overwrite=True), or another name."
            )

    def _done(self) -> dict[str, int] | None:
        """The counts of a run whose output is in its place. None: there is no such run."""
        try:
            done = json.loads((self._folder / _DONE).read_bytes())
            return dict(done["counts"]) if done["file"] == _identity(self._output) else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _read(self, rows: Path) -> int:
        """Count the rows that are there; the bytes of them that are whole."""
        length, last = 0, 0
        if not rows.exists():
            return 0
        with rows.open("rb") as lines:
            for line in lines:
                values = _values(line)
                if values is None or values["row"] <= last:
                    break  # torn by a crash; what follows it is judged again
                last = values["row"]
                length += len(line)
                self.counts[word(values)] += 1
        return length

    def _compare(self) -> None:
        try:
            then = json.loads((self._folder / _RUN).read_bytes())
        except (OSError, ValueError):
            then = {}
        if changed := [name for name, value in self._run.items() if then.get(name) != value]:
            raise ConfigurationError(
                f"{self._folder.name} is left of a run that was stopped, and since then this has changed: "
                f"{', '.join(changed)}.",
                hint="Use --restart (restart=True) to begin anew, or undo the change to go on from there.",
            )

    def _clear(self) -> None:
        """Remove the folder, what says that the run is done last."""
        with contextlib.suppress(OSError):
            for file in sorted(self._folder.iterdir(), key=lambda file: file.name == _DONE):
                if file.name != LOCK_FILE:
                    file.unlink(missing_ok=True)
        self._ended = True

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
            self._file = None
        if not self.counts and not self._ended and not self.finished:
            self._forget()  # there is nothing in it: another run may begin as it likes
        if self._ended:
            # Before it is given back, so that nobody takes it in between; elsewhere a held file can't be removed.
            with contextlib.suppress(OSError):
                (self._folder / LOCK_FILE).unlink(missing_ok=True)
        self._lock.release()
        if self._ended:
            with contextlib.suppress(OSError):
                if sys.platform == "win32":
                    (self._folder / LOCK_FILE).unlink(missing_ok=True)
                self._folder.rmdir()

    def _forget(self) -> None:
        rows = self._folder / _ROWS
        if not rows.exists() or not rows.stat().st_size:
            self._clear()


def _identity(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns]


def _values(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    is_row = isinstance(values, dict) and isinstance(values.get("row"), int) and {"error", "action"} <= values.keys()
    return values if is_row else None
