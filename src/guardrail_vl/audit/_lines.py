"""A store of three files of JSON lines: records, contents, corrections. For one machine and some 100,000 records.

Every write is one append under a lock that other processes respect. Records that were read are remembered; contents
are not.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from guardrail_vl.audit._store import Store
from guardrail_vl.audit.records import AuditRecord, Correction, Purged, Query
from guardrail_vl.errors import AuditError, ContentError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_ID: Final = re.compile(r'\{"id":"([^"\\]*)"')
_OWN: Final = 0o600
"""Only for whoever wrote it. Permissions that somebody changed stay."""


class LineStore(Store):
    """See `Store`.

    Args:
        path: The records' file, `*.jsonl`. The others are named after it. A link is followed, so a file may lie on
            another volume.
    """

    def __init__(self, path: str) -> None:
        stem = path.removesuffix(".jsonl")
        self._records = Path(path)
        self._contents = Path(f"{stem}.content.jsonl")
        self._labels = Path(f"{stem}.labels.jsonl")
        self._gate = Path(f"{stem}.lock")
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._read = _Read()
        self._pid = os.getpid()

    # ---- writing --------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        """See `Store.add`."""
        contents = [_content_line(record, content) for record, content in items if content is not None]
        with self._locked():
            # Content first: a record without the content that it should have would be found by nobody.
            _append(self._contents, contents)
            _append(self._records, [record.to_json() for record, _ in items])

    def correct(self, correction: Correction, note: bytes | None) -> None:
        """See `Store.correct`."""
        line = json.loads(replace(correction, note="").to_json())
        line["note"] = None if note is None else base64.b64encode(note).decode()
        with self._locked():
            _append(self._labels, [json.dumps(line, separators=(",", ":"))])

    def purge(self, before: datetime, *, content_only: bool) -> Purged:
        """See `Store.purge`."""
        records = 0
        with self._locked():
            old = {record.id for record in self._all().values() if record.time < before}

            def is_old(line: Mapping[str, Any]) -> bool:
                return line["id"] in old or datetime.fromisoformat(line["time"]) < before

            contents = _rewrite(self._contents, lambda line: None if is_old(line) else line)
            if content_only:
                _rewrite(self._labels, lambda line: {**line, "note": None} if is_old(line) else line)
            else:
                _rewrite(self._labels, lambda line: None if line["id"] in old else line)
                records = _rewrite(self._records, lambda line: None if line["id"] in old else line)
        return Purged(records=records, contents=contents)

    # ---- reading --------------------------------------------------------------------------------------------------

    def find(self, query: Query) -> list[AuditRecord]:
        """See `Store.find`."""
        found = sorted(self._meant(query), key=lambda record: (record.time, record.id), reverse=True)
        if query.after is not None:
            mark = self.get(query.after)
            found = [] if mark is None else [one for one in found if (one.time, one.id) < (mark.time, mark.id)]
        return found[: query.limit]

    def count(self, query: Query) -> int:
        """See `Store.count`."""
        return len(self._meant(query))

    def get(self, id: str) -> AuditRecord | None:
        """See `Store.get`."""
        with self._locked():
            return self._all().get(id)

    def apps(self) -> list[str]:
        """See `Store.apps`."""
        with self._locked():
            return sorted({record.app for record in self._all().values()})

    def contents(self, ids: Sequence[str]) -> dict[str, bytes]:
        """See `Store.contents`."""
        with self._locked():
            return {line["id"]: _bytes(line["content"]) for line in _lines(self._contents, set(ids))}

    def content_count(self) -> int:
        """See `Store.content_count`."""
        with self._locked():
            return sum(1 for _ in _whole_lines(self._contents))

    def corrections(self, ids: Sequence[str]) -> dict[str, tuple[Correction, bytes | None]]:
        """See `Store.corrections`."""
        found = {}
        with self._locked():
            for line in _lines(self._labels, set(ids)):
                note = line.pop("note")
                correction = Correction.from_json(json.dumps(line))
                found[correction.id] = correction, None if note is None else base64.b64decode(note)
        return found

    def close(self) -> None:
        """See `Store.close`."""

    def _all(self) -> Mapping[str, AuditRecord]:
        self._read = self._read.further(self._records)
        return self._read.records

    def _meant(self, query: Query) -> list[AuditRecord]:
        with self._locked():
            reviewed = {line["id"] for line in _lines(self._labels)}
            return [record for record in self._all().values() if query.takes(record, record.id in reviewed)]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._pid != os.getpid():
            self._reset()  # another thread may have held the lock when this process was forked
        with self._lock, _door():
            self._gate.parent.mkdir(parents=True, exist_ok=True)
            gate = os.open(self._gate, os.O_RDWR | os.O_CREAT, _OWN)
            try:
                if sys.platform == "win32":
                    msvcrt.locking(gate, msvcrt.LK_LOCK, 1)
                else:
                    fcntl.flock(gate, fcntl.LOCK_EX)
                yield
            finally:
                os.close(gate)  # and gives the lock back


# ---- files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _door() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AuditError(f"The audit log's file can't be used: {error.strerror or type(error).__name__}.") from None


def _content_line(record: AuditRecord, content: bytes) -> str:
    # JSON stays readable; what is encrypted has no other form than bytes.
    text = content.decode() if content[:1] == b"{" else json.dumps(base64.b64encode(content).decode())
    return f'{{"id":{json.dumps(record.id)},"time":"{record.time.isoformat()}","content":{text}}}'


def _bytes(content: Any) -> bytes:
    return base64.b64decode(content) if isinstance(content, str) else json.dumps(content).encode()


def _append(path: Path, lines: Sequence[str]) -> None:
    if not lines:
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), _OWN)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        # A line that a full disk cut off must not swallow the next one.
        torn = end > 0 and _last_byte(file, end) != b"\n"
        data = memoryview(("\n" * torn + "".join(f"{line}\n" for line in lines)).encode())
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    finally:
        os.close(file)


def _last_byte(file: int, end: int) -> bytes:
    os.lseek(file, end - 1, os.SEEK_SET)
    return os.read(file, 1)


@dataclass(slots=True)
class _Read:
    """The records of a file as far as it was read."""

    file: tuple[int, bytes] = (0, b"")
    """Its number and how it begins: a purge makes another file."""
    end: int = 0
    records: dict[str, AuditRecord] = field(default_factory=dict)

    def further(self, path: Path) -> _Read:
        """With what was written since, or of the file that took its place."""
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return _Read()
        with stream:
            facts = os.fstat(stream.fileno())
            file = facts.st_ino, stream.read(256)
            # A file grows at its end; one that had less than 256 bytes grows there.
            same = self.file[0] == file[0] and file[1].startswith(self.file[1]) and facts.st_size >= self.end
            read = _Read(file, self.end, self.records) if same and self.end else _Read(file)
            stream.seek(read.end)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # cut off, or still being written
                read.end += len(line)
                with contextlib.suppress(ContentError):
                    record = AuditRecord.from_json(line)
                    read.records.setdefault(record.id, record)
        return read


def _whole_lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for text in file:
                if text.endswith("}\n"):
                    yield text


def _lines(path: Path, ids: Set[str] | None = None) -> Iterator[dict[str, Any]]:
    """The lines that can be read, without one that was cut off; of these decisions only, or of all."""
    for text in _whole_lines(path):
        # We write the id first, so that a line with a picture isn't read for nothing.
        named = _ID.match(text)
        if named is not None and ids is not None and named[1] not in ids:
            continue
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"id", "time"} <= line.keys() and (ids is None or line["id"] in ids):
            yield line


def _rewrite(path: Path, kept: Callable[[dict[str, Any]], dict[str, Any] | None]) -> int:
    """Write the file anew with what `kept` gives for each line; how many lines went."""
    if not path.exists():
        return 0
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial")
    lost = changed = 0
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWN), "w", encoding="utf-8") as out:
        for line in _lines(path):
            new = kept(line)
            lost += new is None
            changed += new is not line
            if new is not None:
                out.write(json.dumps(new, ensure_ascii=False, separators=(",", ":")) + "\n")
        out.flush()
        os.fsync(out.fileno())
    if changed:
        shutil.copymode(path, partial)
        os.replace(partial, path)
    else:
        partial.unlink()
    return lost
