"""Content parts and messages: frozen values, equal by content, that refuse what could not be judged."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field

from guardrail_vl._value import Value
from guardrail_vl._views import Views
from guardrail_vl.errors import ContentError
from guardrail_vl.media import DEFAULT_LIMITS, ImageLimits, ImageSource, PILImage, read_source

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: Final[tuple[str, ...]] = get_args(Role)

MAX_TEXT: Final = 200_000
"""Characters of text in one part; a longer one is refused (`ContentError`)."""
MAX_ID: Final = 256
"""Characters of a tool call's id, which is the one string that nobody judges."""


def checked(text: str, where: str, *, limit: int = MAX_TEXT) -> str:
    """The text, if it can be judged and sent as it is.

    Raises:
        ContentError: No text, too long, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise ContentError(f"The {where} must be text, not {type(text).__name__}.")
    if len(text) > limit:
        raise ContentError(f"The {where} has {len(text)} characters; at most {limit} can be judged at once.")
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
        checked(self.text, "text")


class _Shown:
    """A place beside the fields: what stands here is no part of the value, nor of its pickle."""

    __slots__ = ("_views",)
    _views: Views


@dataclass(frozen=True, slots=True)
class ImagePart(Value, _Shown):
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
        facts = self._shown.verify(limits)
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

    @property
    def _shown(self) -> Views:
        try:
            return self._views
        except AttributeError:  # new, or unpickled
            views = Views(self.data)
            object.__setattr__(self, "_views", views)
            return views

    @property
    def view_count(self) -> int:
        """How many pictures `views` gives."""
        return self._shown.count

    def views(self) -> tuple[PILImage, ...]:
        """Every RGB picture that someone who opens this file may see: each frame, and each reading of transparency."""
        return self._shown.every()

    def view(self, number: int, *, max_pixels: int) -> PILImage:
        """One of `views`, scaled down to fit.

        Args:
            number: Which of them, from 0.
            max_pixels: Width times height, at most.
        """
        return self._shown.one(number, max_pixels)

    @property
    def data_url(self) -> str:
        """These bytes as a `data:` URL."""
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
        checked(self.name, "tool name")
        checked(self.arguments, "tool arguments")
        checked(self.id, "tool call id", limit=MAX_ID)


@dataclass(frozen=True, slots=True)
class ToolResultPart(Value):
    """What a tool gave back: untrusted content on its way to the model."""

    content: tuple[TextPart | ImagePart, ...] = field(repr=False)
    id: str = ""
    type: Literal["tool_result"] = "tool_result"

    def __post_init__(self) -> None:
        checked(self.id, "tool call id", limit=MAX_ID)


@dataclass(frozen=True, slots=True)
class ReasoningPart(Value):
    """The assistant's own reasoning, where the provider shows it."""

    text: str = field(repr=False)
    type: Literal["reasoning"] = "reasoning"

    def __post_init__(self) -> None:
        checked(self.text, "reasoning")


@dataclass(frozen=True, slots=True)
class RefusalPart(Value):
    """The assistant's refusal, where the provider sets it apart from content."""

    text: str = field(repr=False)
    type: Literal["refusal"] = "refusal"

    def __post_init__(self) -> None:
        checked(self.text, "refusal")


@functools.cache
def blank_picture() -> ImagePart:
    """One black pixel: stands for a picture where content is read only to see what is in it."""
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
    return ImagePart(base64.b64decode(png))


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
            raise ContentError(f"Unknown role {shown(self.role)}; known: {', '.join(ROLES)}.")
        checked(self.name, "name")

    @property
    def text(self) -> str:
        """The plain text parts, joined with newlines."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Every picture in this message, tool results included."""
        return tuple(_images(self.content))


def _images(parts: Iterable[Part]) -> Iterator[ImagePart]:
    for part in parts:
        if isinstance(part, ImagePart):
            yield part
        elif isinstance(part, ToolResultPart):
            yield from _images(part.content)


def shown(name: object) -> str:
    """A name from the content, safe to print: short, and only if it looks like an identifier."""
    text = str(name)
    return repr(text) if len(text) <= 40 and text.replace("_", "").replace(".", "").isalnum() else "(unprintable)"
