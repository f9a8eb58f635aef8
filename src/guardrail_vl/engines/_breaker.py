"""A circuit breaker: a server that keeps failing is left alone for a while. Knows no HTTP. Safe for threads.

Closed: everybody may call. Open, after enough failures in a row: nobody may, until the cool-down is over. Then half
open: one call probes; its success closes the breaker, its failure opens it again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Literal

from guardrail_vl.errors import EngineUnavailableError


class Breaker:
    """Counts failures in a row.

    Args:
        threshold: Failures in a row that open it.
        cool_down: Seconds that it stays open, give or take a fifth, so that many clients don't come back at once.
        clock: Seconds, never going back.
        jitter: A number between its two arguments.
    """

    def __init__(
        self,
        *,
        threshold: int = 5,
        cool_down: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._threshold = threshold
        self._cool_down = cool_down
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    def state(self) -> Literal["closed", "open", "half-open"]:
        """`half-open`: the next call, or the one under way, is the probe."""
        with self._lock:
            if self._open_until is None:
                return "closed"
            return "half-open" if self._probing or self._clock() >= self._open_until else "open"

    def enter(self) -> Ticket:
        """Ask to call the server. Every ticket must be settled, once.

        Raises:
            EngineUnavailableError: The breaker is open; `retry_after` says for how long.
        """
        with self._lock:
            if self._open_until is None:
                return Ticket(self, probe=False)
            left = self._open_until - self._clock()
            if left > 0 or self._probing:
                wait = max(left, 0.0)
                raise EngineUnavailableError(
                    f"The guard server failed {self._failures} times in a row, so it is not asked again just yet.",
                    hint="It is tried again after a short cool-down.",
                    retry_after=wait,
                )
            self._probing = True
            return Ticket(self, probe=True)

    def _settle(self, ticket: Ticket, result: Literal["success", "failure", "unknown"]) -> None:
        with self._lock:
            if ticket.probe:
                self._probing = False
            if result == "success":
                # A straggler from before it opened says nothing of now.
                if ticket.probe or self._open_until is None:
                    self._failures, self._open_until = 0, None
            elif result == "failure" and (ticket.probe or self._open_until is None):
                self._failures += 1
                if ticket.probe or self._failures >= self._threshold:
                    self._open_until = self._clock() + self._cool_down * self._jitter(0.8, 1.2)


class Ticket:
    """Leave to call the server, and the duty to say how it went. Only the first word counts."""

    __slots__ = ("_breaker", "_settled", "probe")

    def __init__(self, breaker: Breaker, *, probe: bool) -> None:
        self._breaker = breaker
        self._settled = False
        self.probe = probe
        """Whether this is the one call that finds out if the server is back."""

    def success(self) -> None:
        """The server answered."""
        self._settle("success")

    def failure(self) -> None:
        """The server is unavailable."""
        self._settle("failure")

    def unknown(self) -> None:
        """The call ended in a way that says nothing about the server."""
        self._settle("unknown")

    def _settle(self, result: Literal["success", "failure", "unknown"]) -> None:
        if not self._settled:
            self._settled = True
            self._breaker._settle(self, result)
