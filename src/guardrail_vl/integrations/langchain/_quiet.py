"""Runs something so that no callback, stream or tracer of the app learns of it: what nobody has judged yet."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from typing import Any, ParamSpec, TypeVar

from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracers
from langsmith.run_helpers import tracing_context

P = ParamSpec("P")
T = TypeVar("T")


def _silence() -> None:
    """In a context of one's own: forget the run that this is part of, and every tracer that listens to it."""
    var_child_runnable_config.set(None)
    for variable, *_ in tracers._configure_hooks:
        variable.set(None)


def quiet_context() -> contextvars.Context:
    """A copy of this context in which nobody listens. What an app keeps in it is still there."""
    context = contextvars.copy_context()
    context.run(_silence)
    return context


def quietly(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it unheard."""

    def call() -> T:
        with tracing_context(enabled=False):
            return function(*args, **kwargs)

    return quiet_context().run(call)


async def aquietly(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same, awaited."""

    async def call() -> T:
        with tracing_context(enabled=False):
            return await function(*args, **kwargs)

    return await asyncio.create_task(call(), context=quiet_context())


def quiet_items(source: Callable[[], Iterable[T]]) -> Generator[T, None, None]:
    """Items that are made unheard, one when it is asked for."""
    context = quiet_context()

    def unheard(step: Callable[[], Any]) -> Any:
        with tracing_context(enabled=False):
            return step()

    items: Any = context.run(unheard, lambda: iter(source()))
    done = object()
    try:
        while (item := context.run(unheard, lambda: next(items, done))) is not done:
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            context.run(unheard, close)


async def aquiet_items(source: Callable[[], AsyncIterable[T]]) -> AsyncGenerator[T, None]:
    """The same for an event loop. The source runs in one task, from its first item to its end."""
    queue: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue(1)

    async def run() -> None:
        with tracing_context(enabled=False):
            items = aiter(source())
            try:
                async for item in items:
                    await queue.put((True, item))
            finally:
                close = getattr(items, "aclose", None)
                if close is not None:
                    await close()

    async def read() -> None:
        try:
            await run()
        except Exception as error:
            await queue.put((False, error))
        else:
            await queue.put((False, None))

    task = asyncio.create_task(read(), context=quiet_context())
    try:
        while True:
            more, item = await queue.get()
            if more:
                yield item
            elif item is not None:
                raise item
            else:
                return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
