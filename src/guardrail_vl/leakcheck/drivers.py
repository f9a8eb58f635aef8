"""What a client under test is to the suite (`Driver`), and the drivers for OpenAI clients: guarded by us, or by nobody.

A driver uses the client as an app would and says what its caller saw. It knows no probe's verdict.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from guardrail_vl import __version__
from guardrail_vl.engines.base import Outcome as EngineOutcome
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError, MissingDependencyError
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


class Driver(Protocol):
    """A client under test."""

    @property
    def name(self) -> str:
        """For the report."""
        ...

    @property
    def version(self) -> str:
        """Of what is tested, for the report."""
        ...

    def run(self, probe: Probe, base_url: str) -> Seen:
        """Do what the probe says against the upstream at this URL, and say what the caller saw.

        Whatever happens is an outcome. A surface that this client doesn't have is `Seen.unsupported`.
        """
        ...


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


@dataclass(frozen=True)
class OpenAIDriver:
    """The openai package's client.

    Args:
        name: For the report.
        asynchronous: `AsyncOpenAI` instead of `OpenAI`.
        protect: Makes the guarded client of a client, given the guards in order; None: there is no guard.
        blocked: Names of the exceptions by which a caller learns that something was stopped.
        refusal: What a refusal says, where the guard writes one.
        sends_first: The prompt goes out while it is judged, as the app chose.
        lacks: Surfaces and setups that this client hasn't, with the reason.
    """

    name: str
    asynchronous: bool = False
    protect: Callable[[Any, tuple[Guard, ...]], Any] | None = None
    blocked: frozenset[str] = frozenset(("BlockedError",))
    refusal: str = ""
    sends_first: bool = False
    lacks: tuple[tuple[str, str], ...] = ()

    @property
    def version(self) -> str:
        """Of guardrail-vl and of the openai package."""
        return f"guardrail-vl {__version__}, openai {_openai().__version__}"

    def run(self, probe: Probe, base_url: str) -> Seen:
        """See `Driver`."""
        for name, why in self.lacks:
            if name in (probe.surface, probe.setup):
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
        async def work() -> None:
            client = self.client(probe, base_url)
            call = _surfaces.SURFACES[probe.surface]
            try:
                await self.watched(log, call(client, dict(probe.request), log))  # type: ignore[arg-type]
            finally:
                await _surfaces.settle(client.close())

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
                _surfaces.together(make, probe.request, logs, self.watched, asynchronous=self.asynchronous)
            else:
                _surfaces.drive(self._in_turn(make, probe, logs), asynchronous=self.asynchronous)
        return both(first.seen(), second.seen())

    async def _in_turn(self, make: Callable[[], Any], probe: Probe, logs: dict[str, Log]) -> None:
        client = make()
        try:
            await _surfaces.interleave(client, probe.request, logs, self.watched)
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

    def client(self, probe: Probe, base_url: str) -> Any:
        """The client that the probe asks for."""
        openai = _openai()
        options: dict[str, Any] = {"api_key": KEY, "timeout": TIMEOUT, "max_retries": 2}
        if probe.setup == "custom_http":
            options["http_client"] = self._own_http(openai)
        if probe.setup == "azure":
            kind = openai.AsyncAzureOpenAI if self.asynchronous else openai.AzureOpenAI
            made = kind(azure_endpoint=base_url.removesuffix("/v1"), api_version="2024-10-21", **options)
        else:
            made = (openai.AsyncOpenAI if self.asynchronous else openai.OpenAI)(base_url=base_url, **options)
        if self.protect is None:
            return made
        guards = (knows(OTHER), knows(MARK, WIDE)) if probe.setup == "two_guards" else (knows(*WORDS),)
        return self.protect(made, guards)

    def _own_http(self, openai: Any) -> Any:
        kind = next(k for k in openai.DefaultHttpxClient.__mro__ if k.__module__.startswith("httpx"))
        library = importlib.import_module(kind.__module__.partition(".")[0])

        def mark(request: Any) -> None:
            request.headers[OWN_HEADER] = "1"

        async def amark(request: Any) -> None:
            mark(request)

        if self.asynchronous:
            return library.AsyncClient(event_hooks={"request": [amark]})
        return library.Client(event_hooks={"request": [mark]})


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


def _openai() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise MissingDependencyError("openai", extra="openai", needed_for="This driver of leakcheck") from error


def ours(**settings: Any) -> Callable[[Any, tuple[Guard, ...]], Any]:
    """What makes an OpenAI client a guarded one, with settings of `guarded`."""

    def protect(client: Any, guards: tuple[Guard, ...]) -> Any:
        from guardrail_vl.integrations.openai import guarded

        for guard in guards:
            client = guarded(client, guard, **settings)
        return client

    return protect


REFUSAL: Final = "This was withheld."
_FULL: Final = (("chat.cancel", "with everything held back, a sync caller has nothing to walk away from"),)

DRIVERS: Final[dict[str, OpenAIDriver]] = {
    driver.name: driver
    for driver in (
        OpenAIDriver("openai", protect=ours()),
        OpenAIDriver("openai-async", asynchronous=True, protect=ours()),
        OpenAIDriver("openai-refuse", protect=ours(on_block="refuse", refusal=REFUSAL), refusal=REFUSAL,
                     blocked=frozenset(("ContentFilterFinishReasonError",))),
        OpenAIDriver("openai-beside", asynchronous=True, protect=ours(when="beside"), sends_first=True),
        OpenAIDriver("openai-full", protect=ours(stream="full"), lacks=_FULL),
    )
}  # fmt: skip
"""The drivers that ship, by name: our guard on the openai package's clients, in each of its modes."""

UNGUARDED: Final = OpenAIDriver("unguarded")
"""The plain client, without a guard: what the suite finds when there is nothing to find it sealed by."""


def load(name: str) -> Driver:
    """The driver with this name, or at this place: `package.module:attribute` (an instance, or what makes one).

    Raises:
        ConfigurationError: There is none.
    """
    if name in DRIVERS:
        return DRIVERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigurationError(
            f"No client is called {name!r}.", hint=f"One of {', '.join(DRIVERS)}, or package.module:attribute."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"There is no driver at {name!r}: {type(error).__name__}.") from error
    driver: Driver = found() if callable(found) else found
    return driver
