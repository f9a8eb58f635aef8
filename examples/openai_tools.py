"""Tools behind a guarded client: a call's arguments are judged before your code sees them, its result before the model.

Needs the extras `embedded` and `openai`, and a key in OPENAI_API_KEY, or a server of your own in OPENAI_BASE_URL.
"""

from __future__ import annotations

import json
import os
from typing import Any

from openai import OpenAI

from guardrail_vl import BlockedError, Guard
from guardrail_vl.integrations.openai import guarded

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up in the cookbook.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
    },
}


def look_up(what: str) -> str:
    """The tool. It runs only with arguments that were approved."""
    print(f"look_up({what!r})")
    return f"{what}: wash them, cut them, cook them."


def answer(client: OpenAI, question: str) -> str:
    """One question, with as many tool calls as the model makes (five rounds at most)."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(5):
        try:
            reply = client.chat.completions.create(model=MODEL, messages=messages, tools=[LOOK_UP])
        except BlockedError as error:
            return f"blocked  {error.decision.stage}: {error.decision.reason}"
        message = reply.choices[0].message
        if not message.tool_calls:
            return f"answered {message.content}"
        messages.append({"role": "assistant", "content": message.content, "tool_calls": [
            {"id": call.id, "type": "function",
             "function": {"name": call.function.name, "arguments": call.function.arguments}}
            for call in message.tool_calls
        ]})  # fmt: skip
        for call in message.tool_calls:
            result = look_up(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "gave up  too many calls"


def main() -> None:
    """Ask something that needs the cookbook."""
    with guarded(OpenAI(), Guard()) as client:
        print(answer(client, "Look up what I need for tomato soup."))


if __name__ == "__main__":
    main()
