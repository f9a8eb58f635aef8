"""The same rows in every format, the guards that judge them, and what came out."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail_vl import Guard
from guardrail_vl.errors import EngineUnavailableError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword

PASSING = ("decision", "latency")
"""What differs from run to run."""


def keywords(prompt: Prompt) -> str | Completion | GuardrailError:
    """Harmful with "bomb" in it; down with "crash"."""
    if "crash" in prompt.messages[-1].text:
        return EngineUnavailableError("It is down.")
    return by_keyword("bomb")(prompt)


def make_guard(**settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(keywords), **settings)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows into a file; in CSV lists are JSON."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        pq.write_table(table, path, row_group_size=max(1, len(rows) // 3))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, with the types that JSON lines have."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(encoding="utf-8", newline="") as file:
        return [_typed(row) for row in csv.DictReader(file)]


def _typed(row: dict[str, str]) -> dict[str, Any]:
    def value(name: str, cell: str) -> Any:
        if cell == "":
            return None
        is_json = name in ("row", "categories", "latency") or name.endswith("_score")
        return json.loads(cell) if is_json else cell

    return {name: value(name, cell) for name, cell in row.items()}


def lasting(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in PASSING} for row in rows]
