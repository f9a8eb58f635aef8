"""Full bodies of the Responses API, and the event stream of one response, as the provider writes them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

from PIL import Image

from guardrail_vl.parts import ImagePart
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.sse import Frame, parse_frame

Json = dict[str, Any]
READING = Reading(ImagePart.load)


def b64(colour: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def data_url(colour: str = "red") -> str:
    return f"data:image/png;base64,{b64(colour)}"


def function_tool() -> Json:
    return {
        "type": "function",
        "name": "weather",
        "description": "Says the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Which city."}}},
        "strict": True,
    }


def custom_tool() -> Json:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    return {"type": "custom", "name": "shout", "description": "Shouts.", "format": grammar}


def schema() -> Json:
    return {
        "format": {"type": "json_schema", "name": "answer", "schema": {"title": "An answer"}, "description": "How."},
        "verbosity": "low",
    }


def text_part(text: str) -> Json:
    notes = [
        {"type": "url_citation", "start_index": 0, "end_index": 2, "title": "A page", "url": "https://a.example/x"},
        {"type": "file_citation", "index": 1, "file_id": "file_1", "filename": "notes.txt"},
    ]
    return {"type": "output_text", "text": text, "annotations": notes}


def request() -> Json:
    """Every field that is known, and every item that is read."""
    return {
        "model": "gpt-x",
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Speak French."},
            {
                "type": "message",
                "role": "user",
                "status": "completed",
                "content": [
                    {"type": "input_text", "text": "What is this?", "prompt_cache_breakpoint": {"mode": "explicit"}},
                    {"type": "input_image", "image_url": data_url(), "detail": "auto"},
                ],
            },
            {
                "type": "reasoning",
                "id": "rs_0",
                "summary": [{"type": "summary_text", "text": "A summary."}],
                "content": [{"type": "reasoning_text", "text": "A thought."}],
                "encrypted_content": "gAAAA",
                "status": "completed",
            },
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_0",
                "status": "completed",
                "phase": "commentary",
                "content": [text_part("It is red."), {"type": "refusal", "refusal": "Not more."}],
            },
            {
                "type": "function_call",
                "id": "fc_0",
                "call_id": "call_0",
                "name": "weather",
                "namespace": "outside",
                "arguments": '{"city": "Oslo"}',
                "caller": {"type": "program", "caller_id": "p_0"},
                "status": "completed",
            },
            {"type": "function_call_output", "id": "fco_0", "call_id": "call_0", "name": "weather", "output": "Rain."},
            {"type": "custom_tool_call", "id": "ct_0", "call_id": "call_1", "name": "shout", "input": "hey"},
            {
                "type": "custom_tool_call_output",
                "call_id": "call_1",
                "output": [
                    {"type": "input_text", "text": "HEY"},
                    {"type": "input_image", "image_url": data_url("blue"), "detail": "low"},
                ],
            },
        ],
        "tools": [
            function_tool(),
            custom_tool(),
            {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [function_tool()]},
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": schema(),
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"team": "blue"},
        "include": ["reasoning.encrypted_content"],
        "stream_options": {"include_obfuscation": False},
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
        "moderation": {"model": "omni"},
        "prompt_cache_key": "key",
        "prompt_cache_retention": "24h",
        "safety_identifier": "someone",
        "service_tier": "auto",
        "truncation": "auto",
        "user": "someone",
        "store": True,
        "background": False,
        "temperature": 0.5,
        "top_p": 1,
        "top_logprobs": 0,
        "max_output_tokens": 100,
        "max_tool_calls": 3,
        "parallel_tool_calls": True,
        "stream": True,
    }


def output() -> list[Json]:
    return [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "They ask for two cities."}],
            "content": [{"type": "reasoning_text", "text": "Two calls then."}],
            "encrypted_content": "gAAAA",
            "status": "completed",
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "phase": "final_answer",
            "content": [text_part("I will look it up. One moment."), {"type": "refusal", "refusal": "Not the third."}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_2",
            "name": "weather",
            "arguments": '{"city": "Oslo"}',
            "status": "completed",
        },
        {
            "type": "function_call",
            "id": "fc_2",
            "call_id": "call_3",
            "name": "weather",
            "namespace": "outside",
            "arguments": '{"city": "Rome"}',
            "status": "completed",
        },
        {"type": "custom_tool_call", "id": "ct_1", "call_id": "call_4", "name": "shout", "input": "hello there"},
        {
            "type": "image_generation_call",
            "id": "ig_1",
            "status": "completed",
            "revised_prompt": "A green flag.",
            "result": b64("green"),
            "output_format": "png",
            "quality": "low",
            "size": "1024x1024",
            "background": "opaque",
            "action": "generate",
        },
    ]


def reply(asked: Json | None = None) -> Json:
    """A whole response that repeats the settings of the request, as the provider does."""
    asked = request() if asked is None else asked
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.0,
        "completed_at": 2.0,
        "model": "gpt-x-2026",
        "status": "completed",
        "output": output(),
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "tools": asked.get("tools", []),
        "tool_choice": asked.get("tool_choice", "auto"),
        "text": asked.get("text", {"format": {"type": "text"}, "verbosity": "medium"}),
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": asked.get("metadata", {}),
        "parallel_tool_calls": True,
        "temperature": 0.5,
        "top_p": 1.0,
        "service_tier": "default",
        "truncation": "auto",
        "user": "someone",
        "prompt_cache_key": "key",
        "safety_identifier": "someone",
        "previous_response_id": None,
        "store": True,
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
    }


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _said(start: str, field: str, text: str, place: Json, **extra: Any) -> Iterator[Json]:
    logprobs = {name: value for name, value in extra.items() if name == "logprobs"}
    for delta in _halves(text):
        yield {"type": f"{start}.delta", **place, "delta": delta, "obfuscation": "xyz", **logprobs}
    yield {"type": f"{start}.done", **place, field: text, **extra}


def _part_events(start: str, said: str, index: str, position: int, part: Json, place: Json) -> Iterator[Json]:
    place = {**place, index: position}
    text = "refusal" if part["type"] == "refusal" else "text"
    notes: Json = {"annotations": []} if part["type"] == "output_text" else {}
    extra: Json = {"logprobs": []} if notes else {}
    yield {"type": f"{start}.added", **place, "part": {"type": part["type"], text: "", **notes}}
    yield from _said(said, text, part[text], place, **extra)
    for number, note in enumerate(part.get("annotations", [])):
        added = "response.output_text.annotation.added"
        yield {"type": added, **place, "annotation_index": number, "annotation": note}
    yield {"type": f"{start}.done", **place, "part": part}


_PART_TEXTS = {
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
}
_EMPTY: Json = {"content": [], "summary": [], "arguments": "", "input": "", "result": None, "revised_prompt": None}


def _item_events(at: int, item: Json) -> Iterator[Json]:
    place = {"item_id": item["id"], "output_index": at}
    begun = {name: _EMPTY.get(name, value) for name, value in item.items() if name != "encrypted_content"}
    if "status" in item:
        begun["status"] = "in_progress"
    yield {"type": "response.output_item.added", "output_index": at, "item": begun}
    for position, part in enumerate(item.get("summary", [])):
        start, said = "response.reasoning_summary_part", "response.reasoning_summary_text"
        yield from _part_events(start, said, "summary_index", position, part, place)
    for position, part in enumerate(item.get("content", [])):
        said = _PART_TEXTS[part["type"]]
        yield from _part_events("response.content_part", said, "content_index", position, part, place)
    if item["type"] == "function_call":
        yield from _said("response.function_call_arguments", "arguments", item["arguments"], place, name=item["name"])
    if item["type"] == "custom_tool_call":
        yield from _said("response.custom_tool_call_input", "input", item["input"], place)
    if item["type"] == "image_generation_call":
        yield {"type": "response.image_generation_call.in_progress", **place}
        yield {"type": "response.image_generation_call.generating", **place}
        partial: Json = {"partial_image_index": 0, "partial_image_b64": b64("yellow"), "output_format": "png"}
        yield {"type": "response.image_generation_call.partial_image", **place, **partial}
        yield {"type": "response.image_generation_call.completed", **place}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}


def events(asked: Json | None = None) -> list[Json]:
    """The stream of `reply`, every event numbered."""
    whole = reply(asked)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    out: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "keepalive"},
    ]
    for at, item in enumerate(whole["output"]):
        out += _item_events(at, item)
    out.append({"type": "response.completed", "response": whole})
    # Through JSON, so that no two events share an object.
    return [json.loads(json.dumps({**event, "sequence_number": number})) for number, event in enumerate(out)]


def nodes(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a JSON value."""
    if path:
        yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from nodes(inner, (*path, step))


def replaced(body: Json, path: tuple[str | int, ...], value: object) -> Json:
    """The body with something else at a path."""
    out: Any = json.loads(json.dumps(body))
    at = out
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return dict(out)


def frame(event: Json) -> Frame:
    return parse_frame(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
