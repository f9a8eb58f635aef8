"""What the keyword arguments of a LangChain model's call bring before the model, beside the messages.

Knows names of settings as OpenAI's, Anthropic's and Google's integrations have them. Knows no message.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from langchain_core.utils.function_calling import convert_to_openai_tool

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._blocks import read_blocks
from guardrail_vl.integrations.langchain._plain import json_text, strings
from guardrail_vl.parts import Part, TextPart, shown
from guardrail_vl.reading import check_fields, is_empty, refuse
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.chat_fields import SAMPLING, TOKENS
from guardrail_vl.wire.jsons import list_of, mapping_of

# Sampling, routing, caching, accounting and tracing: neither the model nor a reader sees these.
_SETTINGS: Final = SAMPLING | {
    "model_name", "stop_sequences", "reasoning_effort", "reasoning", "thinking", "output_version", "truncation",
    "background",
    "ls_structured_output_format", "extra_headers", "headers", "timeout", "request_timeout", "betas",
    "stream_usage", "safety_settings", "http_options", "labels", "inference_geo", "effort", "prompt_mode",
    "reasoning_format", "performance_config", "text verbosity", "requestMetadata", "request_metadata",
    "api_version", "run_id",
}  # fmt: skip
_UNSEEN: Final = {
    "previous_response_id": "earlier responses",
    "conversation": "a stored conversation",
    "prompt": "a stored prompt",
    "cached_content": "stored content",
    "container": "a container's files",
    "web_search_options": "what a search finds",
    "enable_search": "what a search finds",
    "mcp_servers": "what others' tools give",
}
"""What brings content that is not in the request."""
_CHOICES: Final = {"none", "auto", "any", "required", "validated"}
_TOOL: Final = {"name", "description", "input_schema", "parameters", "title", "type", "properties", "required"}
_TOOL_LISTS: Final = ("function_declarations", "functionDeclarations")
_OWN_TOOLS: Final = ("function", "custom")


def definitions(settings: Mapping[str, Any], reading: Reading) -> Iterator[Part]:
    """What the model sees, or is held to, beside the messages.

    Raises:
        ContentError: It can't be judged, or brings content that nobody judges; named.
    """
    for name, value in settings.items():
        if is_empty(value) and not (name in TOKENS and value):
            continue
        if name in _SETTINGS or name in reading.allow:
            continue
        if name in ("extra_body", "model_kwargs"):  # more settings, under the provider's own names
            yield from definitions(mapping_of(value, name), reading)
        else:
            yield from _setting(name, value, reading)


def _setting(name: str, value: Any, reading: Reading) -> Iterator[Part]:
    allow = reading.allow
    if name in TOKENS:
        if not (name.endswith("logprobs") and "logprobs" in allow):
            refuse(f"The request's {name} asks for the text once more, token by token", name)
    elif name in _UNSEEN:
        refuse(f"The field {name!r} brings {_UNSEEN[name]}, which the guard can't see", name)
    elif name == "include":
        if any("logprobs" in text for _, text in strings(value, name)) and "logprobs" not in allow:
            refuse("Log probabilities repeat the text, and what else might have been said", "logprobs")
    elif name in ("tools", "functions"):
        for tool in list_of(value, name):
            yield from _tool(tool, allow)
    elif name in ("tool_choice", "function_call"):
        if value not in (*_CHOICES, True):
            yield TextPart(json_text(value, name, name))
    elif name == "modalities":
        for mode in list_of(value, name):
            if mode not in ("text", "image") and mode not in allow:
                refuse(f"Unsupported modality {shown(mode)}", str(mode))
    elif name == "prediction":
        prediction = mapping_of(value, name)
        check_fields(prediction, {"type", "content"}, "the prediction", allow)
        yield from (part for _, (_, part) in read_blocks(prediction.get("content"), reading))
    elif name == "text":  # the Responses API's `response_format`, with what else there is of text
        yield from definitions({f"text {key}": inner for key, inner in mapping_of(value, name).items()}, reading)
    elif value not in ({"type": "text"}, {"type": "json_object"}) and _says_something(value):
        yield TextPart(json_text(value, f"setting {shown(name)}", name))


def _says_something(value: object) -> bool:
    if isinstance(value, type):
        return True
    try:
        return any(text for _, text in strings(value, "setting"))
    except ContentError:
        return True  # `json_text` says what it makes of it


def _tool(tool: object, allow: Collection[str]) -> Iterator[Part]:
    if not isinstance(tool, Mapping):
        yield TextPart(json_text(_converted(tool), "tool"))
        return
    kind = tool.get("type")
    if kind == "namespace":
        for inner in list_of(tool.get("tools"), "tools"):
            yield from _tool(inner, allow)
        yield TextPart(json_text({name: value for name, value in _bare(tool).items() if name != "tools"}, "tool"))
        return
    if isinstance(kind, str) and kind not in (*_OWN_TOOLS, "object"):
        if kind not in allow:
            refuse(f"Hosted tool {shown(kind)}, whose input and output the guard can't see", kind)
        return
    if kind is None:
        for name in tool:
            if name not in {*_TOOL, *_TOOL_LISTS, "toolSpec", "cachePoint", "cache_control", "strict"} | set(allow):
                refuse(f"Unknown field {shown(name)} in a tool", str(name))
    yield TextPart(json_text(_bare(tool), "tool"))


def _bare(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in tool.items() if name != "cache_control" and not is_empty(value)}


def _converted(tool: Any) -> object:
    try:
        return convert_to_openai_tool(tool)
    except Exception:  # it is the app's own object: whatever it raises, it can't be read
        refuse(f"A tool of type {shown(type(tool).__name__)}")
