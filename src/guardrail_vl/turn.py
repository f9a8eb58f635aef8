"""Frozen values: content parts, messages, the turn. Equal by content; nothing is ever dropped on the way in.

Knows what a conversation is. Does not know what is harmful, what a prompt looks like, or who will judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field

from guardrail_vl._value import JSON_BYTES, Value
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.media import DEFAULT_LIMITS, ImageLimits, ImageSource, PILImage, load_image, read_source, render_views

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: Final[tuple[str, ...]] = get_args(Role)

MAX_TEXT: Final = 200_000
"""Characters of text in one part; a longer one is refused (`ContentError`)."""
MAX_MESSAGES: Final = 2_000
"""Messages in one turn; a longer one is refused (`ContentError`)."""


def _checked(text: str, where: str) -> str:
    if not isinstance(text, str):
        raise ContentError(f"The {where} must be text, not {type(text).__name__}.")
    if len(text) > MAX_TEXT:
        raise ContentError(f"The {where} has {len(text)} characters; at most {MAX_TEXT} can be judged at once.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ContentError(
            f"The {where} is not valid Unicode: it holds a lone surrogate.",
            hint="Repair it before it is judged and sent, so that both see the same text.",
        ) from None
    return text


@dataclass(frozen=True, slots=True)
class TextPart(Value):
    """Plain text."""

    text: str = field(repr=False)
    type: Literal["text"] = "text"

    def __post_init__(self) -> None:
        _checked(self.text, "text")


@dataclass(frozen=True, slots=True)
class ImagePart(Value):
    """A picture, verified when it is made: its type is read from the bytes, its size is capped, all of it decodes.

    The bytes are kept as they came, so what is judged is what is forwarded.

    Raises:
        ContentError: The bytes are no picture that can be judged in full.
    """

    data: bytes = field(repr=False)
    """The file's own bytes (PNG, JPEG, GIF, WebP or BMP)."""
    type: Literal["image"] = "image"
    media_type: str = field(init=False, compare=False)
    """IANA media type, read from the bytes: `image/png`, …"""
    width: int = field(init=False, compare=False)
    """Pixels, as shown (after the EXIF orientation)."""
    height: int = field(init=False, compare=False)
    frames: int = field(init=False, compare=False)
    """1 for a still; an animation's frames are all judged."""

    def __post_init__(self) -> None:
        self._verify(DEFAULT_LIMITS)

    def _verify(self, limits: ImageLimits) -> None:
        facts = load_image(self.data, limits)
        object.__setattr__(self, "media_type", facts.media_type)
        object.__setattr__(self, "width", facts.width)
        object.__setattr__(self, "height", facts.height)
        object.__setattr__(self, "frames", facts.frames)

    @classmethod
    def load(cls, source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> Self:
        """From a path, bytes, a PIL image or a `data:` URL.

        Raises:
            ContentError: Not a picture that can be judged in full, or an `http(s)` URL.
        """
        part = object.__new__(cls)
        object.__setattr__(part, "data", read_source(source, limits))
        object.__setattr__(part, "type", "image")
        part._verify(limits)
        return part

    def views(self) -> tuple[PILImage, ...]:
        """Every RGB picture that someone who opens this file may see: each frame, and each reading of transparency."""
        return render_views(self.data)

    @property
    def data_url(self) -> str:
        """These bytes as a `data:` URL."""
        import base64

        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, slots=True)
class ToolCallPart(Value):
    """The assistant asks for a tool to be run."""

    name: str
    arguments: str = field(repr=False)
    """The arguments as the model wrote them, usually JSON."""
    id: str = ""
    type: Literal["tool_call"] = "tool_call"

    def __post_init__(self) -> None:
        _checked(self.name, "tool name")
        _checked(self.arguments, "tool arguments")


@dataclass(frozen=True, slots=True)
class ToolResultPart(Value):
    """What a tool gave back: untrusted content on its way to the model."""

    content: tuple[TextPart | ImagePart, ...] = field(repr=False)
    id: str = ""
    type: Literal["tool_result"] = "tool_result"


@dataclass(frozen=True, slots=True)
class ReasoningPart(Value):
    """The assistant's own reasoning, where the provider shows it."""

    text: str = field(repr=False)
    type: Literal["reasoning"] = "reasoning"

    def __post_init__(self) -> None:
        _checked(self.text, "reasoning")


@dataclass(frozen=True, slots=True)
class RefusalPart(Value):
    """The assistant's refusal, where the provider sets it apart from content."""

    text: str = field(repr=False)
    type: Literal["refusal"] = "refusal"

    def __post_init__(self) -> None:
        _checked(self.text, "refusal")


ImageLoader = Callable[[ImageSource], ImagePart]
"""Makes a part of a picture's source; raises ContentError if it can't."""

Part = TextPart | ImagePart | ToolCallPart | ToolResultPart | ReasoningPart | RefusalPart

# A discriminator, so that JSON is read by its `type` and an unknown one is named.
_Parts = tuple[Annotated[Part, Field(discriminator="type")], ...]


@dataclass(frozen=True, slots=True)
class Message(Value):
    """One message: a role and its content parts, in order."""

    role: Role
    content: _Parts
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ContentError(f"Unknown role {_shown(self.role)}; known: {', '.join(ROLES)}.")
        _checked(self.name, "name")

    @property
    def text(self) -> str:
        """The plain text parts, joined with newlines."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Every picture in this message, tool results included."""
        return tuple(_images(self.content))


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
        if not self.messages or _is_blank(self.messages[-1]):
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
        return cls(tuple(m if isinstance(m, Message) else _read_message(m, load or ImagePart.load) for m in messages))

    @classmethod
    def of(cls, content: object, *, load: ImageLoader | None = None) -> Self:
        """From whatever a caller has: a turn, a string, a message or a list of messages.

        Args:
            content: The turn, in any of these shapes.
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
        raise ConfigurationError(
            f"Can't make a turn from {type(content).__name__}.",
            hint="Pass a string, a Turn, or a list of OpenAI-style messages.",
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
            instruction = message.role in ("system", "developer")
            if instruction or (response and message.role != "assistant"):
                close(index)
            (response if message.role == "assistant" else request).append(message)
            if instruction:
                close(index + 1)
        close(len(self.messages))
        return tuple(out)


def is_blank(messages: Iterable[Message]) -> bool:
    """Whether these messages hold nothing that could be judged: no picture, call or text but whitespace."""
    return all(_is_blank(message) for message in messages)


def _is_blank(message: Message) -> bool:
    return not any(_has_content(part) for part in message.content)


def _has_content(part: Part) -> bool:
    match part:
        case ImagePart() | ToolCallPart():
            return True
        case ToolResultPart():
            return any(_has_content(inner) for inner in part.content)
        case _:
            return bool(part.text.strip())


def _images(parts: Iterable[Part]) -> Iterator[ImagePart]:
    for part in parts:
        if isinstance(part, ImagePart):
            yield part
        elif isinstance(part, ToolResultPart):
            yield from _images(part.content)


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


def _shown(name: object) -> str:
    """A name from the content, safe to print: short, and only if it looks like an identifier."""
    text = str(name)
    return repr(text) if len(text) <= 40 and text.replace("_", "").replace(".", "").isalnum() else "(unprintable)"


# ---- OpenAI-style messages ------------------------------------------------------------------------------------

_MESSAGE_FIELDS: Final = {
    "role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content", "function_call",
}  # fmt: skip
# Fields of a provider's own reply that carry no content; harmless when a reply is sent back as history.
_EMPTY_FIELDS: Final = {"audio", "annotations"}

_PART_TYPES: Final = {"text", "input_text", "output_text", "image_url", "input_image", "refusal"}
_PART_FIELDS: Final = {"type", "text", "image_url", "detail", "refusal", "cache_control", "id", "file_id"}


def _read_message(raw: object, load: ImageLoader) -> Message:
    if not isinstance(raw, Mapping):
        raise ContentError(f"A message must be a mapping with role and content, not {type(raw).__name__}.")
    for key in raw:
        if key not in _MESSAGE_FIELDS and not (key in _EMPTY_FIELDS and not raw[key]):
            raise ContentError(f"Unknown message field {_shown(key)}: it can't be judged, so the turn is refused.")
    role = raw.get("role")
    if role not in ROLES:
        raise ContentError(f"Unknown role {_shown(role)}; known: {', '.join(ROLES)}.")
    parts: list[Part] = []
    for key in ("reasoning", "reasoning_content"):
        if raw.get(key):
            parts.append(ReasoningPart(_checked(raw[key], key)))
    content = _read_content(raw.get("content"), load)
    if role == "tool":
        inner = tuple(p for p in content if isinstance(p, TextPart | ImagePart))
        if len(inner) != len(content):
            raise ContentError("A tool message may hold text and images only.")
        parts.append(ToolResultPart(inner, id=str(raw.get("tool_call_id") or "")))
    else:
        parts.extend(content)
    if raw.get("refusal"):
        parts.append(RefusalPart(_checked(raw["refusal"], "refusal")))
    calls = raw.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise ContentError("tool_calls must be a list.")
    parts.extend(_read_tool_call(call) for call in calls)
    if raw.get("function_call"):
        parts.append(_read_function(raw["function_call"], ""))
    return Message(role, tuple(parts), name=_checked(raw.get("name") or "", "name"))


def _read_content(content: object, load: ImageLoader) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return tuple(_read_part(part, load) for part in content)
    raise ContentError(f"Message content must be text or a list of parts, not {type(content).__name__}.")


def _read_part(raw: object, load: ImageLoader) -> Part:
    if isinstance(raw, Part):
        return raw
    if isinstance(raw, str):
        return TextPart(raw)
    if not isinstance(raw, Mapping):
        raise ContentError(f"A content part must be a mapping, not {type(raw).__name__}.")
    kind = raw.get("type")
    if kind not in _PART_TYPES:
        raise ContentError(f"Unsupported content part {_shown(kind)}: it can't be judged, so the turn is refused.")
    for key in raw:
        if key not in _PART_FIELDS and raw[key]:
            raise ContentError(f"Unknown field {_shown(key)} in a content part: it can't be judged.")
    match kind:
        case "text" | "input_text" | "output_text":
            return TextPart(_checked(raw.get("text"), "text"))  # type: ignore[arg-type]
        case "image_url" | "input_image":
            value = raw.get("image_url")
            if raw.get("file_id"):
                raise ContentError("An image given by file id can't be judged.")
            url = value.get("url") if isinstance(value, Mapping) else value
            if not isinstance(url, str):
                raise ContentError(f"The {kind} part has no URL.")
            if not url.startswith(("data:", "http:", "https:")):
                raise ContentError("An image URL must be a data: URL.")
            return load(url)
        case _:
            return RefusalPart(_checked(raw.get("refusal"), "refusal"))  # type: ignore[arg-type]


def _read_tool_call(raw: object) -> ToolCallPart:
    if not isinstance(raw, Mapping):
        raise ContentError(f"A tool call must be a mapping, not {type(raw).__name__}.")
    kind = raw.get("type", "function")
    if kind == "custom":
        return _read_function(raw.get("custom"), str(raw.get("id") or ""), arguments="input")
    if kind != "function":
        raise ContentError(f"Unsupported tool call {_shown(kind)}: it can't be judged, so the turn is refused.")
    return _read_function(raw.get("function"), str(raw.get("id") or ""))


def _read_function(raw: object, call_id: str, *, arguments: str = "arguments") -> ToolCallPart:
    if not isinstance(raw, Mapping):
        raise ContentError("A tool call must name its function.")
    text = raw.get(arguments)
    return ToolCallPart(_checked(raw.get("name") or "", "tool name"), _checked(text or "", "tool arguments"), call_id)


__all__ = [
    "JSON_BYTES", "MAX_MESSAGES", "MAX_TEXT", "ROLES", "Exchange", "ImagePart", "Message", "Part", "ReasoningPart",
    "RefusalPart", "Role", "TextPart", "ToolCallPart", "ToolResultPart", "Turn", "is_blank",
]  # fmt: skip
