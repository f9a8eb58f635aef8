"""What the drivers share: our guard that knows a few words, and how a probe is run over a client, sync or async.

Knows no client's library.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from guardrail_vl.engines.base import Outcome as EngineOutcome
from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.guard import Guard
from guardrail_vl.leakcheck import _surfaces
from guardrail_vl.leakcheck.content import BREAK, MARK, OTHER, WIDE, WORDS, harmful, harmful_picture
from guardrail_vl.leakcheck.log import Log
from guardrail_vl.leakcheck.probe import Probe
from guardrail_vl.leakcheck.script import OWN_HEADER
from guardrail_vl.leakcheck.seen import Seen
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine
from guardrail_vl.verdict import Label

TIMEOUT: Final = 20.0
"""Seconds that a client waits for the upstream."""
KEY: Final = "sk-leakcheck"


# ---- our guard ----------------------------------------------------------------------------------------------------


def knows(*words: str) -> Guard:
    """A guard to whom these words, the two halves together and a red picture are harmful; one word breaks it."""

    def script(prompt: Prompt) -> EngineOutcome:
        request, _, response = prompt.messages[-1].text.rpartition("AI assistant:\n")
        if BREAK in request + response:
            return EngineUnavailableError("The guard is broken, as the probe asks.")
        red = any(harmful_picture(image.pixels()) for image in prompt.images)
        asked, said = (
            Label.HARMFUL if red or harmful(side, words) else Label.UNHARMFUL for side in (request, response)
        )
        result = f"<result>\nRequest: {asked}\nResponse: {said}\n</result>"
        return Completion(f"<think>Looked for words.\n</think>\n\n{result}", model="leakcheck")

    return Guard(engine=ScriptedEngine(script, model="leakcheck"))


def guards_for(probe: Probe) -> tuple[Guard, ...]:
    """The guards that the probe asks for, in order."""
    return (knows(OTHER), knows(MARK, WIDE)) if probe.setup == "two_guards" else (knows(*WORDS),)


def own_http(openai: Any, *, marked: bool, asynchronous: bool) -> Any:
    """A caller's own client of the HTTP library that the openai package uses; `marked`: the upstream can tell."""
    kind = next(k for k in openai.DefaultHttpxClient.__mro__ if k.__module__.startswith("httpx"))
    library = importlib.import_module(kind.__module__.partition(".")[0])

    def mark(request: Any) -> None:
        request.headers[OWN_HEADER] = "1"

    async def amark(request: Any) -> None:
        mark(request)

    if asynchronous:
        return library.AsyncClient(verify=_tls(), event_hooks={"request": [amark] if marked else []})
    return library.Client(verify=_tls(), event_hooks={"request": [mark] if marked else []})


@functools.cache
def _tls() -> ssl.SSLContext:
    """The upstream speaks plain HTTP: the certificates that each client would read for itself are never used."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


# ---- a probe on a client ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClientDriver(ABC):
    """What a driver is made of, whatever its client.

    Args:
        name: For the report.
        asynchronous: The client is used on an event loop.
        blocked: Names of the exceptions by which a caller learns that something was stopped.
        refusal: What a refusal says, where the guard writes one.
        sends_first: The prompt goes out while it is judged, as the app chose.
        lacks: Surfaces, setups and probes that this client hasn't, with the reason.
    """

    name: str
    asynchronous: bool = False
    blocked: frozenset[str] = frozenset(("BlockedError",))
    refusal: str = ""
    sends_first: bool = False
    lacks: tuple[tuple[str, str], ...] = ()

    @property
    @abstractmethod
    def version(self) -> str:
        """Of what is tested, for the report."""

    @property
    @abstractmethod
    def surfaces(self) -> Mapping[str, _surfaces.Call]:
        """What to do with the client on each surface that has one caller."""

    @property
    @abstractmethod
    def streaming(self) -> _surfaces.Streaming:
        """How a user's stream is opened, and what is done with an item of it."""

    @abstractmethod
    def client(self, probe: Probe, base_url: str) -> Any:
        """The client that the probe asks for. Has a method `close`."""

    def run(self, probe: Probe, base_url: str) -> Seen:
        """See `Driver`."""
        for name, why in self.lacks:
            if name in (probe.id, probe.surface, probe.setup):
                return Seen("passed", unsupported=why)
        with Log(self.refusal) as log:
            try:
                if probe.surface in ("chat.interleave", "chat.together"):
                    return self._users(probe, base_url)
                self._one(probe, base_url, log)
            except _surfaces.Unsupported as reason:
                log.unsupported = str(reason)
        return replace(log.seen(), sends_first=self.sends_first)

    def _one(self, probe: Probe, base_url: str, log: Log) -> None:
        async def ask() -> None:
            if probe.surface not in self.surfaces:
                raise _surfaces.Unsupported(f"the client has no {probe.surface}")
            client = self.client(probe, base_url)
            try:
                await self.surfaces[probe.surface](client, dict(probe.request), log)
            finally:
                await _surfaces.settle(client.close())

        def work() -> Coroutine[Any, Any, None]:
            return self.watched(log, ask())

        if probe.setup == "in_loop" and not self.asynchronous:

            async def within() -> None:
                _surfaces.drive(work(), asynchronous=False)

            asyncio.run(within())
        else:
            _surfaces.drive(work(), asynchronous=self.asynchronous)

    def _users(self, probe: Probe, base_url: str) -> Seen:
        names = list(probe.request["users"])
        with Log(self.refusal) as first, Log(self.refusal) as second:
            logs = dict(zip(names, (first, second), strict=True))
            make = functools.partial(self.client, probe, base_url)
            if probe.surface == "chat.together":
                _surfaces.together(
                    make, probe.request, logs, self.watched, self.streaming, asynchronous=self.asynchronous
                )
            else:
                _surfaces.drive(self._in_turn(make, probe, logs), asynchronous=self.asynchronous)
        return both(first.seen(), second.seen())

    async def _in_turn(self, make: Callable[[], Any], probe: Probe, logs: dict[str, Log]) -> None:
        client = make()
        try:
            await _surfaces.interleave(client, probe.request, logs, self.watched, self.streaming)
        finally:
            await _surfaces.settle(client.close())

    async def watched(self, log: Log, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; an exception goes into the log as what the caller saw."""
        try:
            await work
        except _surfaces.Unsupported:
            raise
        except Exception as error:
            log.failed(error, blocked=not self.blocked.isdisjoint(kind.__name__ for kind in type(error).__mro__))


def both(good: Seen, other: Seen) -> Seen:
    """What two users saw, as one: the first one's text, the other's outcome. If the first one's failed, so did both."""
    spoiled = good.outcome != "passed"
    return replace(
        good,
        outcome="error" if spoiled else other.outcome,
        delivered=good.delivered + other.delivered,
        error_type=f"the harmless user's: {good.error_type or good.outcome}" if spoiled else other.error_type,
        tools_run=good.tools_run + other.tools_run,
        logged=good.logged + other.logged,
    )
