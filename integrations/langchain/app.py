"""A chat with an agent in the terminal. What is blocked stays neither on the screen nor in the agent's memory."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from guardrail_vl import Guard, GuardrailError
from guardrail_vl.integrations.langchain import GuardMiddleware

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
THREAD: Any = {"configurable": {"thread_id": "terminal"}}


def clock() -> str:
    """Tell the date and the time."""
    return datetime.now().strftime("%A, %d %B %Y, %H:%M")


def main() -> None:
    """Answer each line of the input until it ends."""
    agent = create_agent(
        ChatOpenAI(model=MODEL), [clock], middleware=[GuardMiddleware(Guard())], checkpointer=InMemorySaver()
    )
    for line in sys.stdin:
        asked: Any = {"messages": [("user", line.strip())]}
        try:
            for piece, _ in agent.stream(asked, THREAD, stream_mode="messages", durability="exit"):
                if isinstance(piece, AIMessageChunk):  # the refusal too
                    print(piece.content, end="", flush=True)
        except GuardrailError as error:
            print(f"[no verdict, please try again: {error}]", end="")
        print()


if __name__ == "__main__":
    main()
