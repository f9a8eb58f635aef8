"""LangChain: an agent (`create_agent`) with a guarding middleware: OpenAI's moderation, or NeMo's."""

import contextlib
import uuid

from guardrail_vl.leakcheck.drivers import KEY, TIMEOUT
from guardrail_vl.leakcheck.probe import TOOL

from .chat import CALLS, Chat
from .nemo import config


class Agent(Chat):
    surfaces = CALLS | {"chat.stream_helper"}
    fields = Chat.fields | {"tools", "logprobs"}
    blocked = frozenset(("OpenAIModerationError", "GuardrailViolation"))

    def __init__(self, name, packages, **settings):
        self.name = name
        self.packages = packages
        self.settings = settings

    def lacks(self, probe):
        # The agent's tools are its own: it runs them.
        if probe.request.get("tools") not in (None, [TOOL]):
            return "the agent has another tool"
        if probe.id == "out-tool-name":
            return "an agent answers a call of an unknown tool by asking the model again, without end here"
        return super().lacks(probe)

    def middleware(self, base_url):
        from langchain_openai.middleware import OpenAIModerationMiddleware
        from openai import AsyncOpenAI, OpenAI

        options = {"base_url": base_url, "api_key": KEY, "timeout": TIMEOUT}
        return OpenAIModerationMiddleware(
            check_input=True, check_output=True, check_tool_results=True, client=OpenAI(**options),
            async_client=AsyncOpenAI(**options), **self.settings,
        )  # fmt: skip

    async def make(self, probe, base_url):
        from langchain.agents import create_agent
        from langchain_core.tools import tool
        from langchain_openai import ChatOpenAI
        from langgraph.checkpoint.memory import InMemorySaver

        runs = []

        @tool("run", return_direct=True)
        def run(command: str) -> str:
            """Runs a command."""
            runs.append(command)
            return "done"

        options = {"logprobs": True} if probe.request.get("logprobs") else {}
        model = ChatOpenAI(model="leakcheck-model", base_url=base_url, api_key=KEY, timeout=TIMEOUT, **options)
        tools = [run] if probe.request.get("tools") else []
        agent = create_agent(model, tools, middleware=[self.middleware(base_url)], checkpointer=InMemorySaver())
        agent.leakcheck_runs = runs
        return agent

    def thread(self):
        return {"configurable": {"thread_id": uuid.uuid4().hex}}

    async def call(self, app, messages, log, thread=None):
        before = len(messages)
        try:
            got = await app.ainvoke({"messages": messages}, thread or self.thread())
        finally:
            log.tools_run = len(app.leakcheck_runs)
        if thread is None:
            self.read(got["messages"][before:], log)
        else:
            self.read(got["messages"][-1:], log)

    def read(self, messages, log):
        for message in messages:
            log.value(message.model_dump(mode="json"))
            if type(message).__name__.startswith("AIMessage"):
                self.said(message, log)

    def said(self, message, log):
        text = message.text if isinstance(message.text, str) else message.text()
        if self.is_refusal(text):
            log.refused()
        log.text(text)
        for call in getattr(message, "tool_call_chunks", None) or ():
            log.text(call["args"] or "")
        if not hasattr(message, "tool_call_chunks"):
            for call in message.additional_kwargs.get("tool_calls") or ():
                log.text(call["function"]["arguments"])
            if not message.additional_kwargs.get("tool_calls"):
                import json

                for call in message.tool_calls:
                    log.text(json.dumps(call["args"]))

    def is_refusal(self, text):
        return "flagged for" in text

    async def stream(self, app, messages, log):
        try:
            async for chunk, _ in app.astream({"messages": messages}, self.thread(), stream_mode="messages"):
                self.read([chunk], log)
        finally:
            log.tools_run = len(app.leakcheck_runs)

    async def history(self, app, messages, then, log):
        """The agent keeps the history itself, by its checkpointer."""
        thread = self.thread()
        from guardrail_vl.leakcheck import Log

        first = Log()
        with contextlib.suppress(Exception):
            await self.call(app, messages, first, thread)
        log.aside(first.seen().delivered)
        await self.call(app, [{"role": "user", "content": then}], log, thread)

    async def _one(self, probe, base_url, log):
        if probe.surface != "chat.stream_helper":
            await super()._one(probe, base_url, log)
            return
        app = await self.make(probe, base_url)
        try:
            async for event in app.astream_events(
                {"messages": list(probe.request["messages"])}, self.thread(), version="v2"
            ):
                if event["event"] == "on_chat_model_stream":
                    self.read([event["data"]["chunk"]], log)
        finally:
            log.tools_run = len(app.leakcheck_runs)


class NemoAgent(Agent):
    """NeMo's GuardrailsMiddleware, with its configuration in a folder."""

    def middleware(self, base_url):
        import tempfile
        from pathlib import Path

        from nemoguardrails.integrations.langchain.middleware import GuardrailsMiddleware

        folder = Path(tempfile.mkdtemp(prefix="leakcheck-nemo-"))
        (folder / "config.yml").write_text(config(base_url))
        return GuardrailsMiddleware(config_path=str(folder), raise_on_violation=True)

    def is_refusal(self, text):
        return "due to content policy" in text


_PACKAGES = ("langchain", "langchain-openai")
default = Agent("LangChain moderation", _PACKAGES)
error = Agent("LangChain moderation (error)", _PACKAGES, exit_behavior="error")
nemo = NemoAgent("NeMo middleware in LangChain", ("nemoguardrails", *_PACKAGES))
