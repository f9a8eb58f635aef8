"""Whatever goes into a runnable or comes out of it, as messages and pieces that can be judged.

Knows types of values. Knows no guard, and no runnable. What it can't read it names, so that the app can say what
is judged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessageChunk, convert_to_messages
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables.utils import AddableDict

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.integrations.langchain._chunks import ChunkReader
from guardrail_vl.integrations.langchain._messages import read_message, read_reply
from guardrail_vl.integrations.langchain._plain import NO_CONTENT, inner_of, is_name, shallow
from guardrail_vl.media import PILImage
from guardrail_vl.parts import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    checked,
    shown,
)
from guardrail_vl.streaming import Piece
from guardrail_vl.turn import Turn
from guardrail_vl.wire.base import Reading

_HINT: Final = "Say what is judged: prompt= or response=, a function of the value that gives text, messages, pictures."
Place = tuple[Hashable, ...]

_PICTURES: Final = (PILImage, bytes, bytearray, memoryview)


def read_value(value: Any, reading: Reading, role: Role = "user") -> Iterator[Part | Message]:
    """The content of a value, in order: messages as they are, texts and pictures as parts.

    Args:
        value: Text, messages in any of LangChain's forms, pictures, documents, or these within dicts, lists, pydantic
            models and dataclasses.
        reading: How content is read.
        role: Whose the value is. The assistant's dicts may have content for keys: they are read too.

    Raises:
        ContentError: Something in it can't be judged.
        ConfigurationError: It holds a value of a type that can't be read; named.
    """
    return (found for _, found in _found(value, reading, role, ()))


def _found(value: Any, reading: Reading, role: Role, at: Place) -> Iterator[tuple[Place, Part | Message]]:
    """The content with its place in the value."""
    if value is None or isinstance(value, NO_CONTENT):
        return
    match value:
        case str():
            if value:
                yield at, TextPart(value)
        case Message() | ImagePart() | TextPart():
            yield at, value
        case Turn():
            yield from ((at, message) for message in value.messages)
        case BaseMessage():
            yield at, _read(value, reading, role)
        case PromptValue():
            yield from ((at, read_message(message, reading)) for message in value.to_messages())
        case Document():  # its id is no content
            yield from _found(value.page_content, reading, role, (*at, "page_content"))
            yield from _found(value.metadata, reading, role, (*at, "metadata"))
        case Mapping():
            yield from _in_mapping(value, reading, role, at)
        case list() | tuple() | set() | frozenset():
            pairs = isinstance(value, list) and any(_is_message(one) for one in value)
            pairs = pairs or (isinstance(value, list) and all(_is_pair(one) for one in value))
            for number, one in enumerate(value):
                if pairs and _is_pair(one):
                    yield (*at, number), _converted(one, reading)
                else:
                    yield from _found(one, reading, role, (*at, number))
        case _ if isinstance(value, _PICTURES):
            yield at, reading.load(bytes(value) if isinstance(value, bytearray | memoryview) else value)
        case _:
            fields = inner_of(value)
            if fields is None:
                raise ConfigurationError(
                    f"A value of type {shown(type(value).__name__)} can't be read by a guard.", hint=_HINT
                )
            for name, inner in fields.items():  # their names are the developer's
                yield from _found(inner, reading, role, (*at, name))


def _in_mapping(
    value: Mapping[Any, Any], reading: Reading, role: Role, at: Place
) -> Iterator[tuple[Place, Part | Message]]:
    if _is_message(value):
        yield at, _converted(value, reading)
        return
    for key, inner in value.items():
        if role == "assistant" and isinstance(key, str) and key:
            yield (*at, key, "key"), TextPart(str(key))
        yield from _found(inner, reading, role, (*at, key))


def _read(message: BaseMessage, reading: Reading, role: Role) -> Message:
    """A reply with what its metadata say; of any other message, what a model is sent."""
    if role == "assistant" and isinstance(message, AIMessage):
        return read_reply(message, reading)[0]
    return read_message(message, reading)


_ROLES: Final = {"human", "user", "ai", "assistant", "system", "developer", "tool", "function"}


def _is_message(value: object) -> bool:
    """Whether it is a message: LangChain's, or as OpenAI's JSON has it."""
    if isinstance(value, Mapping):
        return value.get("role") in _ROLES and "content" in value
    return isinstance(value, BaseMessage | Message)


def _is_pair(value: object) -> bool:
    """Whether it is a message as LangChain's prompts have it: `("user", "text")`."""
    return isinstance(value, tuple) and len(value) == 2 and value[0] in _ROLES and isinstance(value[1], str | list)


def _converted(message: Any, reading: Reading) -> Message:
    try:
        (made,) = convert_to_messages([message])
    except Exception:  # one of LangChain's many; it may quote the content
        raise ContentError("A message is of a form that LangChain does not know.") from None
    return read_message(made, reading)


@shallow
def value_messages(value: Any, role: Role, reading: Reading) -> tuple[Message, ...]:
    """The content of a value as messages; texts and pictures beside each other become one message of this role.

    Raises:
        ContentError: Something in it can't be judged.
        ConfigurationError: It holds a value of a type that can't be read; named.
    """
    out: list[Message] = []
    parts: list[Part] = []
    for found in (*read_value(value, reading, role), None):
        if isinstance(found, Message) or found is None:
            if parts:
                out.append(Message(role, tuple(parts)))
                parts = []
            out += [found] if found is not None else []
        else:
            parts.append(found)
    return tuple(out)


class ValueReader:
    """Reads what a runnable streams, item by item.

    What LangChain adds up is joined: text, chunks of messages, and dicts that are made to be added (`AddableDict`). Any
    other item is a value by itself. Where such a value goes on with the text of the one before, as when JSON is parsed
    while it is written, only what is new is read.

    Args:
        reading: How content is read.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._indexes: dict[Hashable, int] = {}
        self._readers: dict[Place, ChunkReader] = {}
        self._texts: dict[Hashable, str] = {}
        self._count = 0

    @shallow
    def read(self, item: Any) -> Sequence[Piece]:
        """What an item adds.

        Raises:
            ContentError: It is of a type that can't be read, or something in it can't be judged.
        """
        return list(self._pieces(item, ()))

    def _pieces(self, item: Any, at: Place) -> Iterator[Piece]:
        match item:
            case str() if not isinstance(item, Enum):
                if item:
                    yield Piece("text", checked(item, "text"), index=self._index((at, "text")))
            case ChatGenerationChunk():
                yield from self._reader(at).read(item)
            case AIMessageChunk() | ChatMessageChunk():
                yield from self._reader(at).read_message(item)
            case AddableDict():
                for key, inner in item.items():
                    if not is_name(key):
                        yield from self._grown((*at, key, "key"), str(key))
                    yield from self._pieces(inner, (*at, key))
            case _:
                yield from self._value(item, at)

    def _value(self, item: Any, at: Place) -> Iterator[Piece]:
        try:
            for place, found in _found(item, self._reading, "assistant", at):
                for number, part in enumerate(found.content if isinstance(found, Message) else (found,)):
                    yield from self._part((*place, number), part)
                if isinstance(found, Message):
                    yield from self._grown((*place, "name"), found.name)
        except ConfigurationError as problem:
            raise ContentError(str(problem)) from None

    def _part(self, place: Place, part: Part) -> Iterator[Piece]:
        match part:
            case ImagePart():
                yield Piece("image", image=part)
            case ToolCallPart():
                yield Piece("tool_call", part.arguments, index=self._new(), name=part.name, id=part.id)
            case ToolResultPart():
                for number, inner in enumerate(part.content):
                    yield from self._part((*place, number), inner)
            case TextPart():
                yield from self._grown(place, part.text)
            case ReasoningPart():
                yield Piece("reasoning", part.text, index=self._new())
            case RefusalPart():
                yield Piece("refusal", part.text, index=self._new())

    def _grown(self, place: Place, text: str) -> Iterator[Piece]:
        """The text in a place, as far as it is new there."""
        before = self._texts.get(place, "")
        if not before or not text.startswith(before):
            self._indexes[place] = self._new()
            before = ""
        self._texts[place] = text
        if len(text) > len(before):
            yield Piece("text", text[len(before) :], index=self._indexes[place])

    def _reader(self, at: Place) -> ChunkReader:
        if at not in self._readers:
            self._readers[at] = ChunkReader(self._reading, lambda key: self._index((at, key)))
        return self._readers[at]

    def _index(self, key: Hashable) -> int:
        if key not in self._indexes:
            self._indexes[key] = self._new()
        return self._indexes[key]

    def _new(self) -> int:
        self._count += 1
        return self._count
