"""`moderate`: a file of rows in, a file of decisions out, in the same order; killed at any point, it goes on there.

What goes wrong with a row is in its row of the output; what goes wrong with the run is raised.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guardrail_vl.bulk._journal import Journal, about_file
from guardrail_vl.bulk._judging import Job, Judged
from guardrail_vl.bulk._output import Shape, convert
from guardrail_vl.bulk._sources import Source, Span, check_format, open_source
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard

_LONGEST: Final = 1024
"""Rows that a worker takes at a time, at most."""
_SHARES: Final = 8
"""Spans for each worker, at least, so that none waits long for the last one."""


@dataclass(frozen=True, slots=True)
class RayPool:
    """Workers on a Ray cluster. Each has a guard of its own, and reads the input itself.

    Raises:
        ConfigurationError: A number is not positive.
    """

    address: str | None = None
    """Of a running cluster: `auto`, or such as `10.0.0.1:6379`. None: one is started on this machine."""
    workers: int = 2
    cpus_per_worker: float = 0.5
    """CPUs that Ray sets aside for each worker; a fraction leaves some for Ray's own tasks."""
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= self.gpus_per_worker < math.inf or not 0 < self.cpus_per_worker < math.inf:
            raise ConfigurationError("There must be workers, and each needs more than no CPU.")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    done: int
    """Rows judged, by earlier runs too."""
    kept: int
    """Of these, by earlier runs."""
    total: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished run. Every row is one of allow, annotate, block and error, whatever the policy makes of errors."""

    rows: int
    allow: int
    annotate: int
    block: int
    error: int
    kept: int
    """Rows that were judged by an earlier run, which was stopped."""
    seconds: float


def moderate(
    guard: Guard,
    source: str | Path,
    output: str | Path,
    *,
    keep: Sequence[str] = (),
    reasoning: bool = False,
    batch: int = 32,
    limit: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    pool: RayPool | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Summary:
    """Judge every row of a file.

    A row has some of the fields `prompt`, `response` and `images`, or `messages`; and `id`. Every row gets a row in the
    output, in the same order; one that can't be read, or got no verdict, says why in `error`. While it runs, a folder
    beside the output holds what was judged. After a crash or Ctrl-C the same call goes on from there.

    Args:
        guard: Judges.
        source: `.jsonl`, `.csv` or `.parquet`.
        output: The same formats. Holds no content but the columns of `keep`.
        keep: Columns of the source that go to the output.
        reasoning: Add the model's reasoning, which may quote the content.
        batch: Rows that go to the engine together.
        limit: Judge the first rows only. None: all.
        overwrite: Replace an output that is there.
        restart: Throw away what an earlier run left unfinished.
        pool: Judge on Ray. None: in this process.
        progress: Called after each batch.

    Raises:
        ConfigurationError: A wrong argument; nothing to judge; an output that is there already; what an earlier run
            left is of another input or guard; another process is at it.
        MissingDependencyError: There is no pyarrow, or no Ray.
    """
    source, output = Path(source), Path(output)
    shape = Shape(tuple(keep), reasoning)
    _check(source, output, batch, limit)
    begun = time.monotonic()
    rows = open_source(source, shape.keep)
    run = {
        "the input": about_file(source),
        "the guard": repr(guard),
        "the columns": list(shape.columns),
        "the limit": limit,
    }
    form = output.suffix
    with Journal(output, run, overwrite=overwrite, restart=restart) as journal:
        kept = journal.counts.total()
        if not journal.finished:
            # Closed whatever happens here: it may have started a cluster.
            with contextlib.closing(_judged(guard, Job(rows, shape, batch), kept, limit, pool, progress)) as batches:
                for judged in batches:
                    journal.append(judged.lines, judged.counts)
            if not journal.counts:
                raise ConfigurationError("The input holds no rows: nothing was judged.")
            if about_file(source) != run["the input"]:
                raise ConfigurationError("The input was changed while it was judged.", hint="Begin anew: --restart.")
            journal.finish(
                None if form == ".jsonl" else functools.partial(convert, shape=shape, source=rows, form=form)
            )
        counts = journal.counts
    words = {name: counts[name] for name in ("allow", "annotate", "block", "error")}
    return Summary(counts.total(), **words, kept=kept, seconds=time.monotonic() - begun)


def _check(source: Path, output: Path, batch: int, limit: int | None) -> None:
    if batch < 1 or (limit is not None and limit < 1):
        raise ConfigurationError("batch and limit must be at least 1.")
    check_format(output)
    if output.suffix == ".parquet":
        from guardrail_vl.bulk import _parquet  # noqa: F401 - missing packages are told before anything is judged
    if output.is_dir():
        raise ConfigurationError("The output is a folder.")
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigurationError("The output would replace the input.")


def _judged(
    guard: Guard,
    job: Job,
    kept: int,
    limit: int | None,
    pool: RayPool | None,
    progress: Callable[[Progress], object] | None,
) -> Generator[Judged, None, None]:
    """The rows that are left, in order, and the progress."""
    spans = job.source.spans(skip=kept, limit=limit, length=_LONGEST)
    total = kept + sum(span.rows for span in spans)
    done = kept
    tell = progress or (lambda told: None)
    tell(Progress(done, kept, total))
    if pool is not None:
        spans = _shared(job.source, kept, limit, spans, pool)
    for judged in _here(guard, job, spans) if pool is None else _on_ray(guard, job, spans, pool):
        yield judged
        done += judged.counts.total()
        tell(Progress(done, kept, total))


def _here(guard: Guard, job: Job, spans: Sequence[Span]) -> Iterator[Judged]:
    for span in spans:
        yield from job.judge(guard, span)


def _shared(source: Source, kept: int, limit: int | None, spans: list[Span], pool: RayPool) -> list[Span]:
    """Spans so short that every worker has some."""
    share = math.ceil(sum(span.rows for span in spans) / (pool.workers * _SHARES))
    return spans if share >= _LONGEST else source.spans(skip=kept, limit=limit, length=max(1, share))


def _on_ray(guard: Guard, job: Job, spans: Sequence[Span], pool: RayPool) -> Iterator[Judged]:
    from guardrail_vl.bulk._ray import judge_on_ray  # the only place that needs Ray

    return judge_on_ray(guard, job, spans, pool)
