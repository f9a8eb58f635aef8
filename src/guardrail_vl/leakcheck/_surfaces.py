"""How each surface of an OpenAI client is used, written once for the sync and the async client.

The coroutines here await what is awaitable and take what is not as it is. Over a sync client they never wait, so they
are run without an event loop (`drive`). Knows no guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from guardrail_vl.leakcheck.log import Log
from guardrail_vl.leakcheck.script import MODEL

T = TypeVar("T")
Call = Callable[[Any, dict[str, Any], Log], Awaitable[None]]


class Answer(BaseModel):
    """The structured output that the `parse` surfaces ask for."""

    answer: str


class Unsupported(Exception):
    """This client has no such surface; says why."""


def drive(work: Coroutine[Any, Any, T], *, asynchronous: bool) -> T:
    """Run it: on an event loop, or, over a sync client, straight through."""
    if asynchronous:
        return asyncio.run(work)
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("A sync client gave something to wait for.")


# ---- sync or async, as it comes -----------------------------------------------------------------------------------


async def settle(value: Any) -> Any:
    """The value, awaited if it must be."""
    return await value if inspect.isawaitable(value) else value


END: Final = object()
"""After the last item of a stream."""


async def advance(stream: Any) -> Any:
    """The next item of a stream, sync or async; `END` after the last."""
    if hasattr(stream, "__anext__"):
        try:
            return await stream.__anext__()
        except StopAsyncIteration:
            return END
    return next(stream, END)


async def each(stream: Any, use: Callable[[Any], None]) -> None:
    """Every item of a stream."""
    items = stream.__aiter__() if hasattr(stream, "__aiter__") else iter(stream)
    while (item := await advance(items)) is not END:
        use(item)


class entered:
    """A context manager, sync or async."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        if hasattr(self._manager, "__aenter__"):
            return await self._manager.__aenter__()
        return self._manager.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> Any:
        if hasattr(self._manager, "__aexit__"):
            return await self._manager.__aexit__(kind, error, tb)
        return self._manager.__exit__(kind, error, tb)


# ---- surfaces -----------------------------------------------------------------------------------------------------


def reach(client: Any, *paths: str) -> Any:
    """What stands at the first of these paths that the client has.

    Raises:
        Unsupported: It has none of them.
    """
    for path in paths:
        found = client
        for name in path.split("."):
            found = getattr(found, name, None)
            if found is None:
                break
        else:
            return found
    raise Unsupported(f"the client has no {paths[0]}")


def _reply(*paths: str, **extra: Any) -> Call:
    async def call(client: Any, request: dict[str, Any], log: Log) -> None:
        log.reply(await settle(reach(client, *paths)(**request, **extra)))

    return call


def _stream(*paths: str) -> Call:
    async def call(client: Any, request: dict[str, Any], log: Log) -> None:
        stream = await settle(reach(client, *paths)(**request, stream=True))
        await each(stream, log.event)

    return call


def _value(*paths: str) -> Call:
    async def call(client: Any, request: dict[str, Any], log: Log) -> None:
        got = await settle(reach(client, *paths)(**request))
        log.value(getattr(got, "text", None) or got)

    return call


async def _chat_helper(client: Any, request: dict[str, Any], log: Log) -> None:
    manager = reach(client, "chat.completions.stream", "beta.chat.completions.stream")(**request)
    async with entered(manager) as stream:
        await each(stream, log.value)
        log.reply(await settle(stream.get_final_completion()))


async def _responses_helper(client: Any, request: dict[str, Any], log: Log) -> None:
    async with entered(reach(client, "responses.stream")(**request)) as stream:
        await each(stream, log.value)
        # The library's own helper knows no final response of a stream that was filtered: it raises RuntimeError.
        if not log.has_refusal:
            log.reply(await settle(stream.get_final_response()))


def _raw(path: str) -> Call:
    async def call(client: Any, request: dict[str, Any], log: Log) -> None:
        got = await settle(reach(client, f"{path}.with_raw_response.create")(**request))
        log.value(dict(got.headers))
        log.raw(got.http_response.content)
        log.value(await settle(got.parse()))

    return call


async def _raw_stream(client: Any, request: dict[str, Any], log: Log) -> None:
    create = reach(client, "chat.completions.with_raw_response.create")
    got = await settle(create(**request, stream=True))
    await each(await settle(got.parse()), log.event)


async def _streaming_response(client: Any, request: dict[str, Any], log: Log) -> None:
    create = reach(client, "chat.completions.with_streaming_response.create")
    chunks: list[bytes] = []
    async with entered(create(**request)) as got:
        try:
            await each(got.iter_bytes(), chunks.append)
        finally:
            log.raw(b"".join(chunks))


async def _with_options(client: Any, request: dict[str, Any], log: Log) -> None:
    await _created(client.with_options(timeout=20.0), request, log)


async def _copy(client: Any, request: dict[str, Any], log: Log) -> None:
    await _created(client.copy(max_retries=0), request, log)


async def _created(client: Any, request: dict[str, Any], log: Log) -> None:
    if request.get("stream"):
        await each(await settle(client.chat.completions.create(**request)), log.event)
    else:
        log.reply(await settle(client.chat.completions.create(**request)))


async def _post(client: Any, request: dict[str, Any], log: Log) -> None:
    from openai.types.chat import ChatCompletion

    log.reply(await settle(client.post("/chat/completions", body=request, cast_to=ChatCompletion)))


async def _unknown(client: Any, request: dict[str, Any], log: Log) -> None:
    log.value(await settle(client.post("/dreams", body=request, cast_to=object)))


async def _types(client: Any, request: dict[str, Any], log: Log) -> None:
    import openai
    from openai.types.chat import ChatCompletion

    reply = await settle(client.chat.completions.create(**request))
    log.value(reply)
    kinds = (openai.OpenAI, openai.AsyncOpenAI)
    same = type(client) in kinds and type(reply) is ChatCompletion
    log.text("same types" if same else f"{type(client).__qualname__}, {type(reply).__qualname__}")


async def _realtime(client: Any, request: dict[str, Any], log: Log) -> None:
    if importlib.util.find_spec("websockets") is None:
        raise Unsupported("the package websockets is not installed")
    async with entered(reach(client, "realtime.connect", "beta.realtime.connect")(**request)):
        log.text("connected")


async def _threads(client: Any, request: dict[str, Any], log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # deprecated, and still there
        log.value(await settle(reach(client, "beta.threads.create_and_run")(**request)))


async def _history(client: Any, request: dict[str, Any], log: Log) -> None:
    """Two calls; what the caller got of the first, if anything, is part of the second."""
    messages, model = list(request["messages"]), request["model"]
    try:
        reply = await settle(client.chat.completions.create(model=model, messages=messages))
    except Exception as error:
        log.aside([str(error), repr(error)])
    else:
        log.aside(reply)
        messages.append(reply.choices[0].message.model_dump(exclude_none=True, include={"role", "content", "refusal"}))
    messages.append({"role": "user", "content": request["then"]})
    log.reply(await settle(client.chat.completions.create(model=model, messages=messages)))


async def _previous(client: Any, request: dict[str, Any], log: Log) -> None:
    """Two calls, the second as the provider's own continuation of the first."""
    create, model = reach(client, "responses.create"), request["model"]
    first = await settle(create(model=model, input=request["input"]))
    log.aside(first)
    log.reply(await settle(create(model=model, input=request["then"], previous_response_id=first.id)))


async def _cancel(client: Any, request: dict[str, Any], log: Log) -> None:
    """Walk away: a task is cancelled, a sync stream is closed after its first event."""

    async def read() -> None:
        stream = await settle(client.chat.completions.create(**request, stream=True))
        if not hasattr(stream, "__aiter__"):
            log.event(next(iter(stream)))
            stream.close()
            return
        await each(stream, log.event)

    if not hasattr(client, "__aenter__"):
        await read()
        return
    task = asyncio.ensure_future(read())
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


SURFACES: Final[Mapping[str, Call]] = {
    "chat.create": _reply("chat.completions.create"),
    "chat.stream": _stream("chat.completions.create"),
    "chat.parse": _reply("chat.completions.parse", "beta.chat.completions.parse", response_format=Answer),
    "chat.stream_helper": _chat_helper,
    "chat.raw": _raw("chat.completions"),
    "chat.raw_stream": _raw_stream,
    "chat.streaming_response": _streaming_response,
    "chat.with_options": _with_options,
    "chat.copy": _copy,
    "chat.post": _post,
    "chat.history": _history,
    "chat.cancel": _cancel,
    "chat.types": _types,
    "chat.retrieve": _reply("chat.completions.retrieve"),
    "responses.create": _reply("responses.create"),
    "responses.stream": _stream("responses.create"),
    "responses.stream_helper": _responses_helper,
    "responses.parse": _reply("responses.parse", text_format=Answer),
    "responses.raw": _raw("responses"),
    "responses.previous": _previous,
    "responses.retrieve": _reply("responses.retrieve"),
    "completions.create": _reply("completions.create"),
    "completions.stream": _stream("completions.create"),
    "audio.speech": _value("audio.speech.create"),
    "images.generate": _value("images.generate"),
    "batches.create": _value("batches.create"),
    "realtime.connect": _realtime,
    "threads.run": _threads,
    "unknown.post": _unknown,
}
"""What to do with a client on each surface that has one caller."""


# ---- several users ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a user of a client reads a stream."""

    open: Callable[[Any, dict[str, Any], Log], Any]
    """Opens one, of a client and a request; what it gives may have to be awaited."""
    take: Callable[[Any, Any, Log], None]
    """Notes one item of a client's stream."""
    read: Call
    """Reads one from beginning to end."""


CHAT_STREAM: Final = Streaming(
    open=lambda client, request, log: client.chat.completions.create(**request, stream=True),
    take=lambda client, item, log: log.event(item),
    read=SURFACES["chat.stream"],
)
Watched = Callable[[Log, Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]


def _asking(request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {"model": MODEL, "messages": [{"role": "user", "content": said}]}
        for name, said in request["users"].items()
    }


async def interleave(
    client: Any, request: Mapping[str, Any], logs: Mapping[str, Log], watched: Watched, streaming: Streaming
) -> None:
    """One stream a user, read an item of each in turn."""
    streams: dict[str, Any] = {}

    async def open_one(name: str, asked: dict[str, Any]) -> None:
        stream = await settle(streaming.open(client, asked, logs[name]))
        streams[name] = stream.__aiter__() if hasattr(stream, "__aiter__") else iter(stream)

    async def step(name: str) -> None:
        item = await advance(streams[name])
        if item is END:
            del streams[name]
        else:
            streaming.take(client, item, logs[name])

    for name, asked in _asking(request).items():
        await watched(logs[name], open_one(name, asked))
    while streams:
        for name in tuple(streams):
            before = logs[name].ended
            await watched(logs[name], step(name))
            if logs[name].ended and not before:
                streams.pop(name, None)


def together(
    make: Callable[[], Any],
    request: Mapping[str, Any],
    logs: Mapping[str, Log],
    watched: Watched,
    streaming: Streaming,
    *,
    asynchronous: bool,
) -> None:
    """One stream a user, all at once on one client: in tasks, or in threads."""
    asking = _asking(request)

    def one(client: Any, name: str) -> Coroutine[Any, Any, None]:
        return watched(logs[name], streaming.read(client, asking[name], logs[name]))  # type: ignore[arg-type]

    async def in_tasks() -> None:
        client = make()
        try:
            await asyncio.gather(*(one(client, name) for name in asking))
        finally:
            await settle(client.close())

    if asynchronous:
        asyncio.run(in_tasks())
        return
    client = make()
    try:
        with ThreadPoolExecutor(len(asking)) as threads:
            for work in [threads.submit(drive, one(client, name), asynchronous=False) for name in asking]:
                work.result()
    finally:
        drive(settle(client.close()), asynchronous=False)
