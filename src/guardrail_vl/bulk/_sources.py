"""Rows of a file, one by one, from anywhere in it: JSON lines and CSV; Parquet is in `_parquet`. Knows no guard.

A source is picklable: another process reads the same rows of the same file.
"""

from __future__ import annotations

import csv
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from guardrail_vl.bulk.rows import BOM, JUDGED, MAX_ROW, RawLine, Row, raw_lines, read_json, row_of_table
from guardrail_vl.errors import ConfigurationError, ContentError

FORMATS: Final = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of a file that follow each other."""

    rows: int
    number: int
    """Of the row before the first."""
    position: int
    """Bytes before the first; rows, in Parquet."""


@dataclass(frozen=True, slots=True)
class Record:
    """A row, and what of it goes to the output unchanged."""

    row: Row
    kept: Mapping[str, Any] = field(repr=False)


class Source(ABC):
    """A file of rows.

    Args:
        path: The file.
        keep: Columns that go to the output.
    """

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.path = path
        self.keep = tuple(keep)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.path, self.keep))

    @abstractmethod
    def spans(self, *, skip: int, limit: int | None, length: int) -> list[Span]:
        """The rows, cut into spans.

        Args:
            skip: Rows at the beginning that are in none.
            limit: The rows of the file that count, those skipped included. None: all.
            length: Rows of each span but the last.
        """

    @abstractmethod
    def read(self, span: Span) -> Iterator[Record]:
        """The rows of a span."""


def open_source(path: Path, keep: Sequence[str]) -> Source:
    """The source for a file, by its name.

    Raises:
        ConfigurationError: There is no such file, it is in no format that is read, or holds nothing to judge.
        MissingDependencyError: It is Parquet, and there is no pyarrow.
    """
    if path.suffix not in FORMATS:
        raise _unknown("The input")
    if not path.is_file():
        raise ConfigurationError("The input is no file that is there.")
    if path.suffix == ".parquet":
        from guardrail_vl.bulk._parquet import Parquet  # the only format that needs a package

        return Parquet(path, keep)
    return Csv(path, keep) if path.suffix == ".csv" else JsonLines(path, keep)


def check_format(path: Path) -> None:
    """See that there is a format for an output.

    Raises:
        ConfigurationError: There is none.
    """
    if path.suffix not in FORMATS:
        raise _unknown("The output")


def _unknown(what: str) -> ConfigurationError:
    return ConfigurationError(f"{what} is in no format that is known.", hint=f"Names end in {', '.join(FORMATS)}.")


def check_columns(names: Sequence[str], keep: Sequence[str]) -> None:
    """See that a table can be judged.

    Raises:
        ConfigurationError: It has none of the columns that are judged, not one that is kept, or one of them twice.
    """
    wanted = {"id", *JUDGED, *keep}
    if any(names.count(name) > 1 for name in wanted):
        raise ConfigurationError("A column of the input is there twice.")
    if not set(names) & set(JUDGED):
        raise ConfigurationError("The input has nothing to judge.", hint=f"Name a column {', '.join(JUDGED)}.")
    if missing := [name for name in keep if name not in names]:
        raise ConfigurationError(f"The input has no column {missing[0]!r}, which is to be kept.")


def cut(ends: Iterable[tuple[int, int]], start: int, *, skip: int, limit: int | None, length: int) -> list[Span]:
    """Spans of rows that are known by where they end.

    Args:
        ends: Number and last position of each row.
        start: The position before the first.
        skip: See `Source.spans`.
        limit: The same.
        length: The same.
    """
    spans: list[Span] = []
    begun, rows = (0, start), 0
    for count, end in enumerate(ends, 1):
        if limit is not None and count > limit:
            break
        if count <= skip:
            begun = end
            continue
        rows += 1
        if rows == length:
            spans.append(Span(rows, *begun))
            begun, rows = end, 0
    return [*spans, Span(rows, *begun)] if rows else spans


class JsonLines(Source):
    """A JSON value on each line; blank lines are no rows."""

    def spans(self, *, skip: int, limit: int | None, length: int) -> list[Span]:
        """See `Source.spans`."""
        with self.path.open("rb") as stream:
            ends = ((line.number, line.end) for line in raw_lines(stream))
            return cut(ends, 0, skip=skip, limit=limit, length=length)

    def read(self, span: Span) -> Iterator[Record]:
        """See `Source.read`."""
        with self.path.open("rb") as stream:
            stream.seek(span.position)
            lines = raw_lines(stream, span.number, span.position)
            for _, line in zip(range(span.rows), lines, strict=False):
                yield self._record(line)

    def _record(self, line: RawLine) -> Record:
        nothing = dict.fromkeys(self.keep)
        try:
            value = line.value()
        except ContentError as error:
            return Record(Row(line.number, error=error), nothing)
        kept = {name: value.get(name) for name in self.keep} if isinstance(value, dict) else nothing
        return Record(row_of_table(value, line.number), kept)


class Csv(Source):
    """RFC 4180 in UTF-8, with a header. An empty field is the same as none; rows are counted, not lines."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        super().__init__(path, keep)
        with path.open("rb") as stream:
            lines = _Lines(stream, 0)
            header = next(_cells(lines), None)
            self._start = lines.position
        if not header or not all(map(_is_text, header)):
            raise ConfigurationError("The input has no header that can be read: CSV begins with the columns' names.")
        self._header: list[str] = header
        check_columns(header, keep)

    def spans(self, *, skip: int, limit: int | None, length: int) -> list[Span]:
        """See `Source.spans`."""
        with self.path.open("rb") as stream:
            stream.seek(self._start)
            lines = _Lines(stream, self._start)
            ends = ((number, lines.position) for number, _ in enumerate(_cells(lines), 1))
            return cut(ends, self._start, skip=skip, limit=limit, length=length)

    def read(self, span: Span) -> Iterator[Record]:
        """See `Source.read`."""
        position = max(span.position, self._start)
        with self.path.open("rb") as stream:
            stream.seek(position)
            rows = enumerate(_cells(_Lines(stream, position)), span.number + 1)
            for _, (number, cells) in zip(range(span.rows), rows, strict=False):
                yield self._record(number, cells)

    def _record(self, number: int, cells: list[str] | None) -> Record:
        nothing = dict.fromkeys(self.keep)
        if cells is None or len(cells) != len(self._header):
            why = "is not valid CSV" if cells is None else f"has {len(cells)} fields, the header {len(self._header)}"
            return Record(Row(number, error=ContentError(f"Row {number} {why}.")), nothing)
        if not all(map(_is_text, cells)):
            return Record(Row(number, error=ContentError(f"Row {number} is not valid UTF-8.")), nothing)
        found = {name: cell or None for name, cell in zip(self._header, cells, strict=True)}
        kept = {name: found[name] for name in self.keep}
        value: dict[str, Any] = {name: found.get(name) for name in ("id", *JUDGED)}
        return Record(row_of_cells(value, number), kept)


def row_of_cells(value: dict[str, Any], number: int) -> Row:
    """The row of a table whose cells may hold JSON: `messages`, and lists of `images`."""
    try:
        if isinstance(said := value.get("messages"), str):
            value["messages"] = read_json(said.encode("utf-8", "surrogatepass"), f"The field messages of row {number}")
        if isinstance(said := value.get("images"), str) and said.lstrip().startswith("["):
            value["images"] = read_json(said.encode("utf-8", "surrogatepass"), f"The field images of row {number}")
    except ContentError as error:
        plain = row_of_table({"id": value.get("id"), "prompt": ""}, number)
        return Row(number, id=plain.id, error=error)
    return row_of_table(value, number)


class _Lines:
    """Decoded lines of a stream, and how far they were read. What is no UTF-8 stays recognisable."""

    def __init__(self, stream: BinaryIO, position: int) -> None:
        self._stream = stream
        self.position = position

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline(MAX_ROW + 1):
            raw = line if self.position else line.removeprefix(BOM)
            self.position += len(line)
            yield raw.decode("utf-8", "surrogateescape")


def _cells(lines: _Lines) -> Iterator[list[str] | None]:
    """The fields of each row; None: it is no CSV. Blank lines are no rows."""
    rows = csv.reader(lines, strict=True)
    cells: list[str] | None
    while True:
        # The process has one limit, below what a data: URL takes: others' is put back after each row.
        theirs = csv.field_size_limit(min(MAX_ROW, sys.maxsize))
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error:  # names no content, nor do we
            cells = None
        finally:
            csv.field_size_limit(theirs)
        if cells != []:
            yield cells


def _is_text(cell: str) -> bool:
    return cell.isascii() or not any("\ud800" <= c <= "\udfff" for c in cell)
