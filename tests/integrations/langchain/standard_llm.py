"""A small LLM for LangChain's standard tests: it answers as a capable model would, as a function of the request alone.

It takes the arguments of a tool call, or the fields of a JSON answer, out of the prompt and the schema. It knows no
test, and no guard. What a real server would refuse, such as an unknown setting, it refuses too.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.integrations.llm import DONE, Answer

_SETTINGS: Final = {
    "messages", "model", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "stop", "temperature", "max_tokens", "max_completion_tokens", "reasoning_effort",
}  # fmt: skip
_HEAD: Final = {"id": "chatcmpl-1", "created": 1}
_ALONE: Final = {"connection": "close"}
"""The client keeps connections for all tests, but each test has an event loop of its own."""
_CACHED_FROM: Final = 1024
"""From this many tokens on, a prompt counts as seen before."""
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTED: Final = re.compile(r"'([^']+)'|\"([^\"]+)\"")
_NAME: Final = re.compile(r"(?<=\s)[A-Z]\w+(?:,? [A-Z]\w+)*")


@dataclass(frozen=True)
class Said:
    """An answer: text, or one tool call."""

    text: str | None
    call: Mapping[str, Any] | None = None
    finish: str = "stop"


def answer(body: dict[str, Any]) -> Answer:
    """What the server answers, whole or as a stream."""
    wrong = fault(body)
    if wrong:
        error = {"message": wrong, "type": "invalid_request_error", "param": None, "code": None}
        return Answer(json.dumps({"error": error}).encode(), status=400, headers=_ALONE)
    said = say(body)
    if body.get("stream"):
        return Answer(media_type="text/event-stream", frames=list(frames(body, said)), headers=_ALONE)
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.call is not None:
        message["tool_calls"] = [said.call]
    choice = {"index": 0, "finish_reason": said.finish, "message": message, "logprobs": None}
    whole = {**_HEAD, "object": "chat.completion", "model": body["model"], "choices": [choice]}
    return Answer(json.dumps({**whole, "usage": usage(body, said)}).encode(), headers=_ALONE)


def frames(body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
    """The frames of a stream: text and arguments in pieces, and the usage where it is asked for."""
    for delta in deltas(said):
        yield frame(body, [{"index": 0, "delta": delta, "finish_reason": None}])
    yield frame(body, [{"index": 0, "delta": {}, "finish_reason": said.finish}])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield frame(body, [], usage=usage(body, said))
    yield DONE


def frame(body: Mapping[str, Any], choices: Sequence[Any], **more: Any) -> bytes:
    """One frame."""
    value = {**_HEAD, "object": "chat.completion.chunk", "model": body["model"], "choices": choices, **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def deltas(said: Said) -> Iterator[dict[str, Any]]:
    """What each frame adds."""
    yield {"role": "assistant", "content": None if said.text is None else ""}
    for piece in pieces(said.text or ""):
        yield {"content": piece}
    if said.call is not None:
        function = said.call["function"]
        yield {"tool_calls": [{**said.call, "index": 0, "function": {"name": function["name"], "arguments": ""}}]}
        for piece in pieces(function["arguments"]):
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of four letters."""
    for at in range(0, len(text), 4):
        yield text[at : at + 4]


def usage(body: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """How many tokens it took: a word is one."""
    prompt = len(json.dumps(body["messages"]).split())
    thought = 8 if body.get("reasoning_effort") else 0
    written = thought + len((said.text or json.dumps(said.call)).split())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": _CACHED_FROM if prompt >= _CACHED_FROM else 0},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


# ---- what it refuses ----------------------------------------------------------------------------------------------


def fault(body: Mapping[str, Any]) -> str:
    """What is wrong with a request; empty: nothing."""
    if unknown := set(body) - _SETTINGS:
        return f"Unrecognized request argument supplied: {sorted(unknown)}"
    if body.get("tool_choice") and not body.get("tools"):
        return "'tool_choice' is only allowed when 'tools' are specified."
    form = body.get("response_format") or {}
    if form.get("type") == "json_object" and "json" not in json.dumps(body["messages"]).lower():
        return "'messages' must contain the word 'json' in some form."
    open_calls: set[str] = set()
    for message in body["messages"]:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'."
            open_calls.remove(message["tool_call_id"])
        elif open_calls:
            return "An assistant message with 'tool_calls' must be followed by tool messages."
        open_calls |= {call["id"] for call in message.get("tool_calls") or ()}
        if not all(accepted(block) for block in blocks(message)):
            return f"Invalid content of a message with role {message['role']!r}."
    return ""


def blocks(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The content of a message as blocks."""
    content = message.get("content") or []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def accepted(block: Mapping[str, Any]) -> bool:
    """Whether a content block is one that OpenAI's API knows, with data that can be decoded."""
    match block:
        case {"type": "text", "text": str()}:
            return True
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return url.startswith("https://") or decodable(url.removeprefix("data:image/").partition(";base64,")[2])
        case {"type": "file", "file": {"file_data": str(url)}}:
            return decodable(url.removeprefix("data:application/pdf;base64,"))
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": "wav" | "mp3"}}:
            return decodable(data)
    return False


def decodable(data: str) -> bool:
    """Whether there is base64 in it."""
    return bool(data) and base64.b64encode(base64.b64decode(data)).decode() == data


# ---- what it says -------------------------------------------------------------------------------------------------


def say(body: Mapping[str, Any]) -> Said:
    """A tool call where one is asked for; else text, or JSON."""
    messages = body["messages"]
    prompt = next((text_of(message) for message in reversed(messages) if message["role"] == "user"), "")
    tool = chosen(body, prompt, answered=messages[-1]["role"] == "tool")
    if tool is not None:
        arguments = Writer(prompt, tool.get("parameters") or {}).write()
        function = {"name": tool["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        call = {"id": f"call_{len(messages)}", "type": "function", "function": function}
        return Said(None, call, finish="tool_calls")
    form = body.get("response_format") or {"type": "text"}
    if form["type"] == "json_schema":
        return Said(json.dumps(Writer(prompt, form["json_schema"]["schema"]).write()))
    if form["type"] == "json_object":
        return Said(json.dumps({key: f"A fitting {key}." for key in quoted(prompt)}))
    return cut(body, talk(messages))


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message."""
    return " ".join(block["text"] for block in blocks(message) if block["type"] == "text")


def talk(messages: Sequence[Mapping[str, Any]]) -> str:
    """Small talk about what it got."""
    last = messages[-1]
    if last["role"] == "tool":
        return f"The tool says: {text_of(last) or 'no word'}. Is there more that I can do for you?"
    others = [block["type"] for block in blocks(last) if block["type"] != "text"]
    seen = f" Thank you for what you sent: {', '.join(others)}." if others else ""
    return f"Hello! This is message {len(messages)} of ours.{seen} What else can I do for you today?"


def cut(body: Mapping[str, Any], text: str) -> Said:
    """The text up to the first stop word, and no longer than it may be."""
    stop = body.get("stop") or []
    for word in [stop] if isinstance(stop, str) else stop:
        text = text.partition(word)[0]
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    words = text.split(" ")
    if most is not None and len(words) > most:
        return Said(" ".join(words[:most]), finish="length")
    return Said(text)


def chosen(body: Mapping[str, Any], prompt: str, *, answered: bool) -> Mapping[str, Any] | None:
    """The tool that is called: the one that must be, or the one that the prompt is about."""
    tools: list[Mapping[str, Any]] = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or "auto"
    if isinstance(choice, Mapping):
        return next(tool for tool in tools if tool["name"] == choice["function"]["name"])
    if not tools or choice == "none":
        return None
    best = max(tools, key=lambda tool: about(tool["name"], prompt))
    wanted = choice == "required" or (not answered and about(best["name"], prompt) > 0)
    return best if wanted else None


def about(name: str, prompt: str) -> int:
    """How many words of a tool's name are in the prompt; the name itself counts for many."""
    words = set(re.findall(r"[a-z0-9]+", prompt.lower()))
    return 100 * (name in prompt) + len(set(name.lower().split("_")) & words)


def quoted(prompt: str) -> list[str]:
    """What stands between quotation marks."""
    return [one or other for one, other in _QUOTED.findall(prompt)]


class Writer:
    """Writes JSON of a schema, with the values that are in a prompt, in their order.

    Args:
        prompt: Where the numbers, the quoted texts and the names are taken from.
        schema: What is written.
    """

    def __init__(self, prompt: str, schema: Mapping[str, Any]) -> None:
        self._prompt = prompt.lower()
        self._schema = schema
        self._numbers = iter(_NUMBER.findall(prompt))
        self._texts = iter([*quoted(prompt), *_NAME.findall(_QUOTED.sub("", prompt))])

    def write(self) -> Any:
        """The whole of it."""
        return self._value(self._schema, "answer")

    def _value(self, schema: Mapping[str, Any], key: str) -> Any:
        match schema:
            case {"$ref": str(path)}:
                return self._value(self._at(path), key)
            case {"const": value}:
                return value
            case {"enum": [first, *others]}:
                return next((one for one in (first, *others) if str(one).lower() in self._prompt), first)
            case {"anyOf": options} | {"oneOf": options} | {"allOf": options}:
                return self._value(self._one_of(options, key), key)
            case {"type": "object"} | {"properties": _}:
                return self._object(schema)
            case {"type": "array", "items": items}:
                return [self._value(items, key) for _ in range(max(1, schema.get("minItems", 1)))]
            case {"type": "integer" | "number" as kind}:
                return int(self._number(schema)) if kind == "integer" else self._number(schema)
            case {"type": "boolean"}:
                return True
            case {"type": "null"}:
                return None
        return next(self._texts, f"A fitting {key}.")

    def _object(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        needed = schema.get("required") or ()
        return {
            key: self._value(inner, key)
            for key, inner in (schema.get("properties") or {}).items()
            if key in needed or not self._unwanted(key)
        }

    def _one_of(self, options: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any]:
        empty = [one for one in options if one.get("type") == "null"]
        return empty[0] if empty and self._unwanted(key) else next(one for one in options if one not in empty)

    def _unwanted(self, key: str) -> bool:
        return f"no {key}" in self._prompt

    def _number(self, schema: Mapping[str, Any]) -> float:
        lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        return float(next(self._numbers, max(1, lowest)))

    def _at(self, path: str) -> Mapping[str, Any]:
        found: Any = self._schema
        for name in path.removeprefix("#/").split("/"):
            found = found[name]
        inner: Mapping[str, Any] = found
        return inner
