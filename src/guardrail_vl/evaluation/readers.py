"""From files to `CaseSet`s: the registry's benchmarks, and tables of a user's own. Judges nothing.

Messages name files, rows, fields and pictures, and never repeat what a row says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._benchmark import Benchmark, Kind
from guardrail_vl.evaluation._layouts import READERS
from guardrail_vl.evaluation._rows import Row, picture, read_rows
from guardrail_vl.evaluation._samples import LABELS, Sample, assemble, label_of, request_group
from guardrail_vl.evaluation.benchmarks import locate
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.verdict import Label, Stage

__all__ = ["COLUMNS", "LABELS", "once", "read", "read_own", "read_table", "request_group"]

COLUMNS: Final = ("prompt", "response", "images", "label", "id", "category", "group")
"""What `read_own` reads, by these names."""


def read(benchmark: Benchmark, path: Path, *, layout: Kind | None = None, unlabelled: bool = False) -> CaseSet:
    """The samples of a benchmark.

    Args:
        benchmark: Of the registry.
        path: Its file, or a folder that it lies in. Pictures are looked for beside the file.
        layout: How the file is laid out. None: by its name.
        unlabelled: Whether samples without a label of this task are kept, with no gold. The paper's release counts
            them as unharmful.

    Raises:
        ConfigurationError: No such file, a layout that this benchmark doesn't come in, or rows that don't follow it.
    """
    file = _file_in(benchmark, path) if path.is_dir() else path
    kind = layout or _layout_of(benchmark, file)
    kinds = [known.kind for known in benchmark.layouts]
    if kind not in kinds:
        raise ConfigurationError(
            f"The benchmark {benchmark.name!r} doesn't come in the layout {kind!r}.", hint=f"It has {', '.join(kinds)}."
        )
    samples = READERS[kind](benchmark, file)
    return assemble(benchmark.name, benchmark.stage, samples, licence=benchmark.licence, unlabelled=unlabelled)


def _file_in(benchmark: Benchmark, folder: Path) -> Path:
    found = locate(benchmark, folder)
    if found is None:
        raise ConfigurationError(f"The benchmark {benchmark.name!r} isn't in the folder.", hint=_names(benchmark))
    return found


def _layout_of(benchmark: Benchmark, file: Path) -> Kind:
    for layout in benchmark.layouts:
        if layout.rank(file) is not None:
            return layout.kind
    raise ConfigurationError(
        f"{file.name} is no name that a file of {benchmark.name!r} goes by.",
        hint=f"{_names(benchmark)} Or say which layout it has.",
    )


def _names(benchmark: Benchmark) -> str:
    return f"Its files are called {', '.join(name for known in benchmark.layouts for name in known.files)}."


def once(cases: CaseSet) -> CaseSet:
    """The set without samples that repeat another: same stage, request, response, pictures and label.

    The same request with two labels stays, under both: which is right isn't known.
    """
    first = {case.digest: case for case in reversed(cases.cases)}
    return CaseSet(cases.name, tuple(case for case in cases.cases if first[case.digest] is case))


def read_table(
    path: Path,
    *,
    prompt: str | None = None,
    response: str | None = None,
    images: str | None = None,
    label: str | None = "label",
    stage: Stage | None = None,
    name: str | None = None,
    id: str | None = None,
    category: str | None = None,
    group: str | None = None,
    labels: Mapping[str, Label] = LABELS,
    licence: str = "",
    unlabelled: bool = False,
) -> CaseSet:
    """A table of one's own: JSON lines, a JSON array, CSV or (with pyarrow) Parquet.

    Args:
        path: The file; `.gz` and `.xz` are read too.
        prompt: Column with the request.
        response: Column with the response. It is judged, unless the stage says otherwise.
        images: Column with the pictures: a path, a list of paths, or (in CSV) such a list as JSON. The paths are
            relative to the file's folder and within it. Parquet may hold the bytes.
        label: Column with the label. None: there is none, which needs `unlabelled`.
        stage: What is judged. None: the response if there is a column of it, else the prompt.
        name: Of the set. None: the file's, up to its first dot.
        id: Column with the samples' ids. None: they are numbered from 0.
        category: Column with the category.
        group: Column that tells which samples belong together. None: those whose requests have the same words.
        labels: What the words in the column of labels mean, in lower case.
        licence: Of all samples.
        unlabelled: Whether samples whose label is empty are kept, with no gold.

    Raises:
        ConfigurationError: A column that isn't there, an unknown label, two equal ids, a missing picture, no rows, or
            a column that would not be judged.
    """
    columns = _Columns(prompt, response, images, label, id, category, group)
    return _table(path, read_rows(path), columns, stage, name, labels, licence, unlabelled)


def read_own(path: Path, *, name: str | None = None) -> tuple[CaseSet, tuple[str, ...]]:
    """A table whose columns are called as in `COLUMNS`. A row may lack what it has no value for.

    Args:
        path: As in `read_table`.
        name: Of the set. None: the file's, up to its first dot.

    Returns:
        The samples, and the names of the columns that were not read.

    Raises:
        ConfigurationError: See `read_table`; or there is no column `label`.
    """
    rows = read_rows(path)
    there = list(dict.fromkeys(column for row in rows for column in row.values))
    if "label" not in there:
        raise ConfigurationError(f"{path.name} has no column 'label'.", hint=f"Columns are {', '.join(COLUMNS)}.")
    empty = dict.fromkeys(there)
    filled = [Row(row.file, row.number, {**empty, **row.values}) for row in rows]
    columns = _Columns(**{column: column if column in there else None for column in COLUMNS})
    cases = _table(path, filled, columns, None, name, LABELS, "", False)
    return cases, tuple(column for column in there if column not in COLUMNS)


def _table(
    path: Path,
    rows: Iterable[Row],
    columns: _Columns,
    stage: Stage | None,
    name: str | None,
    labels: Mapping[str, Label],
    licence: str,
    unlabelled: bool,
) -> CaseSet:
    task = stage or (Stage.PROMPT if columns.response is None else Stage.RESPONSE)
    if columns.prompt is None and columns.response is None and columns.images is None:
        raise ConfigurationError("No column is named that could be judged.", hint="Name prompt, response or images.")
    if (task is Stage.RESPONSE) != (columns.response is not None):
        verb = "name" if columns.response is None else "leave out"
        raise ConfigurationError(f"To judge the {task}, {verb} the response.")
    if columns.label is None and not unlabelled:
        raise ConfigurationError("No column of labels is named.", hint="Name it, or keep unlabelled samples.")
    samples = _samples(rows, columns, labels, path.parent)
    return assemble(name or path.name.partition(".")[0], task, samples, licence=licence, unlabelled=unlabelled)


@dataclass(frozen=True, slots=True)
class _Columns:
    prompt: str | None
    response: str | None
    images: str | None
    label: str | None
    id: str | None
    category: str | None
    group: str | None


def _samples(rows: Iterable[Row], columns: _Columns, words: Mapping[str, Label], folder: Path) -> Iterator[Sample]:
    for place, row in enumerate(rows):
        yield Sample(
            row=row,
            id=f"{place:05}" if columns.id is None else _word(row, columns.id) or _no_id(row),
            gold=None if columns.label is None else label_of(row, row.get(columns.label), columns.label, words),
            prompt=None if columns.prompt is None else _text(row, columns.prompt),
            response=None if columns.response is None else row.maybe(columns.response),
            images=() if columns.images is None else _pictures(row, columns.images, folder),
            category="" if columns.category is None else _word(row, columns.category),
            group=None if columns.group is None else _word(row, columns.group),
        )


def _text(row: Row, column: str) -> str | None:
    return None if row.get(column) is None else row.text(column)


def _no_id(row: Row) -> str:
    raise row.wrong("it has no id.")


def _word(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise row.wrong(f"the field {column!r} is neither text nor a number.")
    return str(value)


def _pictures(row: Row, column: str, folder: Path) -> tuple[Path | bytes, ...]:
    value: Any = row.get(column)
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise row.wrong(f"the field {column!r} is no list in JSON.") from None
    named = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(_picture(row, item, folder) for item in named)


def _picture(row: Row, item: object, folder: Path) -> Path | bytes:
    data = item.get("bytes") if isinstance(item, Mapping) else item
    return data if isinstance(data, bytes) else picture(row, data, folder)
