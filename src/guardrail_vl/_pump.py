"""The two drivers of a hold-back: they read items, run checks, and send out what is released. Nothing is decided here.

The synchronous one reads in the caller's thread (a source may depend on it) and judges in others; so what was approved
goes out when the next item has come. The asynchronous one reads in a task of its own, and sends out at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from guardrail_vl.errors import ContentError
from guardrail_vl.streaming import Check, HoldBack, Piece
from guardrail_vl.verdict import Decision

Item = TypeVar("Item")
Read = Callable[[Item], Sequence[Piece]]
"""The content that an item adds. Raises ContentError where that can't be told."""


def pump(
    source: Iterable[Item],
    hold: HoldBack[Item],
    read: Read[Item],
    judge: Callable[[Check], Decision],
) -> Generator[Item, None, None]:
    """The items of the source, each when it may go out. Ends early when the hold-back is stopped: see `hold.stopped`.

    An error of the source is raised after what came before it was judged and sent out. The source's `close`, if it has
    one, is called at the end, whatever the end is.
    """
    running: dict[Future[Decision], int] = {}
    items = iter(source)
    failure: BaseException | None = None
    pool = ThreadPoolExecutor(16, thread_name_prefix="guardrail-vl-stream")  # threads start as they are needed
    try:
        while not hold.done:
            if hold.hungry:
                try:
                    item = next(items)
                except StopIteration:
                    hold.end()
                except Exception as error:
                    failure = error
                    hold.end()
                else:
                    hold.feed(item, _read(read, item), time.monotonic())
            elif running:
                wait(running, hold.due(time.monotonic()), FIRST_COMPLETED)
            _settle(hold, running)
            for check in hold.checks(time.monotonic()):
                running[pool.submit(contextvars.copy_context().run, judge, check)] = check.ticket
            _settle(hold, running)
            yield from hold.release()
        if failure is not None and hold.stopped is None:
            raise failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a check under way must not hold up whoever leaves
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _settle(hold: HoldBack[Item], running: dict[Future[Decision], int]) -> None:
    for future in [one for one in running if one.done()]:
        hold.settle(running.pop(future), future.result())


async def apump(
    source: AsyncIterable[Item],
    hold: HoldBack[Item],
    read: Read[Item],
    judge: Callable[[Check], Awaitable[Decision]],
) -> AsyncGenerator[Item, None]:
    """The same without blocking the event loop. The source runs in one task, from its first item to its end."""
    inbox: asyncio.Queue[Item] = asyncio.Queue(1)  # so that upstream waits for a consumer that is slow
    news = asyncio.Event()  # something came: an item, a verdict, the end of the source, the time of a check that is due
    reader = asyncio.ensure_future(_read_all(source, inbox, news))
    reader.add_done_callback(lambda _: news.set())
    running: dict[asyncio.Future[Decision], int] = {}
    try:
        while not hold.done:
            news.clear()
            if hold.hungry and not inbox.empty():
                item = inbox.get_nowait()
                hold.feed(item, _read(read, item), time.monotonic())
            elif hold.hungry and reader.done():
                hold.end()
            elif not any(one.done() for one in running):
                await _wait(news, hold.due(time.monotonic()))
            for future in [one for one in running if one.done()]:
                hold.settle(running.pop(future), future.result())
            for check in hold.checks(time.monotonic()):
                judging = asyncio.ensure_future(judge(check))
                judging.add_done_callback(lambda _: news.set())
                running[judging] = check.ticket
            for item in hold.release():
                yield item
        if hold.stopped is None:
            await reader  # its error, if it had one
    finally:
        await _end([reader, *running])


async def _end(tasks: list[asyncio.Future[Any]]) -> None:
    """Cancel them, until they are over: a source may lose a cancellation that comes while it waits for an item."""
    left = set(tasks)
    while left:
        for one in left:
            one.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)
    for one in tasks:
        if not one.cancelled():
            one.exception()  # every error is looked at, or the loop would complain


async def _wait(news: asyncio.Event, seconds: float | None) -> None:
    """Until there is news, or the time is up. No task is made: this happens for every item."""
    timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, news.set)
    try:
        await news.wait()
    finally:
        if timer is not None:
            timer.cancel()


async def _read_all(source: AsyncIterable[Item], inbox: asyncio.Queue[Item], news: asyncio.Event) -> None:
    items = aiter(source)
    try:
        async for item in items:
            await inbox.put(item)
            news.set()
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await close()


def _read(read: Read[Item], item: Item) -> Sequence[Piece] | ContentError:
    try:
        return read(item)
    except ContentError as error:
        return error
