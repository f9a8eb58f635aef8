"""The turn: the messages so far, cut into exchanges. Frozen, equal by content; nothing is dropped on the way in.

Knows what a conversation is. Does not know what is harmful, what a prompt looks like, or who will judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.media import ImageSource
from guardrail_vl.parts import (
    MAX_TEXT,
    ROLES,
    ImageLoader,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from guardrail_vl.reading import read_message

INSTRUCTIONS: Final = ("system", "developer")
"""Roles that ask, and are not answered."""
MAX_MESSAGES: Final = 2_000
"""Messages in one turn; a longer one is refused (`ContentError`)."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and, if it was answered, its response: what a guard model judges at a time."""

    request: tuple[Message, ...]
    response: tuple[Message, ...] = ()
    context: tuple[Message, ...] = ()
    """What came before, oldest first, for a judgement that sees it; empty for one that stands alone."""
    first: int = 0
    """Index in the turn of the first message."""

    @property
    def last(self) -> int:
        """Index in the turn of the last message."""
        return self.first + len(self.request) + len(self.response) - 1

    def alone(self) -> Exchange:
        """The same exchange without what came before it."""
        return Exchange(self.request, self.response, (), self.first)

    def digest(self) -> bytes:
        """16 bytes that are equal exactly when the content is: the key under which a verdict is remembered."""
        state = hashlib.blake2b(digest_size=16)
        for side in (self.context, self.request, self.response):
            state.update(b"\x1e")
            for message in side:
                _hash_message(state, message)
        return state.digest()


@dataclass(frozen=True, slots=True)
class Turn(Value):
    """The messages so far: ending in the user's (or a tool's), or in the assistant's response to it.

    Raises:
        ContentError: Nothing to judge, or more messages than `MAX_MESSAGES`.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if len(self.messages) > MAX_MESSAGES:
            raise ContentError(f"The turn has {len(self.messages)} messages; at most {MAX_MESSAGES} can be judged.")
        silent = is_blank(
            self.messages if self.messages[-1:] and self.messages[-1].role == "tool" else self.messages[-1:]
        )
        if silent:  # a tool alone may have nothing to say
            raise ContentError("There is nothing to judge: the newest message has no text and no image.")

    @property
    def has_response(self) -> bool:
        """Whether the turn ends in the assistant's response."""
        return self.messages[-1].role == "assistant"

    @classmethod
    def from_prompt(
        cls,
        prompt: str | None,
        *,
        images: Iterable[ImageSource | ImagePart] = (),
        response: str | None = None,
        response_images: Iterable[ImageSource | ImagePart] = (),
        load: ImageLoader | None = None,
    ) -> Self:
        """From a prompt, its pictures (which come first) and perhaps the response.

        Raises:
            ContentError: Something in it can't be judged.
        """
        messages = []
        request = _pictures(images, load) + _maybe_text(prompt)
        if request:
            messages.append(Message("user", request))
        answer = _pictures(response_images, load)
        if response is not None or answer:
            messages.append(Message("assistant", answer + _maybe_text(response)))
        return cls(tuple(messages))

    @classmethod
    def from_messages(cls, messages: Sequence[Any], *, load: ImageLoader | None = None) -> Self:
        """From OpenAI-style messages: mappings with `role` and `content`, or `Message` values.

        Raises:
            ContentError: An unknown role, part or field; the message names it. Nothing is dropped.
        """
        return cls(tuple(m if isinstance(m, Message) else read_message(m, load or ImagePart.load) for m in messages))

    @classmethod
    def of(cls, content: object, *, load: ImageLoader | None = None) -> Self:
        """From whatever a caller has: a turn, a string, a message, a list of messages, or a callable that makes a turn.

        Args:
            content: The turn, in any of these shapes. A callable is called with `load=` and returns a `Turn`; a
                ContentError that it raises is about the content, so a guard makes a decision of it. It may be called
                twice, when pictures are fetched.
            load: Makes a part of each picture's source; None: `ImagePart.load`.

        Raises:
            ContentError: The content can't be judged.
            ConfigurationError: The argument is none of these.
        """
        if isinstance(content, cls):
            return content
        if isinstance(content, str):
            return cls.from_prompt(content, load=load)
        if isinstance(content, Message | Mapping):
            return cls.from_messages([content], load=load)
        if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
            return cls.from_messages(content, load=load)
        if callable(content):
            made = content(load=load or ImagePart.load)
            if not isinstance(made, cls):
                raise ConfigurationError(f"A callable must make a Turn, not {type(made).__name__}.")
            return made
        raise ConfigurationError(
            f"Can't make a turn from {type(content).__name__}.",
            hint="Pass a string, a Turn, a list of OpenAI-style messages, or a callable that makes a Turn.",
        )

    def exchanges(self) -> tuple[Exchange, ...]:
        """The turn cut into exchanges, oldest first; every message is in exactly one.

        A run of assistant messages answers the run of user and tool messages before it. System and developer
        messages stand alone: they ask, nobody answers them.
        """
        out: list[Exchange] = []
        request: list[Message] = []
        response: list[Message] = []
        start = 0

        def close(upto: int) -> None:
            nonlocal start
            if request or response:
                out.append(Exchange(tuple(request), tuple(response), (), start))
            request.clear()
            response.clear()
            start = upto

        for index, message in enumerate(self.messages):
            instruction = message.role in INSTRUCTIONS
            if instruction or (response and message.role != "assistant"):
                close(index)
            (response if message.role == "assistant" else request).append(message)
            if instruction:
                close(index + 1)
        close(len(self.messages))
        return tuple(out)


class Making:
    """A callable for `Turn.of` that remembers its turn, for whoever needs the very messages that were judged.

    Args:
        make: Given the loader of pictures: whatever `Turn.of` takes.
    """

    def __init__(self, make: Callable[[ImageLoader], object]) -> None:
        self._make = make
        self.turn: Turn | None = None
        """The turn that was made last. None: none yet, or it could not be made."""

    def __call__(self, load: ImageLoader | None = None) -> Turn:
        """The turn.

        Raises:
            ContentError: The content can't be judged.
        """
        self.turn = None
        load = load or ImagePart.load
        self.turn = Turn.of(self._make(load), load=load)
        return self.turn


def is_blank(messages: Iterable[Message]) -> bool:
    """Whether these messages hold nothing that could be judged: no picture, call or text but whitespace."""
    return not any(_has_content(part) for message in messages for part in message.content)


def _has_content(part: Part) -> bool:
    match part:
        case ImagePart() | ToolCallPart():
            return True
        case ToolResultPart():
            return any(_has_content(inner) for inner in part.content)
        case _:
            return bool(part.text.strip())


def _hash_message(state: Any, message: Message) -> None:
    _hash_fields(state, message.role, message.name)
    for part in message.content:
        _hash_part(state, part)


def _hash_part(state: Any, part: Part) -> None:
    match part:
        case ImagePart():
            _hash_fields(state, part.type, part.data)
        case ToolCallPart():
            _hash_fields(state, part.type, part.name, part.arguments)
        case ToolResultPart():
            _hash_fields(state, part.type, str(len(part.content)))
            for inner in part.content:
                _hash_part(state, inner)
        case _:
            _hash_fields(state, part.type, part.text)


def _hash_fields(state: Any, *fields: str | bytes) -> None:
    # Lengths first: no two different contents may give one byte string.
    for value in fields:
        raw = value.encode() if isinstance(value, str) else value
        state.update(b"%d:" % len(raw))
        state.update(raw)


def _pictures(sources: Iterable[ImageSource | ImagePart], load: ImageLoader | None) -> tuple[Part, ...]:
    if isinstance(sources, str | bytes):
        raise ConfigurationError("images= takes a list of pictures.", hint="Write images=[picture].")
    make = load or ImagePart.load
    return tuple(s if isinstance(s, ImagePart) else make(s) for s in sources)


def _maybe_text(text: str | None) -> tuple[Part, ...]:
    return () if text is None else (TextPart(text),)


__all__ = [
    "INSTRUCTIONS",
    "MAX_MESSAGES",
    "MAX_TEXT",
    "ROLES",
    "Exchange",
    "ImageLoader",
    "ImagePart",
    "Making",
    "Message",
    "Part",
    "ReasoningPart",
    "RefusalPart",
    "Role",
    "TextPart",
    "ToolCallPart",
    "ToolResultPart",
    "Turn",
    "is_blank",
]
