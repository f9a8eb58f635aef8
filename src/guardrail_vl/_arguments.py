"""Finds the content in a function's arguments and result, and makes messages of it. For `decorator`.

What could hold content and can't be read is refused by name. Knows no guard, and nothing of what follows.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.media import PILImage
from guardrail_vl.parts import ImageLoader, ImagePart, Message, Part, Role, TextPart
from guardrail_vl.reading import read_message
from guardrail_vl.turn import Making, Turn, is_blank

EVERY: Final = "*"
"""`prompt=EVERY`: every parameter is judged."""

PromptOf = str | Sequence[str] | Callable[[inspect.BoundArguments], Any] | None


@dataclass(frozen=True, slots=True)
class _Picture:
    source: Any


Found = str | Message | Mapping[str, Any] | _Picture

_NO_CONTENT: Final = (bool, int, float, Enum)
_PICTURES: Final = (ImagePart, PILImage)
_PICTURE_FILES: Final = (bytes, bytearray, memoryview, os.PathLike)


def _in_argument(value: object, name: str) -> Iterator[Found]:
    """The content of an argument; nothing of it is passed over."""
    if value is None or isinstance(value, _NO_CONTENT):
        return
    if isinstance(value, str | Message) or (isinstance(value, Mapping) and "role" in value):
        yield value
    elif isinstance(value, Turn):
        yield from value.messages
    elif isinstance(value, (*_PICTURES, *_PICTURE_FILES)):
        yield _Picture(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _in_argument(one, name)
    else:
        raise ConfigurationError(
            f"The parameter {name!r} holds {kind_of(value)}, which @guard can't read.",
            hint="Say what is judged: @guard(prompt=…), with names of parameters or a function of the arguments.",
        )


def _in_image_argument(value: object, name: str) -> Iterator[Found]:
    if isinstance(value, (*_PICTURES, *_PICTURE_FILES, str)):
        yield _Picture(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _in_image_argument(one, name)
    elif value is not None:
        raise ConfigurationError(
            f"The parameter {name!r} holds {kind_of(value)}, not a picture.",
            hint="A picture is a path, bytes, a PIL image, an ImagePart or a data: URL.",
        )


def _stray_pictures(value: object) -> Iterator[Found]:
    if isinstance(value, _PICTURES):
        yield _Picture(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _stray_pictures(one)


def in_result(value: object, name: str) -> Iterator[Found]:
    """The content of what a function gave.

    Raises:
        ConfigurationError: It can't be read; names the function.
    """
    if value is None:
        return
    if isinstance(value, str | Message) or (isinstance(value, Mapping) and "role" in value):
        yield value
    elif isinstance(value, _PICTURES):
        yield _Picture(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from in_result(one, name)
    else:
        if inspect.iscoroutine(value):
            value.close()  # nobody will await it
        raise ConfigurationError(
            f"{name} gave {kind_of(value)}, which @guard can't read.",
            hint="Say what is judged: @guard(response=…), a function of the result that gives text, messages or "
            "pictures, or None. A function that streams must itself be a generator.",
        )


def kind_of(value: object) -> str:
    """A value in words that hold nothing of it."""
    return f"a {type(value).__name__}"


def messages_of(found: Iterable[Found], role: Role, load: ImageLoader) -> tuple[Message, ...]:
    """Messages as they come; text and pictures between them become messages of this role, pictures first."""
    out: list[Message] = []
    pictures: list[Part] = []
    texts: list[Part] = []

    def close() -> None:
        if pictures or texts:
            out.append(Message(role, (*pictures, *texts)))
            pictures.clear()
            texts.clear()

    for one in found:
        if isinstance(one, str):
            texts.append(TextPart(one))
        elif isinstance(one, _Picture):
            pictures.append(one.source if isinstance(one.source, ImagePart) else load(one.source))
        else:
            close()
            out.append(one if isinstance(one, Message) else read_message(one, load))
    close()
    return tuple(out)


def is_empty(found: Found) -> bool:
    """Whether there is nothing in it for anyone to read."""
    if isinstance(found, str):
        return not found.strip()
    if isinstance(found, Message):
        return is_blank([found])
    if isinstance(found, Mapping):
        return not any(v.strip() if isinstance(v, str) else v for k, v in found.items() if k != "role")
    return False


class Arguments:
    """Finds the content in the arguments of one function.

    Args:
        function: The function.
        name: What to call it in errors.
        prompt: As for `Guard.__call__`.
        images: The same.

    Raises:
        ConfigurationError: A name that the function doesn't have, or nothing would be judged.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, prompt: PromptOf, images: str | Sequence[str] | None
    ) -> None:
        self._signature = inspect.signature(function)
        known = list(self._signature.parameters)
        where = getattr(function, "__qualname__", "").split(".")
        self._receiver = known[0] if _is_method(where) and known and known[0] in ("self", "cls") else None
        self._images = _names(images or ())
        self._strays = images is None
        self._map = prompt if callable(prompt) else None
        self._every = prompt == EVERY
        self._names = frozenset() if prompt is None or self._every or callable(prompt) else _names(prompt)
        self.optional = prompt is None
        """Whether a call without content may pass: the response alone is judged then."""
        for one in (*self._names, *self._images):
            if one not in known:
                raise ConfigurationError(f"{name} has no parameter {one!r}; it has: {', '.join(known) or 'none'}.")
        if self._map is not None and images:
            raise ConfigurationError("With a function as prompt=, images= has no place: let it give the pictures too.")
        if (self._every and not set(known) - {self._receiver}) or (prompt is not None and not prompt):
            raise ConfigurationError(
                f"{name} has no parameter that could be judged.",
                hint="If only what it returns is to be judged, say @guard(prompt=None).",
            )

    def content(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Making | None:
        """What to judge before the call. None: nothing, and that is meant.

        Raises:
            TypeError: The function can't be called so.
            ConfigurationError: An argument that can't be read; names the parameter.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        wanted = self._map
        if wanted is not None:
            return Making(lambda load: _or_nothing(wanted(bound)))
        found = tuple(self._found(bound))
        if not found and self.optional:
            return None
        return Making(lambda load: Turn(messages_of(found, "user", load)))

    def _found(self, bound: inspect.BoundArguments) -> Iterator[Found]:
        for name, given in bound.arguments.items():
            several = self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            for value in given.values() if several else (given,):
                if name == self._receiver:
                    continue
                if name in self._images:
                    yield from _in_image_argument(value, name)
                elif self._every or name in self._names:
                    yield from _in_argument(value, name)
                elif self._strays and not self.optional:
                    yield from _stray_pictures(value)


def _is_method(qualname: Sequence[str]) -> bool:
    return len(qualname) > 1 and qualname[-2] != "<locals>"


def _names(value: Any) -> frozenset[str]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError("prompt= and images= take names of parameters.")
    return frozenset(names)


def _or_nothing(content: Any) -> Any:
    return Turn(()) if content is None else content
