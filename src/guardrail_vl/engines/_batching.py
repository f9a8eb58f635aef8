"""Jobs and the thread that batches them: many callers, sync and async, one model.

A caller hands in prompts and gets jobs; a thread takes them in small batches and settles them; the caller leaves with
what there is by its deadline, whatever the thread does. Knows no model: what to do with a batch is given.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from typing import Final

from guardrail_vl.engines._adapters import Adapter
from guardrail_vl.engines.base import Deadline, Outcome, late
from guardrail_vl.errors import EngineError, EngineUnavailableError
from guardrail_vl.prompt_format.base import Prompt

IDLE: Final = 5.0
"""Seconds without work after which the thread ends. The next job starts another."""
_JOIN: Final = 30.0


class Job:
    """One prompt on its way to an outcome."""

    __slots__ = ("_on_text", "_told", "adapter", "deadline", "future", "prompt", "since")

    def __init__(
        self,
        prompt: Prompt,
        deadline: Deadline,
        on_text: Callable[[str], None] | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self._on_text = on_text
        self._told = 0
        self.adapter = adapter
        self.prompt = prompt
        self.deadline = deadline
        self.future: Future[Outcome] = Future()
        self.since = time.monotonic()
        """When it was handed in, in `time.monotonic()` seconds."""

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more: settled, cancelled, or too late."""
        return self.future.done() or time.monotonic() >= self.deadline.at

    @property
    def watched(self) -> bool:
        """Whether anybody wants to be told of the text as it is written."""
        return self._on_text is not None

    def tell(self, text: str) -> None:
        """Tell whoever wants to know what is new in the text so far. A row that is run again is not told again."""
        if self._on_text is not None and len(text) > self._told:
            new, self._told = text[self._told :], len(text)
            self._on_text(new)

    def settle(self, outcome: Outcome) -> None:
        """Give the outcome. Of several, the first counts; after the caller has left, none does."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(outcome)

    def outcome(self) -> Outcome:
        """What the caller takes home now: the outcome, or the error for a deadline that has passed."""
        if self.future.cancel() or self.future.cancelled():
            return late()
        return self.future.result()


def gather(jobs: Sequence[Job], deadline: Deadline) -> list[Outcome]:
    """Wait for the jobs, no longer than the deadline. Jobs that are not settled by then are dropped."""
    try:
        wait([job.future for job in jobs], timeout=deadline.remaining())
        return [job.outcome() for job in jobs]
    finally:
        _drop(jobs)


async def agather(jobs: Sequence[Job], deadline: Deadline) -> list[Outcome]:
    """The same without blocking the event loop. Cancelling it drops the jobs too."""
    try:
        if jobs:
            await asyncio.wait([asyncio.wrap_future(job.future) for job in jobs], timeout=deadline.remaining())
        return [job.outcome() for job in jobs]
    finally:
        _drop(jobs)


def _drop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.future.cancel()


def on_loop(call: Callable[[str], None]) -> Callable[[str], None]:
    """The same function, called on the event loop that runs now, from whatever thread."""
    loop = asyncio.get_running_loop()

    def hand_over(text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it any more
            loop.call_soon_threadsafe(call, text)

    return hand_over


def closed() -> EngineUnavailableError:
    """The error for a job that was under way when its engine was closed."""
    return EngineUnavailableError("The engine was closed before it answered.")


class Worker:
    """A queue of jobs and the one thread that works on it; started by the first job, ended by idleness or `close`.

    A fork leaves the child with an empty queue and no thread; its first job starts its own.

    Args:
        work: Called in the thread while there are jobs; takes some from `queue`, under `changed`, and settles them.
            Is given the event that says that the thread must end.
        name: The thread's name.
    """

    def __init__(self, work: Callable[[threading.Event], None], *, name: str) -> None:
        self._work = work
        self._name = name
        self.reset()
        _workers.add(self)

    def reset(self) -> None:
        """Forget everything. Only for the child of a fork, where no other thread exists."""
        self.queue: list[Job] = []
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def submit(
        self,
        prompts: Sequence[Prompt],
        deadline: Deadline,
        *,
        on_text: Callable[[str], None] | None = None,
        adapter: Adapter | None = None,
    ) -> list[Job]:
        """Queue the prompts. `on_text` is called in the thread with what is new of their texts."""
        jobs = [Job(prompt, deadline, on_text, adapter) for prompt in prompts]
        with self.changed:
            self.queue += jobs
            if self._thread is None and jobs:
                self.stopping = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self.stopping,), name=self._name, daemon=True)
                self._thread.start()
            self.changed.notify_all()
        return jobs

    def close(self) -> None:
        """End the thread; what is queued or under way is settled with `EngineUnavailableError`. Can be used again."""
        with self.changed:
            thread, self._thread = self._thread, None
            self.stopping.set()
            left, self.queue = self.queue, []
            self.changed.notify_all()
        for job in left:
            job.settle(closed())
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN)

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            with self.changed:
                if not self.queue and not self.changed.wait_for(lambda: self.queue or stopping.is_set(), IDLE):
                    if self._thread is threading.current_thread():
                        self._thread = None
                    return
            if not stopping.is_set():
                self._work(stopping)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _after_fork() -> None:
    for worker in list(_workers):
        worker.reset()


@atexit.register
def _at_exit() -> None:
    # A thread inside native code while the interpreter goes away can bring the process down.
    for worker in list(_workers):
        worker.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class MicroBatcher(Worker):
    """Puts jobs that come at about the same time into one batch.

    Args:
        run: Settles a batch of jobs. Stops early once the event is set. What it leaves unsettled becomes an error.
        group: Jobs are put together only if this is equal for their prompts.
        max_batch: Jobs in one batch at most.
        max_wait: Seconds that a job waits for company at most.
        name: The thread's name.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job], threading.Event], None],
        *,
        group: Callable[[Prompt], Hashable],
        max_batch: int,
        max_wait: float,
        name: str,
    ) -> None:
        super().__init__(self._one_batch, name=name)
        self._batch = run
        self._group = group
        self._max_batch = max_batch
        self._max_wait = max_wait

    def _one_batch(self, stopping: threading.Event) -> None:
        jobs = self._take(stopping)
        failure: EngineError = closed()
        try:
            if jobs:
                self._batch(jobs, stopping)
        except Exception as error:
            failure = EngineError(f"The engine failed: {type(error).__name__}.")
        for job in jobs:
            job.settle(failure)

    def _take(self, stopping: threading.Event) -> list[Job]:
        """The oldest job and those that may go with it, once the batch is full or the oldest has waited enough."""
        with self.changed:
            while self.queue and not stopping.is_set():
                self._discard()
                if not self.queue:
                    break
                oldest = self.queue[0]
                group = self._group(oldest.prompt)
                batch = [job for job in self.queue if self._group(job.prompt) == group][: self._max_batch]
                patience = oldest.since + self._max_wait - time.monotonic()
                if len(batch) == self._max_batch or patience <= 0:
                    chosen = set(map(id, batch))
                    self.queue = [job for job in self.queue if id(job) not in chosen]
                    return batch
                self.changed.wait(patience)
            return []

    def _discard(self) -> None:
        for job in self.queue:
            if job.over:
                job.settle(late())
        self.queue = [job for job in self.queue if not job.future.done()]
