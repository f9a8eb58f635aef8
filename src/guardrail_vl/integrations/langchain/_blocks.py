"""Content blocks of LangChain messages: what each of them says, whoever's block it is.

Reads LangChain's own blocks (version 1 and before) and those that the providers' integrations keep as they came. Knows
no message, no stream and no guard. What it doesn't know it refuses by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._plain import json_text
from guardrail_vl.parts import Part, ReasoningPart, RefusalPart, TextPart, ToolCallPart, checked, shown
from guardrail_vl.reading import check_fields, is_empty, refuse
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.jsons import list_of, mapping_of, text_of
from guardrail_vl.wire.responses_items import HOSTED

Slot = tuple[int | str, ...]
"""Where in a block something stands: what streams into one slot is one part."""
Leaf = tuple[Slot, Part]
"""One piece of a block's content."""

Block = Mapping[str, Any]

# Who wrote it, where it stands, how long it is cached: nothing for a model or a reader.
_ANY: Final = {
    "type", "id", "index", "cache_control", "cachePoint", "prompt_cache_breakpoint", "extras", "phase", "status",
    "source_type", "detail", "signature", "caller",
}  # fmt: skip
# `extras` holds what a provider has beside LangChain's own fields. These are seals, ids and settings.
_EXTRAS: Final = {
    "signature", "thought_signature", "id", "item_id", "index", "phase", "status", "detail", "cache_control",
    "async", "call_id", "background", "output_format", "quality", "size", "action", "media_type",
}  # fmt: skip
_CALLER: Final = {"type", "tool_id"}
_CITED: Final = ("annotations", "citations")
# Of a citation, only these are not for reading.
_CITATION_IDS: Final = {"type", "id", "file_id", "container_id", "encrypted_index", "index"}

_TEXTS: Final = {"text", "text-plain", "input_text", "output_text", "text_delta"}
_CALLS: Final[Mapping[str, tuple[str, ...]]] = {
    "tool_call": ("args",),
    "tool_call_chunk": ("args",),
    "invalid_tool_call": ("args",),
    "tool_use": ("input", "partial_json"),
    "input_json_delta": ("partial_json",),
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
}
"""Blocks that ask for a tool, and where its arguments are."""
_SERVER_CALLS: Final = {"server_tool_call", "server_tool_call_chunk", "server_tool_use"}


def read_blocks(content: object, reading: Reading) -> Iterator[tuple[int | str | None, Leaf]]:
    """What a message's content says, each with the index of its block (None: the block has none).

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    if content is None:
        return
    if isinstance(content, str):
        yield from ((None, leaf) for leaf in _text((), content))
        return
    for block in list_of(content, "message content"):
        if isinstance(block, str):
            yield from ((None, leaf) for leaf in _text((), block))
            continue
        index = mapping_of(block, "content block").get("index")
        index = index if isinstance(index, int | str) else None
        yield from ((index, leaf) for leaf in block_leaves(block, reading))


def block_leaves(block: Block, reading: Reading) -> Iterator[Leaf]:
    """What one block says.

    Raises:
        ContentError: An unknown type or field, named; or content that can't be judged.
    """
    kind = kind_of(block)
    reader = _READERS.get(kind)
    if reader is not None:
        yield from reader(block, reading)
    elif kind in _CALLS:
        yield from call_leaves(block, kind, reading.allow)
    elif not _opted_out(block, kind, reading.allow):
        refuse(f"Unsupported content block {shown(kind)}", HOSTED.get(kind, (kind,))[0])


def kind_of(block: Block) -> str:
    """A block's type. Bedrock and Google have blocks without one, that are named by their only field.

    Raises:
        ContentError: It has none.
    """
    kind = block.get("type")
    if kind is None and len(block) == 1:
        kind = next(iter(block))
    if not isinstance(kind, str):
        refuse("A content block has no type")
    return kind


def _opted_out(block: Block, kind: str, allow: Collection[str]) -> bool:
    """Whether the app lets it pass: by its type, or by the name of the provider's tool that wrote it."""
    named = (block.get("name"),) if kind in _SERVER_CALLS else (kind.removesuffix("_tool_result"),)
    return any(name in allow for name in (kind, *named, *HOSTED.get(kind, ())) if isinstance(name, str))


def _check(block: Block, known: Collection[str], where: str, allow: Collection[str]) -> None:
    check_fields(block, {*_ANY, *known}, where, allow)
    extras = {} if is_empty(block.get("extras")) else mapping_of(block["extras"], "extras")
    check_fields(extras, {*_EXTRAS, "caller"}, f"the extras of {where}", allow)
    for caller in (block.get("caller"), extras.get("caller")):
        if not is_empty(caller):
            check_fields(mapping_of(caller, "caller"), _CALLER, "a caller", allow)


# ---- text --------------------------------------------------------------------------------------------------------


def _text(slot: Slot, text: object, where: str = "text") -> Iterator[Leaf]:
    if said := text_of(text, where):
        yield (*slot, "text"), TextPart(said)


def _texts(block: Block, reading: Reading) -> Iterator[Leaf]:
    _check(block, {"text", "title", "context", "mime_type", *_CITED}, "a text block", reading.allow)
    for name in ("title", "context"):
        yield from _text((name,), block.get(name), name)
    yield from _text((), block.get("text"))
    for name in _CITED:
        for number, citation in enumerate(list_of(block.get(name), name)):
            said = "\n".join(text for text in _cited(citation) if text)
            if said:
                yield (name, number), TextPart(checked(said, "citation") + "\n")


def _cited(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _CITATION_IDS or not isinstance(inner, str):
                yield from _cited(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _cited(inner)


def _refusal(block: Block, reading: Reading) -> Iterator[Leaf]:
    _check(block, {"refusal"}, "a refusal", reading.allow)
    if said := text_of(block.get("refusal"), "refusal"):
        yield ("refusal",), RefusalPart(said)


# ---- reasoning ---------------------------------------------------------------------------------------------------


def _thought(slot: Slot, text: object) -> Iterator[Leaf]:
    if said := text_of(text, "reasoning"):
        yield (*slot, "reasoning"), ReasoningPart(said)


def _reasoning(block: Block, reading: Reading) -> Iterator[Leaf]:
    """LangChain's own, OpenAI's (lists of texts), and Anthropic's `thinking`."""
    fields = {"reasoning", "thinking", "summary", "content"}
    _check(block, fields, "a reasoning block", reading.allow)
    for name in ("reasoning", "thinking"):
        yield from _thought((), block.get(name))
    for name in ("summary", "content"):
        value = block.get(name)
        if isinstance(value, str):
            yield from _thought((name,), value)
            continue
        for number, raw in enumerate(list_of(value, name)):
            item = mapping_of(raw, name)
            _check(item, {"text"}, f"the {name} of a reasoning block", reading.allow)
            at = item.get("index")
            yield from _thought((name, at if isinstance(at, int | str) else number), item.get("text"))


def _bedrock_reasoning(block: Block, reading: Reading) -> Iterator[Leaf]:
    _check(block, {"reasoning_content", "reasoningContent"}, "a reasoning block", reading.allow)
    for name in ("reasoning_content", "reasoningContent"):
        value = block.get(name)
        if is_empty(value):
            continue
        if isinstance(value, str):
            yield from _thought((), value)
            continue
        inner = mapping_of(value, "reasoning")
        check_fields(
            inner, {"text", "type", "signature", "reasoningText", "reasoning_text"}, "reasoning", reading.allow
        )
        yield from _thought((), inner.get("text"))
        for key in ("reasoningText", "reasoning_text"):
            if not is_empty(inner.get(key)):
                deeper = mapping_of(inner[key], "reasoning")
                check_fields(deeper, {"text", "signature"}, "reasoning", reading.allow)
                yield from _thought((key,), deeper.get("text"))


# ---- pictures ----------------------------------------------------------------------------------------------------

_PIXELS: Final = {"url", "base64", "data", "bytes", "mime_type", "media_type", "format"}
_DRAWN: Final = {"result", "revised_prompt", "error", "action", "background", "output_format", "quality", "size"}


def _picture(source: object, reading: Reading) -> Iterator[Leaf]:
    # Only URLs: the loader would take any other text for the path of a file.
    if not isinstance(source, str) or not source.startswith(("data:", "http:", "https:")):
        raise ContentError("A picture must be given as data, or by a data: or http(s) URL.")
    yield ("image",), reading.load(source)


def _pixels(data: object, media_type: object, reading: Reading) -> Iterator[Leaf]:
    if not is_empty(media_type) and not str(media_type).startswith("image/"):
        refuse("Data of another type in a picture's place", "media")
    if isinstance(data, str):
        # The type is read from the bytes, whatever the block says it is.
        yield from _picture(f"data:image/png;base64,{data}", reading)
    elif isinstance(data, bytes | bytearray):
        yield ("image",), reading.load(bytes(data))
    else:
        raise ContentError("A picture's data must be base64 text or bytes.")


def _image(block: Block, reading: Reading) -> Iterator[Leaf]:
    """LangChain's (version 1: `url`, `base64`; version 0: `data`), Anthropic's (`source`) and Bedrock's (`image`)."""
    _check(block, {*_PIXELS, "source", "image"}, "a picture", reading.allow)
    found = list(_pictures(block, reading, {*_PIXELS, "type", "source"}))
    if not found:
        raise ContentError("An image given by file id can't be judged.")
    yield from found


def _pictures(holder: Block, reading: Reading, known: Collection[str]) -> Iterator[Leaf]:
    """Every picture that is there: which one counts is the provider's choice."""
    if not is_empty(holder.get("url")):
        yield from _picture(holder["url"], reading)
    for name in ("base64", "data", "bytes"):
        if holder.get(name):
            yield from _pixels(holder[name], holder.get("mime_type") or holder.get("media_type"), reading)
    for name in ("source", "image"):
        if not is_empty(holder.get(name)):
            inner = mapping_of(holder[name], "source of a picture")
            # A URL further in is no form that anyone has.
            fields = known if name == "source" else {*known} - {"url"}
            check_fields(inner, fields, "the source of a picture", reading.allow)
            yield from _pictures(inner, reading, {*fields} - {"url", "source"} if name == "source" else fields)


def _image_url(block: Block, reading: Reading) -> Iterator[Leaf]:
    _check(block, {"image_url"}, "a picture", reading.allow)
    value = block.get("image_url")
    if isinstance(value, Mapping):
        check_fields(value, {"url", "detail", "format"}, "an image_url", reading.allow)
        value = value.get("url")
    yield from _picture(value, reading)


def _drawn(block: Block, reading: Reading) -> Iterator[Leaf]:
    """A picture that OpenAI's own tool has drawn, and what it was asked to draw."""
    _check(block, _DRAWN, "a drawn picture", reading.allow)
    yield from _text(("prompt",), block.get("revised_prompt"))
    yield from _text(("error",), block.get("error"))
    if not is_empty(block.get("result")):
        yield from _pixels(block["result"], None, reading)


def _media(block: Block, reading: Reading) -> Iterator[Leaf]:
    _check(block, {"mime_type", "data"}, "a media block", reading.allow)
    if not str(block.get("mime_type")).startswith("image/"):
        if "media" in reading.allow:
            return
        refuse("Media that are no picture", "media")
    yield from _pixels(block.get("data"), block.get("mime_type"), reading)


# ---- calls, results and what wraps others ------------------------------------------------------------------------


def call_leaves(block: Block, kind: str, allow: Collection[str]) -> Iterator[Leaf]:
    """A tool call, whole or in part; an invalid one with what is said of it.

    Raises:
        ContentError: An unknown field, named; or a call that can't be judged.
    """
    fields = {*_CALLS[kind], "name", "call_id", "namespace", "async", "error", "created_by", "toolset_name"}
    _check(block, fields, "a tool call", allow)
    values = [block[name] for name in _CALLS[kind] if not is_empty(block.get(name))]
    # A stream begins with an empty object where the text of the arguments will be.
    arguments = "".join(json_text(value, "tool arguments") for value in values)
    names = (text_of(block.get(name), "tool name") for name in ("toolset_name", "namespace", "name"))
    call_id = block.get("call_id") or block.get("id")
    yield (kind,), ToolCallPart(".".join(filter(None, names)), arguments, text_of(call_id, "tool call id"))
    yield from _text(("error",), block.get("error"), "error of a tool call")


def _tool_result(block: Block, reading: Reading) -> Iterator[Leaf]:
    _check(block, {"content", "tool_use_id", "is_error", "name"}, "a tool's result", reading.allow)
    yield from _text(("name",), block.get("name"), "tool name")
    for number, (_, (slot, part)) in enumerate(read_blocks(block.get("content"), reading)):
        yield ("result", number, *slot), part


def _output(block: Block, reading: Reading) -> Iterator[Leaf]:
    """What a tool gave back, as OpenAI's custom tools and Bedrock's `json` have it."""
    _check(block, {"output", "json", "call_id", "name"}, "a tool's output", reading.allow)
    yield from _text(("name",), block.get("name"), "tool name")
    if not is_empty(block.get("json")):
        yield from _text(("json",), json_text(block["json"], "tool output"))
    for number, (_, (slot, part)) in enumerate(read_blocks(block.get("output"), reading)):
        yield ("output", number, *slot), part


def _non_standard(block: Block, reading: Reading) -> Iterator[Leaf]:
    """LangChain's wrapping of a provider's own block: read as if it stood there itself."""
    if "non_standard" in reading.allow:
        return
    _check(block, {"value"}, "a non-standard block", reading.allow)
    value = mapping_of(block.get("value"), "value of a non-standard block")
    if "type" not in value:
        refuse("A non-standard block", "non_standard")
    yield from block_leaves(value, reading)


_READERS: Final[Mapping[str, Callable[[Block, Reading], Iterator[Leaf]]]] = {
    **dict.fromkeys(_TEXTS, _texts),
    "refusal": _refusal,
    "reasoning": _reasoning,
    "thinking": _reasoning,
    "reasoning_content": _bedrock_reasoning,
    "reasoningContent": _bedrock_reasoning,
    "image": _image,
    "image_url": _image_url,
    "input_image": _image_url,
    "media": _media,
    "image_generation_call": _drawn,
    "tool_result": _tool_result,
    "custom_tool_call_output": _output,
    "json": _output,
    "non_standard": _non_standard,
}
