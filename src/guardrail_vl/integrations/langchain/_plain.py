"""Plain values of what LangChain passes around: as JSON text, or as the strings in it. Knows no message."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import ToolCallPart, checked
from guardrail_vl.reading import refuse
from guardrail_vl.wire.jsons import loads

P = ParamSpec("P")
T = TypeVar("T")

NO_CONTENT: Final = (bool, int, float, complex, date, time, timedelta, UUID, Decimal, Enum)
"""Types whose values say nothing that could be judged."""

Path = tuple[int | str, ...]


def inner_of(value: object) -> Mapping[str, Any] | None:
    """The fields of a pydantic model or a dataclass, extra ones too; None for anything else."""
    if isinstance(value, BaseModel):
        held = vars(value)  # not by attribute: a deprecated field would warn
        return {**{name: held[name] for name in type(value).model_fields if name in held}, **(value.model_extra or {})}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return None


def json_text(value: object, where: str, name: str = "") -> str:
    """A value as a model would see it: text as it is, anything else as JSON. A class of pydantic's: its JSON schema.

    Args:
        value: The value.
        where: What it is, for the message.
        name: The name that lets it pass unjudged, if there is one.

    Raises:
        ContentError: It is no JSON, too long, or not valid Unicode.
    """
    if isinstance(value, str):
        return checked(value, where)
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError, PydanticUserError) as problem:
        if isinstance(problem, ContentError):
            raise
        refuse(f"The {where} can't be written as JSON", name)
    return checked(text, where)


def _plain(value: object) -> object:
    if isinstance(value, type):  # a class of pydantic's, a TypedDict, a dataclass
        return TypeAdapter(value).json_schema()
    inner = inner_of(value)
    if inner is not None:
        return inner
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, NO_CONTENT):
        return str(value)
    raise TypeError(type(value).__name__)


def strings(value: object, where: str, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text in a value, with its place; a key too, if it is more than a name.

    Raises:
        ContentError: It holds what has no text that could be read.
    """
    if value is None or isinstance(value, NO_CONTENT):
        return
    if isinstance(value, str):
        yield path, checked(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not is_name(key):
                yield (*path, "key"), checked(str(key), where)
            yield from strings(inner, where, (*path, str(key)))
    elif isinstance(value, list | tuple | set | frozenset):
        for number, inner in enumerate(value):
            yield from strings(inner, where, (*path, number))
    elif (fields := inner_of(value)) is not None:
        yield from strings(fields, where, path)
    else:
        refuse(f"A {type(value).__name__} in the {where}")


def is_name(key: object) -> bool:
    """Whether a key is the name of a field, as developers write them: it says nothing."""
    if not isinstance(key, str):
        return isinstance(key, NO_CONTENT)
    return len(key) <= 40 and key.replace("-", "_").replace(".", "_").replace("$", "_").isidentifier()


def same_json(text: str, other: str) -> bool:
    """Whether two texts are the same JSON object."""
    value = _canonical(text)
    return value is not None and value == _canonical(other)


def _canonical(text: str) -> str | None:
    try:
        return json.dumps(loads(text), sort_keys=True)
    except (ContentError, RecursionError):
        return None


class Calls:
    """The tool calls of one message, which may tell of each in several places."""

    def __init__(self) -> None:
        self._told: Counter[tuple[str, str]] = Counter()

    def note(self, call: ToolCallPart) -> ToolCallPart:
        """The call, remembered."""
        self._told[_key(call)] += 1
        return call

    def elsewhere(self) -> Callable[[ToolCallPart], bool]:
        """For another place of the same message: whether a call there is one of those remembered, each counted once.

        Its arguments may be the same text, the same JSON, or the text that LangChain wraps as `__arg1`.
        """
        left = self._told.copy()

        def repeats(call: ToolCallPart) -> bool:
            wrapped = call.name, json.dumps({"__arg1": call.arguments}, sort_keys=True)
            for key in (_key(call), wrapped):
                if left[key]:
                    left[key] -= 1
                    return True
            return False

        return repeats


def _key(call: ToolCallPart) -> tuple[str, str]:
    text = call.arguments or "{}"
    return call.name, _canonical(text) or text


def shallow(read: Callable[P, T]) -> Callable[P, T]:
    """Refuses what is nested too deeply to be read, instead of failing on it."""

    @functools.wraps(read)
    def reads(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except RecursionError:
            raise ContentError("A value is nested too deeply to be judged.") from None

    return reads
