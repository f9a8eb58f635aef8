"""The seam for whoever watches checks: when they begin and end, and how they end. Knows no telemetry package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from guardrail_vl.errors import GuardrailError
from guardrail_vl.verdict import Decision, Usage


@dataclass(frozen=True, slots=True)
class Call:
    """What an engine is asked. Holds no content."""

    model: str
    """As the engine names it."""
    format: str
    """Id of the prompt format."""
    speed: str
    """`reason` or `fast`."""
    prompts: int
    """How many it is given together."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call. Holds no content."""

    usage: Usage
    """Of all its prompts together."""
    failed: int
    """Prompts without a completion."""
    error: GuardrailError | None
    """Of the first that failed. None: none did."""


class Observer(ABC):
    """Told of every check and every call of an engine while they happen, in the thread or task that they run in.

    What is raised inside a context goes through it: an error of the caller's, a cancelled task, an engine that failed.
    An observer must not raise, and must be as safe across threads, and as picklable, as the guard is to be.
    """

    @abstractmethod
    def check(self, *, current: bool) -> AbstractContextManager[Callable[[Decision], None]]:
        """Around one check; its decision is told before it ends. A decision's reasoning may quote the content.

        Args:
            current: Whether what happens inside, in this thread or task, is part of this check and of no other.
        """

    @abstractmethod
    def batch(self, checks: int) -> AbstractContextManager[None]:
        """Around checks that are made together; each of them, and the calls of all of them, are inside."""

    @abstractmethod
    def call(self, call: Call) -> AbstractContextManager[Callable[[Answer], None]]:
        """Around one call of an engine, waiting for a free place included; what came of it is told before it ends."""
