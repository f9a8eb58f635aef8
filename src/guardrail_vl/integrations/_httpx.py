"""A guarding transport for httpx and httpx2: the two drivers of `wire.exchange`. It decides nothing.

The client below it is used whole, so that its proxies, authentication, event hooks and limits go on working.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Final

from guardrail_vl._pump import apump, pump
from guardrail_vl.errors import GuardrailError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations._annotation import Annotation
from guardrail_vl.streaming import Check
from guardrail_vl.verdict import Decision, Stage
from guardrail_vl.wire.exchange import (
    Answer,
    Effect,
    Head,
    Judge,
    Open,
    ReadBody,
    Rules,
    Seen,
    Streamed,
    Trail,
    Untouched,
    exchange,
    finish,
    stops,
)
from guardrail_vl.wire.sse import Frame, FrameSplitter

TRAIL: Final = "guardrail_vl.trail"
"""Key of the decisions among a response's extensions."""
ERROR: Final = "guardrail_vl.error"

# What is said of bytes that we decode, and may change.
_OWN_HEADERS: Final = frozenset(("content-length", "content-encoding", "transfer-encoding", "content-type"))


class _Raising:
    """A response whose status is an error of ours: raised as it is, neither wrapped nor tried again."""

    extensions: dict[str, Any]

    def raise_for_status(self) -> Any:
        raise self.extensions[ERROR]


class _Annotated:
    """A response that carries its decisions."""

    extensions: dict[str, Any]

    def json(self, **kwargs: Any) -> Any:
        value = super().json(**kwargs)  # type: ignore[misc]
        trail = self.extensions.get(TRAIL)
        if isinstance(value, dict) and trail is not None and trail.decisions:
            value["guardrail"] = Annotation(trail.decisions)
        return value


class _Frames:
    """Released frames; closing it closes upstream."""

    def __init__(self, frames: Generator[bytes, None, None], upstream: Any) -> None:
        self._frames, self._upstream = frames, upstream

    def __iter__(self) -> Iterator[bytes]:
        return self._frames

    def close(self) -> None:
        self._frames.close()
        self._upstream.close()


class _AsyncFrames:
    """The same for an event loop."""

    def __init__(self, frames: Any, upstream: Any) -> None:
        self._frames, self._upstream = frames, upstream

    def __aiter__(self) -> AsyncIterator[bytes]:
        frames: AsyncIterator[bytes] = self._frames
        return frames

    async def aclose(self) -> None:
        await self._frames.aclose()
        await self._upstream.aclose()


class _Transport:
    """What both have: the guard, the rules, and how responses are made."""

    kinds: ClassVar[Any]
    """The library's own classes, with ours mixed in."""

    def __init__(self, client: Any, guard: Guard, rules: Rules) -> None:
        self.client, self.guard, self.rules, self.seen = client, guard, rules, Seen()

    def outgoing(self, request: Any, body: bytes | None) -> Any:
        if body is None:
            return request
        headers = [(k, v) for k, v in request.headers.raw if k.lower() not in (b"content-length", b"transfer-encoding")]
        return self.kinds.request(
            request.method, request.url, headers=headers, content=body, extensions=request.extensions
        )

    def respond(self, answer: Answer, upstream: Any, trail: Trail) -> Any:
        below = {} if upstream is None else upstream.extensions
        if ERROR in below or isinstance(answer, Untouched):
            return upstream
        trail.inner = below.get(TRAIL)
        extensions = {TRAIL: trail}
        if isinstance(answer, Streamed):
            stream = self.held_back(answer, upstream)
            return self.kinds.annotated(
                upstream.status_code, headers=_kept(upstream), stream=stream, extensions=extensions
            )
        kept = _kept(upstream) if answer.from_upstream else [("content-type", answer.media_type)]
        headers = [*kept, ("content-length", str(len(answer.body)))]
        return self.kinds.annotated(answer.status, headers=headers, content=answer.body, extensions=extensions)

    def held_back(self, answer: Streamed, upstream: Any) -> Any:
        """The released frames, as the library's kind of stream."""
        raise NotImplementedError

    def failed(self, error: GuardrailError, request: Any) -> Any:
        return self.kinds.raising(400, request=request, content=b"", extensions={ERROR: error})

    def out(self, answer: Streamed, frame: Frame) -> bytes:
        answer.reader.released(frame)
        self.seen.add(answer.reader.reply_id)
        return frame.raw


class _Sync(_Transport):
    """Guards what a synchronous client sends and gets."""

    def handle_request(self, request: Any) -> Any:
        state = SimpleNamespace(upstream=None)
        trail = Trail()
        try:
            answer = self._run(
                exchange(request.method, _path(request), request.read(), self.rules, trail, self.seen), request, state
            )
        except BaseException as error:
            if state.upstream is not None:
                state.upstream.close()
            if isinstance(error, GuardrailError):
                return self.failed(error, request)
            raise
        return self.respond(answer, state.upstream, trail)

    def held_back(self, answer: Streamed, upstream: Any) -> Any:
        return self.kinds.frames(self._frames(answer, upstream), upstream)

    def _run(self, steps: Generator[Effect, Any, Answer], request: Any, state: Any) -> Answer:
        try:
            effect = next(steps)
            while True:
                effect = steps.send(self._perform(effect, request, state))
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer

    def _perform(self, effect: Effect, request: Any, state: Any) -> Any:
        match effect:
            case Judge():
                return list(self.guard.check_many(effect.contents, stage=effect.stage))
            case ReadBody():
                return state.upstream.read()
            case Open(beside=None):
                state.upstream = self._send(self.outgoing(request, effect.body))
                return _head(state.upstream)
            case Open():
                return self._beside(effect, request, state)

    def _send(self, request: Any) -> Any:
        return self.client.send(request, stream=True, follow_redirects=False)

    def _beside(self, effect: Open, request: Any, state: Any) -> tuple[list[Decision], Head | None]:
        assert effect.beside is not None
        pool = ThreadPoolExecutor(1, thread_name_prefix="guardrail-vl-upstream")
        coming: Future[Any] = pool.submit(contextvars.copy_context().run, self._send, request)
        pool.shutdown(wait=False)
        try:
            decisions = self._perform(effect.beside, request, state)
        except BaseException:
            coming.add_done_callback(_close_late)
            raise
        if stops(decisions, self.rules):
            # A thread in a system call can't be stopped: its answer is closed unread when its head has come.
            coming.add_done_callback(_close_late)
            return decisions, None
        state.upstream = coming.result()
        return decisions, _head(state.upstream)

    def _frames(self, answer: Streamed, upstream: Any) -> Generator[bytes, None, None]:
        def read() -> Iterator[Frame]:
            splitter = FrameSplitter()
            for chunk in upstream.iter_bytes():
                yield from splitter.feed(chunk)
            yield from splitter.flush()

        def judge(check: Check) -> Decision:
            return self.guard.check(check.turn, stage=Stage.RESPONSE)

        frames = pump(read(), answer.hold, answer.read, judge)
        try:
            for frame in frames:
                yield self.out(answer, frame)
        finally:
            frames.close()
            upstream.close()
        ending = finish(answer, self.rules)
        if ending:
            yield ending

    def close(self) -> None:
        self.client.close()


class _Async(_Transport):
    """Guards what an asynchronous client sends and gets."""

    async def handle_async_request(self, request: Any) -> Any:
        state = SimpleNamespace(upstream=None)
        trail = Trail()
        try:
            steps = exchange(request.method, _path(request), await request.aread(), self.rules, trail, self.seen)
            answer = await self._run(steps, request, state)
        except BaseException as error:
            if state.upstream is not None:
                await state.upstream.aclose()
            if isinstance(error, GuardrailError):
                return self.failed(error, request)
            raise
        return self.respond(answer, state.upstream, trail)

    def held_back(self, answer: Streamed, upstream: Any) -> Any:
        return self.kinds.async_frames(self._frames(answer, upstream), upstream)

    async def _run(self, steps: Generator[Effect, Any, Answer], request: Any, state: Any) -> Answer:
        try:
            effect = next(steps)
            while True:
                effect = steps.send(await self._perform(effect, request, state))
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer

    async def _perform(self, effect: Effect, request: Any, state: Any) -> Any:
        match effect:
            case Judge():
                checks = [self.guard.acheck(one, stage=effect.stage) for one in effect.contents]
                return [await checks[0]] if len(checks) == 1 else list(await asyncio.gather(*checks))
            case ReadBody():
                return await state.upstream.aread()
            case Open(beside=None):
                state.upstream = await self._send(self.outgoing(request, effect.body))
                return _head(state.upstream)
            case Open():
                return await self._beside(effect, request, state)

    async def _send(self, request: Any) -> Any:
        return await self.client.send(request, stream=True, follow_redirects=False)

    async def _beside(self, effect: Open, request: Any, state: Any) -> tuple[list[Decision], Head | None]:
        assert effect.beside is not None
        coming = asyncio.ensure_future(self._send(request))
        try:
            decisions = await self._perform(effect.beside, request, state)
            if not stops(decisions, self.rules):
                state.upstream = await coming
                return decisions, _head(state.upstream)
            return decisions, None
        finally:
            if state.upstream is None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
                if not coming.cancelled() and coming.exception() is None:
                    await coming.result().aclose()

    async def _frames(self, answer: Streamed, upstream: Any) -> AsyncIterator[bytes]:
        async def read() -> AsyncIterator[Frame]:
            splitter = FrameSplitter()
            async for chunk in upstream.aiter_bytes():
                for frame in splitter.feed(chunk):
                    yield frame
            for frame in splitter.flush():
                yield frame

        async def judge(check: Check) -> Decision:
            return await self.guard.acheck(check.turn, stage=Stage.RESPONSE)

        frames = apump(read(), answer.hold, answer.read, judge)
        try:
            async for frame in frames:
                yield self.out(answer, frame)
        finally:
            await frames.aclose()
            await upstream.aclose()
        ending = finish(answer, self.rules)
        if ending:
            yield ending

    async def aclose(self) -> None:
        await self.client.aclose()


@functools.cache
def transports(lib: ModuleType) -> Any:
    """The guarding transports for one HTTP library: a namespace with `sync` and `asynchronous`.

    Args:
        lib: `httpx` or `httpx2`.
    """
    kinds = SimpleNamespace(
        request=lib.Request,
        annotated=type("GuardedResponse", (_Annotated, lib.Response), {}),
        raising=type("StoppedResponse", (_Raising, lib.Response), {}),
        frames=type("GuardedStream", (_Frames, lib.SyncByteStream), {}),
        async_frames=type("AsyncGuardedStream", (_AsyncFrames, lib.AsyncByteStream), {}),
    )
    return SimpleNamespace(
        sync=type("GuardTransport", (_Sync, lib.BaseTransport), {"kinds": kinds}),
        asynchronous=type("AsyncGuardTransport", (_Async, lib.AsyncBaseTransport), {"kinds": kinds}),
    )


def _path(request: Any) -> str:
    # As it is sent: a decoded path may read differently.
    raw: bytes = request.url.raw_path
    return raw.decode("ascii", "replace").partition("?")[0]


def _head(upstream: Any) -> Head:
    media_type = upstream.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Head(upstream.status_code, media_type)


def _kept(upstream: Any) -> list[tuple[str, str]]:
    kept = [(k, v) for k, v in upstream.headers.multi_items() if k.lower() not in _OWN_HEADERS]
    return [*kept, ("content-type", upstream.headers.get("content-type", "application/json"))]


def _close_late(coming: Future[Any]) -> None:
    if not coming.cancelled() and coming.exception() is None:
        coming.result().close()
