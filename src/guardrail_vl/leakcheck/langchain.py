"""The drivers for LangChain: a guarded `ChatOpenAI`, and an agent with the guarding middleware.

The model is the real one, pointed at the scripted upstream. Nothing of LangChain is imported before a driver runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from guardrail_vl import __version__
from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.leakcheck import _surfaces
from guardrail_vl.leakcheck._agents import AGENT_PROBES
from guardrail_vl.leakcheck._driving import ClientDriver
from guardrail_vl.leakcheck._langchain_agents import AgentApp
from guardrail_vl.leakcheck._langchain_apps import How, ModelApp, Way
from guardrail_vl.leakcheck._langchain_values import asked
from guardrail_vl.leakcheck._surfaces import Unsupported, settle
from guardrail_vl.leakcheck.log import Log
from guardrail_vl.leakcheck.probe import Probe

if TYPE_CHECKING:
    from guardrail_vl.leakcheck._langchain_apps import App

PACKAGES: Final = ("langchain", "langchain_core", "langchain_openai")


@dataclass(frozen=True)
class LangChainDriver(ClientDriver):
    """A chat model or an agent of LangChain's.

    Args:
        name: For the report.
        asynchronous: `ainvoke` and `astream` instead of `invoke` and `stream`.
        blocked: Names of the exceptions by which a caller learns that something was stopped.
        refusal: What a refusal says, where the guard writes one.
        sends_first: The prompt goes out while it is judged, as the app chose.
        lacks: Surfaces, setups and probes that this client hasn't, with the reason.
        way: How streams are read.
        agent: An agent; otherwise the model itself.
        guarded: False: there is no guard.
    """

    way: Way = "stream"
    agent: bool = False
    guarded: bool = True

    @property
    def version(self) -> str:
        """Of guardrail-vl and of LangChain's packages."""
        from importlib.metadata import version

        names = [name.replace("_", "-") for name in PACKAGES]
        _langchain()
        return ", ".join([f"guardrail-vl {__version__}", *(f"{name} {version(name)}" for name in names)])

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Probes that only this client runs: see `probes_of`."""
        return AGENT_PROBES if self.agent else ()

    @property
    def surfaces(self) -> Mapping[str, _surfaces.Call]:
        """See `ClientDriver`."""
        return SURFACES

    @property
    def streaming(self) -> _surfaces.Streaming:
        """See `ClientDriver`."""
        return STREAMING

    def client(self, probe: Probe, base_url: str) -> App:
        """The app that the probe asks for."""
        _langchain()
        how = How(self.asynchronous, self.way, self.guarded)
        return (AgentApp if self.agent else ModelApp)(how, probe, base_url)


def _langchain() -> None:
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            package = name.replace("_", "-")
            raise MissingDependencyError(package, extra="langchain", needed_for="This driver of leakcheck") from error


# ---- surfaces -----------------------------------------------------------------------------------------------------


async def _reply(app: App, request: dict[str, Any], log: Log) -> None:
    await app.reply(app.asked.messages, log)


async def _stream(app: App, request: dict[str, Any], log: Log) -> None:
    await app.stream(app.asked.messages, log)


async def _user(app: App, request: dict[str, Any], log: Log) -> None:
    await app.stream(asked(request).messages, log, thread=str(id(log)))


def _open(app: App, request: dict[str, Any], log: Log) -> Any:
    return app.open(asked(request).messages, log, thread=str(id(log)))


async def _chained(app: App, request: dict[str, Any], log: Log) -> None:
    """A stream through a chain or a graph; of version 3, through what stands beside its events."""
    if app.how.way == "events-v3":
        await app.projected(app.asked.messages, log)
    else:
        await app.stream(app.asked.messages, log, asks=app.chained())


async def _parse(app: App, request: dict[str, Any], log: Log) -> None:
    await app.structured(log)


async def _beside(app: App, request: dict[str, Any], log: Log) -> None:
    """The message beside its structured output."""
    asks = app.beside()
    got = await settle(app.named(asks, "invoke")(app.asked.messages, app.config(log, "one")))
    log.aside(app.plain(got))
    app.said(got["raw"], log)


async def _beside_stream(app: App, request: dict[str, Any], log: Log) -> None:
    if app.how.way == "events-v3":
        raise Unsupported("a chain has no events of version 3")
    await app.stream(app.asked.messages, log, asks=app.beside())


async def _configured(app: App, request: dict[str, Any], log: Log) -> None:
    await (app.stream if request.get("stream") else app.reply)(app.asked.messages, log, asks=app.configured())


async def _copy(app: App, request: dict[str, Any], log: Log) -> None:
    await app.reply(app.asked.messages, log, asks=app.copied())


async def _turns(app: App, request: dict[str, Any], log: Log) -> None:
    """Two turns; what the caller got of the first, if anything, is part of the second."""
    await _two(app, log, app.reply)


async def _two(app: App, log: Log, ask: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    first = Log()
    got = None
    try:
        got = await ask(app.asked.messages, first)
    except Exception as error:
        first.failed(error, blocked=False)
    log.aside(first.seen().delivered)
    await ask(app.following(got or []), log)


async def _types(app: App, request: dict[str, Any], log: Log) -> None:
    from langchain_core.messages import AIMessage

    (got,) = await app.reply(app.asked.messages, Log())
    same = isinstance(app.asks, app.kind) and type(got) is AIMessage
    log.text("same types" if same else f"{type(app.asks).__qualname__}, {type(got).__qualname__}")


async def _cancel(app: App, request: dict[str, Any], log: Log) -> None:
    """Walk away: a task is cancelled, a sync stream is closed after its first words."""
    if app.how.asynchronous:
        task = asyncio.ensure_future(app.stream(app.asked.messages, log))
        await asyncio.sleep(0.5)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return
    stream = app.open(app.asked.messages, log)
    leave = getattr(stream, "close", None) or getattr(stream, "abort", None)
    if leave is None:
        raise Unsupported("a stream of this kind can't be closed")
    for item in stream:
        app.take(item, log)
        if log.has_text:
            break
    leave()


async def _agent(app: App, request: dict[str, Any], log: Log) -> None:
    await _steps(app, log, app.reply)


async def _agent_stream(app: App, request: dict[str, Any], log: Log) -> None:
    await _steps(app, log, app.stream)


async def _steps(app: App, log: Log, ask: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    """An agent's turn; then what a human answers it, or the next turn."""
    if app.asked.then:
        await _two(app, log, ask)
        return
    await ask(app.asked.messages, log)
    human = app.probe.request["agent"].get("human")
    if human:
        from langgraph.types import Command

        await ask(Command(resume={"decisions": [human]}), log)


STREAMING: Final = _surfaces.Streaming(_open, lambda app, item, log: app.take(item, log), _user)
SURFACES: Final[Mapping[str, _surfaces.Call]] = {
    "chat.create": _reply,
    "chat.stream": _stream,
    "chat.parse": _parse,
    "chat.stream_helper": _chained,
    "chat.raw": _beside,
    "chat.raw_stream": _beside_stream,
    "chat.with_options": _configured,
    "chat.copy": _copy,
    "chat.history": _turns,
    "chat.cancel": _cancel,
    "chat.types": _types,
    "responses.create": _reply,
    "responses.stream": _stream,
    "responses.stream_helper": _chained,
    "responses.parse": _parse,
    "responses.raw": _beside,
    "responses.previous": _turns,
    "agent.run": _agent,
    "agent.stream": _agent_stream,
}
"""What to do with an app on each surface that has one caller."""
