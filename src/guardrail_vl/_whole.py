"""Files and folders that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from guardrail_vl.errors import ConfigurationError

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS})
"""What a disk says that is full, or takes nothing."""


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only when the block ends well; else it goes.

    What a killed process left half-filled is hidden (`.name.partial`), is never taken for whole, and goes next time.

    Args:
        path: The name it takes. Must not be there, or be empty.

    Raises:
        ConfigurationError: There is something already, or the disk is full or can't be written.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise ConfigurationError(f"The folder {path.name!r} is there and not empty.", hint="Name another one.")
    partial = path.with_name(f".{path.name}.partial")
    with written(path.name):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
        with written(path.name):
            for file in sorted(partial.rglob("*")):
                if file.is_file():
                    _to_disk(file)
            if path.exists():
                path.rmdir()
            os.replace(partial, path)
            _to_disk(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (why := _no_room(error)) is not None:
            raise _unwritten(path.name, why) from error
        raise


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        ConfigurationError: It can't be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with written(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        _to_disk(partial)
        os.replace(partial, path)
        _to_disk(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder. Under another name, so that what is half removed is never taken for whole."""
    if folder.exists():
        going = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(going, ignore_errors=True)
        os.replace(folder, going)
        shutil.rmtree(going, ignore_errors=True)


@contextlib.contextmanager
def written(name: str) -> Iterator[None]:
    """Tell why something can't be written: a full disk first of all.

    Raises:
        ConfigurationError: An OSError happened within.
    """
    try:
        yield
    except OSError as error:
        raise _unwritten(name, error.strerror or type(error).__name__) from error


def _unwritten(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} can't be written: {why}.",
        hint="What was finished before is kept: the same command goes on from there.",
    )


def _no_room(error: BaseException) -> str | None:
    """Why the disk took no more, if that is what happened."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _NO_ROOM else None
    # By its name: this module is imported without safetensors too.
    said = str(error).partition("I/O error: ")[2] if type(error).__name__ == "SafetensorError" else ""
    return said.partition(" (os error")[0] or None


def _to_disk(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
