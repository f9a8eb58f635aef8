"""A bound on calls under way that threads and event loops share. First come, first served."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from guardrail_vl.engines.base import Deadline, late


class Gate:
    """At most `limit` holders at a time.

    Args:
        limit: At least 1.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._free = self.limit
        self._waiting: deque[Future[None]] = deque()
        self._pid = os.getpid()

    def acquire(self, deadline: Deadline) -> None:
        """Wait for a place.

        Raises:
            EngineUnavailableError: None came free before the deadline.
        """
        place = self._ask()
        try:
            place.result(deadline.remaining())
        except FutureTimeoutError:
            self._give_up(place)
            raise late() from None
        except BaseException:
            self._give_up(place)
            raise

    async def aacquire(self, deadline: Deadline) -> None:
        """The same without blocking the event loop."""
        place = self._ask()
        if place.done():
            return
        try:
            # Shielded: a cancelled wait must not cancel a place that was just given; `_give_up` sorts that out.
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(place)), deadline.remaining())
        except TimeoutError:
            self._give_up(place)
            raise late() from None
        except BaseException:
            self._give_up(place)
            raise

    def release(self) -> None:
        """Give the place to the next who still waits."""
        with self._lock:
            while self._waiting:
                if self._waiting[0].set_running_or_notify_cancel():
                    self._waiting.popleft().set_result(None)
                    return
                self._waiting.popleft()
            self._free = min(self._free + 1, self.limit)

    def _ask(self) -> Future[None]:
        if self._pid != os.getpid():  # the holders stayed in the parent
            self._reset()
        place: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                place.set_result(None)
            else:
                self._waiting.append(place)
        return place

    def _give_up(self, place: Future[None]) -> None:
        if not place.cancel() and not place.cancelled():
            self.release()
