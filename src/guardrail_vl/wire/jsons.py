"""JSON of the wire, read strictly, and the one rule for unknown fields. Knows no endpoint.

Two parsers that read one text differently are a way past a guard: what one of them would take and another would drop
(duplicate keys, NaN, broken UTF-8) is refused here, so that what was judged is what the other side reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import checked
from guardrail_vl.reading import check_fields, is_empty, refuse


def loads(raw: bytes | str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ContentError: Not UTF-8, not JSON, a number that is not finite, a key twice in one object, too deeply nested, or
            not an object. The message holds none of the text.
    """
    try:
        # By hand: `json.loads` would guess UTF-16 or UTF-32 of bytes, which other parsers don't.
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except UnicodeDecodeError:
        raise ContentError("The JSON is not valid UTF-8, so it can't be judged.") from None
    except RecursionError:
        raise ContentError("The JSON is nested too deeply to be judged.") from None
    except ValueError:
        raise ContentError("This is not valid JSON, so it can't be judged.") from None
    return dict(mapping_of(value, "JSON"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ContentError("The JSON has a key twice in one object: readers differ on which one counts.")
    return out


def _constant(name: str) -> NoReturn:
    raise ContentError("The JSON holds NaN or Infinity, which is no JSON.")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ContentError("The JSON holds a number that is too large.")
    return value


def mapping_of(value: object, where: str) -> Mapping[str, Any]:
    """The value, if it is a JSON object.

    Raises:
        ContentError: It is something else.
    """
    if not isinstance(value, Mapping):
        raise ContentError(f"The {where} must be an object, not {type(value).__name__}.")
    return value


def list_of(value: object, where: str) -> Sequence[Any]:
    """The value, if it is a JSON list; an empty one for null.

    Raises:
        ContentError: It is something else.
    """
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ContentError(f"The {where} must be a list, not {type(value).__name__}.")
    return value


def text_of(value: object, where: str) -> str:
    """The value, if it is text that can be judged; empty for null.

    Raises:
        ContentError: It is something else, too long, or not valid Unicode.
    """
    return "" if value is None else checked(value, where)  # type: ignore[arg-type]


def index_of(value: object, where: str) -> int:
    """A count or position; 0 for null.

    Raises:
        ContentError: It is no whole number of at least 0.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ContentError(f"The {where} must be a whole number of at least 0.")
    return value


def as_text(value: object, where: str) -> str:
    """A JSON value as a model would see it, to be judged: text as it is, anything else as compact JSON.

    Raises:
        ContentError: Too long, or not valid Unicode.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return checked(text, where)


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, in order, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from strings(inner)


__all__ = [
    "as_text",
    "check_fields",
    "index_of",
    "is_empty",
    "list_of",
    "loads",
    "mapping_of",
    "refuse",
    "strings",
    "text_of",
]
