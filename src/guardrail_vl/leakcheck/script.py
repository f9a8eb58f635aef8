"""What the scripted upstream answers, as values: replies of frames, delays and faults. Also the OpenAI JSON to put in.

Knows no client and no guard.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

MODEL: Final = "leakcheck-model"
JUDGE: Final = "leakcheck-judge"
"""A model whose name begins with this is the judge of a client under test, not the upstream."""
OWN_HEADER: Final = "x-own-client"
"""A header that only a caller's own HTTP client sets."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes that the upstream writes at once."""

    data: bytes = field(repr=False)
    delay: float = 0.0
    """Seconds before it is written."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the upstream."""

    frames: tuple[Frame, ...]
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    end: Literal["normal", "abort"] = "normal"
    """`abort`: the socket is closed before the reply is complete."""
    when: str = ""
    """Only for requests that hold this text, in the path or in the body."""


def write_reply(reply: Reply) -> dict[str, Any]:
    """A reply as JSON values."""
    frames = [[base64.b64encode(frame.data).decode(), frame.delay] for frame in reply.frames]
    names = ("status", "content_type", "end", "when")
    return {**{name: getattr(reply, name) for name in names}, "headers": dict(reply.headers), "frames": frames}


def read_reply(value: Mapping[str, Any]) -> Reply:
    """The reply that `write_reply` wrote."""
    frames = tuple(Frame(base64.b64decode(data), delay) for data, delay in value["frames"])
    return Reply(**{**value, "frames": frames})


def dumps(value: object) -> bytes:
    """JSON in UTF-8, nothing escaped that need not be: models' words stand as they are."""
    return json.dumps(value, ensure_ascii=False).encode()


def whole(value: object, *, status: int = 200, when: str = "", **headers: str) -> Reply:
    """A reply of one JSON value. An underscore in a header's name is written as a dash."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply((Frame(dumps(value)),), status=status, headers=named, when=when)


def events(
    values: Iterable[Mapping[str, Any] | bytes],
    *,
    done: bool = True,
    named: bool = False,
    delay: float = 0.0,
    cut: int = 0,
    end: Literal["normal", "abort"] = "normal",
    when: str = "",
) -> Reply:
    """An event stream.

    Args:
        values: The data of each event; bytes are written as they are.
        done: Whether `[DONE]` comes last.
        named: Whether each event has its `type` as its name, as the Responses API writes them.
        delay: Seconds before each write.
        cut: Write so many bytes at a time, wherever that cuts; 0: one event at a time.
        end: See `Reply`.
        when: See `Reply`.
    """
    written = [value if isinstance(value, bytes) else _event(value, named) for value in values]
    if done:
        written.append(b"data: [DONE]\n\n")
    if cut:
        joined = b"".join(written)
        written = [joined[at : at + cut] for at in range(0, len(joined), cut)]
    frames = tuple(Frame(data, delay) for data in written)
    return Reply(frames, content_type="text/event-stream; charset=utf-8", end=end, when=when)


def _event(value: Mapping[str, Any], named: bool) -> bytes:
    name = b"event: " + str(value["type"]).encode() + b"\n" if named else b""
    return name + b"data: " + dumps(value) + b"\n\n"


def tokens(text: str) -> list[str]:
    """The text cut as a model would write it: a word and its space at a time. Joined, it is the text."""
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]


# ---- chat completions ---------------------------------------------------------------------------------------------


def choice(content: str | None, *, index: int = 0, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """One choice of a chat completion; `fields` go into its message."""
    message = {"role": "assistant", "content": content, "refusal": None, **fields}
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": None}


def completion(*choices: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion."""
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL}
    return {**head, "choices": list(choices), "usage": usage}


def tool_call(arguments: str, *, name: str = "run", number: int = 0) -> dict[str, Any]:
    """A call of a function."""
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def chunk(delta: Mapping[str, Any], *, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    """One event of a chat stream."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}
    return {**head, "choices": [{"index": index, "delta": dict(delta), "finish_reason": finish, "logprobs": None}]}


def chunks(
    pieces: Sequence[str], *, index: int = 0, finish: str | None = "stop", key: str = "content"
) -> list[dict[str, Any]]:
    """A chat stream that writes these pieces into one choice."""
    start: dict[str, Any] = {"role": "assistant", "content": ""}
    out = [chunk(start, index=index), *(chunk({key: piece}, index=index) for piece in pieces)]
    return out if finish is None else [*out, chunk({}, index=index, finish=finish)]


def call_chunks(
    pieces: Sequence[str], *, index: int = 0, number: int = 0, finish: bool = True, name: str = "run"
) -> list[dict[str, Any]]:
    """A chat stream that writes these pieces into the arguments of one tool call."""
    head = {"index": number, "id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": ""}}
    out = [chunk({"role": "assistant", "content": None, "tool_calls": [head]}, index=index)]
    for piece in pieces:
        out.append(chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, index=index))
    return [*out, chunk({}, index=index, finish="tool_calls")] if finish else out


def interleaved(*streams: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of several choices, one of each in turn."""
    longest = max(len(stream) for stream in streams)
    return [stream[at] for at in range(longest) for stream in streams if at < len(stream)]


# ---- legacy completions -------------------------------------------------------------------------------------------


def text_completion(*texts: str) -> dict[str, Any]:
    """A legacy completion with one choice a text."""
    choices = [{"index": i, "text": t, "finish_reason": "stop", "logprobs": None} for i, t in enumerate(texts)]
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": MODEL}
    return {**head, "choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}}


def text_chunks(pieces: Sequence[str]) -> list[dict[str, Any]]:
    """A legacy completion as an event stream."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": MODEL}
    choices = [{"index": 0, "text": piece, "finish_reason": None, "logprobs": None} for piece in pieces]
    choices.append({"index": 0, "text": "", "finish_reason": "stop", "logprobs": None})
    return [{**head, "choices": [one]} for one in choices]


# ---- responses ----------------------------------------------------------------------------------------------------


def message_item(text: str, *, annotations: Sequence[Mapping[str, Any]] = (), refusal: bool = False) -> dict[str, Any]:
    """An output message of the Responses API."""
    part: dict[str, Any] = (
        {"type": "refusal", "refusal": text}
        if refusal
        else {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}
    )
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}


def call_item(arguments: str, *, custom: bool = False) -> dict[str, Any]:
    """A tool call of the Responses API; `custom`: of a tool that takes free text."""
    if custom:
        return {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "run", "input": arguments}
    head = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "run", "status": "completed"}
    return {**head, "arguments": arguments}


def reasoning_item(text: str) -> dict[str, Any]:
    """A reasoning summary of the Responses API."""
    return {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": text}]}


def response(*items: Mapping[str, Any], status: str = "completed", id: str = "resp_1") -> dict[str, Any]:
    """A reply of the Responses API."""
    return {
        "id": id, "object": "response", "created_at": 1_700_000_000, "status": status, "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "model": MODEL, "output": list(items),
        "parallel_tool_calls": True, "previous_response_id": None, "temperature": 1.0, "tool_choice": "auto",
        "tools": [], "top_p": 1.0, "truncation": "disabled", "usage": {
            "input_tokens": 7, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 9,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 16,
        },
    }  # fmt: skip


def response_events(item: Mapping[str, Any], pieces: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """An event stream of the Responses API that writes one output item piece by piece.

    Args:
        item: The finished item.
        pieces: What is written into it, piece by piece.
        kind: `output_text`, `refusal`, `function_call_arguments`, `custom_tool_call_input` or
            `reasoning_summary_text`.
    """
    empty = {**item, "status": "in_progress", **_EMPTY[item["type"]]}
    where: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    inner: list[dict[str, Any]] = []
    last: list[dict[str, Any]] = []
    if item["type"] in _PARTS:
        field_name, number, prefix = _PARTS[item["type"]]
        where[number] = 0
        part = item[field_name][0]
        name = "refusal" if kind == "refusal" else "text"
        inner = [{"type": f"{prefix}.added", **where, "part": {**part, name: ""}}]
        last = [{"type": f"{prefix}.done", **where, "part": part}]
    done_key = {"function_call_arguments": "arguments", "custom_tool_call_input": "input", "refusal": "refusal"}
    deltas = [{"type": f"response.{kind}.delta", **where, "delta": piece} for piece in pieces]
    done = {"type": f"response.{kind}.done", **where, done_key.get(kind, "text"): "".join(pieces)}
    if kind == "output_text":
        deltas = [{**delta, "logprobs": []} for delta in deltas]
        done["logprobs"] = []
    if kind == "function_call_arguments":
        done["name"] = item["name"]
    listed: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(status="in_progress")},
        {"type": "response.in_progress", "response": response(status="in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": empty},
        *inner,
        *deltas,
        done,
        *last,
        {"type": "response.output_item.done", "output_index": 0, "item": dict(item)},
        {"type": "response.completed", "response": response(item)},
    ]
    return [{**value, "sequence_number": number} for number, value in enumerate(listed)]


_EMPTY: Final[dict[str, dict[str, Any]]] = {
    "message": {"content": []},
    "function_call": {"arguments": ""},
    "custom_tool_call": {"input": ""},
    "reasoning": {"summary": []},
}
_PARTS: Final = {
    "message": ("content", "content_index", "response.content_part"),
    "reasoning": ("summary", "summary_index", "response.reasoning_summary_part"),
}
