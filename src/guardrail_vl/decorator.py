"""`@guard`: a function whose arguments are judged before it runs, and whose result before anyone sees it.

Knows what of a call is judged, and what follows from a decision. Does not know how a turn is judged: that is the
guard's. What is decided about a call stands in `_Plan`, once; the drivers at the end call, await and iterate.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from guardrail_vl._arguments import EVERY, Arguments, PromptOf, in_result, is_empty, kind_of, messages_of
from guardrail_vl._pump import apump, pump
from guardrail_vl.blocking import REFUSAL, OnBlock, checked_on_block, outcome
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.streaming import Check, HoldBack, Mode, Piece, Streaming, Unreadable
from guardrail_vl.turn import Making, Message, Turn
from guardrail_vl.verdict import Decision, Stage

if TYPE_CHECKING:
    from guardrail_vl.guard import Guard

Function = TypeVar("Function", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")


def decorate(
    guard: Guard,
    function: Any = None,
    *,
    prompt: PromptOf = EVERY,
    images: str | Sequence[str] | None = None,
    response: Callable[[Any], Any] | None = None,
    on_block: OnBlock = "raise",
    stream: Streaming | Mode = "window",
    refusal: Any = None,
    on_decision: Callable[[Decision], object] | None = None,
) -> Any:
    """See `Guard.__call__`."""
    options = {
        "prompt": prompt, "images": images, "response": response, "on_block": on_block, "stream": stream,
        "refusal": refusal, "on_decision": on_decision,
    }  # fmt: skip
    if function is None:
        return functools.partial(decorate, guard, **options)
    if isinstance(function, classmethod | staticmethod):
        return type(function)(decorate(guard, function.__func__, **options))
    if not callable(function) or inspect.isclass(function):
        raise ConfigurationError(
            f"@guard is for functions and methods, not for {kind_of(function)}.",
            hint="Decorate the method that takes the content.",
        )
    # A functools.partial and an object with __call__ are what they call.
    shape = function if inspect.isroutine(function) or isinstance(function, functools.partial) else function.__call__
    streams = inspect.isgeneratorfunction(shape) or inspect.isasyncgenfunction(shape)
    plan = _Plan(guard, function, streams, **options)
    if inspect.isasyncgenfunction(shape):
        return _async_generator(plan, function)
    if inspect.isgeneratorfunction(shape):
        return _generator(plan, function)
    return _coroutine(plan, function) if inspect.iscoroutinefunction(shape) else _plain(plan, function)


# ---- what follows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ask:
    """Judge this. Result: the decision."""

    content: Making
    stage: Stage


@dataclass(frozen=True, slots=True)
class _Refused:
    value: Any


_Flow = Generator[_Ask | None, Any, Any]
"""Asks for checks, and with None for the function to be called; ends in what the caller gets."""


class _Noted(HoldBack[Any]):
    """A hold-back that tells of every decision, in the thread of whoever reads the stream."""

    def __init__(self, note: Callable[[Decision], None], request: Sequence[Message], *rest: Any, enforce: bool) -> None:
        super().__init__(request, *rest, enforce=enforce)
        self._note = note

    def settle(self, ticket: int, decision: Decision) -> None:
        super().settle(ticket, decision)
        self._note(decision)


class _Plan:
    """Everything that is decided about calls of one function."""

    def __init__(
        self,
        guard: Guard,
        function: Callable[..., Any],
        streams: bool,
        *,
        prompt: PromptOf,
        images: str | Sequence[str] | None,
        response: Callable[[Any], Any] | None,
        on_block: OnBlock,
        stream: Streaming | Mode,
        refusal: Any,
        on_decision: Callable[[Decision], object] | None,
    ) -> None:
        checked_on_block(on_block)
        for name, value in (("response", response), ("on_decision", on_decision)):
            if value is not None and (not callable(value) or inspect.iscoroutinefunction(value)):
                raise ConfigurationError(f"{name}= takes a plain function.")
        self.guard = guard
        self._name = getattr(function, "__qualname__", type(function).__name__)
        self._arguments = Arguments(function, self._name, prompt, images)
        self._response = response
        self._on_block = on_block
        self._stream = Streaming.of(stream)
        self._refusal = REFUSAL if refusal is None else refusal
        self._on_decision = on_decision
        self.hold(())  # says now what it would say at every call
        if on_block == "refuse" and refusal is None and not _takes_text(function, streams):
            raise ConfigurationError(
                f"{self._name} is not declared to give text, so it can't refuse in words.",
                hint="Say what it gives instead: refusal=…, a value or a function of the decision.",
            )

    # A call: a flow that asks for what it needs.

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Flow:
        """From the arguments to the result, or the refusal."""
        opened = yield from self.opening(args, kwargs)
        if isinstance(opened, _Refused):
            return opened.value
        result = yield None
        answer = self._answer(result, opened)
        refused = None if answer is None else (yield from self._judged(answer, Stage.RESPONSE))
        return result if refused is None else refused.value

    def opening(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Flow:
        """From the arguments to the messages that were judged, or a `_Refused`."""
        asked = self._arguments.content(args, kwargs)
        if asked is None:
            return ()
        refused = yield from self._judged(asked, Stage.PROMPT)
        if refused is not None:
            return refused
        return () if asked.turn is None else asked.turn.messages

    def _judged(self, content: Making, stage: Stage) -> Generator[_Ask, Decision, _Refused | None]:
        decision = yield _Ask(content, stage)
        self.note(decision)
        stopped = decision.blocked and self._on_block != "annotate"
        return _Refused(self.refused(decision)) if stopped else None

    def _answer(self, result: Any, request: tuple[Message, ...]) -> Making | None:
        try:
            given = result if self._response is None else self._response(result)
        except ContentError as problem:
            return Making(Unreadable(problem))
        found = tuple(in_result(given, self._name))
        if all(map(is_empty, found)):
            return None
        return Making(lambda load: Turn((*request, *messages_of(found, "assistant", load))))

    def note(self, decision: Decision) -> None:
        """Tell of a decision."""
        if self._on_decision is not None:
            self._on_decision(decision)

    def refused(self, decision: Decision) -> Any:
        """What the caller gets instead.

        Raises:
            BlockedError: Where blocks are raised.
            GuardrailError: There was no verdict: its error, which is never a refusal.
        """
        outcome([decision], self._on_block)
        return self._refusal(decision) if callable(self._refusal) else self._refusal

    # A stream.

    def hold(self, request: Sequence[Message]) -> _Noted:
        """The state of one stream that answers these messages."""
        return _Noted(self.note, request, self._stream, enforce=self._on_block != "annotate")

    def read(self, item: Any) -> tuple[Piece, ...]:
        """The content of one item.

        Raises:
            ConfigurationError: It is not text.
        """
        text = item if self._response is None else self._response(item)
        if text is None:
            return ()
        if not isinstance(text, str):
            raise ConfigurationError(
                f"{self._name} yields {kind_of(text)}, and @guard reads text.",
                hint="Say what is judged: @guard(response=…), a function of an item that gives its text, or None.",
            )
        return (Piece("text", text),)

    def unanswered(self, sent: object) -> None:
        """Items are held back, so nobody can answer them.

        Raises:
            ConfigurationError: Something was sent.
        """
        if sent is not None:
            raise ConfigurationError(f"{self._name} is guarded, so it takes no send(): its items are held back.")


# ---- what a function is declared to give --------------------------------------------------------------------------

_STREAM: Final = re.compile(r"(?:\w+\.)*(?:Async)?(?:Iterator|Iterable|Generator)\[(.*)\]")
_TEXT: Final = {"str", "Any", "typing.Any", "object"}


def _takes_text(function: Callable[..., Any], streams: bool) -> bool:
    shape = function.func if isinstance(function, functools.partial) else function
    raw = getattr(shape, "__annotations__", {}).get("return", Any)
    with contextlib.suppress(Exception):  # names that exist for type checkers only: then the words are read
        holder = type("holder", (), {"__annotations__": {"return": raw}})
        raw = typing.get_type_hints(holder, getattr(shape, "__globals__", {}))["return"]
    if isinstance(raw, str):
        stream = _STREAM.fullmatch(raw.strip())
        words = stream[1].split(",")[0] if stream and streams else raw
        return not _TEXT.isdisjoint(word.strip() for word in words.split("|"))
    if streams and get_args(raw):
        raw = get_args(raw)[0]
    union = typing.get_origin(raw) in (typing.Union, types.UnionType)
    return any(one in (str, Any, object) for one in (get_args(raw) if union else (raw,)))


# ---- drivers: nothing is decided below ----------------------------------------------------------------------------


def _drive(flow: _Flow, plan: _Plan, run: Callable[[], Any] | None = None) -> Any:
    result = None
    while True:
        try:
            step = flow.send(result)
        except StopIteration as stop:
            return stop.value
        if step is None:
            assert run is not None
            result = run()
        else:
            result = plan.guard.check(step.content, stage=step.stage)


async def _adrive(flow: _Flow, plan: _Plan, run: Callable[[], Awaitable[Any]] | None = None) -> Any:
    result = None
    while True:
        try:
            step = flow.send(result)
        except StopIteration as stop:
            return stop.value
        if step is None:
            assert run is not None
            result = await run()
        else:
            result = await plan.guard.acheck(step.content, stage=step.stage)


def _plain(plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return _drive(plan.call(args, kwargs), plan, lambda: function(*args, **kwargs))

    return guarded


def _coroutine(plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await _adrive(plan.call(args, kwargs), plan, lambda: function(*args, **kwargs))

    return guarded


def _generator(plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    def judge(check: Check) -> Decision:
        return plan.guard.check(check.turn, stage=Stage.RESPONSE)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        opened = _drive(plan.opening(args, kwargs), plan)
        if isinstance(opened, _Refused):
            yield opened.value
            return None
        hold, returned = plan.hold(opened), list[Any]()
        source = _keeping(function(*args, **kwargs), returned)
        with contextlib.closing(pump(source, hold, plan.read, judge)) as items:
            for item in items:
                plan.unanswered((yield item))
        if hold.stopped is not None:
            yield plan.refused(hold.stopped)
            return None
        return returned[0]

    return guarded


def _keeping(source: Generator[Any, None, Any], returned: list[Any]) -> Generator[Any, None, None]:
    returned.append((yield from source))


def _async_generator(plan: _Plan, function: Callable[..., Any]) -> Callable[..., Any]:
    async def judge(check: Check) -> Decision:
        return await plan.guard.acheck(check.turn, stage=Stage.RESPONSE)

    @functools.wraps(function)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        opened = await _adrive(plan.opening(args, kwargs), plan)
        if isinstance(opened, _Refused):
            yield opened.value
            return
        hold = plan.hold(opened)
        source = function(*args, **kwargs)
        async with contextlib.aclosing(apump(source, hold, plan.read, judge)) as items:
            async for item in items:
                plan.unanswered((yield item))
        if hold.stopped is not None:
            yield plan.refused(hold.stopped)

    return guarded
