"""What an app builds with LangChain, and how it is asked: a chat model here, an agent in `_langchain_agents`.

Written once for sync and async: see `_surfaces`.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from guardrail_vl.leakcheck import _surfaces
from guardrail_vl.leakcheck._driving import KEY, TIMEOUT, guards_for, own_http
from guardrail_vl.leakcheck._langchain_values import Asked, asked, calls_of, event_of, plain, recorder, spoken
from guardrail_vl.leakcheck._surfaces import Answer, Unsupported, settle
from guardrail_vl.leakcheck.log import Log
from guardrail_vl.leakcheck.probe import Probe
from guardrail_vl.leakcheck.script import MODEL

Way = Literal["stream", "events", "events-v3"]
"""How streams are read: `stream`, `astream_events` of version 2, or the events of version 3."""


@dataclass(frozen=True, slots=True)
class How:
    """How an app is built and used."""

    asynchronous: bool
    way: Way
    guarded: bool


class App(ABC):
    """An app on a model of langchain-openai's, pointed at the scripted upstream."""

    def __init__(self, how: How, probe: Probe, base_url: str) -> None:
        import openai

        self.how = how
        self.probe = probe
        self.asked: Asked = asked(probe.request)
        if any("custom" in tool for tool in self.asked.tools):
            raise Unsupported("langchain-openai can't read the call of a custom tool in chat completions")
        self._base_url = base_url
        marked = probe.setup == "custom_http"
        self._http = own_http(openai, marked=marked, asynchronous=False)
        self._async_http = own_http(openai, marked=marked, asynchronous=True)

    async def close(self) -> None:
        """Let go of the connections."""
        self._http.close()
        if self.how.asynchronous:
            await self._async_http.aclose()

    # ---- the model ------------------------------------------------------------------------------------------------

    def bare(self, **settings: Any) -> Any:
        """The model that the probe asks for, without a guard."""
        from langchain_openai import AzureChatOpenAI, ChatOpenAI

        settings |= {"api_key": KEY, "timeout": TIMEOUT, "max_retries": 2}
        settings |= {"http_client": self._http, "http_async_client": self._async_http}
        if self.probe.setup == "azure":
            endpoint = self._base_url.removesuffix("/v1")
            return AzureChatOpenAI(
                azure_endpoint=endpoint, api_version="2024-10-21", azure_deployment=MODEL, **settings
            )
        responses = self.probe.surface.startswith("responses")
        return ChatOpenAI(model=MODEL, base_url=self._base_url, use_responses_api=responses, **settings)

    def protected(self, model: Any) -> Any:
        """The guarded model of a model."""
        if self.how.guarded:
            from guardrail_vl.integrations.langchain import guarded

            for guard in guards_for(self.probe):
                model = guarded(model, guard)
        return model

    # ---- how it is asked ------------------------------------------------------------------------------------------

    def named(self, target: Any, name: str) -> Any:
        """The method, in its sync or async kind."""
        return getattr(target, f"a{name}" if self.how.asynchronous else name)

    def config(self, log: Log, thread: str) -> dict[str, Any]:
        """Of a run: what its callback handlers are told is noted."""
        return {"callbacks": [recorder(lambda told: log.piece(self.plain(told)))]}

    def plain(self, value: Any) -> Any:
        """The value as JSON values, less what the caller wrote."""
        return plain(value, self.asked.own)

    @property
    @abstractmethod
    def asks(self) -> Any:
        """What answers: a model with its settings, or an agent."""

    @abstractmethod
    async def reply(self, given: Any, log: Log, thread: str = "one", asks: Any = None) -> list[Any]:
        """Ask for a whole reply. Gives the messages of it."""

    @abstractmethod
    def following(self, got: list[Any]) -> list[Any]:
        """What to send on the next turn, the first turn's reply being these messages."""

    @abstractmethod
    def sent(self, given: Any) -> Any:
        """What is asked, as the runnable takes it."""

    def open(self, given: Any, log: Log, thread: str = "one", asks: Any = None) -> Any:
        """Ask for a stream; what this gives may have to be awaited."""
        target = self.asks if asks is None else asks
        given, config = self.sent(given), self.config(log, thread)
        if self.how.way == "stream":
            return self.named(target, "stream")(given, config, **self.modes)
        if self.how.way == "events":
            return target.astream_events(given, config, version="v2")
        self.needs_v3(target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is new
            got = self.named(target, "stream_events")(given, config, version="v3")
        return _quiet(got) if self.how.asynchronous else got

    def needs_v3(self, target: Any) -> None:
        """Raise if there are no such events."""
        if not hasattr(target, "stream_events"):
            raise Unsupported("this LangChain has no events of version 3")

    @property
    def modes(self) -> dict[str, Any]:
        """Settings of a stream."""
        return {}

    def take(self, item: Any, log: Log) -> None:
        """Note one item of a stream."""
        log.piece(self.plain(item))
        for event in spoken(item):
            log.event(event)

    async def stream(self, given: Any, log: Log, thread: str = "one", asks: Any = None) -> None:
        """Read a stream to its end."""
        got = await settle(self.open(given, log, thread, asks))
        if hasattr(got, "__aexit__"):
            async with got:
                await self._read(got, log)
        else:
            await self._read(got, log)

    async def _read(self, stream: Any, log: Log) -> None:
        await _surfaces.each(stream, lambda item: self.take(item, log))
        if self.how.way == "events-v3":
            whole = stream.output
            log.aside(self.plain(await settle(whole() if callable(whole) else whole)))

    async def projected(self, given: Any, log: Log) -> None:
        """Read what stands beside the events of version 3."""
        await self._project(await settle(self.open(given, log)), log)

    async def _project(self, stream: Any, log: Log) -> None:
        """Read one message's text, reasoning and tool calls, each by itself, then the whole."""
        await _surfaces.each(stream.text, lambda piece: log.event(event_of(piece)))
        for one in (stream.reasoning, stream.tool_calls):
            log.aside(self.plain(await settle(one.get() if hasattr(one, "get") else one)))
        whole = await settle(stream.output)
        log.aside(self.plain(whole))
        log.event(event_of("", calls_of(whole), whole.response_metadata.get("finish_reason")))

    # ---- what only one kind of app has ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def kind(self) -> type:
        """The library's class of what answers."""

    @abstractmethod
    def chained(self) -> Any:
        """What answers, as a part of something larger."""

    @abstractmethod
    def copied(self) -> Any:
        """What answers, copied."""

    def configured(self) -> Any:
        """What answers, with other options."""
        return self.asks.with_config(tags=["leakcheck"])

    @abstractmethod
    async def structured(self, log: Log) -> None:
        """Ask for structured output."""

    def beside(self) -> Any:
        """What gives structured output with the message beside it."""
        raise Unsupported("an agent gives no structured output with the message beside it")

    def said(self, message: Any, log: Log, choice: int = 0) -> None:
        """Note a whole message."""
        log.aside(self.plain(message))
        for event in spoken(message):
            event["choices"][0]["index"] = choice
            log.event(event)


async def _quiet(work: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return await work


class ModelApp(App):
    """A chat model, with the probe's tools and settings bound."""

    def __init__(self, how: How, probe: Probe, base_url: str) -> None:
        super().__init__(how, probe, base_url)
        settings = {"use_previous_response_id": True} if probe.surface == "responses.previous" else {}
        self.model = self.protected(self.bare(**settings))

    @property
    def asks(self) -> Any:
        """The model, with what the probe binds to it."""
        return self.bound(self.model)

    def bound(self, model: Any) -> Any:
        """A model with the probe's tools and settings."""
        if self.asked.tools:
            model = model.bind_tools(self.asked.tools)
        return model.bind(**self.asked.fields) if self.asked.fields else model

    def sent(self, given: Any) -> Any:
        """The messages."""
        return given

    def following(self, got: list[Any]) -> list[Any]:
        """The whole history: a model remembers nothing."""
        return [*self.asked.messages, *got, *self.asked.then]

    async def reply(self, given: Any, log: Log, thread: str = "one", asks: Any = None) -> list[Any]:
        """One reply; all its choices where the probe asks for more than one."""
        config = self.config(log, thread)
        if "n" in self.asked.fields:
            kwargs = self.asked.fields | ({"tools": self.asked.tools} if self.asked.tools else {})
            got = await settle(self.named(self.model, "generate")([given], **config, **kwargs))
            messages = [one.message for one in got.generations[0]]
        else:
            messages = [await settle(self.named(self.asks if asks is None else asks, "invoke")(given, config))]
        for at, message in enumerate(messages):
            self.said(message, log, at)
        return messages

    async def structured(self, log: Log) -> None:
        """Structured output, parsed."""
        parse = self.model.with_structured_output(Answer)
        got = await settle(self.named(parse, "invoke")(self.asked.messages, self.config(log, "one")))
        log.aside(self.plain(got))
        log.text(json.dumps(got.model_dump()))

    @property
    def kind(self) -> type:
        """The model's class, whose instance a guarded one is."""
        from langchain_openai import ChatOpenAI

        return ChatOpenAI

    def chained(self) -> Any:
        """A chain in which the model is a link."""
        from langchain_core.runnables import RunnablePassthrough

        return RunnablePassthrough() | self.asks

    def copied(self) -> Any:
        """A copy of the model."""
        return self.bound(self.model.model_copy())

    def beside(self) -> Any:
        """What gives structured output with the message beside it."""
        return self.model.with_structured_output(Answer, method="function_calling", include_raw=True)
