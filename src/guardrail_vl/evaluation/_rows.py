"""Files in: JSON, JSON lines, CSV and Parquet become rows. Knows no layout; no message repeats what a row holds."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from guardrail_vl.errors import ConfigurationError

_SUFFIXES: Final = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_OPENERS: Final[Mapping[str, Callable[..., Any]]] = {".gz": gzip.open, ".xz": lzma.open}
_BROKEN: Final = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,23}")
"""What may be repeated in a message: too short and plain to be somebody's text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    file: str
    """The file's name."""
    number: int
    """From 1. In JSON lines: of the line; a CSV's header doesn't count."""
    values: Mapping[str, Any] = field(repr=False)

    def wrong(self, what: str, *, hint: str = "") -> ConfigurationError:
        """The error that says what is wrong with this row."""
        return ConfigurationError(f"{self.file}, row {self.number}: {what}", hint=hint)

    def get(self, name: str) -> Any:
        """A field's value; None if it is empty.

        Raises:
            ConfigurationError: There is no such field.
        """
        if name not in self.values:
            raise self.wrong(f"there is no field {name!r}.", hint="The file has another layout than expected.")
        value = self.values[name]
        return None if value is None or value == "" or value != value else value  # a float that isn't itself: NaN

    def text(self, name: str) -> str:
        """A field that has to be text, not empty.

        Raises:
            ConfigurationError: It isn't.
        """
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(f"the field {name!r} is {'empty' if value is None else 'not text'}.")
        return value

    def maybe(self, name: str) -> str | None:
        """A field that is text, perhaps an empty one, or None.

        Raises:
            ConfigurationError: It is something else, or there is no such field.
        """
        return None if self.get(name) is None and self.values[name] != "" else self.answer(name)

    def answer(self, name: str) -> str:
        """A field that has to be text; an answer may be empty.

        Raises:
            ConfigurationError: It isn't text.
        """
        return "" if self.get(name) is None and self.values[name] == "" else self.text(name)

    def flag(self, name: str) -> bool:
        """A field that says yes or no: true, false, 1 or 0, as JSON or in words.

        Raises:
            ConfigurationError: It says neither.
        """
        value = self.get(name)
        word = str(int(value)) if isinstance(value, bool | float) and value in (0, 1) else str(value).strip().lower()
        if word not in ("1", "0", "true", "false"):
            raise self.wrong(f"the field {name!r} is neither true nor false{shown(value)}.")
        return word in ("1", "true")


def shown(value: object) -> str:
    """` ('value')` where it looks like an identifier; else nothing, as it may be somebody's text."""
    return f" ({value!r})" if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, by the end of its name: .jsonl, .json (an array), .csv, also .gz or .xz; .parquet.

    Raises:
        ConfigurationError: It can't be read, isn't UTF-8, isn't what its name says, or holds no rows.
    """
    suffix = _suffix(path)
    with _reading(path):
        if suffix == ".parquet":
            found = list(enumerate(_parquet(path), 1))
        elif suffix == ".csv":
            found = list(enumerate(_csv(path), 1))
        elif suffix == ".json":
            found = list(enumerate(_array(path), 1))
        else:
            found = list(_lines(path))
    rows = []
    for number, values in found:
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"{path.name}, row {number}: it is no object with named fields.")
        rows.append(Row(path.name, number, values))
    if not rows:
        raise ConfigurationError(f"{path.name} holds no rows.")
    return rows


def read_document(path: Path) -> Any:
    """A JSON document that isn't a list of rows.

    Raises:
        ConfigurationError: It can't be read, or isn't JSON in UTF-8.
    """
    with _reading(path), _open(path) as file:
        return _json(file.read(), path.name)


def picture(row: Row, name: object, folder: Path) -> Path:
    """The picture that a row names; whether it is there is seen later, for all rows together.

    Raises:
        ConfigurationError: No relative path within the folder.
    """
    if not isinstance(name, str) or not name:
        raise row.wrong("a picture is not named by a path.")
    if name.startswith(("http:", "https:", "data:")):
        raise row.wrong("a picture is a URL.", hint="Save it in a file beside the table.")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or Path(name).is_absolute():
        raise row.wrong("a picture lies outside the folder.", hint="Name it by a path relative to the folder.")
    return folder / relative


def _suffix(path: Path) -> str:
    stem = path.with_suffix("") if path.suffix in _OPENERS else path
    if stem.suffix not in _SUFFIXES:
        raise ConfigurationError(
            f"{path.name} is in no format that can be read.",
            hint="Formats are JSON lines (.jsonl), JSON (.json), CSV (.csv), each also .gz or .xz, and Parquet.",
        )
    return stem.suffix


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What can go wrong with a file as such, told without what is in it."""
    try:
        yield
    except _BROKEN:
        raise ConfigurationError(f"{path.name} is damaged: it can't be decompressed.") from None
    except OSError as error:
        raise ConfigurationError(f"{path.name} can't be read: {error.strerror or type(error).__name__}.") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path.name} is not UTF-8: {error.reason}.", hint="Save it again as UTF-8.") from None


def _open(path: Path, *, newline: str | None = None) -> IO[str]:
    opener: Callable[..., IO[str]] = _OPENERS.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json(line, f"{path.name}, row {number}")


def _array(path: Path) -> list[Any]:
    document = read_document(path)
    if not isinstance(document, list):
        raise ConfigurationError(f"{path.name} is not a JSON array of rows.")
    return document


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        why = error.msg.removesuffix(" at")
        raise ConfigurationError(f"{what}: not valid JSON: {why} at character {error.pos}.") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{what}: JSON that can't be read safely.") from None


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with _open(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        number = 0
        try:
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) != len(header):
                raise ConfigurationError(f"{path.name}: two columns have the same name.")
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(header):
                    raise ConfigurationError(
                        f"{path.name}, row {number}: {len(cells)} fields, and the header has {len(header)}."
                    )
                yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise ConfigurationError(f"{path.name}, row {number + 1}: not valid CSV: {error}.") from None


def _parquet(path: Path) -> list[Any]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigurationError(
            f"{path.name} is Parquet, and the package 'pyarrow' is not installed.",
            hint="Run: pip install pyarrow, or save the file as JSON lines.",
        ) from None
    try:
        rows: list[Any] = parquet.ParquetFile(path).read().to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        if isinstance(error, FileNotFoundError):
            raise
        raise ConfigurationError(f"{path.name} is no Parquet file that can be read.") from None
    return rows
