"""LangChain's streamed chunks as pieces of content. Knows no guard, and not what is released.

Pieces of one kind and index are one part of the answer: what LangChain joins when it adds chunks up is joined here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.outputs import ChatGenerationChunk

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._beside import PARSED, kwargs_leaves, metadata_leaves, name_of
from guardrail_vl.integrations.langchain._blocks import read_blocks
from guardrail_vl.integrations.langchain._plain import Calls, inner_of, json_text, same_json, shallow
from guardrail_vl.parts import (
    ImagePart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    checked,
    shown,
)
from guardrail_vl.reading import check_fields
from guardrail_vl.streaming import Piece, PieceKind
from guardrail_vl.wire.base import Reading

_OLD_CALL: Final = -1
"""The index of a `function_call`, the old name of a tool call."""

# Of a chunk's fields: read here, or nothing for a reader.
_FIELDS: Final = {
    "type", "content", "additional_kwargs", "response_metadata", "name", "id", "tool_calls", "invalid_tool_calls",
    "usage_metadata", "tool_call_chunks", "chunk_position", "role",
}  # fmt: skip


class ChunkReader:
    """Reads the chunks of one reply, in order.

    Args:
        reading: How content is read.
        number: Gives each new part of the reply its index; None: counts from 0.
    """

    def __init__(self, reading: Reading, number: Callable[[Hashable], int] | None = None) -> None:
        self._reading = reading
        self._indexes: dict[Hashable, int] = {}
        self._number = number or (lambda key: len(self._indexes))
        self._said: list[str] = []
        self._name = ""

    @shallow
    def read(self, chunk: ChatGenerationChunk) -> Sequence[Piece]:
        """What a chunk adds to the reply.

        Raises:
            ContentError: Something in it is unknown, or can't be judged.
        """
        aside = metadata_leaves(chunk.generation_info, self._reading.allow)
        pieces = list(self.read_message(chunk.message))
        return [*pieces, *(piece for slot, part in aside for piece in self._piece(slot, part))]

    @shallow
    def read_message(self, message: BaseMessage) -> Sequence[Piece]:
        """The same, of the chunk's message.

        Raises:
            ContentError: Something in it is unknown, or can't be judged.
        """
        if not (isinstance(message, AIMessage) or (isinstance(message, ChatMessage) and message.role == "assistant")):
            raise ContentError(f"A reply is the assistant's, not a {shown(type(message).__name__)}.")
        allow = self._reading.allow
        check_fields(inner_of(message) or {}, _FIELDS, "a chunk", allow)
        return list(self._pieces(message))

    def _pieces(self, message: BaseMessage) -> Iterator[Piece]:
        name = name_of(message)
        if name and name != self._name:
            self._name = name
            yield Piece("text", name + "\n", index=self._index(("name",)))
        calls = Calls()
        told = list(self._calls(message, calls))
        repeats = calls.elsewhere()
        for at, (slot, part) in read_blocks(message.content, self._reading):
            if isinstance(part, ToolCallPart):
                if not repeats(part):
                    # Without an index nothing is joined to it.
                    yield self._call(part, ("block", at) if at is not None else None)
                continue
            if isinstance(part, TextPart):
                self._said.append(part.text)
            yield from self._piece(("content", at, *slot), part)
        yield from told
        repeats = calls.elsewhere()
        for slot, part in kwargs_leaves(message.additional_kwargs, self._reading):
            if isinstance(part, ToolCallPart):
                if not repeats(part):
                    yield self._call(part, slot)
            elif slot != PARSED or not isinstance(part, TextPart) or not same_json(part.text, "".join(self._said)):
                yield from self._piece(slot, part)
        for slot, part in metadata_leaves(message.response_metadata, self._reading.allow):
            yield from self._piece(slot, part)

    def _calls(self, message: BaseMessage, calls: Calls) -> Iterator[Piece]:
        if not isinstance(message, AIMessage):
            return
        chunks = message.tool_call_chunks if isinstance(message, AIMessageChunk) else []
        for chunk in chunks:
            part = calls.note(_part(chunk))
            at = chunk.get("index")
            yield self._call(part, None if at is None else ("call", at))
        # What LangChain parses of the chunks says nothing new; what was given beside them may.
        made = AIMessageChunk(content="", tool_call_chunks=chunks) if chunks else AIMessageChunk(content="")
        repeats = calls.elsewhere()
        for call in message.tool_calls:
            part = ToolCallPart(call["name"], json_text(call["args"], "tool arguments"), call.get("id") or "")
            if not repeats(part) and call not in made.tool_calls:
                yield self._call(calls.note(part), None)
        for wrong in message.invalid_tool_calls:
            part = _part(wrong)
            if not repeats(part) and wrong not in made.invalid_tool_calls:
                yield self._call(calls.note(part), None)
            if error := wrong.get("error"):
                yield Piece("text", checked(error, "error of a tool call"), index=self._index(None))

    def _call(self, part: ToolCallPart, key: Hashable | None) -> Piece:
        index = _OLD_CALL if key == ("kwargs", "function_call", "old") else self._index(key)
        return Piece("tool_call", part.arguments, index=index, name=part.name, id=part.id)

    def _piece(self, key: Hashable, part: Part) -> Iterator[Piece]:
        if isinstance(part, ImagePart):
            yield Piece("image", image=part, index=self._index(None))
        else:
            assert isinstance(part, TextPart | ReasoningPart | RefusalPart)  # calls are read apart
            yield Piece(_KINDS[type(part)], part.text, index=self._index(key))

    def _index(self, key: Hashable | None) -> int:
        """The index of a part: the same for the same key; a new one for None."""
        if key is None:
            key = ("alone", len(self._indexes))
        if key not in self._indexes:
            self._indexes[key] = self._number(key)
        return self._indexes[key]


_KINDS: Final[Mapping[type, PieceKind]] = {TextPart: "text", ReasoningPart: "reasoning", RefusalPart: "refusal"}


def _part(chunk: Mapping[str, Any]) -> ToolCallPart:
    return ToolCallPart(chunk.get("name") or "", chunk.get("args") or "", chunk.get("id") or "")
