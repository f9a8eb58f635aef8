"""OpenAI-style messages in, `Message` values out. An unknown role, part or field is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

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
    "reasoning_details",
    "function_call",
    "annotations",
    "images",
}

# Fields of a part that carry no content, then those that each kind of part is read from.
_ANY_PART: Final = {"type", "id", "cache_control", "prompt_cache_breakpoint"}
_PART_FIELDS: Final = {
    "text": {"text"},
    "input_text": {"text"},
    "output_text": {"text"},
    "image_url": {"image_url", "detail"},
    "input_image": {"image_url", "detail", "file_id"},
    "refusal": {"refusal"},
}
_CITATION_FIELDS: Final = {"title", "url", "content"}
# A signature is the provider's own seal on a reasoning block: opaque to the reader and to the model.
_REASONING_FIELDS: Final = {"type", "id", "format", "index", "signature"}
_REASONING_TYPES: Final = {"reasoning.text": "text", "reasoning.summary": "summary"}


def is_empty(value: object) -> bool:
    """Whether a JSON value can't carry content: null, a boolean, a number, or an empty string, list or object."""
    return value is None or isinstance(value, bool | int | float) or value in ("", [], (), {})


def check_fields(
    mapping: Mapping[str, Any], known: Collection[str], where: str, allow: Collection[str] = frozenset()
) -> None:
    """Refuse what is not known: a field that holds content nobody judges.

    Args:
        mapping: A JSON object.
        known: Names of the fields that the caller reads, or that carry no content for a model or a reader.
        where: What the object is, for the message: "the request", "a message", …
        allow: Names that may pass unjudged because the app said so.

    Raises:
        ContentError: An unknown field, named, whose value is not empty (`is_empty`).
    """
    for name, value in mapping.items():
        if name not in known and name not in allow and not is_empty(value):
            refuse(f"Unknown field {shown(name)} in {where}", name)


def refuse(what: str, name: str = "") -> NoReturn:
    """Refuse what can't be judged.

    Args:
        what: The start of a sentence that holds no content.
        name: The name that lets it pass unjudged, if there is one.

    Raises:
        ContentError: Always.
    """
    hint = f"A guarded client lets it pass unjudged if {shown(name)} is in allow_unguarded." if name else ""
    raise ContentError(f"{what}: it can't be judged, so it is refused.", hint=hint)


def read_message(raw: object, load: ImageLoader, allow: Collection[str] = frozenset()) -> Message:
    """One message.

    Args:
        raw: A mapping with role and content.
        load: Makes a part of each picture's source.
        allow: Names of fields, parts and tool calls that may pass unjudged because the app said so.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    if not isinstance(raw, Mapping):
        raise ContentError(f"A message must be a mapping with role and content, not {type(raw).__name__}.")
    check_fields(raw, _MESSAGE_FIELDS, "a message", allow)
    role: Any = raw.get("role")
    if role not in (*ROLES, "function"):
        raise ContentError(f"Unknown role {shown(role)}; known: {', '.join(ROLES)}.")
    parts: list[Part] = []
    for key in ("reasoning", "reasoning_content"):
        if raw.get(key):
            parts.append(ReasoningPart(checked(raw[key], key)))
    parts.extend(read_reasoning(raw.get("reasoning_details"), allow))
    content = read_content(raw.get("content"), load, allow)
    # `function` is the old name of `tool`: what a function gave back.
    if role in ("tool", "function"):
        inner = tuple(p for p in content if isinstance(p, TextPart | ImagePart))
        if len(inner) != len(content):
            raise ContentError("A tool message may hold text and images only.")
        parts.append(ToolResultPart(inner, id=str(raw.get("tool_call_id") or "")))
        role = "tool"
    else:
        parts.extend(content)
    parts.extend(_read_part(picture, load) for picture in _listed(raw.get("images"), "images"))
    if raw.get("refusal"):
        parts.append(RefusalPart(checked(raw["refusal"], "refusal")))
    parts.extend(read_citations(raw.get("annotations"), allow))
    parts.extend(part for call in _listed(raw.get("tool_calls"), "tool_calls") for part in _read_tool_call(call, allow))
    if raw.get("function_call"):
        parts.append(_read_function(raw["function_call"], "", allow))
    return Message(role, tuple(parts), name=checked(raw.get("name") or "", "name"))


def read_reasoning(details: object, allow: Collection[str] = frozenset()) -> Iterator[ReasoningPart]:
    """The parts of `reasoning_details`.

    Raises:
        ContentError: One is unknown, or encrypted.
    """
    for detail in _listed(details, "reasoning_details"):
        kind = _kind(detail, "reasoning detail")
        if kind not in _REASONING_TYPES:
            if kind in allow:
                continue
            refuse(f"Unsupported reasoning detail {shown(kind)}", kind)
        key = _REASONING_TYPES[kind]
        check_fields(detail, {*_REASONING_FIELDS, key}, "a reasoning detail", allow)
        yield ReasoningPart(checked(detail.get(key) or "", key))


def read_citations(annotations: object, allow: Collection[str] = frozenset()) -> Iterator[TextPart]:
    """The parts of a message's `annotations`: what a citation shows is read by people.

    Raises:
        ContentError: One is unknown.
    """
    for annotation in _listed(annotations, "annotations"):
        kind = _kind(annotation, "annotation")
        if kind != "url_citation":
            if kind in allow:
                continue
            refuse(f"Unsupported annotation {shown(kind)}", kind)
        check_fields(annotation, {"type", "url_citation"}, "an annotation", allow)
        citation = _mapping(annotation.get("url_citation"), "citation")
        check_fields(citation, _CITATION_FIELDS, "a citation", allow)
        shows = (checked(citation.get(key) or "", key) for key in ("title", "url", "content"))
        yield TextPart("\n".join(text for text in shows if text))


def _kind(value: object, where: str, default: str = "") -> str:
    kind = _mapping(value, where).get("type") or default
    if not isinstance(kind, str):
        raise ContentError(f"The type of a {where} must be text, not {type(kind).__name__}.")
    return kind


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ContentError(f"A {where} must be a mapping, not {type(value).__name__}.")
    return value


def _listed(value: object, where: str) -> Sequence[Any]:
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ContentError(f"The {where} must be a list, not {type(value).__name__}.")
    return value


def read_content(content: object, load: ImageLoader, allow: Collection[str] = frozenset()) -> tuple[Part, ...]:
    """The parts of a message's content.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return tuple(_read_part(part, load, allow) for part in content if not _allowed(part, allow))
    raise ContentError(f"Message content must be text or a list of parts, not {type(content).__name__}.")


def _allowed(part: object, allow: Collection[str]) -> bool:
    """Whether a part is of a kind that we can't judge, and may pass unjudged."""
    if not isinstance(part, Mapping):
        return False
    kind = _kind(part, "content part")
    return kind not in _PART_FIELDS and kind in allow


def _read_part(raw: object, load: ImageLoader, allow: Collection[str] = frozenset()) -> Part:
    if isinstance(raw, Part):
        return raw
    if isinstance(raw, str):
        return TextPart(raw)
    if not isinstance(raw, Mapping):
        raise ContentError(f"A content part must be a mapping, not {type(raw).__name__}.")
    kind = _kind(raw, "content part")
    if kind not in _PART_FIELDS:
        refuse(f"Unsupported content part {shown(kind)}", kind)
    check_fields(raw, _ANY_PART | _PART_FIELDS[kind], "a content part", allow)
    match kind:
        case "text" | "input_text" | "output_text":
            return TextPart(checked(raw.get("text"), "text"))  # type: ignore[arg-type]
        case "image_url" | "input_image":
            return _read_image(raw, kind, load, allow)
        case _:
            return RefusalPart(checked(raw.get("refusal"), "refusal"))  # type: ignore[arg-type]


def _read_image(raw: Mapping[str, Any], kind: str, load: ImageLoader, allow: Collection[str]) -> ImagePart:
    value = raw.get("image_url")
    if raw.get("file_id"):
        raise ContentError("An image given by file id can't be judged.")
    if isinstance(value, Mapping):
        check_fields(value, {"url", "detail"}, "an image_url", allow)
        value = value.get("url")
    if not isinstance(value, str):
        raise ContentError(f"The {kind} part has no URL.")
    if not value.startswith(("data:", "http:", "https:")):
        raise ContentError("An image URL must be a data: URL.")
    return load(value)


def _read_tool_call(raw: object, allow: Collection[str]) -> tuple[ToolCallPart, ...]:
    """The call; none for a kind that may pass unjudged."""
    call = _mapping(raw, "tool call")
    kind = _kind(call, "tool call", "function")
    if kind not in ("function", "custom"):
        if kind in allow:
            return ()
        refuse(f"Unsupported tool call {shown(kind)}", kind)
    check_fields(call, {"id", "type", "index", kind}, "a tool call", allow)
    arguments = "input" if kind == "custom" else "arguments"
    return (_read_function(call.get(kind), str(call.get("id") or ""), allow, arguments=arguments),)


def _read_function(raw: object, call_id: str, allow: Collection[str], *, arguments: str = "arguments") -> ToolCallPart:
    if not isinstance(raw, Mapping):
        raise ContentError("A tool call must name its function.")
    check_fields(raw, {"name", arguments}, "a tool call", allow)
    text = raw.get(arguments)
    return ToolCallPart(checked(raw.get("name") or "", "tool name"), checked(text or "", "tool arguments"), call_id)
