"""What is measured: an agent or a chat model of LangChain, guarded by us, by another middleware, or not at all.

A prompt is never the same twice. Every guard has the settings that its documentation leads to.
"""

import itertools
import tempfile
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

KEY = "sk-stub"
REFUSALS = ("I can't help with that.", "It was flagged for", "due to content policy")  # ours, OpenAI's, NeMo's
NEMO = """
models:
  - {{type: main, engine: openai, model: {guard}_yesno, parameters: {{base_url: "{base}", api_key: sk-stub}}}}
rails:
  input: {{flows: [self check input]}}
  output: {{flows: [self check output]}}
prompts:
  - task: self_check_input
    content: 'Message of a user: "{{{{ user_input }}}}". Is it harmful? Answer Yes or No.'
  - task: self_check_output
    content: 'Message of a bot: "{{{{ bot_response }}}}". Is it harmful? Answer Yes or No.'
"""


known = itertools.count()  # no two results are the same


class Blocked(Exception):
    pass


@tool
def look_up(name: str) -> str:
    """Look something up."""
    return f"It is known of {name} that it is wide and blue, and that {next(known)} have said so."


class App:
    """Made by `setup`; `lc_sync` and `lc_async` drive it."""

    def make(self, base, guard, llm, what="agent", by=None, tools=False, turns=1, cache=False):
        self.turns, self.number, self.agent, self.guard = turns, 0, what == "agent", None
        if by == "ours":
            from guardrail_vl import Guard

            self.guard = Guard.remote(base, model=f"{guard}_guardreasoner", api_key=KEY, cache=cache)
        model = ChatOpenAI(model=f"{llm}_tool" if tools else llm, base_url=base, api_key=KEY)
        if self.agent:
            middleware = [getattr(self, by)(base, guard)] if by else []
            self.app = create_agent(model, [look_up] if tools else [], middleware=middleware)
        elif by:
            from guardrail_vl.integrations.langchain import guarded

            self.app = guarded(model, self.guard)
        else:
            self.app = model

    def ours(self, base, guard):
        from guardrail_vl.integrations.langchain import GuardMiddleware

        return GuardMiddleware(self.guard)

    def moderation(self, base, guard):
        from langchain_openai.middleware import OpenAIModerationMiddleware
        from openai import AsyncOpenAI, OpenAI

        clients = {
            "client": OpenAI(base_url=base, api_key=KEY),
            "async_client": AsyncOpenAI(base_url=base, api_key=KEY),
        }
        return OpenAIModerationMiddleware(
            model=f"{guard}_moderation", check_input=True, check_output=True, check_tool_results=True, **clients
        )

    def nemo(self, base, guard):
        from nemoguardrails.integrations.langchain.middleware import GuardrailsMiddleware

        with tempfile.TemporaryDirectory() as folder:  # given as a string, 0.24.1 takes it for Colang, and has no rails
            (Path(folder) / "config.yml").write_text(NEMO.format(base=base, guard=guard))
            return GuardrailsMiddleware(config_path=folder)

    def asks(self, messages, prompt):
        self.number += 1
        asked = [*messages, HumanMessage(f"{prompt} Number {self.number}.")]
        return {"messages": asked} if self.agent else asked

    def told(self, got):
        """The messages so far, the answer last."""
        messages = got["messages"] if self.agent else [got]
        if not messages[-1].content.startswith("w0 "):
            raise Blocked
        return messages

    def shown(self, item):
        """The text of what a stream brings."""
        message = item[0] if self.agent else item
        if any(refusal in message.content for refusal in REFUSALS):
            raise Blocked
        return message.content
