"""Verdicts remembered by content, policy and model, so that a chat of N turns costs N checks and not N²/2.

Only verdicts are kept, never errors, and never content: keys are hashes. A cache that servers share is in `redis`.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.verdict import Verdict


class VerdictCache(ABC):
    """Where verdicts are remembered. A cache that fails must look empty: slower, never wrong."""

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        """The verdicts under these keys, None where there is none; in order."""

    @abstractmethod
    def put(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        """Remember these."""

    async def aget(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        """`get`, for checks on an event loop. A cache that waits for anything overrides it; this one calls `get`."""
        return self.get(keys)

    async def aput(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        """`put`, for checks on an event loop. A cache that waits for anything overrides it; this one calls `put`."""
        self.put(items)


class MemoryCache(VerdictCache):
    """In this process: least recently used goes first, and nothing outlives its time to live. Thread-safe.

    Args:
        size: Verdicts kept at most (about 1 kB each, more with long reasoning).
        ttl: Seconds that a verdict is kept.
    """

    def __init__(self, size: int = 10_000, ttl: float = 3600.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        if size < 1 or ttl <= 0:
            raise ConfigurationError("A cache needs a size of at least 1 and a ttl above 0 seconds.")
        self.size = size
        self.ttl = ttl
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._items: OrderedDict[bytes, tuple[float, Verdict]] = OrderedDict()
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.size, self.ttl))

    def __len__(self) -> int:
        return len(self._items)

    def get(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        """See `VerdictCache.get`."""
        self._after_fork()
        now = self._clock()
        found: list[Verdict | None] = []
        with self._lock:
            for key in keys:
                item = self._items.get(key)
                if item is None or item[0] <= now:
                    self._items.pop(key, None)
                    found.append(None)
                else:
                    self._items.move_to_end(key)
                    found.append(item[1])
        return found

    def put(self, items: Sequence[tuple[bytes, Verdict]], *, ttl: float | None = None) -> None:
        """See `VerdictCache.put`.

        Args:
            items: Keys and their verdicts.
            ttl: Seconds that these are kept at most. None: as long as any other.
        """
        self._after_fork()
        until = self._clock() + (self.ttl if ttl is None else min(ttl, self.ttl))
        with self._lock:
            for key, verdict in items:
                self._items[key] = (until, verdict)
                self._items.move_to_end(key)
            while len(self._items) > self.size:
                self._items.popitem(last=False)

    def _after_fork(self) -> None:
        # Another thread may have held the lock when this process was forked.
        if self._pid != os.getpid():
            self._reset()
