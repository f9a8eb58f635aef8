"""Parquet in and out, a batch at a time: the only home of pyarrow in this room. Knows no guard."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from guardrail_vl.bulk._sources import Record, Source, Span, check_columns, row_of_cells
from guardrail_vl.bulk.rows import JUDGED, Row
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingDependencyError("pyarrow", extra="bulk", needed_for="Parquet") from error

_READ: Final = 64
"""Rows held at a time: each may bring pictures."""
_WRITE: Final = 16_384
"""Rows of a group that is written: they hold no content."""


class Parquet(Source):
    """A Parquet file. Rows are read forward; another part of the file is sought by its row groups."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        super().__init__(path, keep)
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, ValueError) as error:
            raise ConfigurationError("The input is no Parquet file that can be read.") from error
        schema = self._file.schema_arrow
        check_columns(schema.names, keep)
        self._columns = [name for name in dict.fromkeys(("id", *JUDGED, *keep)) if name in schema.names]
        self.types: Mapping[str, Any] = {name: schema.field(name).type for name in self._columns}
        for name in keep:
            if not _is_plain(self.types[name]) and not _is_told(self.types[name]):
                raise ConfigurationError(
                    f"The column {name!r} can't be kept: it holds neither text, numbers nor times.",
                )
        about = self._file.metadata
        sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self._ends = list(itertools.accumulate(sizes))
        self._batches: Iterator[Any] = iter(())
        self._rest: Any = None  # of the batch that was read last
        self._at = -1  # the row that comes next; before the first: nothing was read

    def spans(self, *, skip: int, limit: int | None, length: int) -> list[Span]:
        """See `Source.spans`."""
        rows = self._ends[-1] if self._ends else 0
        rows = rows if limit is None else min(rows, limit)
        return [Span(min(length, rows - at), at, at) for at in range(skip, rows, length)]

    def read(self, span: Span) -> Iterator[Record]:
        """See `Source.read`."""
        self._seek(span.position)
        for position in range(span.position, span.position + span.rows):
            yield self._record(position + 1, self._next())

    def _seek(self, position: int) -> None:
        group = next(i for i, end in enumerate(self._ends) if position < end)
        first = self._ends[group - 1] if group else 0
        if self._at < first or self._at > position:
            self._at, self._rest = first, None
            self._batches = self._file.iter_batches(
                _READ, row_groups=range(group, len(self._ends)), columns=self._columns
            )
        while self._at < position:
            left = 0 if self._rest is None else self._rest.num_rows
            if not left:
                self._rest = self._batch()
                continue
            step = min(left, position - self._at)
            self._rest, self._at = self._rest.slice(step), self._at + step

    def _next(self) -> Any:
        while self._rest is None or not self._rest.num_rows:
            self._rest = self._batch()
        one, self._rest = self._rest.slice(0, 1), self._rest.slice(1)
        self._at += 1
        return one

    def _batch(self) -> Any:
        try:
            return next(self._batches)
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise ConfigurationError(f"The input can't be read from row {self._at + 1} on.") from error

    def _record(self, number: int, one: Any) -> Record:
        kept: dict[str, Any] = dict.fromkeys(self.keep)
        try:
            kept = {name: _kept(one.column(name)) for name in self.keep}
            found = {name: one.column(name)[0].as_py() for name in ("id", *JUDGED) if name in self.types}
        except (pa.ArrowException, ValueError, OverflowError):
            return Record(Row(number, error=ContentError(f"Row {number} holds text that is not valid UTF-8.")), kept)
        found["messages"] = _given(found.get("messages"))
        found["images"] = _sources(found.get("images"))
        return Record(row_of_cells(found, number), kept)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_plain(kind: Any) -> bool:
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(number) or _is_text(kind)


def _is_told(kind: Any) -> bool:
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)
    return bool(is_time or pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _kept(column: Any) -> Any:
    """A value that JSON has; times and decimals become text."""
    if _is_told(column.type) and not pa.types.is_null(column.type):
        column = column.cast(pa.string())
    return column[0].as_py()


def _given(value: Any) -> Any:
    """Messages without the fields that a table must have and a message has not: a missing one is null there."""
    if isinstance(value, Mapping):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _sources(images: Any) -> Any:
    """Pictures as paths or bytes; `{"bytes", "path"}` is how datasets of pictures keep them."""
    if isinstance(images, list):
        return [_sources(image) for image in images]
    if isinstance(images, Mapping) and images.keys() <= {"bytes", "path"}:
        inside = images.get("bytes")
        return images.get("path") if inside is None else inside
    return images


# ---- out ----------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: Iterator[Mapping[str, Any]], columns: Mapping[str, str], source: Source) -> None:
    """Write rows to a file. It is on the disk when this returns.

    Args:
        path: The file.
        rows: Each has every column.
        columns: What each holds: `text`, `integer`, `number`, `texts`, or `given`: what the source says.
        source: Where the rows came from.
    """
    kinds = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "texts": pa.list_(pa.string())}
    told = source.types if isinstance(source, Parquet) else {}
    fields = {name: _type_of(told.get(name)) if kind == "given" else kinds[kind] for name, kind in columns.items()}
    schema = pa.schema(list(fields.items()))
    texts = [name for name, kind in fields.items() if pa.types.is_string(kind)]
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            while group := list(itertools.islice(rows, _WRITE)):
                shown = [{**row, **{name: _text(row[name]) for name in texts}} for row in group]
                writer.write_table(pa.Table.from_pylist(shown, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _type_of(told: Any) -> Any:
    return told if told is not None and _is_plain(told) and not _is_text(told) else pa.string()


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no text
