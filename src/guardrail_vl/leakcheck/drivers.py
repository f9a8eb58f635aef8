"""What a client under test is to the suite (`Driver`), and the drivers for OpenAI clients: guarded by us, or by nobody.

A driver uses the client as an app would and says what its caller saw. It knows no probe's verdict.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from guardrail_vl import __version__
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.guard import Guard
from guardrail_vl.leakcheck import _proxied, _surfaces
from guardrail_vl.leakcheck._driving import KEY as KEY
from guardrail_vl.leakcheck._driving import TIMEOUT as TIMEOUT
from guardrail_vl.leakcheck._driving import ClientDriver, guards_for
from guardrail_vl.leakcheck._driving import both as both
from guardrail_vl.leakcheck._driving import knows as knows
from guardrail_vl.leakcheck._driving import own_http as own_http
from guardrail_vl.leakcheck.langchain import LangChainDriver
from guardrail_vl.leakcheck.probe import Probe
from guardrail_vl.leakcheck.probes import PROBES
from guardrail_vl.leakcheck.seen import Seen


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


@dataclass(frozen=True)
class OpenAIDriver(ClientDriver):
    """The openai package's client.

    Args:
        name: For the report.
        asynchronous: `AsyncOpenAI` instead of `OpenAI`.
        blocked: Names of the exceptions by which a caller learns that something was stopped.
        refusal: What a refusal says, where the guard writes one.
        sends_first: The prompt goes out while it is judged, as the app chose.
        lacks: Surfaces, setups and probes that this client hasn't, with the reason.
        protect: Makes the guarded client of a client, given the guards in order; None: there is no guard.
    """

    protect: Callable[[Any, tuple[Guard, ...]], Any] | None = None

    @property
    def version(self) -> str:
        """Of guardrail-vl and of the openai package."""
        return f"guardrail-vl {__version__}, openai {_openai().__version__}"

    @property
    def surfaces(self) -> Mapping[str, _surfaces.Call]:
        """See `ClientDriver`."""
        return _surfaces.SURFACES

    @property
    def streaming(self) -> _surfaces.Streaming:
        """See `ClientDriver`."""
        return _surfaces.CHAT_STREAM

    def client(self, probe: Probe, base_url: str) -> Any:
        """The client that the probe asks for."""
        openai = _openai()
        options: dict[str, Any] = {"api_key": KEY, "timeout": TIMEOUT, "max_retries": 2}
        if probe.setup == "custom_http":
            options["http_client"] = own_http(openai, marked=True, asynchronous=self.asynchronous)
        if probe.setup == "azure":
            kind = openai.AsyncAzureOpenAI if self.asynchronous else openai.AzureOpenAI
            made = kind(azure_endpoint=base_url.removesuffix("/v1"), api_version="2024-10-21", **options)
        else:
            made = (openai.AsyncOpenAI if self.asynchronous else openai.OpenAI)(base_url=base_url, **options)
        if self.protect is None:
            return made
        return self.protect(made, guards_for(probe))


def _openai() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise MissingDependencyError("openai", extra="openai", needed_for="This driver of leakcheck") from error


@dataclass(frozen=True)
class ProxyDriver(OpenAIDriver):
    """The openai package's client as it is, in front of it our proxy, which refuses: see `guardrail_vl.server`."""

    def client(self, probe: Probe, base_url: str) -> Any:
        """The client that the probe asks for, with a proxy for each guard between it and the upstream."""
        stack = contextlib.ExitStack()
        try:
            url = _proxied.behind(guards_for(probe), stack, base_url, self.refusal)
            made = super().client(probe, url)
        except BaseException:
            stack.close()
            raise
        made.close = _proxied.closing(made.close, stack, asynchronous=self.asynchronous)
        return made


def ours(**settings: Any) -> Callable[[Any, tuple[Guard, ...]], Any]:
    """What makes an OpenAI client a guarded one, with settings of `guarded`."""

    def protect(client: Any, guards: tuple[Guard, ...]) -> Any:
        from guardrail_vl.integrations.openai import guarded

        for guard in guards:
            client = guarded(client, guard, **settings)
        return client

    return protect


REFUSAL: Final = "This was withheld."
_ONE: Final = (("safe-chat-n", "an agent takes one answer of a reply"),)
_THREADS: Final = (
    *_ONE,
    ("chat.cancel", "a sync agent calls its model in a thread, which goes on when the caller leaves"),
)
_FULL: Final = (("chat.cancel", "with everything held back, a sync caller has nothing to walk away from"),)

_PROXY: Final = (("azure", "the proxy guards the API below one base URL"),)

DRIVERS: Final[dict[str, Driver]] = {
    driver.name: driver
    for driver in (
        OpenAIDriver("openai", protect=ours()),
        OpenAIDriver("openai-async", asynchronous=True, protect=ours()),
        OpenAIDriver("openai-refuse", protect=ours(on_block="refuse", refusal=REFUSAL), refusal=REFUSAL,
                     blocked=frozenset(("ContentFilterFinishReasonError",))),
        OpenAIDriver("openai-beside", asynchronous=True, protect=ours(when="beside"), sends_first=True),
        OpenAIDriver("openai-full", protect=ours(stream="full"), lacks=_FULL),
        ProxyDriver("proxy", refusal=REFUSAL, lacks=_PROXY, blocked=frozenset(("ContentFilterFinishReasonError",))),
        ProxyDriver("proxy-async", asynchronous=True, refusal=REFUSAL, lacks=_PROXY,
                    blocked=frozenset(("ContentFilterFinishReasonError",))),
        LangChainDriver("langchain"),
        LangChainDriver("langchain-async", asynchronous=True),
        LangChainDriver("langchain-events", asynchronous=True, way="events"),
        LangChainDriver("langchain-v3", way="events-v3"),
        LangChainDriver("langchain-v3-async", asynchronous=True, way="events-v3"),
        LangChainDriver("langchain-agent", agent=True, lacks=_THREADS),
        LangChainDriver("langchain-agent-async", asynchronous=True, agent=True, lacks=_ONE),
        LangChainDriver("langchain-agent-events", asynchronous=True, way="events", agent=True, lacks=_ONE),
        LangChainDriver("langchain-agent-v3", way="events-v3", agent=True, lacks=_THREADS),
        LangChainDriver("langchain-agent-v3-async", asynchronous=True, way="events-v3", agent=True, lacks=_ONE),
    )
}  # fmt: skip
"""The drivers that ship, by name: our guard on the openai package's clients in each of its modes, and on LangChain's
models and agents by each way to use them."""

UNGUARDED: Final = OpenAIDriver("unguarded")
"""The plain client, without a guard: what the suite finds when there is nothing to find it sealed by."""


def probes_of(driver: Driver) -> tuple[Probe, ...]:
    """The suite's probes and the driver's own (its attribute `probes`, if it has one); of one id, its own."""
    own = {probe.id: probe for probe in getattr(driver, "probes", ())}
    suite = {probe.id: probe for probe in PROBES}
    return tuple((suite | own).values())


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
