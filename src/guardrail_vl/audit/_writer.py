"""One thread that writes, and a bounded queue before it: a check waits for no disk and no database.

What can't be kept is counted and logged, without content. Knows nothing of decisions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from guardrail_vl.audit._store import Store
from guardrail_vl.audit.archive import earlier
from guardrail_vl.audit.records import AuditRecord
from guardrail_vl.errors import AuditError

_LOG: Final = logging.getLogger("guardrail_vl.audit")
_BATCH: Final = 256
"""Records that are written together."""
_BATCH_BYTES: Final = 32 * 1024 * 1024
_DAY: Final = 86_400.0
_PATIENCE: Final = 60.0
"""Seconds that a batch is tried again while the store is down; what comes meanwhile waits in the queue."""
_PAUSES: Final = (0.05, 2.0)
"""Seconds between two tries: the first pause, and the longest."""
_QUIET: Final = 10.0
"""Seconds between two warnings of the same kind."""
QUEUE_BYTES: Final = 256 * 1024 * 1024
"""Content that waits, at most: when a database hangs, pictures must not fill the memory."""

Sealing = Callable[[], bytes]
"""Makes the bytes to keep of a content. Called on the writing thread."""


@dataclass(slots=True)
class Item:
    """Something to write; or, without a record, a mark that what came before was written."""

    record: AuditRecord | None
    seal: Sealing | None = None
    """None: no content is kept."""
    size: int = 0
    """About how many bytes the content takes."""
    done: Future[None] | None = None
    """Told when it was written, or why not. None: nobody waits."""
    stop: bool = field(default=False, kw_only=True)


class Writer:
    """Threads are started when there is something to write, again after `close` and in a forked child too.

    Args:
        store: Where to.
        size: Records that may wait.
        retention: What is older is deleted at start and once a day. None: nothing is.
        patient: Whether to try again for a while when the store is down; else once, since somebody waits.
    """

    def __init__(self, store: Store, *, size: int, retention: timedelta | None, patient: bool = True) -> None:
        self._store = store
        self._size = size
        self._patience = _PATIENCE if patient else 0.0
        self._retention = retention
        self._reset()

    def _reset(self) -> None:
        self._queue: queue.Queue[Item] = queue.Queue(self._size)
        self._lifecycle = threading.Lock()
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._given_up = False
        self._waiting = 0
        self._warned: dict[str, float] = {}
        self._pid = os.getpid()
        self.dropped = 0

    # ---- for those who write --------------------------------------------------------------------------------------

    def put(self, item: Item) -> bool:
        """Queue it; false: there is no room. Never waits."""
        self._after_fork()
        with self._counting:
            # A single content may be larger than all that may wait.
            fits = not self._waiting or self._waiting + item.size <= QUEUE_BYTES
            if fits:
                try:
                    self._queue.put_nowait(item)
                except queue.Full:
                    fits = False
                else:
                    self._waiting += item.size
        if not fits:
            self._lose(1, "its queue is full")
        self.start()
        return fits

    def start(self) -> None:
        """Start the thread, if it doesn't run."""
        self._after_fork()
        if self._thread is None:
            with self._lifecycle:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="guardrail-vl-audit", daemon=True)
                    self._thread.start()

    def flush(self, timeout: float | None) -> None:
        """Wait until everything that came before was written, or was lost.

        Raises:
            AuditError: It takes longer.
        """
        self._after_fork()
        if self._thread is None:
            return
        mark = Item(None, done=Future())
        try:
            self._queue.put(mark, timeout=timeout)
            assert mark.done is not None
            mark.done.result(timeout)
        except (queue.Full, TimeoutError):
            raise AuditError("The audit log was not written in time.") from None

    def close(self) -> None:
        """Write what waits, end the thread, free the store. A store that is down is not waited for."""
        self._after_fork()
        with self._lifecycle:
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                self._ending.set()
                self._queue.put(Item(None, stop=True))
                thread.join()
                self._thread = None
                # What came in between; from now on, whoever writes starts a thread.
                self._write(self._taken(block=False))
                self._ending.clear()
                self._given_up = False
        self._store.close()

    def _after_fork(self) -> None:
        # The thread stayed with the parent, and so did what waits: it is written there.
        if self._pid != os.getpid():
            self._reset()

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            if self._retention is not None and time.monotonic() >= due:
                self._purge(self._retention)
                due = time.monotonic() + _DAY
            try:
                items = self._taken(timeout=None if self._retention is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            try:
                self._write(items)
            except Exception as error:  # a bug of ours must not end the thread: nothing would be written any more
                self._settle(items, _Failure(error))
            if any(item.stop for item in items):
                return

    def _taken(self, *, block: bool = True, timeout: float | None = None) -> list[Item]:
        """What waits, up to a batch; at least one if it may block."""
        items = [self._queue.get(timeout=timeout)] if block else []
        size = sum(item.size for item in items)
        with contextlib.suppress(queue.Empty):
            # Nothing after the last mark: it belongs to the next thread.
            while (len(items) < _BATCH and size < _BATCH_BYTES and not (items and items[-1].stop)) or not block:
                items.append(self._queue.get_nowait())
                size += items[-1].size
        return items

    def _write(self, items: Sequence[Item]) -> None:
        rows = [(item, row) for item in items if (row := self._row(item)) is not None]
        error = self._add([row for _, row in rows])
        if error is not None and len(rows) > 1 and not error.down:
            # One of them may be to blame alone.
            for item, row in rows:
                self._settle([item], self._add([row]))
        else:
            self._settle([item for item, _ in rows], error)
        with self._counting:
            self._waiting -= sum(item.size for item in items)
        for item in items:
            if item.done is not None and not item.done.done():
                item.done.set_result(None)

    def _row(self, item: Item) -> tuple[AuditRecord, bytes | None] | None:
        if item.record is None:
            return None
        try:
            return item.record, None if item.seal is None else item.seal()
        except Exception as error:
            self._lose(1, f"content could not be made ready: {type(error).__name__}")
            if item.done is not None:
                item.done.set_exception(AuditError("The content could not be made ready for the audit log."))
            return item.record, None

    def _add(self, rows: list[tuple[AuditRecord, bytes | None]]) -> _Failure | None:
        if not rows:
            return None
        if self._given_up:
            return _Failure(AuditError("The audit log's store is down."))
        until, pause = time.monotonic() + self._patience, _PAUSES[0]
        while True:
            try:
                self._store.add(rows)
            except Exception as error:
                failure = _Failure(error)
            else:
                return None
            ending = self._ending.is_set()
            if not failure.down or ending or time.monotonic() >= until:
                self._given_up = failure.down and ending
                return failure
            self._warn("The audit log can't be written for now (%s); it is tried again", failure.why)
            self._ending.wait(pause)
            pause = min(2 * pause, _PAUSES[1])

    def _settle(self, items: Sequence[Item], failure: _Failure | None) -> None:
        if failure is not None and items:
            self._lose(len(items), failure.why)
        for item in items:
            if item.done is not None and failure is not None and not item.done.done():
                item.done.set_exception(AuditError("The audit log could not be written."))

    def _purge(self, retention: timedelta) -> None:
        try:
            self._store.purge(earlier(retention), content_only=False)
        except Exception as error:
            _LOG.warning("The audit log could not be purged: %s", _Failure(error).why)

    def _lose(self, number: int, why: str) -> None:
        with self._counting:
            self.dropped += number
        self._warn("The audit log lost records or contents (%s); %d so far", why, self.dropped)

    def _warn(self, message: str, *words: object) -> None:
        """Log it, unless the same was logged just now."""
        now = time.monotonic()
        with self._counting:
            silent = now - self._warned.get(message, -_QUIET) < _QUIET
            if not silent:
                self._warned[message] = now
        if not silent:
            _LOG.warning(message, *words)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception

    @property
    def why(self) -> str:
        """Without content: a foreign error's message may hold some."""
        return self.error.message if isinstance(self.error, AuditError) else type(self.error).__name__

    @property
    def down(self) -> bool:
        """Whether the store can't be used at all, so that trying one by one would only take longer."""
        return isinstance(self.error, AuditError) and self.error.retryable
