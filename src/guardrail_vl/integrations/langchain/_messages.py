"""LangChain messages as messages that can be judged: requests, whole replies, and what tools gave back.

Knows what of a message a model or a reader sees. Knows no guard, no policy and no stream (`_chunks`). What it does not
know it refuses by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools.base import TOOL_MESSAGE_BLOCK_TYPES

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._beside import PARSED, kwargs_leaves, metadata_leaves, name_of
from guardrail_vl.integrations.langchain._blocks import read_blocks
from guardrail_vl.integrations.langchain._chunks import ChunkReader
from guardrail_vl.integrations.langchain._plain import Calls, inner_of, json_text, same_json, shallow
from guardrail_vl.integrations.langchain._requests import definitions
from guardrail_vl.parts import (
    ImagePart,
    Message,
    Part,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    shown,
)
from guardrail_vl.reading import check_fields, refuse
from guardrail_vl.wire.base import Reading

# Of a message's fields: read here, or nothing for a model or a reader. A tool's artifact stays with the app.
_FIELDS: Final = {
    "type", "content", "additional_kwargs", "response_metadata", "name", "id", "tool_calls", "invalid_tool_calls",
    "usage_metadata", "tool_call_chunks", "chunk_position", "tool_call_id", "artifact", "status", "role",
}  # fmt: skip
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system", "developer": "developer", "user": "user", "human": "user",
    "assistant": "assistant", "ai": "assistant", "tool": "tool", "function": "tool",
}  # fmt: skip


def read_request(
    messages: Sequence[BaseMessage], stop: Sequence[str] | None, settings: Mapping[str, Any], reading: Reading
) -> tuple[Message, ...]:
    """What a model is asked: the definitions in its settings as a developer's message, then the messages.

    Args:
        messages: As LangChain gives them to a model.
        stop: Where the model is to stop: nothing that it sees.
        settings: The other keyword arguments of the call.
        reading: How content is read.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    defined = tuple(definitions(settings, reading))
    before = (Message("developer", defined),) if defined else ()
    return (*before, *(read_message(message, reading) for message in messages))


@shallow
def read_reply(
    message: BaseMessage, reading: Reading, *, aside: Mapping[str, Any] | None = None
) -> tuple[Message, ...]:
    """A whole reply: one assistant message with all that it shows.

    Args:
        message: As a model gave it.
        reading: How content is read.
        aside: What came beside the message: `llm_output`, `generation_info`.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    read = read_message(message, reading)
    if read.role != "assistant":
        raise ContentError(f"A reply is the assistant's, not the {read.role}'s.")
    shows = [part for found in (message.response_metadata, aside) for _, part in metadata_leaves(found, reading.allow)]
    return (Message("assistant", (*read.content, *shows), read.name),)


@shallow
def read_message(message: BaseMessage, reading: Reading) -> Message:
    """One message. A reply's metadata, which no model is sent, are left out (`read_reply`).

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    role = role_of(message)
    check_fields(inner_of(message) or {}, _FIELDS, "a message", reading.allow)
    parts = tuple(_parts(message, reading))
    if role == "tool":
        parts = (_result(parts, str(getattr(message, "tool_call_id", None) or "")),)
    return Message(role, parts, name_of(message))


def role_of(message: BaseMessage) -> Role:
    """Who speaks.

    Raises:
        ContentError: It is no message that a model is sent.
    """
    match message:
        case AIMessage():
            return "assistant"
        case HumanMessage():
            return "user"
        case SystemMessage():
            return "developer" if message.additional_kwargs.get("__openai_role__") == "developer" else "system"
        case ToolMessage() | FunctionMessage():
            return "tool"
        case ChatMessage():
            if message.role not in _ROLES:
                raise ContentError(f"Unknown role {shown(message.role)}; known: {', '.join(_ROLES)}.")
            return _ROLES[message.role]
        case _:
            raise ContentError(f"A message of type {shown(type(message).__name__)} can't be judged.")


def _parts(message: BaseMessage, reading: Reading) -> Iterator[Part]:
    calls = Calls()
    parsed = list(_parsed_calls(message, calls))
    said = []
    repeats = calls.elsewhere()
    for _, (_, part) in read_blocks(message.content, reading):
        if isinstance(part, ToolCallPart) and repeats(part):
            continue
        if isinstance(part, TextPart):
            said.append(part.text)
        yield part
    yield from parsed
    text = "".join(said)
    repeats = calls.elsewhere()
    for slot, part in kwargs_leaves(message.additional_kwargs, reading):
        match part:
            case ToolCallPart() if repeats(part):
                continue
            case TextPart() if slot == PARSED and same_json(part.text, text):
                continue
            case RefusalPart() if part.text == text:
                continue
        yield part


def _parsed_calls(message: BaseMessage, calls: Calls) -> Iterator[Part]:
    if not isinstance(message, AIMessage):
        return
    for call in message.tool_calls:
        yield calls.note(ToolCallPart(call["name"], json_text(call["args"], "tool arguments"), call.get("id") or ""))
    for wrong in message.invalid_tool_calls:
        yield calls.note(ToolCallPart(wrong.get("name") or "", wrong.get("args") or "", wrong.get("id") or ""))
        if wrong.get("error"):
            yield TextPart(wrong["error"] or "")
    repeats = calls.elsewhere()
    for chunk in message.tool_call_chunks if isinstance(message, AIMessageChunk) else ():
        part = ToolCallPart(chunk.get("name") or "", chunk.get("args") or "", chunk.get("id") or "")
        if not repeats(part):  # what is parsed of a part of the JSON may be less than it says
            yield calls.note(part)


def _result(parts: Sequence[Part], call_id: str) -> ToolResultPart:
    inner = tuple(part for part in parts if isinstance(part, TextPart | ImagePart))
    if len(inner) != len(parts):
        raise ContentError("A tool message may hold text and images only.")
    return ToolResultPart(inner, id=call_id)


def tool_output(content: Any, call_id: str, reading: Reading, *, name: str = "") -> Message:
    """What a tool gave back, as the tool's message.

    Args:
        content: Text, blocks, a message, or whatever LangChain would make text of.
        call_id: The id of the call.
        reading: How content is read.
        name: Of the tool, as LangChain will write it on the message.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    if isinstance(content, BaseMessage):
        read = read_message(content, reading)
        if read.role == "tool":
            return read
        refuse(f"A {shown(type(content).__name__)} as a tool's output")
    if isinstance(content, str) or _are_blocks(content):
        parts = [part for _, (_, part) in read_blocks(content, reading)]
        return Message("tool", (_result(parts, call_id),), name)
    text = "" if content is None else _as_langchain_would(content)
    return Message("tool", (ToolResultPart((TextPart(text),) if text else (), id=call_id),), name)


def _are_blocks(content: object) -> bool:
    """Whether LangChain takes it for a message's content, and would not make text of it."""
    if not isinstance(content, list | tuple):
        return False
    return all(
        isinstance(block, str) or (isinstance(block, dict) and block.get("type") in TOOL_MESSAGE_BLOCK_TYPES)
        for block in content
    )


def _as_langchain_would(content: object) -> str:
    try:
        return json.dumps(content, ensure_ascii=False)
    except Exception:  # as LangChain does: whatever can't be JSON is shown as text
        return str(content)


__all__ = ["ChunkReader", "read_message", "read_reply", "read_request", "role_of", "tool_output"]
