"""A file of lines that only grows: what is appended survives a crash, and a torn end is cut off. Knows no record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")


class Lines:
    """The file, open for writing. Whoever opens it sees to it that nobody else does.

    Args:
        file: Made if it is not there.
        length: Bytes of its whole lines; what follows is cut off.

    Raises:
        OSError: It can't be written.
    """

    def __init__(self, file: Path, length: int) -> None:
        self._length = length
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._cut()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, data: bytes) -> None:
        """Write whole lines for good: when it returns they survive a crash of the machine.

        Raises:
            OSError: They can't be written; what was written before is kept.
        """
        self._cut()
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        self._length += len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _cut(self) -> None:
        """Cut off what an earlier write left unfinished."""
        if os.fstat(self._file).st_size != self._length:
            os.ftruncate(self._file, self._length)


def read_lines(
    file: Path, read: Callable[[bytes], R | None], damaged: Callable[[int], Exception]
) -> Iterator[tuple[R, int]]:
    """What each whole line holds, and the bytes up to its end; a torn end is left out. Nothing of a file not there.

    Args:
        file: The file.
        read: What a line holds. None: it is damaged.
        damaged: Makes the error of a damaged line before the end, of its number from 1.
    """
    if not file.exists():
        return
    position = torn = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            position += len(line)
            found = read(line) if line.endswith(b"\n") else None
            if found is None:
                torn = torn or number
                continue
            if torn:  # what follows it is whole, so no crash has torn it
                raise damaged(torn)
            yield found, position
