"""A marker in one string leaf of a JSON body at a time: it must be seen by the judge, or be refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hypothesis import strategies as st

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import ImagePart, Message, Part, ToolCallPart, ToolResultPart
from guardrail_vl.streaming import Piece
from guardrail_vl.wire.base import Reading

MARKER = "Zebra-7319"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)

Path = tuple[str | int, ...]


def paths(body: Any, at: Path = ()) -> Iterator[Path]:
    """Where the strings of a body are."""
    if isinstance(body, str):
        yield at
    elif isinstance(body, dict):
        for key, value in body.items():
            yield from paths(value, (*at, key))
    elif isinstance(body, list):
        for index, value in enumerate(body):
            yield from paths(value, (*at, index))


def places(body: Any, at: Path = ()) -> Iterator[Path]:
    """Where anything of a body is, but for all of it."""
    inner = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


_ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 3, 1.5, "", "x", "data:,", [], [None], ["x"], [[]], [{}], {}, {"type": "x"}, {"x": [1]}]
)


def odd(body: Any) -> st.SearchStrategy[Any]:
    """The body with odd values in a few places."""

    def change(values: list[tuple[Path, Any]]) -> Any:
        out = body
        for path, value in values:
            with contextlib.suppress(LookupError, TypeError):
                out = marked(out, path, value)
        return out

    return st.lists(st.tuples(st.sampled_from(list(places(body))), _ODD), max_size=3).map(change)


def marked(body: Any, path: Path, value: Any = MARKER) -> Any:
    """The body with the marker in one place."""
    out = copy.deepcopy(body)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return out


def name(path: Path) -> str:
    return ".".join("*" if isinstance(step, int) else step for step in path)


def vanishing(body: Any, judge: Callable[[Any], Iterable[str]]) -> set[str]:
    """Names of the places from which content reaches no judge, though nothing was refused."""
    list(judge(body))  # the body itself is not refused
    return {name(path) for path in paths(body) if _vanishes(marked(body, path), judge)}


def _vanishes(body: Any, judge: Callable[[Any], Iterable[str]]) -> bool:
    try:
        return MARKER not in "\n".join(judge(body))
    except ContentError as error:
        # A refusal shows no content; a type may be named if it looks like a name.
        return MARKER in str(error)


def texts(messages: Iterable[Message]) -> Iterator[str]:
    """Everything in messages that a judge reads. Ids are left out: nobody reads them."""
    for message in messages:
        yield message.name
        yield from _texts(message.content)


def _texts(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        match part:
            case ToolCallPart():
                yield from (part.name, part.arguments)
            case ToolResultPart():
                yield from _texts(part.content)
            case ImagePart():
                yield f"(image of {len(part.data)} bytes)"
            case _:
                yield part.text


def piece_texts(pieces: Iterable[Piece]) -> Iterator[str]:
    for piece in pieces:
        yield from (piece.text, piece.name)


def load(source: Any) -> ImagePart:
    """Pictures whose URL carries the marker can't be loaded: that is a refusal."""
    return ImagePart.load(source)


READING = Reading(load)
