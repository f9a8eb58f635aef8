"""JSON lines in: each row becomes what a guard can check, or the error that says why not. Knows no guard.

A row is a JSON string (a prompt), or an object with `prompt`, `images`, `response`, or one with `messages`; and `id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from guardrail_vl.errors import ContentError
from guardrail_vl.turn import ImagePart

MAX_ROW: Final = 128 * 2**20
"""Bytes of one row; a longer one is refused, and the rows after it are still read."""

_BOM: Final = b"\xef\xbb\xbf"
_FIELDS: Final = ("prompt", "images", "response")

RowId = str | int | float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input."""

    number: int
    """Line number, from 1."""
    content: Any = field(default=None, repr=False)
    """What `Guard.check` takes; None exactly when there is an error."""
    id: RowId = None
    """The row's own id; None when it gave none."""
    error: ContentError | None = None
    """Why it can't be checked."""


def read_rows(stream: BinaryIO, *, max_row: int = MAX_ROW) -> Iterator[Row]:
    """The rows of a stream, read one by one; blank lines are passed over and counted."""
    number = 0
    while line := stream.readline(max_row + 1):
        number += 1
        if len(line) > max_row and not line.endswith(b"\n"):
            _skip_line(stream)
            yield Row(number, error=ContentError(f"Row {number} is longer than {max_row} bytes."))
            continue
        raw = line.removeprefix(_BOM) if number == 1 else line
        if raw.strip():
            yield _read_row(number, raw)


def read_json(raw: bytes, what: str) -> Any:
    """A JSON document. A key that is there twice is refused: another reader might see the other value.

    Args:
        raw: UTF-8.
        what: What it is, for the message.

    Raises:
        ContentError: Not UTF-8, or not JSON. The message says where and repeats nothing.
    """
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ContentError(f"{what} is not valid UTF-8 at byte {error.start}.") from None
    except json.JSONDecodeError as error:
        raise ContentError(f"{what} is not valid JSON: {error.msg} at character {error.pos}.") from None
    except _OddJSON as error:
        raise ContentError(f"{what} can't be read safely: {error}.") from None
    except ValueError:
        raise ContentError(f"{what} can't be read: it holds a number that is too long.") from None
    except RecursionError:
        raise ContentError(f"{what} can't be read: it is nested too deeply.") from None


class _OddJSON(ValueError):
    """JSON that two readers would read differently."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _OddJSON("an object has the same key twice")
    return found


def _no_constant(_: str) -> None:
    raise _OddJSON("it holds NaN or Infinity")


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(2**20)) and not rest.endswith(b"\n"):
        pass


def _read_row(number: int, raw: bytes) -> Row:
    row_id: RowId = None
    try:
        value = read_json(raw, f"Row {number}")
        if isinstance(value, dict):
            row_id = _id(value.pop("id", None), number)
        return Row(number, _content(value, number), row_id)
    except ContentError as error:
        return Row(number, id=row_id, error=error)


def _id(value: object, number: int) -> RowId:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    raise ContentError(f"The id of row {number} is neither text nor a number.")


def _content(value: object, number: int) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ContentError(f"Row {number} must be a JSON string or object.")
    given = {key: item for key, item in value.items() if item is not None}
    if given.keys() == {"messages"}:
        if not isinstance(given["messages"], list):
            raise ContentError(f"The messages of row {number} are not a list.")
        return given["messages"]
    if not given or not given.keys() <= set(_FIELDS):
        raise ContentError(
            f"Row {number} holds an unknown field, which would not be judged, or nothing to judge.",
            hint="A row holds id and either messages, or some of prompt, images and response.",
        )
    return _messages(given, number)


def _messages(given: dict[str, Any], number: int) -> list[dict[str, Any]]:
    for key in ("prompt", "response"):
        if not isinstance(given.get(key, ""), str):
            raise ContentError(f"The {key} of row {number} is not text.")
    images = given.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ContentError(f"The images of row {number} are not a list of paths and data: URLs.")
    request = [_image(image, number) for image in images]
    if "prompt" in given:
        request.append({"type": "text", "text": given["prompt"]})
    messages: list[dict[str, Any]] = [{"role": "user", "content": request}] if request else []
    if "response" in given:
        messages.append({"role": "assistant", "content": given["response"]})
    return messages


def _image(source: str, number: int) -> Any:
    # URLs are left to the guard, which knows whether it may fetch them.
    if source.startswith(("data:", "http:", "https:")):
        return {"type": "image_url", "image_url": {"url": source}}
    try:
        return ImagePart.load(source)
    except ContentError as error:
        raise ContentError(f"In row {number}: {error.message}", hint=error.hint) from None
