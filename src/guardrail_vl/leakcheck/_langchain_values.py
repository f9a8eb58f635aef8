"""LangChain's values in the suite's shapes: a probe's request as messages, what comes back as what `Log` reads.

Knows no guard. Imports langchain only where it is needed: the suite is there without it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

NOT_FIELDS: Final = frozenset(("model", "messages", "input", "then", "users", "stream", "tools", "agent"))
"""Of a probe's request: what is no setting of the model's call."""
_LONG: Final = 8
"""Letters from which a text of the caller's is told from chance, in what a checkpoint stores."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A probe's request, in LangChain's words."""

    messages: list[Any]
    then: list[Any]
    """What is asked next, if anything is."""
    tools: list[dict[str, Any]]
    fields: dict[str, Any]
    """Settings of the call, under OpenAI's names."""
    own: frozenset[str]
    """What the caller wrote."""


def asked(request: Mapping[str, Any]) -> Asked:
    """The request."""
    from langchain_core.messages import convert_to_messages

    given = request.get("messages", request.get("input", ()))
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    then = [{"role": "user", "content": request["then"]}] if "then" in request else []
    written = {name: value for name, value in request.items() if name != "agent"}
    return Asked(
        convert_to_messages([_as_message(item) for item in given]),
        convert_to_messages(then),
        list(request.get("tools", ())),
        {name: value for name, value in request.items() if name not in NOT_FIELDS},
        frozenset(_texts(written)),
    )


def _as_message(item: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message as it is; an item of the Responses API as the message that LangChain makes such an item of."""
    if "role" in item:
        return dict(item)
    if item["type"] == "function_call":
        call = {"id": item["call_id"], "function": {"name": item["name"], "arguments": item["arguments"]}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if item["type"] == "function_call_output":
        return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    return {"role": "user", "content": [dict(item)]}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


# ---- what comes back ----------------------------------------------------------------------------------------------


def plain(value: Any, own: frozenset[str] = frozenset()) -> Any:
    """Any value as JSON values, with every text in it but those that the caller wrote: they are no news to them."""
    if isinstance(value, str):
        return "" if value in own else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        for one in own:
            text = text.replace(one, "") if len(one) >= _LONG else text
        return text
    if isinstance(value, Mapping):
        return {str(key): plain(inner, own) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner, own) for inner in value]
    if callable(getattr(value, "invoke", None)):  # a model, a tool, a graph: part of the app
        return type(value).__name__
    if isinstance(value, BaseModel):
        return plain({**value.__dict__, **(value.model_extra or {})}, own)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name, None), own) for one in dataclasses.fields(value)}
    return repr(value)


def spoken(item: Any) -> Iterator[dict[str, Any]]:
    """What an AI says in one item of a stream, of whatever kind of stream, as an event of a chat stream."""
    if getattr(item, "type", "") in ("ai", "AIMessageChunk"):
        yield event_of(str(item.text), calls_of(item), item.response_metadata.get("finish_reason"))
    elif isinstance(item, tuple) and item[-2] == "messages":
        yield from spoken(item[-1][0])
    elif isinstance(item, Mapping) and "raw" in item:
        yield from spoken(item["raw"])
    elif isinstance(item, Mapping) and item.get("event") == "on_chat_model_stream":
        yield from spoken(item["data"]["chunk"])
    elif isinstance(item, Mapping) and item.get("method") == "messages":
        yield from spoken(item["params"]["data"][0])
    elif isinstance(item, Mapping) and item.get("event") == "content-block-delta":
        delta, at = item["delta"], item["index"]
        yield event_of(delta.get("text") or "", [(at, delta["args"])] if "args" in delta else [])
    elif isinstance(item, Mapping) and item.get("event") == "message-finish":
        yield event_of("", [], (item.get("metadata") or {}).get("finish_reason"))


def calls_of(message: Any) -> list[tuple[int, str]]:
    """A message's tool calls: the place of each, and its arguments or this piece of them."""
    if message.type == "AIMessageChunk":
        chunks = message.tool_call_chunks
        return [(call.get("index") or 0, call["args"] or "") for call in chunks]
    return [(at, _arguments(call["args"])) for at, call in enumerate(message.tool_calls)]


def _arguments(args: Mapping[str, Any]) -> str:
    """As the model wrote them: free text, or JSON."""
    free = args.get("__arg1")
    return free if isinstance(free, str) and len(args) == 1 else json.dumps(args)


def event_of(text: str, calls: Sequence[tuple[int, str]] = (), finish: str | None = None) -> dict[str, Any]:
    """An event of a chat stream."""
    listed = [{"index": at, "function": {"arguments": said}} for at, said in calls]
    return {"choices": [{"index": 0, "delta": {"content": text, "tool_calls": listed}, "finish_reason": finish}]}


def recorder(note: Callable[[dict[str, Any]], None]) -> Any:
    """A callback handler that notes whatever any of its methods is told."""
    from langchain_core.callbacks import BaseCallbackHandler

    def told(name: str) -> Callable[..., None]:
        def method(self: Any, *args: Any, **kwargs: Any) -> None:
            note({name: [list(args), kwargs]})

        return method

    names = [name for name in dir(BaseCallbackHandler) if name.startswith("on_")]
    kind = type("Recorder", (BaseCallbackHandler,), {name: told(name) for name in names} | {"run_inline": True})
    return kind()
