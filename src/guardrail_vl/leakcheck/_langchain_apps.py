"""What an app builds with LangChain: a chat model, or an agent with a checkpointer and tools that really run.

Written once for sync and async: see `_surfaces`. The guard comes in at two places, `protected` and `middleware`.
"""

from __future__ import annotations

import json
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from guardrail_vl.leakcheck import _surfaces
from guardrail_vl.leakcheck._driving import KEY, TIMEOUT, guards_for, own_http
from guardrail_vl.leakcheck._langchain_values import Asked, asked, calls_of, event_of, plain, recorder, spoken
from guardrail_vl.leakcheck._surfaces import Answer, Unsupported, settle
from guardrail_vl.leakcheck.log import Log
from guardrail_vl.leakcheck.probe import Probe
from guardrail_vl.leakcheck.script import MODEL

Way = Literal["stream", "events", "events-v3"]
"""How streams are read: `stream`, `astream_events` of version 2, or the events of version 3."""
ROUNDS: Final = 12
"""Steps of an agent, after which it is in a circle: the scripted model says the same again and again."""
MODES: Final = ["messages", "updates", "values", "custom"]


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
        self._http = own_http(openai, marked=probe.setup == "custom_http", asynchronous=how.asynchronous)

    async def close(self) -> None:
        """Let go of the connections."""
        await settle(self._http.aclose() if self.how.asynchronous else self._http.close())

    # ---- the model ------------------------------------------------------------------------------------------------

    def bare(self, **settings: Any) -> Any:
        """The model that the probe asks for, without a guard."""
        from langchain_openai import AzureChatOpenAI, ChatOpenAI

        settings |= {"api_key": KEY, "timeout": TIMEOUT, "max_retries": 2}
        settings["http_async_client" if self.how.asynchronous else "http_client"] = self._http
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


class AgentApp(App):
    """An agent with the probe's tools, a checkpointer, and the guarding middleware."""

    def __init__(self, how: How, probe: Probe, base_url: str) -> None:
        super().__init__(how, probe, base_url)
        from langgraph.checkpoint.memory import InMemorySaver

        self.ran: list[Any] = []
        self.saver = InMemorySaver()
        self.threads: dict[str, str] = {}
        self.known: set[str] = set()
        self.does: Mapping[str, Any] = probe.request.get("agent", {})
        self.agent = self._make()

    def _make(self) -> Any:
        from langchain.agents import create_agent

        return create_agent(
            self.bare(**self._settings()),
            [self._tool(one) for one in self.asked.tools],
            middleware=self._middleware(),
            checkpointer=self.saver,
            response_format=self._answer(),
        )

    def _settings(self) -> dict[str, Any]:
        """An agent calls the model itself, so the probe's settings are the model's own."""
        from langchain_openai import ChatOpenAI

        known = {name: value for name, value in self.asked.fields.items() if name in _settable(ChatOpenAI)}
        return {**known, "model_kwargs": {k: v for k, v in self.asked.fields.items() if k not in known}}

    def _middleware(self) -> list[Any]:
        listed: list[Any] = []
        if self.how.guarded:
            from guardrail_vl.integrations.langchain import GuardMiddleware

            listed += [GuardMiddleware(guard) for guard in guards_for(self.probe)]
        if "human" in self.does:
            from langchain.agents.middleware import HumanInTheLoopMiddleware

            listed.append(HumanInTheLoopMiddleware(interrupt_on={"run": True}))
        return listed

    def _answer(self) -> Any:
        from langchain.agents.structured_output import ProviderStrategy, ToolStrategy

        kind = "provider" if self.probe.surface.endswith(".parse") else self.does.get("answer")
        return {"provider": ProviderStrategy, "tool": ToolStrategy}[kind](Answer) if kind else None

    # ---- its tools ------------------------------------------------------------------------------------------------

    def _tool(self, definition: Mapping[str, Any]) -> Any:
        """The tool of a definition. It really runs, and ends the run unless the probe says what the agent does."""
        direct = not self.does
        if definition["type"] == "custom":
            return self._custom(definition, direct)
        from langchain_core.tools import StructuredTool

        told = definition.get("function", definition)

        async def work(**given: Any) -> Any:
            return await self._run(given)

        return StructuredTool.from_function(
            func=lambda **given: _surfaces.drive(self._run(given), asynchronous=False),
            coroutine=work if self.how.asynchronous else None,
            name=told["name"],
            description=told["description"],
            args_schema=told["parameters"],
            return_direct=direct,
        )

    def _custom(self, definition: Mapping[str, Any], direct: bool) -> Any:
        from langchain_openai import custom_tool

        async def work(text: str) -> Any:
            return await self._run(text)

        def run(text: str) -> Any:
            return _surfaces.drive(self._run(text), asynchronous=False)

        chosen: Any = work if self.how.asynchronous else run
        chosen.__name__, chosen.__doc__ = definition["name"], definition["description"]
        return custom_tool(return_direct=direct)(chosen)

    async def _run(self, given: Any) -> Any:
        self.ran.append(given)
        if "raises" in self.does:
            raise ValueError(self.does["raises"])
        if "subagent" in self.does:
            from langchain.agents import create_agent

            inner = create_agent(self.bare(), [])
            said = {"messages": [{"role": "user", "content": self.does["subagent"]}]}
            got = await settle(self.named(inner, "invoke")(said))
            return got["messages"][-1].text
        return self.does.get("gives", "done")

    # ---- how it is asked ------------------------------------------------------------------------------------------

    @property
    def asks(self) -> Any:
        """The agent."""
        return self.agent

    @property
    def modes(self) -> dict[str, Any]:
        """All kinds of streams at once."""
        return {"stream_mode": MODES, "subgraphs": True}

    def sent(self, given: Any) -> Any:
        """Messages as the agent's input; a command as it is."""
        if not isinstance(given, list):
            return given
        marked = [message.model_copy(update={"id": uuid.uuid4().hex}) for message in given]
        self.known |= {message.id for message in marked}
        return {"messages": marked}

    def following(self, got: list[Any]) -> list[Any]:
        """The next turn only: the checkpointer has the history."""
        return self.asked.then

    def config(self, log: Log, thread: str) -> dict[str, Any]:
        """Of a run, in its thread."""
        known = self.threads.setdefault(thread, uuid.uuid4().hex)
        return {**super().config(log, thread), "configurable": {"thread_id": known}, "recursion_limit": ROUNDS}

    @property
    def kind(self) -> type:
        """The graph's class."""
        from langgraph.graph.state import CompiledStateGraph

        return CompiledStateGraph

    def chained(self) -> Any:
        """A graph in which the agent is a node."""
        from langgraph.graph import MessagesState, StateGraph

        graph: Any = StateGraph(MessagesState)
        graph.add_node("agent", self.agent)
        graph.set_entry_point("agent")
        return graph.compile()

    def copied(self) -> Any:
        """A copy of the graph."""
        return self.agent.copy()

    async def structured(self, log: Log) -> None:
        """A run of an agent that answers by a schema."""
        await self.reply(self.asked.messages, log)

    async def projected(self, given: Any, log: Log) -> None:
        """Read the messages that stand beside the events of version 3, each by its parts."""
        try:
            run = await settle(self.open(given, log))
            messages = run.messages.__aiter__() if self.how.asynchronous else iter(run.messages)
            while (message := await _surfaces.advance(messages)) is not _surfaces.END:
                await self._project(message, log)
        finally:
            self.afterwards(log, "one")

    async def reply(self, given: Any, log: Log, thread: str = "one", asks: Any = None) -> list[Any]:
        """One run of the agent; what its checkpoints hold afterwards is noted."""
        target = self.agent if asks is None else asks
        new: list[Any] = []
        try:
            got = await settle(self.named(target, "invoke")(self.sent(given), self.config(log, thread)))
            log.aside(self.plain(got))
            new = self._new(got["messages"])
        finally:
            self.afterwards(log, thread)
        for message in new:
            self.said(message, log)
        return new

    async def stream(self, given: Any, log: Log, thread: str = "one", asks: Any = None) -> None:
        """One run of the agent as a stream; what its checkpoints hold afterwards is noted."""
        try:
            await super().stream(given, log, thread, asks)
        finally:
            self.afterwards(log, thread)

    def afterwards(self, log: Log, thread: str) -> None:
        """Note what lies in the checkpoints, which tools ran, and whether the state ends in a refusal."""
        log.tools_run = len(self.ran)
        log.aside(self.plain(self.ran))
        config = {"configurable": {"thread_id": self.threads[thread]}}
        kept = list(self.saver.list(config))
        log.aside(self.plain(kept))
        log.aside(self.plain([self.saver.storage, self.saver.blobs, self.saver.writes]))
        state = kept[0].checkpoint["channel_values"].get("messages", []) if kept else []
        new = self._new(state)
        if any(one.response_metadata.get("finish_reason") == "content_filter" for one in new):
            log.refused()
        self.known |= {one.id for one in new}

    def _new(self, messages: list[Any]) -> list[Any]:
        """What the model said on this turn."""
        return [one for one in messages if getattr(one, "type", "") == "ai" and one.id not in self.known]


def _settable(kind: Any) -> set[str]:
    return {name for key, field in kind.model_fields.items() for name in (key, field.alias) if name}
