"""A real ChatOpenAI on a real loopback server, and guards for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from guardrail_vl import Guard
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.integrations.llm import DONE, Answer, Llm, chunk, completion, stream

langchain_openai = pytest.importorskip("langchain_openai")
from langchain_openai import ChatOpenAI

BAD = "BADWORD"
Say = Callable[[dict[str, Any]], Answer]


def make_guard(delay: float = 0.0, **settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(by_keyword(BAD), delay=delay), **settings)


def chat(llm: Llm, **settings: Any) -> ChatOpenAI:
    options = {"model": "m", "api_key": "k", "base_url": llm.url, "max_retries": 0, **settings}
    return ChatOpenAI(**options)


def says(*texts: str | list[dict[str, Any]]) -> Say:
    """Answers in order, streamed or whole as asked: texts, or lists of tool calls. The last is said for ever."""
    left = list(texts)

    def say(body: dict[str, Any]) -> Answer:
        said = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(said, str):
            return stream(pieces(said)) if body.get("stream") else completion(said)
        message = {"content": None, "tool_calls": said}
        return call_stream(said) if body.get("stream") else completion(message)

    return say


def pieces(text: str) -> Iterator[str]:
    for at in range(0, len(text), 4):
        yield text[at : at + 4]


def tool_call(arguments: dict[str, Any], *, name: str = "run", number: int = 0) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function, "index": number}


def call_stream(calls: Iterable[dict[str, Any]]) -> Answer:
    frames = [chunk({"role": "assistant", "content": None})]
    for call in calls:
        function = call["function"]
        head = {**call, "function": {"name": function["name"], "arguments": ""}}
        frames.append(chunk({"tool_calls": [head]}))
        for piece in pieces(function["arguments"]):
            frames.append(chunk({"tool_calls": [{"index": call["index"], "function": {"arguments": piece}}]}))
    frames += [chunk({}, finish="tool_calls"), DONE]
    return Answer(media_type="text/event-stream", frames=frames, pause=0.001)
