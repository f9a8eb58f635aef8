"""A report as Markdown and as JSON, and how numbers are written in all its forms. No content of samples in either."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from guardrail_vl.evaluation._view import Comparison, Task, View
from guardrail_vl.evaluation._visible import clean
from guardrail_vl.evaluation.comparison import FIGURES
from guardrail_vl.evaluation.metrics import Interval, Scores

LAYOUT: Final = 1
"""Of the JSON; another number is another way to write it."""


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a number of percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return "–"
    told = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if told[1:] == "0.0" else told


def seconds(value: float | None) -> str:
    """A time, in milliseconds below a tenth of a second."""
    if value is None or value == 0:
        return "–"
    return f"{1000 * value:.3g} ms" if value < 0.1 else f"{value:.3g} s"


# ---- JSON ---------------------------------------------------------------------------------------------------------


def as_json(seen: View) -> str:
    """Every figure, rates in [0, 1]."""
    told = {
        "layout": LAYOUT,
        "title": seen.title,
        "runs": [
            {
                "name": name,
                "cohort": asdict(run.cohort),
                "sets": {one: asdict(info) for one, info in run.sets.items()},
                "started": run.started,
                "judged": len(run.records),
                "missing": run.missing,
            }
            for name, run in zip(seen.names, seen.runs, strict=True)
        ],
        "tasks": {str(task.stage): _task(task) for task in seen.tasks},
        "comparisons": [_comparison(one) for one in seen.comparisons],
    }
    return json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _task(task: Task) -> dict[str, Any]:
    told = {"sets": task.sets, "modalities": task.modalities, "categories": task.categories}
    return {
        name: [
            {"name": block.name, "run": row.run, "strict": asdict(row.strict)}
            | ({"official": asdict(row.official)} if row.official else {})
            for block in blocks
            for row in block.rows
        ]
        for name, blocks in told.items()
    } | {"averages": [asdict(one) for one in task.averages]}


def _comparison(one: Comparison) -> dict[str, Any]:
    rows = [
        asdict(row)
        | {"figures": {name: asdict(row.figures[name]) | {"value": row.figures[name].value} for name in FIGURES}}
        for row in one.rows
    ]
    return {"run": one.run, "less": 0, "alone": list(one.alone), "rows": rows}


# ---- Markdown -----------------------------------------------------------------------------------------------------


def markdown(seen: View) -> str:
    """The tables, without slices and plots."""
    lines = [f"# {_safe(seen.title)}", "", *_conditions(seen)]
    for task in seen.tasks:
        lines += ["", f"## Harm of the {task.stage}", "", *_sets(seen, task), "", *_averages(seen, task)]
    for one in seen.comparisons:
        lines += ["", f"## {_safe(seen.names[one.run])} less {_safe(seen.names[0])}", "", *_differences(one)]
    return "\n".join(lines) + "\n"


def _conditions(seen: View) -> list[str]:
    rows = [
        [_safe(row.name) + (" ≠" if row.differs else ""), *(_safe(value) or "–" for value in row.values)]
        for row in (*seen.conditions, *seen.data)
    ]
    return _table(["", *map(_safe, seen.names)], rows)


def _sets(seen: View, task: Task) -> list[str]:
    head = ["set", "guard", "n", "harmful", "F1", "precision", "recall", "FPR", "AUPRC", "no label", "official F1",
            "p50", "p95"]  # fmt: skip
    rows = []
    for block in task.sets:
        for row in block.rows:
            one = row.strict
            official = "–" if row.official is None else percent(row.official.f1)
            rows.append(
                [_safe(block.name), _safe(seen.names[row.run]), f"{one.n:,}", f"{one.harmful:,}", *_rates(one),
                 percent(one.auprc), percent(one.missing.rate), official, seconds(one.latency.p50),
                 seconds(one.latency.p95)]
            )  # fmt: skip
    return ["In percent, with 95 % intervals.", "", *_table(head, rows, left=2)]


def _rates(one: Scores) -> list[str]:
    pairs = (
        (one.f1, one.f1_interval),
        (one.precision, one.precision_interval) if one.harmful and one.unharmful else (None, None),
        (one.recall, one.recall_interval),
        (one.fpr, one.fpr_interval),
    )
    return [percent(value) + _between(interval) for value, interval in pairs]


def _between(interval: Interval | None) -> str:
    return f" ({percent(interval.low)}–{percent(interval.high)})" if interval else ""


def _averages(seen: View, task: Task) -> list[str]:
    papers = list(dict.fromkeys(name for one in task.averages for name in one.paper))
    head = ["averages", "sets", "F1 by samples", "F1 plain", "recall by samples", "FPR by samples",
            *(f"the paper's {name}" for name in papers)]  # fmt: skip
    rows = [
        [_safe(seen.names[one.run]), str(one.sets), percent(one.weighted["f1"]), percent(one.macro["f1"]),
         percent(one.weighted["recall"]), percent(one.weighted["fpr"]),
         *(percent(one.paper.get(name), 2) for name in papers)]
        for one in task.averages
    ]  # fmt: skip
    return _table(head, rows)


def _differences(one: Comparison) -> list[str]:
    head = ["set", "n", "F1", "precision", "recall", "FPR", "same label", "now right", "now wrong"]
    rows = []
    for row in one.rows:
        figures = []
        for name in FIGURES:
            told = row.figures[name]
            between = "" if told.low is None or told.value is None else f" ({points(told.low)} to {points(told.high)})"
            figures.append(f"**{points(told.value)}**{between}" if told.clear else f"{points(told.value)}{between}")
        rows.append(
            [_safe(row.name) or f"all {row.stage}s", f"{row.samples:,}", *figures, f"{percent(row.agreement)} %",
             f"{row.fixed:,}", f"{row.broken:,}"]
        )  # fmt: skip
    return ["In percentage points, with 95 % intervals of a paired bootstrap.", "", *_table(head, rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * left + "---:|" * (len(head) - left)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _safe(text: str) -> str:
    """A name as plain text in a table's cell."""
    return re.sub(r"([\\`*_\[\]<>&|#!~])", r"\\\1", " ".join(clean(text).split()))
