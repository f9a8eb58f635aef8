"""The drivers of a guard that is observed: they do what the others do, and tell. They decide nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from guardrail_vl._drivers import Drivers
from guardrail_vl._flow import Effect, Flow, Rung
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.errors import GuardrailError
from guardrail_vl.media import ImageLimits
from guardrail_vl.observing import Answer, Call, Observer
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.verdict import Decision, Usage


class ObservedDrivers(Drivers):
    """Performs effects, and tells an observer.

    Args:
        rungs: As for `Drivers`.
        limits: The same.
        observer: Who is told.
    """

    def __init__(self, rungs: Sequence[Rung], limits: ImageLimits, observer: Observer) -> None:
        super().__init__(rungs, limits)
        self._rungs = tuple(rungs)
        self._observer = observer

    def run(self, flow: Flow) -> Decision:
        """See `Drivers.run`."""
        with self._observer.check(current=True) as tell:
            decision = super().run(flow)
            tell(decision)
            return decision

    async def arun(self, flow: Flow, on_reasoning: Callable[[str], None] | None = None) -> Decision:
        """See `Drivers.arun`."""
        with self._observer.check(current=True) as tell:
            decision = await super().arun(flow, on_reasoning)
            tell(decision)
            return decision

    def _run_batch(self, flows: Sequence[Flow]) -> list[Decision]:
        told = [self._told(flow) for flow in flows]
        with self._observer.batch(len(told)):
            try:
                return super()._run_batch(told)
            finally:
                for flow in told:  # those that an error of another one left where they were
                    flow.close()

    def _told(self, flow: Flow) -> Generator[Effect, Any, Decision]:
        # Checks in step take turns: none of them is the one that everything between its begin and its end is part of.
        with self._observer.check(current=False) as tell:
            decision = yield from flow
            tell(decision)
            return decision

    def _generate(self, prompts: Sequence[Prompt], deadline: Deadline, rung: int) -> list[Outcome]:
        with self._observer.call(self._call(prompts, rung)) as tell:
            outcomes = super()._generate(prompts, deadline, rung)
            tell(_answer(outcomes))
            return outcomes

    async def _agenerate(
        self, prompts: Sequence[Prompt], deadline: Deadline, rung: int, on_reasoning: Callable[[str], None] | None
    ) -> list[Outcome]:
        with self._observer.call(self._call(prompts, rung)) as tell:
            outcomes = await super()._agenerate(prompts, deadline, rung, on_reasoning)
            tell(_answer(outcomes))
            return outcomes

    def _call(self, prompts: Sequence[Prompt], number: int) -> Call:
        rung = self._rungs[number]
        return Call(model=rung.engine.model, format=rung.format.id, speed=rung.speed, prompts=len(prompts))


def _answer(outcomes: Sequence[Outcome]) -> Answer:
    errors = [outcome for outcome in outcomes if isinstance(outcome, GuardrailError)]
    usage = sum((outcome.usage for outcome in outcomes if isinstance(outcome, Completion)), Usage())
    return Answer(usage=usage, failed=len(errors), error=errors[0] if errors else None)
