"""Guarded runnables: any runnable that is no chat model, with what goes in and what comes out judged.

The runnable inside runs unheard: no callback, no tracer and no stream of the app learns of what nobody has judged. What
the app hears is the run of the guarded runnable. Decides nothing about content: `_runs` does.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.history import RunnableWithMessageHistory

from guardrail_vl._pump import apump, pump
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations.langchain._calls import Rules
from guardrail_vl.integrations.langchain._events import atell, tell
from guardrail_vl.integrations.langchain._models import GuardedChatModel, adrive, drive
from guardrail_vl.integrations.langchain._quiet import aquiet_items, aquietly, quiet_items, quietly
from guardrail_vl.integrations.langchain._runs import NO_INPUT, Run, Saying, Select, added, asking
from guardrail_vl.streaming import Check
from guardrail_vl.verdict import Decision, Stage

_PASSED_ON: Final = ("tags", "metadata", "recursion_limit", "max_concurrency")
_GRAPHS_OWN: Final = ("checkpoint_ns", "checkpoint_id", "checkpoint_map")


class GuardedRunnable(Runnable[Any, Any]):
    """A runnable whose every input and output is judged.

    Args:
        target: What runs; it stays as it was, unguarded.
        rules: What is done with decisions.
        prompt: What of an input is judged. None: everything found in it.
        response: What of an output, or of an item of a stream, is judged. None: everything found in it.

    Raises:
        ConfigurationError: The target could be gone around, or can't refuse in words though it is to.
    """

    def __init__(self, target: Runnable[Any, Any], rules: Rules, prompt: Select | None, response: Select | None):
        for name, select in (("prompt", prompt), ("response", response)):
            checked_select(select, name)
        _check(target)
        self.target = target
        self._rules = rules
        self._prompt = prompt
        self._response = response
        self._saying = _saying(target)
        if rules.on_block == "refuse" and self._saying == "other":
            raise ConfigurationError(
                f"{target.get_name()} gives neither text nor a message, so it can't refuse in words.",
                hint="Use on_block='raise', or guard the model inside.",
            )

    def __repr__(self) -> str:
        return f"Guarded({self.target!r})"

    # What it takes and gives is what the target does.

    def get_name(self, suffix: str | None = None, *, name: str | None = None) -> str:
        """The target's."""
        return self.target.get_name(suffix, name=name)

    @property
    def InputType(self) -> Any:
        """The target's."""
        return self.target.InputType

    @property
    def OutputType(self) -> Any:
        """The target's."""
        return self.target.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> Any:
        """The target's."""
        return self.target.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> Any:
        """The target's."""
        return self.target.get_output_schema(config)

    @property
    def config_specs(self) -> Any:
        """The target's."""
        return self.target.config_specs

    # ---- running --------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Judge, run, judge."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The same without blocking the event loop."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Judge, run, and give each item when it was judged."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """The same without blocking the event loop."""
        async with contextlib.aclosing(self.atransform(_alone(input), config, **kwargs)) as items:  # type: ignore[type-var]
            async for item in items:
                yield item

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """The same as `stream`, of an input that comes in a stream: it is judged when it is complete."""
        yield from self._transform_stream_with_config(input, self._transform, config, **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """The same without blocking the event loop."""
        made = self._atransform_stream_with_config(input, self._atransform, config, **kwargs)
        async with contextlib.aclosing(made) as items:  # type: ignore[type-var]
            async for item in items:
                yield item

    # ---- drivers: nothing is decided below ------------------------------------------------------------------------

    def _run(self, value: Any, kwargs: dict[str, Any], *, streams: bool) -> Run:
        given = asking(value, kwargs, self._prompt, self._rules.allow)
        return Run(self._rules, given, response=self._response, saying=self._saying, streams=streams)

    def _invoke(self, value: Any, run_manager: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        run, guard = self._run(value, kwargs, streams=False), self._rules.guard
        try:
            given = drive(run.begin(), guard)
            if given is None:
                failure, output = None, None
                try:
                    output = quietly(self.target.invoke, run.sent(value), inner_config(config), **kwargs)
                except Exception as error:
                    failure = error
                given = drive(run.end(failure, output), guard)
            return given[0]
        finally:
            tell(run.trail)

    async def _ainvoke(self, value: Any, run_manager: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        run, guard = self._run(value, kwargs, streams=False), self._rules.guard
        try:
            given = await adrive(run.begin(), guard)
            if given is None:
                failure, output = None, None
                try:
                    output = await aquietly(self.target.ainvoke, run.sent(value), inner_config(config), **kwargs)
                except Exception as error:
                    failure = error
                given = await adrive(run.end(failure, output), guard)
            return given[0]
        finally:
            await atell(run.trail)

    def _transform(
        self, inputs: Iterator[Any], run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> Iterator[Any]:
        value = functools.reduce(added, inputs, NO_INPUT)
        if value is NO_INPUT:
            return
        run, guard = self._run(value, kwargs, streams=True), self._rules.guard
        try:
            given = drive(run.begin(), guard)
            if given is None:
                failure, sent, inner = None, run.sent(value), inner_config(config)
                try:
                    yield from released(quiet_items(lambda: self.target.stream(sent, inner, **kwargs)), run)
                except Exception as error:
                    failure = error
                given = drive(run.end(failure), guard)
            yield from given
        finally:
            tell(run.trail)

    async def _atransform(
        self, inputs: AsyncIterator[Any], run_manager: Any, config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[Any]:
        value = NO_INPUT
        async for item in inputs:
            value = added(value, item)
        if value is NO_INPUT:
            return
        run, guard = self._run(value, kwargs, streams=True), self._rules.guard
        try:
            given = await adrive(run.begin(), guard)
            if given is None:
                failure, sent, inner = None, run.sent(value), inner_config(config)
                source = aquiet_items(lambda: self.target.astream(sent, inner, **kwargs))
                try:
                    async with contextlib.aclosing(areleased(source, run)) as items:
                        async for item in items:
                            yield item
                except Exception as error:
                    failure = error
                given = await adrive(run.end(failure), guard)
            for item in given:
                yield item
        finally:
            await atell(run.trail)


def released(source: Iterator[Any], run: Run) -> Generator[Any, None, None]:
    """The items of a run, each when it may go out."""
    guard: Guard = run.rules.guard

    def judge(check: Check) -> Decision:
        return quietly(guard.check, check.turn, stage=Stage.RESPONSE)

    with contextlib.closing(pump(source, run.hold, run.read_item, judge)) as items:
        for item in items:
            yield run.item(item)


async def areleased(source: AsyncIterator[Any], run: Run) -> AsyncGenerator[Any, None]:
    """The same without blocking the event loop."""
    guard: Guard = run.rules.guard

    async def judge(check: Check) -> Decision:
        return await aquietly(guard.acheck, check.turn, stage=Stage.RESPONSE)

    async with contextlib.aclosing(apump(source, run.hold, run.read_item, judge)) as items:
        async for item in items:
            yield run.item(item)


async def _alone(value: Any) -> AsyncIterator[Any]:
    yield value


# ---- what the runnable inside is told -----------------------------------------------------------------------------


def inner_config(config: RunnableConfig) -> RunnableConfig:
    """The app's settings of a run, without those who listen to it."""
    settings: Any = {name: value for name, value in config.items() if name in _PASSED_ON}
    settings["configurable"] = _configurable(config.get("configurable") or {})
    return cast(RunnableConfig, settings)


def _configurable(given: dict[str, Any]) -> dict[str, Any]:
    """What the app can configure. A graph that this is part of is not written to from inside; its store is there."""
    if not any(name.startswith("__pregel_") for name in given):
        return dict(given)
    kept = {n: value for n, value in given.items() if not n.startswith("__pregel_") and n not in _GRAPHS_OWN}
    runtime = given.get("__pregel_runtime")
    if is_dataclass(runtime) and not isinstance(runtime, type):
        kept["__pregel_runtime"] = replace(runtime, stream_writer=_unheard)
    return kept


def _unheard(written: Any) -> None:
    pass


# ---- what can be guarded ------------------------------------------------------------------------------------------

_HOLDS: Final = ("bound", "steps", "steps__", "runnable", "fallbacks", "branches", "default", "mapper", "runnables")
"""Where LangChain's runnables have others inside."""
_GRAPHS: Final = {"Pregel", "PregelProtocol"}


def checked_select(select: Any, name: str) -> None:
    """Raises a ConfigurationError if it is no plain function, nor None."""
    if select is not None and (not callable(select) or inspect.iscoroutinefunction(select)):
        raise ConfigurationError(f"{name}= takes a plain function.")


def _check(target: Any) -> None:
    if isinstance(target, GuardedChatModel | GuardedRunnable):
        return
    if any(one.__name__ in _GRAPHS and one.__module__.startswith("langgraph.") for one in type(target).__mro__):
        raise ConfigurationError(
            "guarded() takes no LangGraph graph.",
            hint="Guard an agent with GuardMiddleware; a graph's checkpoints and streams are its own.",
        )
    if isinstance(target, RunnableWithMessageHistory):
        raise ConfigurationError(
            "RunnableWithMessageHistory stores what was said before a guard around it sees it.",
            hint="Guard what is inside: RunnableWithMessageHistory(guarded(chain, guard), ...).",
        )
    bound = target.config.get("callbacks") if isinstance(target, RunnableBindingBase) else None
    listens = isinstance(target, RunnableBindingBase) and target.config_factories
    if bound or listens or getattr(target, "callbacks", None):
        raise ConfigurationError(
            f"A {type(target).__name__} in it has callbacks or listeners of its own, which would hear what nobody has "
            "judged.",
            hint="Give them to what guarded() returns.",
        )
    for name in _HOLDS:
        for one in _runnables(getattr(target, name, None)):
            _check(one)


def _runnables(value: Any) -> Iterator[Runnable[Any, Any]]:
    if isinstance(value, Runnable):
        yield value
    elif isinstance(value, dict):
        yield from _runnables(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _runnables(one)


def _saying(target: Runnable[Any, Any]) -> Saying:
    """What it says that it gives; text if it doesn't say."""
    try:
        kinds = list(_kinds(target.OutputType))
    except TypeError:  # it can't be told
        return "text"
    if any(isinstance(kind, type) and issubclass(kind, BaseMessage) for kind in kinds):
        return "message"
    # What is no type is a name that nobody has looked up, or a variable.
    known = all(isinstance(kind, type) or get_origin(kind) for kind in kinds)
    return "other" if known and {str, Any, object}.isdisjoint(kinds) else "text"


def _kinds(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _kinds(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _kinds(one)
    else:
        yield kind


__all__ = ["GuardedRunnable", "areleased", "checked_select", "released"]
