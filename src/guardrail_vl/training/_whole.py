"""Files and folders that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from guardrail_vl.errors import ConfigurationError


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
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
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


@contextlib.contextmanager
def written(name: str) -> Iterator[None]:
    """Tell why something can't be written: a full disk first of all.

    Raises:
        ConfigurationError: An OSError happened within.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{name} can't be written: {error.strerror or type(error).__name__}.",
            hint="What was finished before is kept: the same command goes on from there.",
        ) from error


def _to_disk(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
