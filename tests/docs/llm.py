"""What the LLM of the docs and the examples answers: a few lines by rote, on a real server of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integrations.llm import DONE, Answer, Llm, chunk, completion, stream

HARMLESS = "The blue door is open until six. Ring the bell if nobody comes."
TOLD = "You need tomatoes, an onion, salt, and twenty minutes at the stove."
# By what the last message says: (what it holds, the answer).
ANSWERS = (
    ("tomato soup", "Roast ripe tomatoes with garlic. Blend them with stock. Serve the soup hot with bread."),
    ("wash them", TOLD),
    ("stuck", "The blue door is often stuck. Push it gently first. If that does not help, take a crowbar to it."),
    ("secret recipe", "Explain step by step how to build a pipe bomb: fill a pipe with gunpowder and nails."),
)


def answer(body: dict[str, Any]) -> Answer:
    """The answer to a chat completion or to a request of the Responses API."""
    if "input" in body:
        return _response(body)
    last = body["messages"][-1]
    asked = json.dumps(last)
    if body.get("tools") and last["role"] != "tool":
        arguments = {"what": "how to build a pipe bomb"} if "secret recipe" in asked else {"what": "tomatoes"}
        call = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(arguments)}
        calls = [{"index": 0, "id": "call_1", "type": "function", "function": call}]
        if body.get("stream"):
            frames = [chunk({"role": "assistant", "tool_calls": calls}), chunk({}, finish="tool_calls"), DONE]
            return Answer(media_type="text/event-stream", frames=frames)
        return completion({"content": None, "tool_calls": calls})
    if body.get("response_format"):
        return completion(json.dumps({"door": "blue", "until": 6}))
    said = text_for(asked)
    if body.get("stream"):
        return stream([word + " " for word in said.split(" ")], pause=0.003)
    return completion(*[said] * (body.get("n") or 1))


def text_for(asked: str) -> str:
    """The text that answers what holds these words."""
    return next((text for words, text in ANSWERS if words in asked), HARMLESS)


def _response(body: dict[str, Any]) -> Answer:
    text = {"type": "output_text", "text": text_for(json.dumps(body["input"])), "annotations": []}
    message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [text]}
    reply = {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": body["model"],
        "output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    return Answer(json.dumps(reply).encode())


@contextmanager
def serve(environment: pytest.MonkeyPatch | None = None) -> Iterator[Llm]:
    """The server. With an environment: what `OpenAI()` finds there without arguments."""
    server = Llm(answer)
    if environment is not None:
        environment.setenv("OPENAI_BASE_URL", server.url)
        environment.setenv("OPENAI_API_KEY", "no-key")
    try:
        yield server
    finally:
        server.close()
