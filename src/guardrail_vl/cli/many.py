"""Many rows through one guard: order kept, memory bounded by the batch, one bad row stops nothing."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import typer

from guardrail_vl.bulk.rows import Row, read_rows
from guardrail_vl.cli.door import BLOCKED, FAILED, PASSED
from guardrail_vl.cli.show import as_value, error_value, print_line
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.guard import Guard
from guardrail_vl.verdict import Decision

Outcome = Decision | ContentError


def check_rows(guard: Guard, stream: BinaryIO, *, batch: int, progress: bool | None) -> int:
    """Judge every row of a stream; print a line of JSON for each, and a summary on stderr.

    Args:
        guard: Judges.
        stream: JSON lines, UTF-8.
        batch: Rows judged at a time.
        progress: Whether to show progress on stderr. None: if a person sees it, and the rows go elsewhere.

    Returns:
        The exit status: 2 if any row has no verdict, else 1 if any is blocked, else 0.

    Raises:
        ConfigurationError: There were no rows.
    """
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    if progress is None:
        progress = sys.stderr.isatty() and not sys.stdout.isatty()
    bar: AbstractContextManager[_Tick] = _Bar(stream) if progress else nullcontext(lambda counts: None)
    with bar as tick:
        for row, outcome in _judge(guard, read_rows(stream), batch):
            counts[_word(outcome)] += 1
            print_line(_line(row, outcome))
            tick(counts)
    if not counts:
        raise ConfigurationError("Standard input held no rows: nothing was judged.")
    typer.echo(f"{_summary(counts)} in {time.monotonic() - begun:.1f} s", err=True)
    return FAILED if counts["error"] else BLOCKED if counts["block"] else PASSED


class _Tick(Protocol):
    def __call__(self, counts: Counter[str], /) -> None: ...


def _judge(guard: Guard, rows: Iterator[Row], batch: int) -> Iterator[tuple[Row, Outcome]]:
    while chunk := list(islice(rows, batch)):
        decisions = guard.check_many((row.content for row in chunk if row.error is None), batch=batch)
        for row in chunk:
            yield row, row.error or next(decisions)
        sys.stdout.flush()


def _word(outcome: Outcome) -> str:
    # An error is counted as one, whatever the fail mode makes of it.
    return "error" if isinstance(outcome, ContentError) or outcome.failed else outcome.action.value


def _line(row: Row, outcome: Outcome) -> dict[str, Any]:
    # `error` is where a program looks for what went wrong, be it the row or its judging.
    if isinstance(outcome, ContentError):
        return {"row": row.number, "id": row.id, "decision": None, "error": error_value(outcome)}
    decision = as_value(outcome)
    return {"row": row.number, "id": row.id, "decision": decision, "error": decision["error"]}


def _summary(counts: Counter[str]) -> str:
    total = counts.total()
    parts = ", ".join(f"{counts[word]} {word}" for word in ("allow", "annotate", "block", "error"))
    return f"{total} row{'' if total == 1 else 's'}: {parts}"


class _Bar:
    """A progress bar on stderr: by bytes where the input is a file, else a count."""

    def __init__(self, stream: BinaryIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._stream = stream
        self._size = _file_size(stream)
        columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
        if self._size is not None:
            columns += [BarColumn(), TaskProgressColumn()]
        # Rows go to stdout while the bar is up: it must leave both streams alone.
        self._progress = Progress(
            *columns,
            console=Console(stderr=True, force_terminal=True),
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=self._size)

    def __enter__(self) -> _Tick:
        self._progress.start()
        return self._tick

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def _tick(self, counts: Counter[str]) -> None:
        done = None if self._size is None else self._stream.tell()
        self._progress.update(self._task, description=_summary(counts), completed=done)


def _file_size(stream: BinaryIO) -> int | None:
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None
