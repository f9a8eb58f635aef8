"""The engine seam: one abstract verb that completes prompts. An engine knows nothing of labels or verdicts."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from guardrail_vl.engines._checkpoint import TrainedFormat as TrainedFormat
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt

Outcome = Completion | GuardrailError
"""What became of one prompt. One bad prompt does not spoil its batch."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time by which an answer is wanted, retries included."""

    at: float
    """`time.monotonic()` seconds."""

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at - time.monotonic())

    def part(self, share: float) -> Self:
        """The point in time until which this share, in (0, 1], of what is left passes."""
        return self if share == 1 else type(self).after(self.remaining() * share)

    def check(self) -> None:
        """Raise if it has passed.

        Raises:
            EngineUnavailableError: The deadline has passed.
        """
        if time.monotonic() >= self.at:
            raise late()


def late() -> EngineUnavailableError:
    """The error for a deadline that has passed."""
    return EngineUnavailableError(
        "The guard model did not answer before the deadline.", hint="Raise Guard(deadline=…) or use a faster model."
    )


class Engine(ABC):
    """Completes prompts, batched, sync and async. Safe to share between threads and event loops."""

    model: str
    """Which model speaks: a name a person recognises, with a revision where there is one."""
    format: ClassVar[str]
    """Id of the prompt format that this engine's models are asked in unless the caller says otherwise."""
    default_deadline: ClassVar[float] = 30.0
    """Seconds for one check unless the caller says otherwise."""
    scores: ClassVar[bool] = True
    """Whether it can give log-probabilities, or scores of its own. None of it is asked of an engine that can't."""

    calibrated_band: Mapping[str, tuple[float, float]] | None = None
    """From which to which score its verdict is unsure, for `prompt` and `response`: what a cascade sends on unless the
    caller says otherwise. None: nobody measured it."""
    trained_format: TrainedFormat | None = None
    """What the checkpoint says of the format it was trained in. None: it says nothing."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """Complete the prompts; one outcome each, in order. Returns by the deadline, with errors for what is missing.

        Raises:
            EngineError: All of them failed for the same reason.
        """

    async def agenerate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """The same without blocking the event loop. Unless overridden, `generate` in a worker thread."""
        return await asyncio.to_thread(self.generate, prompts, deadline=deadline)

    async def astream(self, prompt: Prompt, *, deadline: Deadline, on_text: Callable[[str], None]) -> Outcome:
        """`agenerate` for one prompt: the same outcome, its text told as it is written.

        Unless overridden, nothing is told.

        Args:
            prompt: What to complete.
            deadline: As for `generate`.
            on_text: Called, on the event loop, with each piece of the completion's text. All pieces together begin
                that text; it may be longer than what was told.
        """
        (outcome,) = await self.agenerate([prompt], deadline=deadline)
        return outcome

    def adapted(self, adapter: str | None) -> Engine:
        """This engine, with the answers of an adapter (LoRA) of its checkpoint: what a policy's `adapter` asks for.

        Unless overridden, there are no adapters.

        Args:
            adapter: Its name. None: the checkpoint as it is.

        Raises:
            ConfigurationError: There is no adapter of this name.
        """
        if adapter is None:
            return self
        raise ConfigurationError(
            f"{self.model} takes no adapters, and the policy asks for {adapter!r}.",
            hint="vLLM takes them, on this machine or behind a URL; for other engines, merge it into the checkpoint.",
        )

    def close(self) -> None:  # noqa: B027 - nothing to free is the common case
        """Free what the engine holds. It may be used again, and then opens what it needs."""

    async def aclose(self) -> None:
        """The same for what belongs to the running event loop."""
        self.close()
