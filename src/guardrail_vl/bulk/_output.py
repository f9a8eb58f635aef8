"""Rows out: what is told of a decision, and the files it goes to. Never the content. Knows no engine and no journal."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guardrail_vl.bulk._sources import Record, Source
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.verdict import Decision, Stage

COLUMNS: Final[Mapping[str, str]] = {
    "row": "integer",
    "id": "given",
    "action": "text",
    "stage": "text",
    "prompt_label": "text",
    "response_label": "text",
    "prompt_score": "number",
    "response_score": "number",
    "categories": "texts",
    "reason": "text",
    "error": "text",
    "model": "text",
    "policy": "text",
    "decision": "text",
    "latency": "number",
}
"""The columns of every output, in order, and what each holds; see `_parquet.write_parquet`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns an output has."""

    keep: tuple[str, ...] = ()
    """Columns of the input that go to the output."""
    reasoning: bool = False
    """Whether the model's reasoning does too. It may quote the content."""

    def __post_init__(self) -> None:
        if len(set(self.keep)) != len(self.keep):
            raise ConfigurationError("A column is to be kept twice.")
        if taken := [name for name in self.keep if name in COLUMNS or name == "reasoning"]:
            raise ConfigurationError(
                f"The column {taken[0]!r} can't be kept: the output has one of that name.",
                hint="Join the output to the input by `row`, or by `id`.",
            )

    @property
    def columns(self) -> dict[str, str]:
        """The columns, in order, and what each holds."""
        more = {"reasoning": "text"} if self.reasoning else {}
        return {**COLUMNS, **more, **dict.fromkeys(self.keep, "given")}

    def values(self, record: Record, decision: Decision) -> dict[str, Any]:
        """The row of the output: JSON values, in the order of the columns."""
        verdict, error = decision.verdict, decision.error
        values: dict[str, Any] = {
            "row": record.row.number,
            "id": record.row.id,
            "action": decision.action.value,
            "stage": decision.stage.value,
            "prompt_label": verdict and verdict.prompt and verdict.prompt.value,
            "response_label": verdict and verdict.response and verdict.response.value,
            "prompt_score": verdict and verdict.score_of(Stage.PROMPT),
            "response_score": verdict and verdict.score_of(Stage.RESPONSE),
            "categories": list(verdict.categories) if verdict else [],
            "reason": decision.reason,
            "error": None if error is None else f"{type(error).__name__}: {error.message}",
            "model": verdict and verdict.model,
            "policy": decision.policy,
            "decision": decision.id,
            "latency": verdict and verdict.latency,
        }
        if self.reasoning:
            values["reasoning"] = decision.reasoning
        return {**values, **record.kept}


def word(values: Mapping[str, Any]) -> str:
    """What a row counts as. An error is counted as one, whatever the fail mode makes of it."""
    return "error" if values["error"] is not None else str(values["action"])


def as_line(values: Mapping[str, Any]) -> bytes:
    """The row as a line of JSON."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that JSON has not
        text = json.dumps({name: _finite(value) for name, value in values.items()}, ensure_ascii=False)
    # Half a surrogate pair is no UTF-8; its escape is the same text in JSON.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def convert(journal: Path, path: Path, shape: Shape, source: Source, form: str) -> None:
    """Write the rows of a file of JSON lines to one of another format; on the disk when this returns.

    Args:
        journal: The JSON lines.
        path: The file.
        shape: Its columns.
        source: Where the rows came from.
        form: `.csv` or `.parquet`.
    """
    with journal.open("rb") as lines:
        rows: Iterator[dict[str, Any]] = map(json.loads, lines)
        if form == ".parquet":
            from guardrail_vl.bulk._parquet import write_parquet  # the only format that needs a package

            write_parquet(path, rows, shape.columns, source)
        else:
            _write_csv(path, rows, list(shape.columns))


def _write_csv(path: Path, rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        # By itself it leaves a lone CR unquoted, which readers take for the end of a row.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            cells = [_cell(row[name]) for name in columns]
            (quoting if any("\r" in cell for cell in cells) else writer).writerow(cells)
        file.flush()
        os.fsync(file.fileno())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
