"""One row of an input: what a guard can check, or the error that says why not. Knows no guard and no file format.

A row is a string (a prompt), or an object with `prompt`, `images`, `response`, or one with `messages`; and `id`. JSON
lines are read here, other files in `_sources`.
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

BOM: Final = b"\xef\xbb\xbf"
"""What some programs put before UTF-8; it is no part of the text."""
_FIELDS: Final = ("prompt", "images", "response")
JUDGED: Final = (*_FIELDS, "messages")
"""The fields that hold what is judged."""

RowId = str | int | float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input."""

    number: int
    """Its number, from 1; in JSON lines the number of its line."""
    content: Any = field(default=None, repr=False)
    """What `Guard.check` takes; None exactly when there is an error."""
    id: RowId = None
    """The row's own id; None when it gave none."""
    error: ContentError | None = None
    """Why it can't be checked."""


def read_rows(stream: BinaryIO, *, max_row: int = MAX_ROW) -> Iterator[Row]:
    """The rows of a stream, read one by one; blank lines are passed over and counted."""
    for line in raw_lines(stream, max_row=max_row):
        try:
            value = line.value()
        except ContentError as error:
            yield Row(line.number, error=error)
        else:
            yield row_of(value, line.number)


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank."""

    number: int
    """Of the line, from 1."""
    end: int
    """Bytes up to its end."""
    raw: bytes | None = field(repr=False)
    """None: it is too long to be held."""
    max_row: int = MAX_ROW

    def value(self) -> Any:
        """The JSON value in it.

        Raises:
            ContentError: There is none.
        """
        if self.raw is None:
            raise ContentError(f"Row {self.number} is longer than {self.max_row} bytes.")
        return read_json(self.raw, f"Row {self.number}")


def raw_lines(stream: BinaryIO, number: int = 0, end: int = 0, *, max_row: int = MAX_ROW) -> Iterator[RawLine]:
    """The lines of a stream that are not blank.

    Args:
        stream: Where it stands, a line begins.
        number: Of the line before.
        end: Bytes up to there.
        max_row: Bytes of a line; a longer one is not held.
    """
    while line := stream.readline(max_row + 1):
        number += 1
        end += len(line)
        if len(line) > max_row and not line.endswith(b"\n"):
            end += _skip_line(stream)
            yield RawLine(number, end, None, max_row)
            continue
        raw = line.removeprefix(BOM) if number == 1 else line
        if raw.strip():
            yield RawLine(number, end, raw, max_row)


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


def row_of(value: object, number: int) -> Row:
    """The row that a JSON value makes. A field that is not known is an error: it would not be judged."""
    row_id: RowId = None
    try:
        if isinstance(value, dict):
            row_id = _id(value.get("id"), number)
            value = {key: item for key, item in value.items() if key != "id"}
        return Row(number, _content(value, number), row_id)
    except ContentError as error:
        return Row(number, id=row_id, error=error)


def row_of_table(value: object, number: int) -> Row:
    """The row that a row of a larger table makes: its other fields are left aside, and one image needs no list."""
    if isinstance(value, dict):
        value = {key: value[key] for key in ("id", *JUDGED) if value.get(key) is not None}
        if isinstance(value.get("images"), str | bytes):
            value["images"] = [value["images"]]
        if why := _shapeless(value.keys() - {"id"}):
            return Row(number, id=row_of(value, number).id, error=ContentError(f"Row {number} has {why}."))
    return row_of(value, number)


def _shapeless(fields: set[str]) -> str:
    if not fields:
        return "nothing to judge"
    return "messages and other content beside them" if "messages" in fields and len(fields) > 1 else ""


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while rest := stream.readline(2**20):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


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
    if not isinstance(images, list) or not all(isinstance(image, str | bytes) for image in images):
        raise ContentError(f"The images of row {number} are not a list of paths and data: URLs.")
    request = [_image(image, number) for image in images]
    if "prompt" in given:
        request.append({"type": "text", "text": given["prompt"]})
    messages: list[dict[str, Any]] = [{"role": "user", "content": request}] if request else []
    if "response" in given:
        messages.append({"role": "assistant", "content": given["response"]})
    return messages


def _image(source: str | bytes, number: int) -> Any:
    # URLs are left to the guard, which knows whether it may fetch them.
    if isinstance(source, str) and source.startswith(("data:", "http:", "https:")):
        return {"type": "image_url", "image_url": {"url": source}}
    try:
        return ImagePart.load(source)
    except ContentError as error:
        raise ContentError(f"In row {number}: {error.message}", hint=error.hint) from None
