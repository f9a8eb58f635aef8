"""The three drivers of a flow: by calling, by awaiting, and many flows in step. All I/O of a check is here.

Nothing here decides anything. Nothing here drives an event loop from synchronous code.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

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
from guardrail_vl.prompt_format.base import Prompt, PromptFormat, Speed
from guardrail_vl.verdict import Decision


@dataclass(frozen=True, slots=True)
class _Door:
    """Where the prompts of one rung go in."""

    engine: Engine
    gate: Gate | None
    """Bounds how many calls of the engine are under way."""
    format: PromptFormat
    speed: Speed
    share: float
    """See `Rung.share`."""


# Guards on one engine, with one bound, share its places: those of several policies are one guard's, made by `replace`.
# A gate lives as long as the drivers that hold it, which hold the engine too: so long no other engine has its id.
_gates: WeakValueDictionary[tuple[int, int], Gate] = WeakValueDictionary()


def _gate(engine: int, bound: int) -> Gate:
    return _gates.setdefault((engine, bound), Gate(bound))


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
        gates = {key: _gate(key, bound) for key, bound in bounds.items()}
        self._doors = [
            _Door(rung.engine, gates.get(id(rung.engine)), rung.format, rung.speed, rung.share) for rung in rungs
        ]
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

    async def arun(self, flow: Flow, on_reasoning: Callable[[str], None] | None = None) -> Decision:
        """By awaiting. `on_reasoning` is called with each piece of the model's reasoning as it is written."""
        step = _Steps(flow)
        while step.effect is not None:
            try:
                result = await self._aperform(step.effect, on_reasoning)
            except GuardrailError as error:
                step.throw(error)
            else:
                step.send(result)
        return step.decision()

    async def watch(self, flow: Flow) -> AsyncGenerator[str | Decision, None]:
        """By awaiting: pieces of the model's reasoning as they are written, then the decision."""
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        running = asyncio.ensure_future(self.arun(flow, pieces.put_nowait))
        running.add_done_callback(lambda _: pieces.put_nowait(None))
        told = False
        try:
            while (piece := await pieces.get()) is not None:
                told = True
                yield piece
            decision = await running
            if not told and decision.reasoning:
                yield decision.reasoning  # remembered, or from an engine that does not tell
            yield decision
        finally:
            # Whoever has left, has left when nothing runs for them any more.
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

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
            self._recall_together([(s, effect) for s, effect in others if isinstance(effect, Recall)])
            for step, effect in others:
                if isinstance(effect, Recall):
                    continue
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

    def _recall_together(self, asking: Sequence[tuple[_Steps, Recall]]) -> None:
        """One look-up for all: a cache may be a network away."""
        if asking:
            found = iter(asking[0][1].cache.get([key for _, effect in asking for key in effect.keys]))
            for step, effect in asking:
                step.send([next(found) for _ in effect.keys])

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

    async def _aperform(self, effect: Effect, on_reasoning: Callable[[str], None] | None) -> Any:
        match effect:
            case Generate():
                return await self._agenerate(effect.prompts, effect.deadline, effect.rung, on_reasoning)
            case Recall():
                return await effect.cache.aget(effect.keys)
            case Remember():
                return await effect.cache.aput(effect.items)
            case Fetch():
                return await asyncio.gather(*(self._afetch_one(url, effect.deadline) for url in effect.urls))
            case CallHook():
                wanted = effect.hook(effect.turn, effect.decision)
                return _checked(await wanted if inspect.isawaitable(wanted) else wanted)

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

    async def _agenerate(
        self, prompts: Sequence[Prompt], deadline: Deadline, rung: int, on_reasoning: Callable[[str], None] | None
    ) -> list[Outcome]:
        door = self._doors[rung]
        deadline = deadline.part(door.share)
        if door.gate is not None:
            await door.gate.aacquire(deadline)
        try:
            if on_reasoning is None or door.speed != "reason":
                return _complete(prompts, await door.engine.agenerate(prompts, deadline=deadline))
            told = _Reasoning(door.format, on_reasoning)
            return _complete(prompts, await _astream(door.engine, prompts, deadline, told.grow))
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


class _Reasoning:
    """Picks the reasoning out of a completion that grows."""

    def __init__(self, form: PromptFormat, on_reasoning: Callable[[str], None]) -> None:
        self._format = form
        self._on_reasoning = on_reasoning
        self._text = ""
        self._told = 0

    def grow(self, piece: str) -> None:
        self._text += piece
        reasoning = self._format.reasoning_in(self._text)
        if len(reasoning) > self._told:
            new, self._told = reasoning[self._told :], len(reasoning)
            self._on_reasoning(new)


async def _astream(
    engine: Engine, prompts: Sequence[Prompt], deadline: Deadline, on_text: Callable[[str], None]
) -> list[Outcome]:
    """Complete the prompts and tell the text of the last: the newest exchange, with what came before it."""

    async def newest() -> list[Outcome]:
        return [await engine.astream(prompts[-1], deadline=deadline, on_text=on_text)]

    if len(prompts) == 1:
        return await newest()
    found = await asyncio.gather(
        engine.agenerate(prompts[:-1], deadline=deadline), newest(), return_exceptions=True
    )  # both end before an error goes on, by their deadline
    outcomes: list[Outcome] = []
    for part in found:
        if isinstance(part, BaseException):
            raise part
        outcomes += part
    return outcomes


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
