"""Runs: every sample of some sets through a guard, into a folder, in batches that are kept as they are done.

A run that stops, however it stops, goes on where it was when it is called again. Scores nothing: see `metrics`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final

from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineUnavailableError,
    GuardrailError,
    ParseError,
)
from guardrail_vl.evaluation._conditions import cohort_of
from guardrail_vl.evaluation._folder import Run, RunWriter, SetInfo
from guardrail_vl.evaluation._judging import Job, Judge, Judged
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.evaluation.records import Record
from guardrail_vl.guard import Guard
from guardrail_vl.prompt_format import EmbeddedFormat

MAX_FAILURES: Final = 10
"""Samples in a row without an answer from the engine, after which a run stops."""

BATCH: Final = 32
"""Samples that go to the engine together, unless another number is asked for."""

_GOES_ON: Final = "What was judged is kept: the same command goes on from there."


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    set: str
    """The set whose samples were judged last."""
    done: int
    """Samples with a record."""
    kept: int
    """Those of them that were there when this run began."""
    total: int


def run(
    guard: Guard,
    sets: Sequence[CaseSet],
    folder: str | Path,
    *,
    batch: int | None = None,
    workers: int = 1,
    keep_text: bool = True,
    limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Run:
    """Judge every sample once and write its record.

    Each sample is judged by itself, at its own stage, with the guard's engine, format, speed and policy, without its
    cache and hooks. `Record.label` is the model's own label as the strict parser reads it, `Record.action` what the
    policy made of it. `Record.latency` is what the engine says the sample took: from when it was given the batch to
    this sample's answer. So it holds the neighbours in the batch where an engine computes them together; use `batch=1`
    and `workers=1` for the latency of a sample alone. Where `speed="auto"` or a cascade asked twice, both askings are
    in it and in the tokens, and the text is that of the second.

    Args:
        guard: Judges. Its deadline holds for each sample: a batch has it as many times as it has samples.
        sets: What is judged.
        folder: Where records go. A folder with an unfinished run of the same guard and data is continued.
        batch: Samples that go to the engine together, and are kept together. None: 32; but 1 for the embedded guard,
            which gains nothing from more, so that its latencies are those of a sample alone.
        workers: Batches under way at a time, in threads: for servers.
        keep_text: Keep what the model wrote: needed for official scores and replays. It may quote the samples.
        limit: Samples of each set, spread evenly over it. None: all.
        checkpoint: The folder or hub id of the guard's model, for its revision in the cohort.
        progress: Called in this thread after each batch.

    Returns:
        The run, complete.

    Raises:
        ConfigurationError: A wrong argument; or the folder holds another run (says what differs), is in use, or can't
            be written.
        EngineError: The engine gave no answer `MAX_FAILURES` times in a row, or to some samples.
            `EngineUnavailableError` where it may later. These samples have no record and are tried again.
    """
    if batch is None:
        batch = 1 if isinstance(guard.format, EmbeddedFormat) else BATCH
    if min(batch, workers) < 1 or (limit is not None and limit < 1):
        raise ConfigurationError("batch, workers and limit must be at least 1.")
    chosen = [one if limit is None else spread(one, limit) for one in sets]
    if not chosen or len({one.name for one in chosen}) != len(chosen):
        raise ConfigurationError("A run needs sets, and no two of one name.")
    judge = Judge(guard, keep_text=keep_text)
    cohort = cohort_of(guard, batch=batch, workers=workers, checkpoint=checkpoint)
    with RunWriter(folder, cohort, chosen) as writer:
        _judge_all(judge, chosen, writer, batch, workers, progress or (lambda told: None))
    return Run.load(folder)


def _judge_all(
    judge: Judge,
    sets: Sequence[CaseSet],
    writer: RunWriter,
    batch: int,
    workers: int,
    progress: Callable[[Progress], object],
) -> None:
    jobs = [job for one in sets for job in _jobs(one) if not _is_done(job, writer)]
    total = sum(len(one.cases) for one in sets)
    kept = done = total - len(jobs)
    if kept:
        progress(Progress(sets[0].name, done, kept, total))
    sorting = _Sorting()
    pool = _Pool(judge, _batches(jobs, batch), workers)
    try:
        for judged in pool.results():
            found = sorting.take(judged)
            writer.append(found)
            done += len(found)
            progress(Progress(judged[-1][0].set, done, kept, total))
            sorting.check()
        writer.append(sorting.finish())
    except BaseException:
        # Whatever ends the run, Ctrl-C included: what is done is kept.
        for judged in pool.finished():
            writer.append(sorting.take(judged))
        raise


def spread(one: CaseSet, limit: int) -> CaseSet:
    """A set of at most `limit` of the samples, evenly spread: files are often sorted by label."""
    size = len(one.cases)
    if size <= limit:
        return one
    return replace(one, cases=tuple(one.cases[i * size // limit] for i in range(limit)))


def _jobs(one: CaseSet) -> Iterator[Job]:
    return (Job(one.name, case, case.digest) for case in one.cases)


def _is_done(job: Job, writer: RunWriter) -> bool:
    digest = writer.done.get((job.set, job.case.id))
    if digest is not None and digest != job.digest:
        raise ConfigurationError(f"The record of {job.case.id!r} in {job.set!r} is of other content.")
    return digest is not None


def _batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    for _, group in groupby(jobs, key=lambda job: (job.set, job.case.stage)):
        alike = list(group)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


class _Sorting:
    """Which outcomes are results.

    A verdict is one, and so is an answer that can't be read or content that can't be judged. Where the engine failed,
    the sample is tried again the next time; where it refused the sample, that is its result if it answers others.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._answered = False
        self._refused: list[Record] = []
        self._unanswered = 0
        self._cause: GuardrailError | None = None

    def take(self, judged: Iterable[Judged]) -> list[Record]:
        """The records to keep, now."""
        kept = []
        for record, error in judged:
            if isinstance(error, ContentError):  # says nothing of the engine
                kept.append(record)
            elif error is None or isinstance(error, ParseError):
                kept += [*self._refused, record]
                self._refused = []
                self._in_a_row = 0
                self._answered = True
            else:
                self._in_a_row += 1
                self._cause = error
                if error.retryable:
                    self._unanswered += 1
                else:
                    self._refused.append(record)
        return kept

    def check(self) -> None:
        """Raise if nothing more is to be expected of the engine.

        Raises:
            EngineError: It gave no answer too many times in a row.
        """
        if self._in_a_row >= MAX_FAILURES:
            raise self._stopped(f"The engine gave no answer to {self._in_a_row} samples in a row")

    def finish(self) -> list[Record]:
        """The records that were held back until the end.

        Raises:
            EngineError: Some samples got no answer.
        """
        if self._refused and not self._answered:
            raise self._stopped("The engine gave no answer at all")
        if self._unanswered:
            raise self._stopped(f"The engine gave no answer to {self._unanswered} samples")
        return self._refused

    def _stopped(self, what: str) -> EngineError:
        cause = self._cause
        assert cause is not None
        kind = EngineUnavailableError if cause.retryable else EngineError
        error = kind(f"{what}: {cause.message}", hint=" ".join(part for part in (cause.hint, _GOES_ON) if part))
        error.__cause__ = cause
        return error


class _Pool:
    """Batches through the judge: in this thread, or in several."""

    def __init__(self, judge: Judge, batches: Iterator[list[Job]], workers: int) -> None:
        self._judge = judge
        self._batches = batches
        self._workers = workers
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # What a worker has done, why it failed, or None when it ends.
        self._out: queue.SimpleQueue[list[Judged] | BaseException | None] = queue.SimpleQueue()

    def results(self) -> Iterator[list[Judged]]:
        """Each batch when it is done."""
        if self._workers == 1:
            yield from map(self._judge, self._batches)
            return
        for number in range(self._workers):
            # Daemons: Ctrl-C must not wait for a server that does not answer.
            threading.Thread(target=self._work, name=f"evaluation-{number}", daemon=True).start()
        working = self._workers
        try:
            while working:
                item = self._out.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    working -= 1
                else:
                    yield item
        finally:
            self._stop.set()

    def finished(self) -> Iterator[list[Judged]]:
        """What is done and was not given out yet. Waits for nothing."""
        self._stop.set()
        while True:
            try:
                item = self._out.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, list):
                yield item

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    jobs = next(self._batches, None)
                if jobs is None:
                    break
                self._out.put(self._judge(jobs))
        except BaseException as error:
            self._out.put(error)
        else:
            self._out.put(None)


__all__ = ["BATCH", "MAX_FAILURES", "Progress", "Run", "SetInfo", "run", "spread"]
