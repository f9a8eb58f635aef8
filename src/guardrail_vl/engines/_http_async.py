"""HTTP by awaiting, over aiohttp: a session for each event loop, closed when its loop shuts down. Works on uvloop.

Not for forks (see `_live`).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from guardrail_vl.engines._http import CONNECT, KEEP_ALIVE, MAX_BODY, Reply, Request, Target, TransportError

# aiohttp warns of larger bodies as bytes, as writing them could hold up the loop.
_AT_ONCE: Final = 512 * 1024
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)


@dataclass(frozen=True)
class _Loop:
    """What belongs to one event loop."""

    session: aiohttp.ClientSession
    room: asyncio.Semaphore
    keeper: AsyncGenerator[None, None]
    """Its end closes the session. The loop ends its asynchronous generators when it shuts down."""


# Each loop changes its own entry only, in steps that other threads can't divide.
_Loops = dict[asyncio.AbstractEventLoop, _Loop]


class AsyncTransport:
    """A connection pool for each event loop. Let go, it closes its connections as `close` does.

    Args:
        target: Where requests go.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loops: _Loops = {}
        # It keeps the sessions alive until it runs; else a garbage collection could find them before they are closed.
        weakref.finalize(self, _close_all, self._loops, os.getpid())

    async def send(
        self,
        request: Request,
        timeout: float,  # noqa: ASYNC109 - the time is kept here
        on_body: Callable[[bytes], None] | None = None,
    ) -> Reply:
        """Send a request and read all of the reply.

        Args:
            request: What to send.
            timeout: Seconds for all of it.
            on_body: Called with the body as it comes, where the status is 200. None: nobody wants it.

        Raises:
            TransportError: There was no whole reply within that time.
        """
        own = self._loops.get(asyncio.get_running_loop()) or await self._open()
        state: list[str] = []
        try:
            async with asyncio.timeout(timeout):
                async with own.room:
                    state.append("sending")
                    return await _send(own.session, request, state, on_body)
        except TransportError:
            raise
        except Exception as error:
            failure = _failure(error, state)
        raise failure  # outside of the handler: the foreign error is not kept, and with it the headers it holds

    async def aclose(self) -> None:
        """Close the connections of the running loop. The next request opens new ones."""
        own = self._loops.get(asyncio.get_running_loop())
        if own is not None:
            await own.keeper.aclose()

    def close(self) -> None:
        """Close the connections of every loop: at once where the loop has ended, else as soon as it runs."""
        _close_all(self._loops, os.getpid())

    async def _open(self) -> _Loop:
        loop = asyncio.get_running_loop()
        for other in [other for other in list(self._loops) if other.is_closed()]:
            _forget(self._loops, other)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # `room` is the limit
                ssl=self._target.tls or True,
                keepalive_timeout=KEEP_ALIVE,
                resolver=aiohttp.ThreadedResolver(),
            ),
            headers={"Accept-Encoding": "identity", **self._target.headers},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_LIMIT,
            auto_decompress=False,
        )
        own = _Loop(session, asyncio.Semaphore(self._target.max_connections), _keep(self._loops, loop, session))
        await anext(own.keeper)  # does not really wait, so nothing else on this loop comes in between
        self._loops[loop] = own
        return own


async def _keep(
    loops: _Loops, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        loops.pop(loop, None)
        await session.close()


def _close_all(loops: _Loops, pid: int) -> None:
    if pid != os.getpid():  # in a forked child at its exit: these connections are the parent's
        return
    for loop in list(loops):
        if loop.is_closed():
            _forget(loops, loop)
            continue
        # A loop that runs ends the keeper now. One that doesn't, ends it when it next runs or shuts down: that is what
        # loops do with asynchronous generators that are let go.
        own = loops.pop(loop, None)
        if own is not None and loop.is_running():
            with contextlib.suppress(RuntimeError):  # it closed meanwhile
                asyncio.run_coroutine_threadsafe(own.keeper.aclose(), loop)


def _forget(loops: _Loops, loop: asyncio.AbstractEventLoop) -> None:
    """Let the session of a loop go that was closed without ending its asynchronous generators."""
    own = loops.pop(loop, None)
    if own is None:
        return
    closing = own.session.close()
    # On a closed loop this has nothing to wait for, so its first step is its last.
    with contextlib.suppress(StopIteration, RuntimeError):
        closing.send(None)
    closing.close()


async def _send(
    session: aiohttp.ClientSession, request: Request, state: list[str], on_body: Callable[[bytes], None] | None
) -> Reply:
    body: bytes | io.BytesIO | None = request.body or None
    if len(request.body) > _AT_ONCE:
        body = io.BytesIO(request.body)
    headers = {"Content-Type": "application/json"} if body else None
    url = URL(request.url, encoded=True)
    async with session.request(request.method, url, data=body, headers=headers, allow_redirects=False) as response:
        state.append("replying")
        length = response.content_length
        if length is not None and length > MAX_BODY:
            raise TransportError("too_large")
        chunks: list[bytes] = []
        size = 0
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > MAX_BODY:
                raise TransportError("too_large")
            chunks.append(chunk)
            if on_body is not None and response.status == 200:
                on_body(chunk)
        # Lower-case lookups work: this mapping ignores case.
        return Reply(response.status, response.headers, b"".join(chunks))


def _failure(error: Exception, state: list[str]) -> TransportError:
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return TransportError("tls", name)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return TransportError("connect", name)
    if isinstance(error, TimeoutError):
        return TransportError("timeout" if state else "busy", name)
    dropped = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError)
    if dropped and "replying" not in state:
        return TransportError("dropped", name)
    return TransportError("broken", name)
