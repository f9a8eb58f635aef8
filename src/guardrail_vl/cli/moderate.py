"""`guardrail-vl moderate`: every row of a file judged, into a file of decisions. Shows how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from guardrail_vl.bulk import Progress, RayPool, Summary
from guardrail_vl.bulk import moderate as judge_file
from guardrail_vl.cli.door import BLOCKED, FAILED, PASSED, door
from guardrail_vl.cli.options import (
    AdapterOption,
    DataParallelOption,
    DeadlineOption,
    FailOption,
    FetchOption,
    FormatOption,
    GuardOptions,
    ModelOption,
    PolicyOption,
    SpeedOption,
    TensorParallelOption,
    UrlOption,
    make_guard,
)
from guardrail_vl.cli.show import PipedConsole
from guardrail_vl.errors import ConfigurationError

_EVERY: Final = 10.0
"""Seconds between two lines of progress where there is no terminal."""
_RUN = "How it runs"
_RAY = "On Ray"


class Engine(StrEnum):
    """Where rows are judged."""

    LOCAL = "local"
    RAY = "ray"


@door
def moderate(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help=".jsonl, .csv or .parquet", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=".jsonl, .csv or .parquet", show_default=False)
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="COLUMN", help="Carry a column of the input over. May be repeated."),
    ] = None,
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Add the model's reasoning. It may quote the content.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="ROWS", help="The first rows only.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what a stopped run left, instead of going on.")
    ] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows judged at a time.", rich_help_panel=_RUN)] = 32,
    progress: Annotated[bool, typer.Option("--progress/--no-progress", rich_help_panel=_RUN)] = True,
    engine: Annotated[Engine, typer.Option("--engine", help="Here, or on Ray.", rich_help_panel=_RUN)] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="ADDRESS", help="A running cluster. Default: start one here.", rich_help_panel=_RAY
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Guards at work. Default: 2.", rich_help_panel=_RAY)
    ] = None,
    cpus_per_worker: Annotated[
        float | None,
        typer.Option("--cpus-per-worker", help="May be a fraction. Default: 0.5.", rich_help_panel=_RAY),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option("--gpus-per-worker", help="May be a fraction.", rich_help_panel=_RAY)
    ] = None,
    model: ModelOption = None,
    url: UrlOption = None,
    policy: PolicyOption = None,
    format: FormatOption = None,
    speed: SpeedOption = None,
    fail: FailOption = None,
    deadline: DeadlineOption = None,
    fetch_images: FetchOption = False,
    tensor_parallel: TensorParallelOption = None,
    data_parallel: DataParallelOption = None,
    adapter: AdapterOption = None,
) -> int:
    """Judge every row of a file, and write a file of decisions in the same order.

    A row has "prompt", "response" and "images", or "messages"; and "id". The output never holds the content, unless
    --keep or --reasoning asks for it. After Ctrl-C or a crash the same command goes on where it was.

    Exit status: 0 all rows passed, 1 some are blocked, 2 some have no verdict, 130 after Ctrl-C.
    """
    settings = {
        "address": address, "workers": workers, "cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker,
    }  # fmt: skip
    given = {name: value for name, value in settings.items() if value is not None}
    if given and engine is not Engine.RAY:
        raise ConfigurationError(f"--{next(iter(given)).replace('_', '-')} needs --engine ray.")
    pool = RayPool(**given) if engine is Engine.RAY else None  # type: ignore[arg-type]
    options = GuardOptions(
        model=model, url=url, policy=policy, format=format, speed=speed, fail=fail, deadline=deadline,
        fetch_images=fetch_images, tensor_parallel=tensor_parallel, data_parallel=data_parallel,
        adapters=tuple(adapter or ()),
    )  # fmt: skip
    with make_guard(options) as guard:
        try:
            with _shown(progress) as tick:
                summary = judge_file(
                    guard,
                    source,
                    output,
                    keep=keep or (),
                    reasoning=reasoning,
                    batch=batch,
                    limit=limit,
                    overwrite=overwrite,
                    restart=restart,
                    pool=pool,
                    progress=tick,
                )
        except KeyboardInterrupt:
            typer.echo("What was judged is kept: the same command goes on from there.", err=True)
            raise
    typer.echo(_told(summary), err=True)
    return FAILED if summary.error else BLOCKED if summary.block else PASSED


def _told(summary: Summary) -> str:
    parts = ", ".join(f"{getattr(summary, word)} {word}" for word in ("allow", "annotate", "block", "error"))
    fresh = summary.rows - summary.kept
    before = f", {summary.kept} of them before" if summary.kept else ""
    rate = f" ({fresh / summary.seconds:.1f} rows/s)" if fresh and summary.seconds else ""
    return f"{summary.rows} row{'' if summary.rows == 1 else 's'}{before}: {parts} in {summary.seconds:.1f} s{rate}"


@contextmanager
def _shown(wanted: bool) -> Iterator[Callable[[Progress], object] | None]:
    """Progress on stderr: a bar on a terminal, else a line now and then."""
    if not wanted:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        TimeRemainingColumn(), console=PipedConsole(stderr=True), transient=True,
    )  # fmt: skip
    begun = time.monotonic()
    with bar:
        task: TaskID | None = None

        def tick(told: Progress) -> None:
            nonlocal task
            if task is None:  # what was judged before is no part of the rate
                task = bar.add_task("", total=told.total, completed=told.done)
            rate = (told.done - told.kept) / max(1e-9, time.monotonic() - begun)
            bar.update(task, description=f"{rate:.1f} rows/s", completed=told.done)

        yield tick


def _lines() -> Callable[[Progress], object]:
    begun = at = time.monotonic()

    def tick(told: Progress) -> None:
        nonlocal at
        now = time.monotonic()
        if told.done == told.kept:
            if told.kept:
                typer.echo(f"{told.kept} of {told.total} rows were judged before", err=True)
        elif now - at >= _EVERY:
            at = now
            rate = (told.done - told.kept) / (now - begun)
            left = _clock((told.total - told.done) / rate)
            typer.echo(f"{told.done} of {told.total} rows, {rate:.1f} rows/s, {left} left", err=True)

    return tick


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
