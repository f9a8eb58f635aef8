"""One probe, as a value: a request on one surface of a client, what the upstream answers, and what should be seen.

Also the requests that the probes are made of. Knows no client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from guardrail_vl.leakcheck.content import LEAKS, SAFE, data_url
from guardrail_vl.leakcheck.script import MODEL, Reply
from guardrail_vl.leakcheck.seen import KEPT, PASSED, STOPPED, Expect, Outcome

Surface = Literal[
    "chat.create", "chat.stream", "chat.parse", "chat.stream_helper", "chat.raw", "chat.raw_stream",
    "chat.streaming_response", "chat.with_options", "chat.copy", "chat.post", "chat.history", "chat.interleave",
    "chat.together", "chat.cancel", "chat.types", "chat.retrieve",
    "responses.create", "responses.stream", "responses.stream_helper", "responses.parse", "responses.raw",
    "responses.previous", "responses.retrieve", "completions.create", "completions.stream",
    "audio.speech", "images.generate", "batches.create", "realtime.connect", "threads.run", "unknown.post",
    "agent.run", "agent.stream",
]  # fmt: skip
"""Where on a client a probe goes in, in the words of OpenAI's. A driver of another client maps them to its own.

`chat.history` makes two calls, the second (`then`) with what became of the first as history; `responses.previous`
makes two, the second by `previous_response_id`. `chat.interleave` reads two streams
in turn and `chat.together` several at once, in threads or tasks: the request is a user's name and their messages.
The `agent` surfaces are for clients that run tools themselves: `request["agent"]` says what its tool does.
`chat.cancel` walks away from a stream. `chat.types` says whether the client and its reply are of the library's classes.
"""
Setup = Literal["plain", "two_guards", "custom_http", "in_loop", "azure"]
"""How the client is made: `two_guards`, the first of which knows one word (`OTHER`) only; `custom_http`: with the
caller's own HTTP client; `in_loop`: called while an event loop runs."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe."""

    id: str
    title: str
    surface: Surface
    request: Mapping[str, Any] = field(repr=False)
    """Keyword arguments of the call, in OpenAI's wire names."""
    replies: tuple[Reply, ...] = field(repr=False)
    """What the upstream answers; see `Reply.when`."""
    expect: Expect = field(repr=False)
    rows: tuple[int, ...] = ()
    """Which of the `ROWS` it stands for."""
    setup: Setup = "plain"


ROWS: Final = {
    1: "a stream is delivered before it is checked",
    2: "only the first of several choices is read",
    3: "tool-call arguments are not read",
    4: "earlier turns and tool results are not read",
    5: "a message that is only a picture passes",
    6: "parse, stream helpers and raw responses are missing or unguarded",
    7: "with_options breaks the client, or sheds the guard",
    8: "other types come back; legacy completions are unguarded",
    9: "a blocked prompt is sent upstream all the same",
    10: "a guard that fails lets everything through",
    11: "what was blocked stays in the history",
    12: "tokens are streamed, the refusal follows",
    13: "of text with a picture, only the text is judged",
    14: "a tool runs with arguments that nobody judged",
    15: "one event stream is guarded, its neighbour is not",
    16: "a guard that is set up and does nothing",
    17: "what was blocked stays in the state, beside the refusal",
    18: "streams, tool arguments and tool results pass a middleware",
    19: "content in parts fails, and the log tells it all",
    20: "a word split over chunks is delivered, then refused",
    21: "a tail without a full stop is never judged",
    22: "two streams on one guard are mixed",
    23: "it can't be called where an event loop runs",
    24: "of two guards of one kind, only one counts",
}
"""Leaks that were found in released guards, in general words."""


# ---- what should be seen ------------------------------------------------------------------------------------------


def stopped(**settings: Any) -> Expect:
    """Nothing harmful arrives: a block or a refusal."""
    return Expect(STOPPED, **settings)


def kept_in(**settings: Any) -> Expect:
    """Nothing harmful arrives: a block, a refusal or another clear error."""
    return Expect(KEPT, **settings)


def withheld(**settings: Any) -> Expect:
    """What is harmful does not arrive. It stands beside harmless text; whether that arrives is the client's choice."""
    return Expect(KEPT | PASSED, **settings)


def unsent(*, outcomes: frozenset[Outcome] = STOPPED, calls: int = 0, **settings: Any) -> Expect:
    """A block or a refusal before it is sent. What the caller wrote is no news to them, so it may come back."""
    return Expect(outcomes, calls=calls, leaks=(), unsent=LEAKS, **settings)


def passes(text: str | None = SAFE, *, calls: int = 1, **settings: Any) -> Expect:
    """Harmless: it arrives complete and unchanged."""
    return Expect(PASSED, text=text, calls=calls, **settings)


# ---- requests -----------------------------------------------------------------------------------------------------

ASK: Final = "Tell me about the sea."
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "run",
        "description": "Runs a command.",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}
STRICT_TOOL: Final = {
    "type": "function",
    "function": {
        **TOOL["function"],  # type: ignore[dict-item]
        "strict": True,
        "parameters": {**TOOL["function"]["parameters"], "additionalProperties": False},  # type: ignore[index]
    },
}
"""The helper that parses arguments takes no other."""
RESPONSE_TOOL: Final = {"type": "function", "strict": False, **TOOL["function"]}  # type: ignore[dict-item]
CUSTOM_TOOL: Final = {"type": "custom", "name": "run", "description": "Runs a command."}


def chat(content: object = ASK, **fields: Any) -> dict[str, Any]:
    """A chat request of one user message."""
    return messages({"role": "user", "content": content}, **fields)


def messages(*listed: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A chat request of these messages."""
    return {"model": MODEL, "messages": list(listed), **fields}


def inputs(content: object = ASK, **fields: Any) -> dict[str, Any]:
    """A request of the Responses API."""
    return {"model": MODEL, "input": content, **fields}


def words(text: str) -> dict[str, Any]:
    """A text part of a chat message."""
    return {"type": "text", "text": text}


def shown(data: bytes) -> dict[str, Any]:
    """A picture in a chat message."""
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def shown_input(data: bytes) -> dict[str, Any]:
    """A picture in an input of the Responses API."""
    return {"type": "input_image", "image_url": data_url(data), "detail": "auto"}


def tool_turn(result: object, arguments: str = '{"command": "ls"}') -> Sequence[dict[str, Any]]:
    """Three messages: a user asks, the assistant calls a tool, the tool answers."""
    call = {"id": "call_0", "type": "function", "function": {"name": "run", "arguments": arguments}}
    return (
        {"role": "user", "content": ASK},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": result},
    )
