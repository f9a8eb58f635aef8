"""Items of the Responses API: what each of them says. Knows no request, no stream and no pictures' bytes.

An item's content comes as leaves: a place within the item, and what stands there. Requests and replies make messages
of leaves; an event stream compares them with what it streamed before. So each item type is read in one place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from guardrail_vl.parts import (
    ImageLoader,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    shown,
)
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.jsons import check_fields, is_empty, list_of, mapping_of, refuse, text_of


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is not loaded yet."""

    source: str = field(repr=False)
    """A `data:` or `http(s):` URL."""


Place = tuple[int | str, ...]
"""Where something stands: names and positions, from the outside in."""
Leaf = tuple[Place, Part | Picture]
"""One piece of content and its place."""

HOSTED: Final[Mapping[str, tuple[str, ...]]] = {
    "web_search_call": (
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    ),
    "file_search_call": ("file_search",),
    "code_interpreter_call": ("code_interpreter",),
    "computer_call": ("computer", "computer_use_preview"),
    "computer_call_output": ("computer", "computer_use_preview"),
    "local_shell_call": ("local_shell",),
    "local_shell_call_output": ("local_shell",),
    "shell_call": ("shell",),
    "shell_call_output": ("shell",),
    "apply_patch_call": ("apply_patch",),
    "apply_patch_call_output": ("apply_patch",),
    "mcp_call": ("mcp",),
    "mcp_list_tools": ("mcp",),
    "mcp_approval_request": ("mcp",),
    "mcp_approval_response": ("mcp",),
    "tool_search_call": ("tool_search",),
    "tool_search_output": ("tool_search",),
    "program": ("programmatic_tool_calling",),
    "program_output": ("programmatic_tool_calling",),
    "image_generation_call": ("image_generation",),
}
"""Items that a provider's own tools write, and the tools that let them pass."""

_CALLS: Final = {"function_call": "arguments", "custom_tool_call": "input"}
_OUTPUTS: Final = {"function_call_output", "custom_tool_call_output"}
_TEXTS: Final = {"input_text", "output_text", "text"}
_ITEM: Final = {"type", "id", "status"}
_CALL: Final = _ITEM | {"call_id", "name", "namespace", "async", "caller", "created_by"}
_IMAGE_CALL: Final = _ITEM | {
    "result", "revised_prompt", "error", "action", "background", "output_format", "quality", "size", "svg_usage",
}  # fmt: skip
_ANNOTATIONS: Final = {
    "url_citation": ("title", "url"),
    "file_citation": ("filename",),
    "container_file_citation": ("filename",),
    "file_path": (),
}
_ANNOTATION: Final = {"type", "index", "start_index", "end_index", "file_id", "container_id"}


def kind_of(raw: Mapping[str, Any], where: str) -> str:
    """The `type` of an object.

    Raises:
        ContentError: It has none.
    """
    kind = raw.get("type")
    if not isinstance(kind, str):
        refuse(f"The {where} has no type")
    return kind


def opted_out(kind: str, allow: Collection[str]) -> bool:
    """Whether the app lets items of this type pass unjudged: by their name, or by the tool's that writes them."""
    return kind in allow or any(tool in allow for tool in HOSTED.get(kind, ()))


def item_leaves(raw: object, allow: Collection[str], *, reply: bool) -> Iterator[Leaf]:
    """What an item says.

    Args:
        raw: The item.
        allow: See `Reading.allow`.
        reply: Whether it stands in a reply: then only the assistant speaks.

    Raises:
        ContentError: An unknown type, part or field, named; or content that can't be judged.
    """
    item = mapping_of(raw, "item")
    kind = _item_kind(item)
    match kind:
        case "message":
            check_fields(item, _ITEM | {"role", "content", "phase"}, "a message", allow)
            if reply and item.get("role") != "assistant":
                refuse("A message in a reply that is not the assistant's")
            yield from _content_leaves(item.get("content"), "content", allow)
        case "reasoning":
            # What is encrypted only the provider can read; what it shows of it is judged.
            check_fields(item, _ITEM | {"summary", "content", "encrypted_content"}, "a reasoning item", allow)
            yield from _content_leaves(item.get("summary"), "summary", allow)
            yield from _content_leaves(item.get("content"), "content", allow)
        case "function_call" | "custom_tool_call":
            yield ("call",), _call(item, _CALLS[kind], allow)
        case "function_call_output" | "custom_tool_call_output":
            check_fields(item, _CALL | {"output"}, "a tool's output", allow)
            _check_caller(item, allow)
            if reply and (name := full_name(item)):
                yield ("name",), TextPart(name)
            yield from _content_leaves(item.get("output"), "output", allow)
        case "image_generation_call" if reply or opted_out(kind, allow):
            yield from _image_leaves(item, allow)
        case "item_reference" if "item_reference" not in allow:
            refuse("An item given by its id is history that the guard can't see", "item_reference")
        case _ if not opted_out(kind, allow):
            refuse(f"Item of type {shown(kind)}", HOSTED.get(kind, (kind,))[0])


def _item_kind(item: Mapping[str, Any]) -> str:
    if item.get("type") is None:
        return "message" if "role" in item else "item_reference"
    return kind_of(item, "item")


def full_name(item: Mapping[str, Any]) -> str:
    """A tool's name, its namespace included; empty if it has none.

    Raises:
        ContentError: It is not text.
    """
    names = text_of(item.get("namespace"), "tool namespace"), text_of(item.get("name"), "tool name")
    return ".".join(name for name in names if name)


def _call(item: Mapping[str, Any], arguments: str, allow: Collection[str]) -> ToolCallPart:
    check_fields(item, _CALL | {arguments}, "a tool call", allow)
    _check_caller(item, allow)
    text = text_of(item.get(arguments), "tool arguments")
    return ToolCallPart(full_name(item), text, text_of(item.get("call_id"), "tool call id"))


def _check_caller(item: Mapping[str, Any], allow: Collection[str]) -> None:
    if not is_empty(item.get("caller")):
        check_fields(mapping_of(item["caller"], "caller"), {"type", "caller_id"}, "a caller", allow)


def _image_leaves(item: Mapping[str, Any], allow: Collection[str]) -> Iterator[Leaf]:
    check_fields(item, _IMAGE_CALL, "an image generation call", allow)
    if not is_empty(item.get("svg_usage")):
        check_fields(mapping_of(item["svg_usage"], "svg_usage"), (), "the SVG usage", allow)
    if prompt := text_of(item.get("revised_prompt"), "revised prompt"):
        yield ("revised_prompt",), TextPart(prompt)
    if not is_empty(item.get("error")):
        yield ("error",), error_text(item["error"])
    if result := text_of_image(item.get("result")):
        yield ("result",), result


def text_of_image(value: object) -> Picture | None:
    """A picture given as base64 text; None for null or empty.

    Raises:
        ContentError: It is not text.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        refuse("A generated image that is not base64 text")
    return Picture(f"data:image/png;base64,{value}")  # the declared type is not believed: it is read from the bytes


def error_text(error: object) -> TextPart:
    """Every string of an error, and every name in it.

    Raises:
        ContentError: Too long, or not valid Unicode.
    """
    return TextPart("\n".join(words(error, keys=False)))


def words(value: object, *, keys: bool = True) -> Iterator[str]:
    """Every string in a JSON value, in order, with or without the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if keys:
                yield name
            yield from words(inner, keys=keys)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from words(inner, keys=keys)


def _content_leaves(content: object, name: str, allow: Collection[str]) -> Iterator[Leaf]:
    if isinstance(content, str):
        yield (name, 0, "text"), TextPart(content)
        return
    for position, part in enumerate(list_of(content, name)):
        yield from part_leaves(part, (name, position), allow)


def part_leaves(raw: object, place: Place, allow: Collection[str]) -> Iterator[Leaf]:
    """What a content part says.

    Args:
        raw: The part.
        place: Where it stands.
        allow: See `Reading.allow`.

    Raises:
        ContentError: An unknown type or field, named; or content that can't be judged.
    """
    part = mapping_of(raw, "content part")
    kind = kind_of(part, "content part")
    cached = {"type", "prompt_cache_breakpoint"}
    match kind:
        case _ if kind in _TEXTS:
            check_fields(part, cached | {"text", "annotations"}, "a content part", allow)
            yield (*place, kind), TextPart(text_of(part.get("text"), "text"))
            for position, note in enumerate(list_of(part.get("annotations"), "annotations")):
                yield from annotation_leaves(note, (*place, "annotations", position), allow)
        case "refusal":
            check_fields(part, {"type", "refusal"}, "a refusal", allow)
            yield (*place, kind), RefusalPart(text_of(part.get("refusal"), "refusal"))
        case "reasoning_text" | "summary_text":
            check_fields(part, {"type", "text"}, "a reasoning part", allow)
            yield (*place, kind), ReasoningPart(text_of(part.get("text"), "reasoning"))
        case "input_image":
            check_fields(part, cached | {"image_url", "detail", "file_id"}, "an image part", allow)
            if not is_empty(part.get("file_id")):
                refuse("An image given by file id")
            yield (*place, kind), _picture(part.get("image_url"))
        case _ if kind not in allow:
            refuse(f"Content part {shown(kind)}", kind)


def _picture(url: object) -> Picture:
    # Checked here: a loader would take a bare string for a path on this machine.
    if not isinstance(url, str) or not url.startswith(("data:", "http:", "https:")):
        refuse("An image whose URL is neither data: nor http(s):")
    return Picture(url)


def annotation_leaves(raw: object, place: Place, allow: Collection[str]) -> Iterator[Leaf]:
    """What a citation says.

    Raises:
        ContentError: An unknown type or field, named; or content that can't be judged.
    """
    note = mapping_of(raw, "annotation")
    kind = kind_of(note, "annotation")
    if kind not in _ANNOTATIONS:
        if kind not in allow:
            refuse(f"Annotation {shown(kind)}", kind)
        return
    shows = _ANNOTATIONS[kind]
    check_fields(note, _ANNOTATION | set(shows), "an annotation", allow)
    if text := "\n".join(filter(None, (text_of(note.get(name), f"citation {name}") for name in shows))):
        yield place, TextPart(text)


def load_parts(leaves: Iterator[Leaf], load: ImageLoader) -> tuple[Part, ...]:
    """The parts that leaves make, empty ones left out.

    Raises:
        ContentError: See `item_leaves`; or a picture that can't be judged.
    """
    parts = (load(one.source) if isinstance(one, Picture) else one for _, one in leaves)
    return tuple(part for part in parts if getattr(part, "text", None) != "")


def read_items(raw: object, reading: Reading) -> list[Message]:
    """The messages of a request's input: a text or a list of items.

    Raises:
        ContentError: An unknown type, part or field, named; or content that can't be judged.
    """
    if isinstance(raw, str):
        return [Message("user", (TextPart(raw),))]
    messages = (_read_item(mapping_of(item, "item"), reading) for item in list_of(raw, "input"))
    return [message for message in messages if message is not None]


def _read_item(item: Mapping[str, Any], reading: Reading) -> Message | None:
    kind = _item_kind(item)
    parts = load_parts(item_leaves(item, reading.allow, reply=False), reading.load)
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            refuse(f"Unknown role {shown(role)}")
        return Message(role, parts)
    if kind in _OUTPUTS:
        said = tuple(part for part in parts if isinstance(part, TextPart | ImagePart))
        if len(said) != len(parts):
            refuse("A tool's output that is neither text nor image")
        result = ToolResultPart(said, id=text_of(item.get("call_id"), "tool call id"))
        return Message("tool", (result,), name=full_name(item))
    return Message("assistant", parts) if parts else None
