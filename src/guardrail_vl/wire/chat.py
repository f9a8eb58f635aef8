"""Chat completions: requests, replies and event streams of `chat/completions`, as OpenAI and those like it have them.

Knows the shapes and which fields a model or a reader sees. Does not know who judges, nor what is done about it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import ImagePart, Message, Part, RefusalPart, TextPart, shown
from guardrail_vl.reading import read_citations, read_content, read_message, read_reasoning
from guardrail_vl.streaming import Piece
from guardrail_vl.turn import Turn
from guardrail_vl.wire.base import Candidate, Endpoint, Json, Reading, StreamReader
from guardrail_vl.wire.chat_fields import (
    CONSTRAINTS,
    NO_USAGE,
    asked_for,
    check_choice,
    check_request,
    choices_of,
    constraints,
    head,
    shared_texts,
    withhold,
)
from guardrail_vl.wire.jsons import (
    as_text,
    check_fields,
    index_of,
    is_empty,
    list_of,
    loads,
    mapping_of,
    refuse,
    strings,
    text_of,
)
from guardrail_vl.wire.sse import Frame

_THINKING: Final = {"reasoning_effort", "reasoning", "reasoning_format", "thinking", "prompt_mode"}
_CHOOSING: Final = ("tool_choice", "function_call")
_CHOICES: Final = {"none", "auto", "any", "required", "validated"}
_READ: Final = {"messages", "tools", "functions", "prediction", "chat_template_kwargs", "modalities"}

_DELTA: Final = {
    "role", "content", "refusal", "reasoning", "reasoning_content", "reasoning_details", "tool_calls", "function_call",
    "annotations", "images",
}  # fmt: skip
# Pieces of one kind and index are joined: what stands apart from the answer's text gets an index of its own.
_ANSWER, _CITED, _BESIDE = 0, 1, 2
_OLD_CALL: Final = -1
"""The index of a `function_call`, the old name of a tool call."""


class ChatCompletions(Endpoint):
    """`POST chat/completions`."""

    name: ClassVar[str] = "chat/completions"

    def read_request(self, request: Json, prompt: int, reading: Reading) -> Turn:
        """The definitions (tools, schemas, prediction) as a developer's message, then the messages."""
        check_request(request, reading.allow, {*_READ, *CONSTRAINTS, *_CHOOSING, *_THINKING})
        definitions = tuple(_definitions(request, reading))
        messages = [
            read_message(raw, reading.load, reading.allow) for raw in list_of(request.get("messages"), "messages")
        ]
        if not messages:
            raise ContentError("The request has no messages.")
        before = (Message("developer", definitions),) if definitions else ()
        return Turn((*before, *messages))

    def read_reply(self, reply: Json, request: Json, reading: Reading) -> tuple[Candidate, ...]:
        """A candidate for every choice; one for an error that came instead of choices."""
        shared = tuple(TextPart(text) for text in shared_texts(reply, reading.allow, "the reply", {"choices"}))
        out = []
        for index, choice in choices_of(reply):
            check_choice(choice, request, reading.allow, {"message"})
            raw = mapping_of(choice.get("message"), "message")
            if raw.get("role") not in (None, "assistant"):
                raise ContentError(f"A reply is the assistant's, not the {shown(raw.get('role'))}'s.")
            message = read_message({**raw, "role": "assistant"}, reading.load, reading.allow)
            beside = tuple(TextPart(text) for text in strings(choice.get("error")))
            out.append(Candidate((Message("assistant", (*message.content, *beside, *shared), message.name),), index))
        if not out and shared:
            out.append(Candidate((Message("assistant", shared),)))
        return tuple(out)

    def refuse(self, request: Json, text: str) -> dict[str, Any]:
        """As many refusals as choices were asked for."""
        choices = [_refusal(index, text) for index in range(asked_for(request))]
        return {**head("chatcmpl", "chat.completion", request), "choices": choices, "usage": NO_USAGE}

    def withhold(self, reply: Json, keys: Collection[int], text: str) -> dict[str, Any]:
        """The reply with these choices made anew; what was shown beside every answer goes too."""
        return withhold(reply, keys, "chat.completion", lambda index: _refusal(index, text))

    def reader(self, request: Json, reading: Reading) -> StreamReader:
        """A reader for one stream of chunks."""
        return ChatStream(request, reading)


def _definitions(request: Json, reading: Reading) -> Iterator[Part]:
    """What the model sees, or is held to, beside the messages."""
    allow = reading.allow
    for tool in list_of(request.get("tools"), "tools"):
        kind = mapping_of(tool, "tool").get("type")
        if isinstance(kind, str) and kind in allow and kind not in ("function", "custom"):
            continue
        if kind not in ("function", "custom"):
            refuse(f"Unsupported tool {shown(kind)}", str(kind))
        check_fields(tool, {"type", "cache_control", kind}, "a tool", allow)
        yield TextPart(_definition(tool.get(kind), "tool"))
    for function in list_of(request.get("functions"), "functions"):
        yield TextPart(_definition(function, "function"))
    for name in _CHOOSING:
        choice = request.get(name)
        if isinstance(choice, str) and choice not in _CHOICES:
            refuse(f"Unknown {name}")
        if not isinstance(choice, str) and not is_empty(choice):
            yield TextPart(as_text(choice, name))
    yield from map(TextPart, constraints(request, allow))
    template = request.get("chat_template_kwargs")
    if not is_empty(template) and not all(map(is_empty, mapping_of(template, "chat_template_kwargs").values())):
        yield TextPart(as_text(template, "chat_template_kwargs"))
    if not is_empty(request.get("prediction")):
        prediction = mapping_of(request["prediction"], "prediction")
        check_fields(prediction, {"type", "content"}, "the prediction", allow)
        yield from read_content(prediction.get("content"), reading.load, allow)
    for mode in list_of(request.get("modalities"), "modalities"):
        if not isinstance(mode, str) or (mode not in ("text", "image") and mode not in allow):
            refuse(f"Unsupported modality {shown(mode)}", str(mode))


def _definition(raw: object, where: str) -> str:
    """A tool's definition as text: all of it, its words first."""
    rest = dict(mapping_of(raw, where))
    words = [rest.pop(name) for name in ("name", "description") if isinstance(rest.get(name), str)]
    held = {name: value for name, value in rest.items() if not is_empty(value)}
    return as_text("\n".join((*words, *((as_text(held, where),) if held else ()))), where)


def _refusal(index: int, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": text}
    return {"index": index, "message": message, "finish_reason": "content_filter", "logprobs": None}


# ---- the event stream ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Step:
    """What a frame does to the stream's outer shape."""

    head: dict[str, Any] = field(default_factory=dict)
    began: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    done: bool = False


class ChunkStream(StreamReader):
    """What the streams of chat and of legacy completions have in common: chunks of choices, then `[DONE]`."""

    def __init__(self, request: Json, reading: Reading) -> None:
        self._request = request
        self._reading = reading
        self._steps: deque[_Step] = deque()  # of frames that were read, not released
        self._head: dict[str, Any] = {}
        self._began: set[int] = set()
        self._finished: set[int] = set()
        self._done = False

    def read(self, frame: Frame) -> Sequence[Piece]:
        """The content of one chunk."""
        step = _Step()
        self._steps.append(step)
        if frame.data is None:
            return ()
        if frame.data.strip() == "[DONE]":
            step.done = True
            return ()
        chunk = loads(frame.data)
        if frame.event == "error":
            return [Piece("text", text + "\n", index=_BESIDE) for text in strings(chunk)]
        step.head |= {name: chunk[name] for name in ("id", "created", "model") if chunk.get(name)}
        shared = shared_texts(chunk, self._reading.allow, "a chunk", {"choices"})
        pieces = [Piece("text", text + "\n", index=_BESIDE) for text in shared]
        for index, choice in choices_of(chunk):
            step.began.add(index)
            pieces += (Piece("text", text + "\n", index, _BESIDE) for text in strings(choice.get("error")))
            pieces += self.pieces(index, choice)
            if choice.get("finish_reason"):
                step.finished.add(index)
        return pieces

    def pieces(self, index: int, choice: Json) -> Iterable[Piece]:
        """The content that a chunk adds to one choice."""
        raise NotImplementedError

    def released(self, frame: Frame) -> None:
        """Frames go out in the order in which they were read."""
        step = self._steps.popleft() if self._steps else _Step()
        self._head.update(step.head)
        self._began |= step.began
        self._finished |= step.finished
        self._done |= step.done

    def refuse(self, text: str) -> bytes:
        """For each choice that has not finished, its refusal; then `[DONE]`."""
        if self._done:
            return b""
        out = {**self.head(), **self._head}
        choices = sorted({*range(self.choices()), *self._began} - self._finished)
        chunks = [{**out, "choices": [choice]} for index in choices for choice in self.ending(index, text)]
        frames = [*(json.dumps(chunk, separators=(",", ":")) for chunk in chunks), "[DONE]"]
        return "".join(f"data: {frame}\n\n" for frame in frames).encode()

    def choices(self) -> int:
        """How many choices the stream has."""
        return asked_for(self._request)

    def head(self) -> dict[str, Any]:
        """How a chunk begins if none went out that could be followed."""
        raise NotImplementedError

    def ending(self, index: int, text: str) -> Iterable[Json]:
        """The chunks' choices that end one choice with a refusal."""
        raise NotImplementedError


class ChatStream(ChunkStream):
    """Chunks with a `delta`."""

    def __init__(self, request: Json, reading: Reading) -> None:
        super().__init__(request, reading)
        self._calls: dict[int, set[int]] = {}

    def pieces(self, index: int, choice: Json) -> Iterator[Piece]:
        """Text, reasoning, refusals, calls, pictures and citations; a finished choice ends its calls."""
        allow = self._reading.allow
        check_choice(choice, self._request, allow, {"delta"})
        delta = mapping_of(choice.get("delta") or {}, "delta")
        check_fields(delta, _DELTA, "a delta", allow)
        if delta.get("role") not in (None, "", "assistant"):
            raise ContentError(f"A reply is the assistant's, not the {shown(delta.get('role'))}'s.")
        for number, key in enumerate(("reasoning", "reasoning_content")):
            yield Piece("reasoning", text_of(delta.get(key), key), index, number)
        for part in read_reasoning(delta.get("reasoning_details"), allow):
            yield Piece("reasoning", part.text, index, 2)
        yield from _parts(read_content(delta.get("content"), self._reading.load, allow), index, _ANSWER)
        yield Piece("refusal", text_of(delta.get("refusal"), "refusal"), index)
        pictures = list_of(delta.get("images"), "images")
        yield from _parts(read_content(pictures, self._reading.load), index, _BESIDE)
        yield from _parts(read_citations(delta.get("annotations"), allow), index, _CITED, "\n")
        calls = self._calls.setdefault(index, set())
        for raw in list_of(delta.get("tool_calls"), "tool_calls"):
            call = mapping_of(raw, "tool call")
            number = index_of(call.get("index"), "index of a tool call")
            yield from self._call(call, index, number)
        old = delta.get("function_call")
        if not is_empty(old):
            yield from self._call({"function": old}, index, _OLD_CALL)
        if choice.get("finish_reason"):
            yield from (Piece("tool_call", choice=index, index=number, done=True) for number in sorted(calls))

    def _call(self, call: Json, choice: int, number: int) -> Iterator[Piece]:
        allow = self._reading.allow
        kind = call.get("type") or ("custom" if "custom" in call else "function")
        if not isinstance(kind, str) or kind not in ("function", "custom"):
            if isinstance(kind, str) and kind in allow:
                return
            refuse(f"Unsupported tool call {shown(kind)}", str(kind))
        check_fields(call, {"index", "id", "type", kind}, "a tool call", allow)
        body = mapping_of(call.get(kind) or {}, "tool call")
        arguments = "input" if kind == "custom" else "arguments"
        check_fields(body, {"name", arguments}, "a tool call", allow)
        self._calls[choice].add(number)
        yield Piece(
            "tool_call",
            text_of(body.get(arguments), "tool arguments"),
            choice,
            number,
            name=text_of(body.get("name"), "tool name"),
            id=text_of(call.get("id"), "tool call id"),
        )

    def head(self) -> dict[str, Any]:
        """As a chunk of chat begins."""
        return head("chatcmpl", "chat.completion.chunk", self._request)

    def ending(self, index: int, text: str) -> Iterator[Json]:
        """The role if it did not go out, the refusal, and the end."""
        delta: dict[str, Any] = {} if index in self._began else {"role": "assistant", "content": None}
        yield {"index": index, "delta": {**delta, "refusal": text}, "logprobs": None, "finish_reason": None}
        yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": "content_filter"}


def _parts(parts: Iterable[Part], choice: int, index: int, end: str = "") -> Iterator[Piece]:
    for part in parts:
        if isinstance(part, ImagePart):
            yield Piece("image", choice=choice, image=part)
        elif isinstance(part, TextPart):
            yield Piece("text", part.text + end, choice, index)
        elif isinstance(part, RefusalPart):
            yield Piece("refusal", part.text + end, choice, index)
