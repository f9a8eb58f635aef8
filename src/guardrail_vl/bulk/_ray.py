"""Spans of rows judged by a pool of actors on Ray Data: the only home of Ray. Knows no journal.

What travels is where rows are and what was said of them, never the content: each actor reads the input itself, so it
must lie at the same path on every node.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from guardrail_vl.bulk._judging import Job, Judged
from guardrail_vl.bulk._sources import Span
from guardrail_vl.errors import ConfigurationError, EngineError, GuardrailError, MissingDependencyError
from guardrail_vl.guard import Guard

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts: it would report home

try:
    import ray.cloudpickle
    import ray.data
except ImportError as error:
    raise MissingDependencyError("ray", extra="ray", needed_for="Judging on Ray") from error

if TYPE_CHECKING:
    from guardrail_vl.bulk.moderating import RayPool

_CLUSTER: Final[Any] = ray  # half of it has no types
_STORE: Final = 256 * 2**20
"""Bytes of the object store of a cluster that we start: little goes through it."""


def judge_on_ray(guard: Guard, job: Job, spans: Sequence[Span], pool: RayPool) -> Iterator[Judged]:
    """Judge spans; what is said of them comes in their order.

    Args:
        guard: Each actor makes one like it, once.
        job: What is done with each span.
        spans: The rows.
        pool: The actors.

    Raises:
        ConfigurationError: The cluster has not so many CPUs; the guard can't be sent to it.
        EngineError: An actor died.
        GuardrailError: What the guard raised in an actor.
    """
    if not spans:
        return
    try:
        sent = _CLUSTER.cloudpickle.dumps((guard, Job(job.source, job.shape, job.batch)))
    except Exception as error:
        raise ConfigurationError(f"The guard can't be sent to a worker: {type(error).__name__}.") from error
    guard.close()  # it judges nothing here, and may hold the device that a worker needs
    ours = not ray.is_initialized()
    if ours:
        _start(pool)
    try:
        yield from _in_order(_results(sent, spans, pool), len(spans))
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray stopped with {type(error).__name__}.", hint="See the logs of the cluster.") from error
    finally:
        if ours:
            ray.shutdown()


def _start(pool: RayPool) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if pool.address is not None:
        try:
            ray.init(address=pool.address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigurationError("There is no Ray cluster at this address.") from error
        return
    # What goes wrong comes back as an error, or ends up in the logs of the session.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(include_dashboard=False, object_store_memory=_STORE, **quiet)
    there = _CLUSTER.cluster_resources()
    for what, each in (("CPU", pool.cpus_per_worker), ("GPU", pool.gpus_per_worker)):
        if each * pool.workers > there.get(what, 0):  # Ray would wait for more, for ever
            ray.shutdown()
            raise ConfigurationError(
                f"{pool.workers} workers need {each * pool.workers:g} {what}s, and here are {there.get(what, 0):g}.",
                hint=f"Use fewer workers, or a smaller fraction of a {what} for each.",
            )


def _results(sent: bytes, spans: Sequence[Span], pool: RayPool) -> Iterator[dict[str, Any]]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # so that little waits for a slow span before it
    items = [{"at": at, **asdict(span)} for at, span in enumerate(spans)]
    judged = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=(sent, str(Path.cwd())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus_per_worker,
        num_gpus=pool.gpus_per_worker or None,
    )
    return iter(judged.iter_rows())


def _in_order(results: Iterator[dict[str, Any]], count: int) -> Iterator[Judged]:
    waiting: dict[int, Judged] = {}
    following = 0
    for result in results:
        if result["error"]:
            raise pickle.loads(result["error"])  # noqa: S301 - from a worker of our own
        waiting[int(result["at"])] = Judged(bytes(result["lines"]), Counter(json.loads(result["counts"])))
        while following in waiting:
            yield waiting.pop(following)
            following += 1
    if following != count:
        raise EngineError("Ray did not give back every row.", hint="The same command goes on from here.")


class _Worker:
    """An actor: one guard, made when the first rows come."""

    def __init__(self, sent: bytes, folder: str) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)  # paths in rows are relative to where the command runs
        self._sent = sent
        self._made: tuple[Guard, Job] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Judge one span."""
        span = Span(*(int(batch[name][0]) for name in ("rows", "number", "position")))
        lines, counts, error = [], Counter[str](), b""
        try:
            if self._made is None:
                self._made = _CLUSTER.cloudpickle.loads(self._sent)
            guard, job = self._made
            for judged in job.judge(guard, span):
                lines.append(judged.lines)
                counts.update(judged.counts)
        except GuardrailError as raised:
            # Ray would wrap it in an error of its own, and log it.
            error = pickle.dumps(raised)
        return {
            "at": [int(batch["at"][0])],
            "lines": [b"".join(lines)],
            "counts": [json.dumps(counts)],
            "error": [error],
        }
