"""Guarded chat models: of the same class as the one that each is made from, with the guard where the reply is made.

A subclass of the model's own class overrides the four methods that every way of calling a model ends in, so that tools,
structured output, caches, retries, streams and callbacks all are above the guard. The bare model below it is called
without callbacks: nobody hears of what nobody has judged. Decides nothing: `_calls` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar, Final

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from guardrail_vl._pump import apump, pump
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations.langchain._calls import Call, Judge, Judging, Rules, T
from guardrail_vl.integrations.langchain._events import atell, tell
from guardrail_vl.integrations.langchain._quiet import aquietly, quietly
from guardrail_vl.streaming import Check
from guardrail_vl.verdict import Decision, Stage

_OWN_WAYS: Final = (
    "invoke", "ainvoke", "stream", "astream", "generate", "agenerate", "generate_prompt", "agenerate_prompt",
    "_generate_with_cache", "_agenerate_with_cache", "_iter_v2_events", "_aiter_v2_events", "_call_async",
    "stream_events", "astream_events",
)  # fmt: skip
"""What a class may not do in a way of its own: the guard could be gone around."""
_EVENTS: Final = ("_stream_chat_model_events", "_astream_chat_model_events")
"""Native event streams; the library makes the same events of `_stream`."""


class GuardedChatModel:
    """What a guarded model has of us. Its class is also the bare model's."""

    bare_class: ClassVar[type[BaseChatModel]]
    guardrail: tuple[Rules, ...]
    """The guards, innermost first."""

    def bare(self: Any) -> BaseChatModel:
        """The model below this guard, with the settings of this one."""
        below = self.model_copy()
        *others, _ = self.guardrail
        if others:
            below.__dict__["guardrail"] = tuple(others)
        else:
            del below.__dict__["guardrail"]
            object.__setattr__(below, "__class__", self.bare_class)
        bare: BaseChatModel = below
        return bare

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, settings: dict[str, Any]) -> Call:
        if not self.guardrail:
            raise ConfigurationError(
                f"This {type(self).__name__} was made without a guard.", hint="Make it by guarded(model, guard)."
            )
        # What the model was made to send with every call goes out too.
        made = {name: getattr(self, name, None) for name in ("model_kwargs", "extra_body")}
        return self.guardrail[-1].call(messages, stop, {**made, **settings})

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # What a cache remembers was judged by this very policy, or it isn't found.
        base: str = super()._get_llm_string(stop=stop, **kwargs)  # type: ignore[misc]
        keys = (f"{one.guard!r}, {one.on_block}, {sorted(one.allow)}, {one.refusal!r}" for one in self.guardrail)
        return "\x1e".join((base, *keys))

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        return _rebuild, (self.bare(), self.guardrail[-1])


def _generate(
    self: Any, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
) -> ChatResult:
    call = self._call(messages, stop, kwargs)
    guard = call.rules.guard
    with _telling(call):
        instead = drive(call.opening(), guard)
        if instead is not None:
            return _as_result(instead)
        failure: Exception | None = None
        try:
            result = self.bare()._generate(call.messages, stop=stop, **kwargs)
        except Exception as error:
            failure = error
        if failure is not None:
            return _as_result(drive(call.failed(failure), guard))
        given: ChatResult = drive(call.closing(result), guard)
        return given


async def _agenerate(
    self: Any, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
) -> ChatResult:
    call = self._call(messages, stop, kwargs)
    guard = call.rules.guard
    async with _atelling(call):
        instead = await adrive(call.opening(), guard)
        if instead is not None:
            return _as_result(instead)
        failure: Exception | None = None
        try:
            result = await self.bare()._agenerate(call.messages, stop=stop, **kwargs)
        except Exception as error:
            failure = error
        if failure is not None:
            return _as_result(await adrive(call.failed(failure), guard))
        return await adrive(call.closing(result), guard)


def _stream(
    self: Any, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
) -> Iterator[ChatGenerationChunk]:
    call = self._call(messages, stop, kwargs)
    guard = call.rules.guard

    def judge(check: Check) -> Decision:
        decision: Decision = quietly(guard.check, check.turn, stage=Stage.RESPONSE)
        return decision

    def chunks() -> Iterator[ChatGenerationChunk]:
        instead = drive(call.opening(), guard)
        if instead is not None:
            yield call.refusal_chunk(instead)
            return
        source = self.bare()._stream(call.messages, stop=stop, **kwargs)
        failure: Exception | None = None
        with contextlib.closing(pump(source, call.hold, call.read, judge)) as released:
            try:
                for chunk in released:
                    yield call.out(chunk)
            except Exception as error:
                failure = error
        yield drive(call.ending() if failure is None else call.failed_stream(failure), guard)

    with _telling(call):
        for chunk in chunks():
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


async def _astream(
    self: Any, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
) -> AsyncIterator[ChatGenerationChunk]:
    call = self._call(messages, stop, kwargs)
    guard = call.rules.guard

    async def judge(check: Check) -> Decision:
        return await aquietly(guard.acheck, check.turn, stage=Stage.RESPONSE)

    async def chunks() -> AsyncIterator[ChatGenerationChunk]:
        instead = await adrive(call.opening(), guard)
        if instead is not None:
            yield call.refusal_chunk(instead)
            return
        source = self.bare()._astream(call.messages, stop=stop, **kwargs)
        failure: Exception | None = None
        async with contextlib.aclosing(apump(source, call.hold, call.read, judge)) as released:
            try:
                async for chunk in released:
                    yield call.out(chunk)
            except Exception as error:
                failure = error
        yield await adrive(call.ending() if failure is None else call.failed_stream(failure), guard)

    async with _atelling(call), contextlib.aclosing(chunks()) as made:  # type: ignore[type-var]
        async for chunk in made:
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


# ---- making one ---------------------------------------------------------------------------------------------------


def guard_model(model: BaseChatModel, rules: Rules) -> BaseChatModel:
    """A model of the same class whose every prompt and reply is judged. The one given stays as it was.

    Raises:
        ConfigurationError: Its class answers calls in a way of its own, which may go around the guard.
    """
    guarded = model.model_copy()
    below: tuple[Rules, ...] = getattr(model, "guardrail", ()) if isinstance(model, GuardedChatModel) else ()
    if not below:
        object.__setattr__(guarded, "__class__", _guarded_class(type(model)))
    guarded.__dict__["guardrail"] = (*below, rules)
    return guarded


@functools.lru_cache(maxsize=256)
def _guarded_class(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    own = [name for name in _OWN_WAYS if getattr(kind, name, None) is not getattr(BaseChatModel, name, None)]
    if own:
        raise ConfigurationError(
            f"{kind.__name__} has its own {', '.join(own)}: the guard could be gone around.",
            hint="Guard it as a runnable: guarded(RunnableLambda(model.invoke), guard).",
        )
    members: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": f"A guarded {kind.__name__}.",
        "__annotations__": {"guardrail": Any, "bare_class": ClassVar[Any], **dict.fromkeys(_EVENTS, ClassVar[Any])},
        "guardrail": Field(default=(), exclude=True, repr=False),
        "bare_class": kind,
        "_generate": _generate,
        "_agenerate": _agenerate,
    }
    # The library looks at which of these a class has.
    streams = kind._stream is not BaseChatModel._stream
    if streams:
        members["_stream"] = _stream
    if streams or kind._astream is not BaseChatModel._astream:
        members["_astream"] = _astream
    members |= {name: None for name in _EVENTS if hasattr(kind, name)}
    return type(f"Guarded{kind.__name__}", (GuardedChatModel, kind), members)


def _rebuild(model: BaseChatModel, rules: Rules) -> BaseChatModel:
    return guard_model(model, rules)


def _as_result(message: Any) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


# ---- drivers: nothing is decided below ----------------------------------------------------------------------------


def drive(steps: Judging[T], guard: Guard) -> T:
    """Run to the end, judging what it asks for."""
    try:
        step: Judge = next(steps)
        while True:
            step = steps.send(judge_all(guard, step))
    except StopIteration as stop:
        result: T = stop.value
        return result


async def adrive(steps: Judging[T], guard: Guard) -> T:
    """The same without blocking the event loop."""
    try:
        step: Judge = next(steps)
        while True:
            step = steps.send(await ajudge_all(guard, step))
    except StopIteration as stop:
        result: T = stop.value
        return result


def judge_all(guard: Guard, step: Judge) -> list[Decision]:
    """A decision on each. Nobody of the app hears of the guard's own work."""
    return quietly(lambda: list(guard.check_many(step.contents, stage=step.stage)))


async def ajudge_all(guard: Guard, step: Judge) -> list[Decision]:
    """The same without blocking the event loop."""
    return await asyncio.gather(*(aquietly(guard.acheck, one, stage=step.stage) for one in step.contents))


@contextlib.contextmanager
def _telling(call: Call) -> Iterator[None]:
    """Tell of the decisions when it is over, whatever the end."""
    try:
        yield
    finally:
        tell(call.trail)


@contextlib.asynccontextmanager
async def _atelling(call: Call) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await atell(call.trail)


__all__ = ["GuardedChatModel", "adrive", "ajudge_all", "drive", "guard_model", "judge_all"]
