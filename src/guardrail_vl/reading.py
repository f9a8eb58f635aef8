"""OpenAI-style messages in, `Message` values out. An unknown role, part or field is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import (
    ROLES,
    ImageLoader,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    checked,
    shown,
)

_MESSAGE_FIELDS: Final = {
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "refusal",
    "reasoning",
    "reasoning_content",
    "function_call",
}
# Fields of a provider's own reply that carry no content; harmless when a reply is sent back as history.
_EMPTY_FIELDS: Final = {"audio", "annotations"}

_PART_TYPES: Final = {"text", "input_text", "output_text", "image_url", "input_image", "refusal"}
_PART_FIELDS: Final = {"type", "text", "image_url", "detail", "refusal", "cache_control", "id", "file_id"}


def read_message(raw: object, load: ImageLoader) -> Message:
    """One message.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    if not isinstance(raw, Mapping):
        raise ContentError(f"A message must be a mapping with role and content, not {type(raw).__name__}.")
    for key in raw:
        if key not in _MESSAGE_FIELDS and not (key in _EMPTY_FIELDS and not raw[key]):
            raise ContentError(f"Unknown message field {shown(key)}: it can't be judged, so the turn is refused.")
    role = raw.get("role")
    if role not in ROLES:
        raise ContentError(f"Unknown role {shown(role)}; known: {', '.join(ROLES)}.")
    parts: list[Part] = []
    for key in ("reasoning", "reasoning_content"):
        if raw.get(key):
            parts.append(ReasoningPart(checked(raw[key], key)))
    content = _read_content(raw.get("content"), load)
    if role == "tool":
        inner = tuple(p for p in content if isinstance(p, TextPart | ImagePart))
        if len(inner) != len(content):
            raise ContentError("A tool message may hold text and images only.")
        parts.append(ToolResultPart(inner, id=str(raw.get("tool_call_id") or "")))
    else:
        parts.extend(content)
    if raw.get("refusal"):
        parts.append(RefusalPart(checked(raw["refusal"], "refusal")))
    calls = raw.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise ContentError("tool_calls must be a list.")
    parts.extend(_read_tool_call(call) for call in calls)
    if raw.get("function_call"):
        parts.append(_read_function(raw["function_call"], ""))
    return Message(role, tuple(parts), name=checked(raw.get("name") or "", "name"))


def _read_content(content: object, load: ImageLoader) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return tuple(_read_part(part, load) for part in content)
    raise ContentError(f"Message content must be text or a list of parts, not {type(content).__name__}.")


def _read_part(raw: object, load: ImageLoader) -> Part:
    if isinstance(raw, Part):
        return raw
    if isinstance(raw, str):
        return TextPart(raw)
    if not isinstance(raw, Mapping):
        raise ContentError(f"A content part must be a mapping, not {type(raw).__name__}.")
    kind = raw.get("type")
    if kind not in _PART_TYPES:
        raise ContentError(f"Unsupported content part {shown(kind)}: it can't be judged, so the turn is refused.")
    for key in raw:
        if key not in _PART_FIELDS and raw[key]:
            raise ContentError(f"Unknown field {shown(key)} in a content part: it can't be judged.")
    match kind:
        case "text" | "input_text" | "output_text":
            return TextPart(checked(raw.get("text"), "text"))  # type: ignore[arg-type]
        case "image_url" | "input_image":
            value = raw.get("image_url")
            if raw.get("file_id"):
                raise ContentError("An image given by file id can't be judged.")
            url = value.get("url") if isinstance(value, Mapping) else value
            if not isinstance(url, str):
                raise ContentError(f"The {kind} part has no URL.")
            if not url.startswith(("data:", "http:", "https:")):
                raise ContentError("An image URL must be a data: URL.")
            return load(url)
        case _:
            return RefusalPart(checked(raw.get("refusal"), "refusal"))  # type: ignore[arg-type]


def _read_tool_call(raw: object) -> ToolCallPart:
    if not isinstance(raw, Mapping):
        raise ContentError(f"A tool call must be a mapping, not {type(raw).__name__}.")
    kind = raw.get("type", "function")
    if kind == "custom":
        return _read_function(raw.get("custom"), str(raw.get("id") or ""), arguments="input")
    if kind != "function":
        raise ContentError(f"Unsupported tool call {shown(kind)}: it can't be judged, so the turn is refused.")
    return _read_function(raw.get("function"), str(raw.get("id") or ""))


def _read_function(raw: object, call_id: str, *, arguments: str = "arguments") -> ToolCallPart:
    if not isinstance(raw, Mapping):
        raise ContentError("A tool call must name its function.")
    text = raw.get(arguments)
    return ToolCallPart(checked(raw.get("name") or "", "tool name"), checked(text or "", "tool arguments"), call_id)
