"""A lock on a folder that one process holds. The system takes it back when the process ends, however it ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

from guardrail_vl.errors import ConfigurationError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE: Final = "run.lock"
_FAR: Final = 1 << 30  # on Windows the locked byte can't be read, so it lies behind the process id
_TRIES, _PAUSE = 3, 0.01
"""`is_held` of another process has the lock for less than a moment."""


class FolderLock:
    """Held from `acquire` to `release`, or to the death of the process: nothing stale is ever left.

    The file stays, empty: taking it away would let two processes lock two files of one name.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._file: int | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            ConfigurationError: Another process holds it, or this one does already; says which.
            OSError: The file system has no locks, or the file can't be written.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A folder that was removed meanwhile took the lock with it: what we have locked is nobody's.
            taken = _taken(file) and _is_there(self._path, file)
            holder = "" if taken else os.read(file, 20).decode("ascii", "replace").strip()
            if taken:
                os.ftruncate(file, 0)
                os.write(file, str(os.getpid()).encode())
        except BaseException:
            os.close(file)
            raise
        if not taken:
            os.close(file)
            raise ConfigurationError(
                f"Process {holder or '(unknown)'} is writing to this run's folder.",
                hint="Wait until it is done, or use another folder.",
            )
        self._file = file

    def release(self) -> None:
        """Give it back. Nothing happens where it isn't held."""
        file, self._file = self._file, None
        if file is not None:
            os.ftruncate(file, 0)
            os.close(file)


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder. Writes nothing; true also where that can't be found out."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _try_lock(file, shared=True)
    except OSError:
        return True
    finally:
        os.close(file)  # and gives it back


def _is_there(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _taken(file: int) -> bool:
    for _ in range(_TRIES):
        if _try_lock(file):
            return True
        time.sleep(_PAUSE)
    return False


def _try_lock(file: int, *, shared: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(file, _FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    finally:
        os.lseek(file, 0, os.SEEK_SET)
    return True
