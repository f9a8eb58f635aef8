"""Messages as plain text and pictures, for formats that show content inside their own template.

Knows how each part reads; knows no template. Nothing is left out: a part that can't be shown raises.
"""

from __future__ import annotations

from collections.abc import Iterable

from guardrail_vl.errors import ContentError
from guardrail_vl.prompt_format.base import PromptImage
from guardrail_vl.turn import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)


def plain_text(messages: Iterable[Message]) -> str:
    """All the text of these messages, tool calls and results included; pictures are left to `pictures`."""
    return "\n\n".join(text for message in messages for text in _texts(message))


def _texts(message: Message) -> list[str]:
    texts = [text for part in message.content if (text := part_text(part))]
    # A name reaches the model too, so it is shown, even where there is no text to put it before.
    return [f"{message.name}: {texts[0] if texts else ''}", *texts[1:]] if message.name else texts


def part_text(part: Part) -> str:
    """One part as text; empty for a picture."""
    match part:
        case TextPart() | RefusalPart() | ReasoningPart():
            return part.text
        case ToolCallPart():
            return f"[tool call] {part.name}({part.arguments})"
        case ToolResultPart():
            return "[tool result] " + "\n".join(part_text(inner) for inner in part.content)
        case ImagePart():
            return ""


def pictures(messages: Iterable[Message], *, max_pixels: int) -> tuple[PromptImage, ...]:
    """Every view of every picture in these messages, in order."""
    return tuple(
        PromptImage(part, view, max_pixels)
        for message in messages
        for part in message.images
        for view in range(part.view_count)
    )


def refuse_pictures(messages: Iterable[Message], model: str) -> None:
    """Raise if there is any picture, for models that can't see.

    Raises:
        ContentError: There is a picture.
    """
    if any(message.images for message in messages):
        raise ContentError(f"{model} judges text only; this turn has a picture.", hint="Use a guard that sees images.")


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning and its end with the cut marked."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters …]\n{text[-half:]}"
