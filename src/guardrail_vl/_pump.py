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
from typing import TypeVar

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
    reader = asyncio.ensure_future(_read_all(source, inbox))
    running: dict[asyncio.Future[Decision], int] = {}
    getting: asyncio.Task[Item] | None = None
    try:
        while not hold.done:
            if hold.hungry and getting is None:
                getting = asyncio.ensure_future(inbox.get())
            waiting: set[asyncio.Future[object]] = set(running)  # type: ignore[arg-type]
            if getting is not None:
                waiting |= {getting, reader} if not reader.done() else {getting}  # type: ignore[arg-type]
            if getting is not None and reader.done() and inbox.empty() and not getting.done():
                getting.cancel()
                getting = None
                hold.end()
            elif waiting:
                await asyncio.wait(waiting, timeout=hold.due(time.monotonic()), return_when=asyncio.FIRST_COMPLETED)
            if getting is not None and getting.done():
                item = getting.result()
                getting = None
                hold.feed(item, _read(read, item), time.monotonic())
            for future in [one for one in running if one.done()]:
                hold.settle(running.pop(future), future.result())
            for check in hold.checks(time.monotonic()):
                running[asyncio.ensure_future(judge(check))] = check.ticket
            for item in hold.release():
                yield item
        if hold.stopped is None:
            await reader  # its error, if it had one
    finally:
        left = [one for one in (reader, getting, *running) if one is not None]
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)  # every error is looked at, or the loop would complain


async def _read_all(source: AsyncIterable[Item], inbox: asyncio.Queue[Item]) -> None:
    items = aiter(source)
    try:
        async for item in items:
            await inbox.put(item)
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
