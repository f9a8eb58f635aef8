"""An agent of LangChain's as an app builds one: with the guard, a checkpointer and tools that really run."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

from guardrail_vl.leakcheck import _surfaces
from guardrail_vl.leakcheck._driving import guards_for
from guardrail_vl.leakcheck._langchain_apps import App, How
from guardrail_vl.leakcheck._surfaces import Answer, settle
from guardrail_vl.leakcheck.log import Log
from guardrail_vl.leakcheck.probe import Probe

ROUNDS: Final = 12
"""Steps of an agent, after which it is in a circle: the scripted model says the same again and again."""
MODES: Final = ("messages", "updates", "values", "custom")


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

    def _guards(self) -> list[Any]:
        if not self.how.guarded:
            return []
        from guardrail_vl.integrations.langchain import GuardMiddleware

        return [GuardMiddleware(guard, name=f"Guard{at}") for at, guard in enumerate(guards_for(self.probe))]

    def _middleware(self) -> list[Any]:
        listed = self._guards()
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

            inner = create_agent(self.bare(), [], middleware=[] if self.does.get("bare") else self._guards())
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
        return {"stream_mode": list(MODES), "subgraphs": True}

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
        config: Any = {"configurable": {"thread_id": self.threads[thread]}}
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
