"""The three drivers of a flow: by calling, by awaiting, and many flows in step. All I/O of a check is here.

Nothing here decides anything. Nothing here drives an event loop from synchronous code.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guardrail_vl._flow import CallHook, Effect, Fetch, Flow, Generate, Recall, Remember, Rung
from guardrail_vl._gate import Gate
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
    GuardrailError,
)
from guardrail_vl.media import ImageLimits
from guardrail_vl.prompt_format.base import Prompt
from guardrail_vl.verdict import Decision


@dataclass(frozen=True, slots=True)
class _Door:
    """Where the prompts of one rung go in."""

    engine: Engine
    gate: Gate | None
    """Bounds how many calls of the engine are under way."""
    share: float
    """See `Rung.share`."""


class Drivers:
    """Performs effects.

    Args:
        rungs: Whose engines complete the prompts.
        limits: For fetched pictures.
    """

    def __init__(self, rungs: Sequence[Rung], limits: ImageLimits) -> None:
        bounds: dict[int, int] = {}  # one for each engine, however many rungs it has: the strictest that is asked for
        for rung in rungs:
            if rung.max_concurrency is not None:
                key = id(rung.engine)
                bounds[key] = min(rung.max_concurrency, bounds.get(key, rung.max_concurrency))
        gates = {key: Gate(bound) for key, bound in bounds.items()}
        self._doors = [_Door(rung.engine, gates.get(id(rung.engine)), rung.share) for rung in rungs]
        self._limits = limits

    def run(self, flow: Flow) -> Decision:
        """By calling."""
        step = _Steps(flow)
        while step.effect is not None:
            try:
                result = self._perform(step.effect)
            except GuardrailError as error:
                step.throw(error)
            else:
                step.send(result)
        return step.decision()

    async def arun(self, flow: Flow) -> Decision:
        """By awaiting."""
        step = _Steps(flow)
        while step.effect is not None:
            try:
                result = await self._aperform(step.effect)
            except GuardrailError as error:
                step.throw(error)
            else:
                step.send(result)
        return step.decision()

    def run_many(self, flows: Iterable[Flow], *, size: int) -> Iterator[Decision]:
        """Many flows in step, `size` at a time: their prompts go to an engine together. Order is kept."""
        batch: list[Flow] = []
        for flow in flows:
            batch.append(flow)
            if len(batch) == size:
                yield from self._run_batch(batch)
                batch = []
        if batch:
            yield from self._run_batch(batch)

    def _run_batch(self, flows: Sequence[Flow]) -> list[Decision]:
        steps = [_Steps(flow) for flow in flows]
        while True:
            asking = [(s, s.effect) for s in steps if isinstance(s.effect, Generate)]
            others = [(s, s.effect) for s in steps if s.effect is not None and not isinstance(s.effect, Generate)]
            if not asking and not others:
                return [s.decision() for s in steps]
            for step, effect in others:
                try:
                    result = self._perform(effect)
                except GuardrailError as error:
                    step.throw(error)
                else:
                    step.send(result)
            # Only when every flow is at a door does one open, so that batches are full: the lowest, since those before
            # it may come to the next.
            if asking and not others:
                lowest = min(effect.rung for _, effect in asking)
                self._generate_together([pair for pair in asking if pair[1].rung == lowest], lowest)

    def _generate_together(self, asking: Sequence[tuple[_Steps, Generate]], rung: int) -> None:
        prompts = [p for _, effect in asking for p in effect.prompts]
        deadline = max((effect.deadline for _, effect in asking), key=lambda d: d.at)
        try:
            outcomes = iter(self._generate(prompts, deadline, rung))
        except GuardrailError as error:
            for step, _ in asking:
                step.throw(error)
            return
        for step, effect in asking:
            step.send([next(outcomes) for _ in effect.prompts])

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Generate():
                return self._generate(effect.prompts, effect.deadline, effect.rung)
            case Recall():
                return effect.cache.get(effect.keys)
            case Remember():
                return effect.cache.put(effect.items)
            case Fetch():
                return [self._fetch_one(url, effect.deadline) for url in effect.urls]
            case CallHook():
                wanted = effect.hook(effect.turn, effect.decision)
                if inspect.isawaitable(wanted):
                    if inspect.iscoroutine(wanted):
                        wanted.close()
                    raise ConfigurationError("An async hook needs an async check.", hint="Use acheck and its kin.")
                return _checked(wanted)

    async def _aperform(self, effect: Effect) -> Any:
        match effect:
            case Generate():
                return await self._agenerate(effect.prompts, effect.deadline, effect.rung)
            case Fetch():
                return await asyncio.gather(*(self._afetch_one(url, effect.deadline) for url in effect.urls))
            case CallHook():
                wanted = effect.hook(effect.turn, effect.decision)
                return _checked(await wanted if inspect.isawaitable(wanted) else wanted)
            case _:
                return self._perform(effect)

    def _generate(self, prompts: Sequence[Prompt], deadline: Deadline, rung: int) -> list[Outcome]:
        door = self._doors[rung]
        deadline = deadline.part(door.share)
        if door.gate is not None:
            door.gate.acquire(deadline)
        try:
            return _complete(prompts, door.engine.generate(prompts, deadline=deadline))
        except Exception as error:
            raise _as_engine_error(error) from error
        finally:
            if door.gate is not None:
                door.gate.release()

    async def _agenerate(self, prompts: Sequence[Prompt], deadline: Deadline, rung: int) -> list[Outcome]:
        door = self._doors[rung]
        deadline = deadline.part(door.share)
        if door.gate is not None:
            await door.gate.aacquire(deadline)
        try:
            return _complete(prompts, await door.engine.agenerate(prompts, deadline=deadline))
        except Exception as error:
            raise _as_engine_error(error) from error
        finally:
            if door.gate is not None:
                door.gate.release()

    def _fetch_one(self, url: str, deadline: Deadline) -> bytes | ContentError:
        from guardrail_vl import fetch  # httpx takes longer to import than all the rest, and few guards fetch

        try:
            return fetch.fetch(url, self._limits, timeout=deadline.remaining())
        except ContentError as error:
            return error

    async def _afetch_one(self, url: str, deadline: Deadline) -> bytes | ContentError:
        from guardrail_vl import fetch

        try:
            return await fetch.afetch(url, self._limits, timeout=deadline.remaining())
        except ContentError as error:
            return error


class _Steps:
    """A flow between two effects."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._decision: Decision | None = None
        self.effect: Effect | None = None
        self.send(None)

    def send(self, result: Any) -> None:
        self._advance(self._flow.send, result)

    def throw(self, error: GuardrailError) -> None:
        self._advance(self._flow.throw, error)

    def _advance(self, move: Callable[[Any], Effect], value: Any) -> None:
        try:
            self.effect = move(value)
        except StopIteration as stop:
            self.effect, self._decision = None, stop.value

    def decision(self) -> Decision:
        assert self._decision is not None
        return self._decision


def _complete(prompts: Sequence[Prompt], outcomes: list[Outcome]) -> list[Outcome]:
    if len(outcomes) != len(prompts):
        raise EngineResponseError("The engine did not give one outcome for each prompt.")
    for outcome in outcomes:
        if isinstance(outcome, ConfigurationError):  # the caller's mistake, found late: never a decision
            raise outcome
    return outcomes


def _as_engine_error(error: Exception) -> GuardrailError:
    # A custom engine may raise anything. Its message may hold content, so only its type is named.
    if isinstance(error, GuardrailError):
        return error
    if isinstance(error, TimeoutError):
        return EngineUnavailableError("The engine timed out.")
    return EngineError(f"The engine raised {type(error).__name__}.")


def _checked(wanted: object) -> Decision | None:
    if wanted is None or isinstance(wanted, Decision):
        return wanted
    raise ConfigurationError(
        f"A hook must return a Decision or None, not {type(wanted).__name__}.",
        hint="Use dataclasses.replace(decision, action=…).",
    )
