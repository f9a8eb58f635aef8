"""Tools of a guarded agent: what one gives back is judged before any callback, stream or message holds it.

Finds and replaces content in what tools return. Knows no guard: whoever uses it says what is withheld.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

Withhold = Callable[[Any], bool]
"""Whether content is to be withheld."""
AsyncWithhold = Callable[[Any], Awaitable[bool]]
Sifting = Generator[Any, bool, Any]
"""Asks of each content whether it is to be withheld; ends in the output without it."""


def sift(output: Any, sentence: str, *, pair: bool = False) -> Sifting:
    """What a tool gave, with the sentence in place of what is withheld.

    Args:
        output: Text, content blocks, messages, a command, or anything that the library makes text of.
        sentence: Stands instead.
        pair: Whether it is content with an artifact. An artifact is never sent to a model; it goes with its content.
    """
    if pair and isinstance(output, tuple) and len(output) == 2:
        return (sentence, None) if (yield output[0]) else output
    if isinstance(output, Command):
        update = yield from _sift_update(output.update, sentence)
        return replace(output, update=update)
    if isinstance(output, BaseMessage):
        return _instead(output, sentence) if (yield output.content) else output
    if isinstance(output, list) and any(isinstance(one, Command | BaseMessage) for one in output):
        out = []
        for one in output:
            out.append((yield from sift(one, sentence)))
        return out
    return sentence if (yield output) else output


def _sift_update(update: Any, sentence: str) -> Sifting:
    """The messages in an update of the state; its other keys are the app's own."""
    if isinstance(update, Mapping) and update.get("messages"):
        listed = update["messages"]
        messages = yield from sift(listed if isinstance(listed, list) else [listed], sentence)
        return {**update, "messages": messages}
    if isinstance(update, BaseMessage | list):
        return (yield from sift(update, sentence))
    return update


def _instead(message: BaseMessage, sentence: str) -> BaseMessage:
    changes: dict[str, Any] = {"content": sentence, "additional_kwargs": {}}
    if isinstance(message, ToolMessage):
        changes["artifact"] = None
    return message.model_copy(update=changes)


def settle(steps: Sifting, withhold: Withhold) -> Any:
    """Run to the end."""
    try:
        content = next(steps)
        while True:
            content = steps.send(withhold(content))
    except StopIteration as stop:
        return stop.value


async def asettle(steps: Sifting, withhold: AsyncWithhold) -> Any:
    """The same without blocking the event loop."""
    try:
        content = next(steps)
        while True:
            content = steps.send(await withhold(content))
    except StopIteration as stop:
        return stop.value


@dataclass(frozen=True, slots=True)
class Watch:
    """How one tool call is watched.

    Args:
        refuse: Whether these arguments are to be refused.
        arefuse: The same without blocking the event loop.
        withhold: Whether this content is to be withheld.
        awithhold: The same without blocking the event loop.
        told: What the model gets in place of a refused call.
        sentence: Stands in place of what is withheld.
    """

    refuse: Callable[[Mapping[str, Any]], bool]
    arefuse: Callable[[Mapping[str, Any]], Awaitable[bool]]
    withhold: Withhold
    awithhold: AsyncWithhold
    told: ToolMessage
    sentence: str


def guarded_tool(tool: BaseTool, given: Collection[str], watch: Watch) -> BaseTool:
    """A tool of the same class for one call, which is watched; the one given stays as it was.

    Args:
        tool: The tool.
        given: Names of the arguments that the model gave; what else it is run with, and doesn't show to models, is the
            library's.
        watch: Says what becomes of it.
    """
    kind = type(tool)
    sifted = functools.partial(sift, sentence=watch.sentence, pair=tool.response_format == "content_and_artifact")
    shown = {*given, *tool.args}

    def visible(tool_input: Any) -> Mapping[str, Any]:
        if not isinstance(tool_input, Mapping):
            return {"input": tool_input}
        return {name: value for name, value in tool_input.items() if name in shown}

    # Here, since another middleware may have changed the call on its way; and before any callback hears of it.
    @functools.wraps(kind.run)
    def run(self: Any, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        return watch.told if watch.refuse(visible(tool_input)) else kind.run(self, tool_input, *args, **kwargs)

    @functools.wraps(kind.arun)
    async def arun(self: Any, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        if await watch.arefuse(visible(tool_input)):
            return watch.told
        return await kind.arun(self, tool_input, *args, **kwargs)

    @functools.wraps(kind._run)
    def _run(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            output = kind._run(self, *args, **kwargs)
        except GraphBubbleUp:  # an interrupt: not a failure
            raise
        except Exception as error:
            if watch.withhold(str(error)):
                raise ToolException(watch.sentence) from None
            raise
        return settle(sifted(output), watch.withhold)

    @functools.wraps(kind._arun)
    async def _arun(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            output = await kind._arun(self, *args, **kwargs)
        except GraphBubbleUp:
            raise
        except Exception as error:
            if await watch.awithhold(str(error)):
                raise ToolException(watch.sentence) from None
            raise
        return await asettle(sifted(output), watch.awithhold)

    guarded = tool.model_copy()
    ours = {"run": run, "arun": arun, "_run": _run, "_arun": _arun}
    members = {"__module__": __name__, "__doc__": kind.__doc__, **ours}
    object.__setattr__(guarded, "__class__", type(f"Guarded{kind.__name__}", (kind,), members))
    return guarded
