"""`guard_step`: a visible step of a chain that judges what passes it. Seals nothing: see `guarded`."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any, Literal, get_args

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from guardrail_vl.blocking import outcome
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations.langchain._calls import Judge, Judging, Rules
from guardrail_vl.integrations.langchain._events import atell, tell
from guardrail_vl.integrations.langchain._models import adrive, drive
from guardrail_vl.integrations.langchain._runnables import areleased, checked_select, released
from guardrail_vl.integrations.langchain._runs import (
    NO_INPUT,
    Run,
    Select,
    added,
    asking,
    documents,
    labelled,
    noted,
)
from guardrail_vl.streaming import Mode, Streaming
from guardrail_vl.verdict import Decision, Stage

StepStage = Literal["prompt", "response"]
OnStepBlock = Literal["raise", "annotate", "drop"]


def guard_step(
    guard: Guard,
    *,
    stage: StepStage = "prompt",
    on_block: OnStepBlock = "raise",
    select: Select | None = None,
    stream: Mode | Streaming = "window",
    allow_unguarded: Collection[str] = (),
) -> Runnable[Any, Any]:
    """A step of a chain that judges what it is given, and passes it on unchanged.

    It guards what stands behind it. What stands before it is seen unjudged by callbacks, traces and `astream_events`:
    to seal a model or a chain, use `guarded`.

    A list of documents is judged document by document. As a prompt, a document is content from outside: it is judged
    as what a tool gave back. With stage `response` a stream passes window by window; with stage `prompt` it is gathered
    first.

    Every decision is an event named `guardrail`. Messages that pass as a response, or under `annotate`, are copies with
    the decisions in `response_metadata["guardrail"]`; a list of messages has them on its last one. Under `annotate`,
    documents are copies that say what was decided: `metadata["guardrail"]["action"]`.

    Args:
        guard: Judges.
        stage: `prompt`: the value is judged as what a user asks; `response`: as what the assistant says.
        on_block: `raise` a `BlockedError`; `annotate`: pass it all the same; or `drop`, of a list: each item is judged
            by itself, and what is blocked is left out. (To clean a conversation, whose messages belong together, there
            is `Guard.sanitize`.) Where there is no verdict, the guard's error is raised under `raise` and `drop`.
        select: A function of the value, of each item of a list that is judged item by item, or of each item of a
            stream: gives what of it is judged. None: everything found in it.
        stream: How a response is judged while it passes in a stream: a `Streaming`, or its mode.
        allow_unguarded: Names of content blocks and fields that may pass unjudged.

    Raises:
        ConfigurationError: A wrong argument.
    """
    if stage not in get_args(StepStage):
        raise ConfigurationError(f"stage must be one of {', '.join(get_args(StepStage))}, not {stage!r}.")
    if on_block not in get_args(OnStepBlock):
        raise ConfigurationError(f"on_block must be one of {', '.join(get_args(OnStepBlock))}, not {on_block!r}.")
    checked_select(select, "select")
    rules = Rules(
        guard,
        on_block="refuse" if on_block == "drop" else on_block,
        streaming=Streaming.of(stream),
        allow=allow_unguarded if isinstance(allow_unguarded, str) else frozenset(allow_unguarded),
    )
    return GuardStep(rules, Stage(stage), select)


class GuardStep(Runnable[Any, Any]):
    """See `guard_step`.

    Args:
        rules: What is done with decisions. To refuse is to leave an item out.
        stage: What values are judged as.
        select: What of a value is judged.
    """

    def __init__(self, rules: Rules, stage: Stage, select: Select | None) -> None:
        self._rules = rules
        self._stage = stage
        self._select = select

    def __repr__(self) -> str:
        return f"GuardStep({self._stage})"

    # ---- what is decided ------------------------------------------------------------------------------------------

    @property
    def _drops(self) -> bool:
        return self._rules.on_block == "refuse"

    def _one_by_one(self, value: Any) -> bool:
        """Whether its items are judged each by itself."""
        return self._drops or documents(value)

    def _passing(self, value: Any, trail: list[Decision]) -> Judging[Any]:
        """Judge a value; gives what passes, and adds the decisions to the trail."""
        if not self._one_by_one(value) or (isinstance(value, Document) and not self._drops):
            passed = yield from self._sifted([value], trail)
            return passed[0]
        kinds = Document | BaseMessage | str
        if type(value) not in (list, tuple) or (self._select is None and not all(isinstance(v, kinds) for v in value)):
            raise ConfigurationError("drop is for lists of documents, messages or texts.", hint="Or say select=.")
        passed = yield from self._sifted(value, trail)
        return type(value)(passed)

    def _sifted(self, values: Sequence[Any], trail: list[Decision]) -> Judging[list[Any]]:
        """Those that pass."""
        runs = [self._run(value) for value in values]
        asked = tuple(run.asked for run in runs if run.asks)
        decisions = (yield Judge(asked, self._stage)) if asked else []
        trail += decisions
        left = iter(decisions)
        passed = []
        for value, run in zip(values, runs, strict=True):
            made = [next(left)] if run.asks else []
            if outcome(made, self._rules.on_block) == "pass":
                passed.append(self._noted(value, made))
        return passed

    def _run(self, value: Any) -> Run:
        given = asking(value, {}, self._select, self._rules.allow)
        return Run(self._rules, given, role="user" if self._stage is Stage.PROMPT else "assistant")

    def _noted(self, value: Any, made: list[Decision]) -> Any:
        annotates = self._rules.on_block == "annotate"
        if isinstance(value, Document):
            return labelled(value, made[0]) if annotates and made else value
        # A prompt that may pass stays the very same, or no cache of a model would know it again.
        return noted(value, made) if annotates or self._stage is Stage.RESPONSE else value

    # ---- running: nothing is decided below ------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Judge it, and pass it on."""
        return self._call_with_config(self._invoke, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The same without blocking the event loop."""
        return await self._acall_with_config(self._ainvoke, input, config)

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Judge what comes in a stream, and pass it on."""
        yield from self._transform_stream_with_config(input, self._transform, config)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """The same without blocking the event loop."""
        made = self._atransform_stream_with_config(input, self._atransform, config)
        async with contextlib.aclosing(made) as items:  # type: ignore[type-var]
            async for item in items:
                yield item

    def _invoke(self, value: Any) -> Any:
        trail: list[Decision] = []
        try:
            return drive(self._passing(value, trail), self._rules.guard)
        finally:
            tell(trail)

    async def _ainvoke(self, value: Any) -> Any:
        trail: list[Decision] = []
        try:
            return await adrive(self._passing(value, trail), self._rules.guard)
        finally:
            await atell(trail)

    def _transform(self, inputs: Iterator[Any]) -> Iterator[Any]:
        for first in inputs:
            rest = itertools.chain((first,), inputs)
            if self._one_by_one(first):
                yield from map(self._invoke, rest)
            elif self._stage is Stage.PROMPT:
                yield self._invoke(functools.reduce(added, rest, NO_INPUT))
            else:
                run = Run(self._rules, response=self._select, streams=True)
                try:
                    yield from released(rest, run)
                    yield from drive(run.tail(), self._rules.guard)
                finally:
                    tell(run.trail)

    async def _atransform(self, inputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for first in inputs:
            rest = _chained(first, inputs)
            if self._one_by_one(first):
                async for item in rest:
                    yield await self._ainvoke(item)
            elif self._stage is Stage.PROMPT:
                value = NO_INPUT
                async for item in rest:
                    value = added(value, item)
                yield await self._ainvoke(value)
            else:
                run = Run(self._rules, response=self._select, streams=True)
                try:
                    async with contextlib.aclosing(areleased(rest, run)) as items:
                        async for item in items:
                            yield item
                    for item in await adrive(run.tail(), self._rules.guard):
                        yield item
                finally:
                    await atell(run.trail)


async def _chained(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        yield first
        async for item in rest:
            yield item
    finally:
        close = getattr(rest, "aclose", None)
        if close is not None:
            await close()
