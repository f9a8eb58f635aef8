"""Tools of a guarded agent: what one gives back is judged before any callback, stream or message holds it.

Finds and replaces content in what tools return. Knows no guard: whoever uses it says what is withheld.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import replace
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


def guarded_tool(tool: BaseTool, withhold: Withhold, awithhold: AsyncWithhold, sentence: str) -> BaseTool:
    """A tool of the same class that gives the sentence instead of what is withheld; the one given stays as it was.

    Args:
        tool: The tool.
        withhold: Judges content.
        awithhold: The same without blocking the event loop.
        sentence: Stands instead.
    """
    kind = type(tool)
    sifted = functools.partial(sift, sentence=sentence, pair=tool.response_format == "content_and_artifact")

    @functools.wraps(kind._run)
    def _run(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            output = kind._run(self, *args, **kwargs)
        except GraphBubbleUp:  # an interrupt: not a failure
            raise
        except Exception as error:
            if withhold(str(error)):
                raise ToolException(sentence) from None
            raise
        return settle(sifted(output), withhold)

    @functools.wraps(kind._arun)
    async def _arun(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            output = await kind._arun(self, *args, **kwargs)
        except GraphBubbleUp:
            raise
        except Exception as error:
            if await awithhold(str(error)):
                raise ToolException(sentence) from None
            raise
        return await asettle(sifted(output), awithhold)

    guarded = tool.model_copy()
    members = {"__module__": __name__, "__doc__": kind.__doc__, "_run": _run, "_arun": _arun}
    object.__setattr__(guarded, "__class__", type(f"Guarded{kind.__name__}", (kind,), members))
    return guarded
