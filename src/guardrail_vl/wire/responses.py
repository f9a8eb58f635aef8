"""The OpenAI Responses API: `responses`, and stored responses that are fetched later. Knows no stream's events."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Final

from guardrail_vl.parts import Message, Part, TextPart, shown
from guardrail_vl.turn import Turn
from guardrail_vl.wire.base import Candidate, Endpoint, Json, Reading
from guardrail_vl.wire.jsons import as_text, check_fields, is_empty, list_of, mapping_of, refuse, text_of
from guardrail_vl.wire.responses_items import (
    Leaf,
    Place,
    error_text,
    item_leaves,
    kind_of,
    load_parts,
    part_leaves,
    read_items,
    words,
)
from guardrail_vl.wire.responses_refusal import kept, refusal
from guardrail_vl.wire.responses_stream import ResponsesReader

_CONTENT: Final = {"input", "instructions", "tools", "tool_choice", "text", "prompt"}
_SETTINGS: Final[Mapping[str, Collection[str]]] = {
    "reasoning": {"effort", "summary", "generate_summary", "context", "mode"},
    "stream_options": {"include_obfuscation"},
    "prompt_cache_options": {"mode", "ttl", "comparison_response_id"},
    "moderation": {"model", "policy"},
    "image": {"context_compression"},
    "access_programs": {"cyber"},
}
"""Settings made of fields, which hold no content."""
_PLAIN: Final = {
    "model", "metadata", "store", "background", "include", "user", "safety_identifier", "service_tier", "truncation",
    "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
"""Settings that the model never sees."""
_UNSEEN: Final = {
    "previous_response_id": "earlier responses",
    "conversation": "a stored conversation",
    "prompt": "a stored prompt",
}
"""What brings content that is not in the request."""
_REQUEST: Final = _CONTENT | set(_SETTINGS) | _PLAIN | set(_UNSEEN)

_ECHO: Final = ("instructions", "prompt", "tools", "tool_choice", "text", "reasoning", "metadata")
"""Fields of a reply that repeat the request's."""
_REPLY: Final = {
    "id", "object", "status", "output", "error", "incomplete_details", "usage", "conversation", "previous_response_id",
    "moderation", "input_transformations", "prompt_cache_diagnostics", "prompt_cache_options", "tool_usage",
    "access_programs", "image", "billing", "content_filters", *_PLAIN, *_ECHO,
}  # fmt: skip

# Words of the API itself: they say nothing, wherever they stand in a setting.
_API_WORDS: Final = {
    "type", "name", "mode", "tools", "tool_choice", "text", "format", "verbosity", "schema", "strict", "description",
    "effort", "summary", "generate_summary", "context", "version", "variables", "function", "custom", "namespace",
    "allowed_tools", "none", "auto", "required", "json_schema", "json_object", "low", "medium", "high", "minimal",
    "xhigh", "max", "concise", "detailed", "standard", "pro", "current_turn", "all_turns", "reason",
    "max_output_tokens", "content_filter", "max_messages", "steered", "parameters", "defer_loading", "async",
    "allowed_callers", "direct", "programmatic", "output_schema", "object", "additionalProperties",
}  # fmt: skip


class Responses(Endpoint):
    """`POST responses`. A reply has one candidate, key 0: its whole output."""

    name: ClassVar[str] = "responses"

    def read_request(self, request: Json, prompt: int, reading: Reading) -> Turn:
        """See `Endpoint.read_request`."""
        allow = reading.allow
        _check_request(request, allow)
        messages = []
        if definitions := tuple(_definitions(request, allow)):
            messages.append(Message("developer", definitions))
        if instructions := text_of(request.get("instructions"), "instructions"):
            messages.append(Message("system", (TextPart(instructions),)))
        if not is_empty(request.get("prompt")):
            variables = load_parts(_variables(request["prompt"], allow), reading.load)
            messages += [Message("user", variables)] if variables else []
        messages += read_items(request.get("input"), reading)
        return Turn(tuple(messages))

    def read_reply(self, reply: Json, request: Json, reading: Reading) -> tuple[Candidate, ...]:
        """See `Endpoint.read_reply`."""
        parts = load_parts(reply_leaves(reply, request, reading.allow), reading.load)
        return (Candidate((Message("assistant", parts),)),)

    def refuse(self, request: Json, text: str) -> dict[str, Any]:
        """See `Endpoint.refuse`."""
        return refusal(_model(request), text)

    def withhold(self, reply: Json, keys: Collection[int], text: str) -> dict[str, Any]:
        """See `Endpoint.withhold`. What the reply repeats of the request goes too: it may be what was blocked."""
        return refusal(kept(reply), text) if 0 in keys else dict(reply)

    def reader(self, request: Json, reading: Reading) -> ResponsesReader:
        """See `Endpoint.reader`."""
        allow = reading.allow
        return ResponsesReader(lambda reply: reply_leaves(reply, request, allow), reading, _model(request))


class StoredResponse(Responses):
    """`GET responses/{id}` and `POST responses/{id}/cancel`: a reply to a request that is not at hand."""

    name: ClassVar[str] = "responses/{id}"

    def prompts(self, request: Json) -> int:
        """None: the request has no content."""
        return 0

    def streams(self, request: Json) -> bool:
        """Whether the query asks for an event stream."""
        return request.get("stream") in (True, "true")

    def read_request(self, request: Json, prompt: int, reading: Reading) -> Turn:
        """Never called, as there are no prompts.

        Raises:
            ContentError: Always.
        """
        refuse("A request for a stored response has no prompt")


def _model(request: Json) -> dict[str, Any]:
    model = request.get("model")
    return {"model": model} if isinstance(model, str) else {}


# ---- requests ----------------------------------------------------------------------------------------------------


def _check_request(request: Json, allow: Collection[str]) -> None:
    check_fields(request, _REQUEST, "the request", allow)
    for name, what in _UNSEEN.items():
        if not is_empty(request.get(name)) and name not in allow:
            refuse(f"The field {name!r} brings {what}, which the guard can't see", name)
    for name, known in _SETTINGS.items():
        if not is_empty(request.get(name)):
            check_fields(mapping_of(request[name], name), known, f"the setting {name!r}", allow)
    wants = any("logprobs" in text for text in words(request.get("include")))
    if (wants or request.get("top_logprobs")) and "logprobs" not in allow:
        refuse("Log probabilities repeat the text, and what else might have been said", "logprobs")


def _definitions(request: Json, allow: Collection[str]) -> Iterator[Part]:
    """What the model is told of tools and of the shape of its answer."""
    tools = [mapping_of(tool, "tool") for tool in list_of(request.get("tools"), "tools")]
    for tool in tools:
        if _is_read(tool, allow):
            yield TextPart(as_text(tool, "tool definition"))
    shape = request.get("text")
    if not is_empty(shape) and list(_fresh(shape, ())):
        yield TextPart(as_text(shape, "response format"))
    if names := "\n".join(_fresh(request.get("tool_choice"), words(tools))):
        yield TextPart(names)


def _is_read(tool: Mapping[str, Any], allow: Collection[str]) -> bool:
    kind = kind_of(tool, "tool")
    if kind in ("function", "custom"):
        return True
    if kind == "namespace":
        return all(_is_read(mapping_of(one, "tool"), allow) for one in list_of(tool.get("tools"), "tools"))
    if kind not in allow:
        refuse(f"Hosted tool {shown(kind)}, whose input and output the guard can't see", kind)
    return False


def _fresh(value: object, known: Collection[str] | Iterator[str]) -> Iterator[str]:
    """What a setting says that is neither known nor the API's own words."""
    heard = _API_WORDS.union(known)
    return (text for text in words(value) if text and text not in heard)


def _variables(prompt: object, allow: Collection[str]) -> Iterator[Leaf]:
    template = mapping_of(prompt, "prompt")
    check_fields(template, {"id", "version", "variables"}, "the prompt", allow)
    for name, value in mapping_of(template.get("variables") or {}, "prompt variables").items():
        place: Place = ("prompt", name)
        if isinstance(value, str):
            yield place, TextPart(value)
        else:
            yield from part_leaves(value, place, allow)


# ---- replies -----------------------------------------------------------------------------------------------------


def reply_leaves(reply: Json, request: Json, allow: Collection[str]) -> Iterator[Leaf]:
    """What a response says, in order: what it repeats of the request (if it differs), its output, its error.

    Raises:
        ContentError: An unknown type, part or field, named; or content that can't be judged.
    """
    check_fields(reply, _REPLY, "the reply", allow)
    for name in _ECHO:
        if not is_empty(reply.get(name)) and reply[name] != request.get(name):
            yield from _echo_leaves(name, reply[name], request.get(name), allow)
    for position, item in enumerate(list_of(reply.get("output"), "output")):
        for place, content in item_leaves(item, allow, reply=True):
            yield (position, *place), content
    yield from _moderation_leaves(reply.get("moderation"))
    if not is_empty(reply.get("error")):
        yield ("error",), error_text(reply["error"])
    if reason := "\n".join(_fresh(reply.get("incomplete_details"), ())):
        yield ("incomplete_details",), TextPart(reason)


def _echo_leaves(name: str, value: object, asked: object, allow: Collection[str]) -> Iterator[Leaf]:
    if name == "prompt":
        yield from _variables(value, allow)
    elif name == "instructions" and isinstance(value, list):
        for position, item in enumerate(value):
            for place, content in item_leaves(item, allow, reply=False):
                yield (name, position, *place), content
    # Servers fill in defaults: what is new is judged, not what the request said.
    elif text := "\n".join(_fresh(value, words(asked))):
        yield ("echo", name), TextPart(text)


def _moderation_leaves(results: object) -> Iterator[Leaf]:
    if is_empty(results):
        return
    for side, result in mapping_of(results, "moderation").items():
        if isinstance(result, Mapping) and result.get("type") == "error":
            yield ("moderation", side), error_text(result)
