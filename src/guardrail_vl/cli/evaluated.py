"""What the evaluation commands show: progress while a run goes on, tables of scores when it is done."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from guardrail_vl.cli.show import PipedConsole, printable
from guardrail_vl.verdict import Stage

if TYPE_CHECKING:
    from guardrail_vl.evaluation.metrics import Scores
    from guardrail_vl.evaluation.parity import Parity
    from guardrail_vl.evaluation.records import Record
    from guardrail_vl.evaluation.running import Progress as Told
    from guardrail_vl.evaluation.running import Run

_EVERY: Final = 30.0
"""Seconds between two lines of progress where there is no terminal."""

Tick = Callable[["Told"], None]


@contextmanager
def shown_progress(name: str) -> Iterator[Tick]:
    """Progress on stderr: a bar on a terminal, else a line for each set and now and then."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=PipedConsole(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(printable(name), total=None)
        yield lambda told: bar.update(task, description=printable(told.set), completed=told.done, total=told.total)


def _lines() -> Tick:
    begun = time.monotonic()
    last: Told | None = None
    at = begun

    def tick(told: Told) -> None:
        nonlocal last, at
        now = time.monotonic()
        first = last is None and told.kept
        if first:
            typer.echo(f"{told.kept} of {told.total} samples were judged before", err=True)
        elif (last is not None and told.set != last.set) or now - at >= _EVERY or told.done == told.total:
            at = now
            typer.echo(f"{told.done} of {told.total} samples in {now - begun:.0f} s ({printable(told.set)})", err=True)
        last = told

    return tick


Rows = list[tuple[str, str, "dict[str, Scores]"]]
"""Set, task, and the scores of each run by its name."""


def scored(runs: Sequence[Run]) -> Rows:
    """The numbers of the small table, without intervals."""
    from guardrail_vl.evaluation import metrics

    table: dict[tuple[str, str], dict[str, Scores]] = {}
    for name, run in zip(_names(runs), runs, strict=True):
        parts: dict[tuple[str, str], list[Record]] = {(one, stage): [] for one in run.sets for stage in Stage}
        for record in run.records:
            parts[record.set, record.stage].append(record)
        for key, part in parts.items():
            if part:
                table.setdefault(key, {})[name] = metrics.scores(part, resamples=0)
    return [(name, task, scores) for (name, task), scores in table.items()]


def _names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, with a number where two are alike."""
    names = [run.folder.resolve().name for run in runs]
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names, 1)]


def show_scores(rows: Rows) -> None:
    """The small table; with one run its name is not shown."""
    several = any(len(runs) > 1 for _, _, runs in rows)
    heads = [
        "set",
        "task",
        *(["run"] if several else []),
        "n",
        "F1",
        "precision",
        "recall",
        "FPR",
        "parse failures",
        "p50",
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for head in heads:
        words = head in ("set", "task", "run")
        table.add_column(head, header_style="dim", overflow="fold", justify="left" if words else "right")
    for name, task, runs in rows:
        for run, scores in runs.items():
            cells = [name, task, *([run] if several else []), *_cells(scores)]
            table.add_row(*(Text(printable(cell)) for cell in cells))
    console().print(table)


def _cells(scores: Scores) -> tuple[str, ...]:
    from guardrail_vl.evaluation import _text as words

    rates = (scores.f1, scores.precision, scores.recall, scores.fpr, scores.missing.parse_failure_rate)
    return (str(scores.n), *(words.percent(rate) for rate in rates), words.seconds(scores.latency.p50))


def score_values(rows: Rows) -> list[dict[str, Any]]:
    """The same as JSON values; rates in [0, 1], seconds."""
    return [
        {"set": name, "task": task, "run": run, **json.loads(scores.to_json())}
        for name, task, runs in rows
        for run, scores in runs.items()
    ]


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table of words."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for head in heads:
        table.add_column(head, header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def show_parity(parity: Parity) -> None:
    """What a comparison of two guards found."""
    say(f"{parity.first}\n{parity.second}")
    rows = [
        ("samples", str(parity.cases)),
        ("labels agree", f"{parity.label_agreement:.2%}"),
        ("actions agree", f"{parity.action_agreement:.2%}"),
        ("without a verdict", f"{parity.failures[0]} and {parity.failures[1]}"),
        ("scores compared", str(parity.scored)),
    ]
    for name, value in (("mean", parity.drift_mean), ("p95", parity.drift_p95), ("largest", parity.drift_max)):
        if value is not None:
            rows.append((f"drift, {name}", f"{value:.3g}"))
    show_table(("", ""), rows)
    for problem in parity.problems:
        say(f"Outside the tolerance: {problem}.")
    if parity.problems and parity.worst:
        say("The worst: " + ", ".join(f"{one.set}:{one.id}" if one.set else one.id for one in parity.worst[:5]))
    if parity.passed:
        say("All is within the tolerance.")


def say(line: str) -> None:
    """A line of words, as it is."""
    console().print(Text(printable(line)), soft_wrap=True)


def console() -> PipedConsole:
    """For tables: piped, they are as wide as they need to be."""
    return PipedConsole(highlight=False, width=None if sys.stdout.isatty() else 400)
