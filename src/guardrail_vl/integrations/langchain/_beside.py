"""What a LangChain message holds beside its content: `additional_kwargs`, and the metadata of a reply.

Knows which names hold nothing for a model or a reader. Whatever else is there is read as text, so that it is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from langchain_core.messages import BaseMessage

from guardrail_vl.integrations.langchain._blocks import Leaf, block_leaves
from guardrail_vl.integrations.langchain._plain import json_text, strings
from guardrail_vl.parts import Part, ReasoningPart, RefusalPart, TextPart, ToolCallPart, shown
from guardrail_vl.reading import check_fields, is_empty, read_reasoning, refuse
from guardrail_vl.verdict import Action
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.jsons import list_of, mapping_of, text_of

# Why it ended, which model it was, what it cost, ids and dates, as OpenAI, Anthropic, Google, Mistral, Ollama, Bedrock
# and Groq name them. (Numbers and booleans need no place here.)
_METADATA: Final = {
    "finish_reason", "native_finish_reason", "stop_reason", "stopReason", "done_reason", "id", "object", "status",
    "model", "model_name", "model_id", "modelId", "model_provider", "provider", "ls_provider", "system_fingerprint",
    "token_usage", "usage", "usage_metadata", "service_tier", "created", "created_at", "safety_ratings", "metrics",
    "lc_versions", "output_version", "user", "request_id", "ResponseMetadata", "headers", "lc_gateway_metadata",
    "content_filter_results", "prompt_filter_results",
}  # fmt: skip
_INNER_METADATA: Final = {
    ("incomplete_details", "reason"), ("prompt_feedback", "block_reason"), ("prompt_feedback", "safety_ratings"),
    ("x_groq", "id"), ("x_groq", "usage"), ("message", "role"),
}  # fmt: skip
# These repeat the text token by token, with what else the model had in mind.
_TOKENS: Final = {"logprobs", "logprobs_result", "prompt_logprobs", "token_ids"}

_KWARGS: Final = {
    "__openai_role__", "__openai_function_call_ids__", "__gemini_function_call_thought_signatures__", "lc_source",
    "signature", "name",
}  # fmt: skip
_SUMMARY: Final = {"id", "stage", "action", "reason", "policy", "error", "verdict"}
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_CALL: Final = {"id", "type", "index", "function", "custom"}
PARSED: Final = ("kwargs", "parsed")
"""The slot of an answer's structured form."""


def metadata_leaves(metadata: Mapping[str, Any] | None, allow: Collection[str]) -> Iterator[Leaf]:
    """What the metadata of a reply say to a reader.

    Raises:
        ContentError: Tokens beside the text, or something that has no text; named.
    """
    for name, value in (metadata or {}).items():
        if name in _METADATA or name in allow or (name == "guardrail" and _is_annotation(value)):
            continue
        if name in _TOKENS:
            if not _bare(value) and not (name.startswith("logprobs") and "logprobs" in allow):
                refuse(f"The {name} of a reply repeat its text, token by token", name)
            continue
        for path, text in strings({name: value}, "metadata of a reply"):
            if path[:2] not in _INNER_METADATA and text:
                yield ("metadata", *path), TextPart(text)


def _is_annotation(value: object) -> bool:
    """Whether it is what a guard inside has put there: by its form, for it may have been stored as plain JSON."""
    if not isinstance(value, Mapping) or set(value) != {"action", "decisions"} or value["action"] not in set(Action):
        return False
    found = value["decisions"]
    return isinstance(found, list) and all(isinstance(one, Mapping) and set(one) == _SUMMARY for one in found)


def _bare(value: object) -> bool:
    return is_empty(value) or (isinstance(value, Mapping) and all(map(is_empty, value.values())))


def kwargs_leaves(kwargs: Mapping[str, Any], reading: Reading) -> Iterator[Leaf]:
    """What `additional_kwargs` say, but for a name (`name_of`).

    Calls may have been told elsewhere, and so may `parsed` (slot `PARSED`).

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    for name, value in kwargs.items():
        if is_empty(value) or name in _KWARGS or name in reading.allow:
            continue
        for slot, part in _kwarg(name, value, reading):
            yield ("kwargs", name, *slot), part


def name_of(message: BaseMessage) -> str:
    """The speaker's name, wherever the message has it.

    Raises:
        ContentError: It can't be judged.
    """
    names = (text_of(name, "name") for name in (message.name, message.additional_kwargs.get("name")))
    return "\n".join(dict.fromkeys(filter(None, names)))


def _kwarg(name: str, value: Any, reading: Reading) -> Iterator[Leaf]:
    if name == "refusal":
        yield (), RefusalPart(text_of(value, "refusal"))
    elif name in _REASONING:
        yield from _reasoning(value, reading)
    elif name == "reasoning_details":
        yield from (((), part) for part in read_reasoning(value, reading.allow) if part.text)
    elif name == "tool_calls":
        for number, raw in enumerate(list_of(value, name)):
            at = raw.get("index") if isinstance(raw, Mapping) else None
            yield ("call", at if isinstance(at, int | str) else number), raw_call(raw, reading.allow)
    elif name == "function_call":
        yield ("old",), raw_call({"function": value}, reading.allow)
    elif name == "audio":
        refuse("Audio in a message", "audio")
    elif name == "parsed":
        yield (), TextPart(json_text(value, "parsed answer"))
    elif name == "tool_outputs":  # of OpenAI's own tools
        for number, raw in enumerate(list_of(value, name)):
            inner = block_leaves(mapping_of(raw, "tool output"), reading)
            yield from (((number, *slot), part) for slot, part in inner)
    else:
        for path, text in strings(value, "additional_kwargs"):
            if text:
                yield path, TextPart(text)


def _reasoning(value: Any, reading: Reading) -> Iterator[Leaf]:
    if isinstance(value, str):
        yield (), ReasoningPart(value)
    else:
        yield from block_leaves({"type": "reasoning", **mapping_of(value, "reasoning")}, reading)


def raw_call(raw: object, allow: Collection[str]) -> Part:
    """A tool call as OpenAI's JSON has it.

    Raises:
        ContentError: Something in it is unknown, or can't be judged.
    """
    call = mapping_of(raw, "tool call")
    check_fields(call, _CALL, "a tool call", allow)
    kind = "custom" if "custom" in call else "function"
    if call.get("type") not in (None, "function", "custom"):
        refuse(f"Unsupported tool call {shown(call.get('type'))}", str(call.get("type")))
    body = mapping_of(call.get(kind) or {}, "tool call")
    arguments = "input" if kind == "custom" else "arguments"
    check_fields(body, {"name", arguments}, "a tool call", allow)
    text = "" if is_empty(body.get(arguments)) else json_text(body[arguments], "tool arguments")
    return ToolCallPart(text_of(body.get("name"), "tool name"), text, text_of(call.get("id"), "tool call id"))
