"""From rows of a file to labelled turns: our own tables, GuardReasoner-VLTrain's chats, the project's data folder.

Each row becomes a turn, or the error that says why not. Messages name files, rows and fields, and repeat no text. It
opens no picture, and doesn't know whether an id is there twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from guardrail_vl.errors import ConfigurationError, ContentError, ParseError
from guardrail_vl.evaluation import _guardreasoner, _rows, readers
from guardrail_vl.evaluation._rows import Row
from guardrail_vl.evaluation._samples import label_of
from guardrail_vl.media import read_source
from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION, Result, parse_text
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage

Layout = Literal["table", "sharegpt", "shared"]
"""`table`: a field for each of `COLUMNS`. `sharegpt`: `messages` and `images`. `shared`: the project's data folder."""

COLUMNS: Final = (
    "id", "prompt", "images", "response", "label", "prompt_label", "response_label", "reasoning", "category", "source",
    "group", "licence", "weight",
)  # fmt: skip
"""What a table may hold, by these names. `label` is that of the response where there is one, else of the prompt."""

_CHAT: Final = ("user", "assistant")
_IMAGE: Final = "<image>"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a file says."""

    layout: Layout
    rows: tuple[tuple[Row, LabeledTurn | ConfigurationError], ...]
    """In the file's order. The row is kept for its number; its values are not."""
    unread: tuple[str, ...]
    """Columns of a table that mean nothing here."""

    def turns(self) -> tuple[LabeledTurn, ...]:
        """The turns of the rows that can be read."""
        return tuple(turn for _, turn in self.rows if isinstance(turn, LabeledTurn))


def parse(path: Path, layout: Layout | None = None, folder: Path | None = None) -> Parsed:
    """Read a file, row by row; a row that can't be read stops nothing.

    Args:
        path: The file: `.jsonl`, `.json`, `.csv` (each also `.gz` or `.xz`) or `.parquet`.
        layout: How its rows are laid out. None: by the fields of the first row.
        folder: What the pictures' paths are relative to. None: the file's folder.

    Raises:
        ConfigurationError: It can't be read at all, holds no rows, or no column that could be judged.
    """
    if layout is not None and layout not in get_args(Layout):
        raise ConfigurationError(f"There is no layout {layout!r}.", hint=f"There are: {', '.join(get_args(Layout))}.")
    found = list(_found(path))
    if not found:
        raise ConfigurationError(f"{path.name} holds no rows.")
    good = [row for row, error in found if error is None]
    layout = layout or _layout(good)
    columns = dict.fromkeys(name for row in good for name in row.values)
    if layout == "table" and good and not columns.keys() & {"prompt", "response", "images"}:
        raise ConfigurationError(
            f"{path.name} has no column 'prompt', 'response' or 'images'.", hint=f"Columns are {', '.join(COLUMNS)}."
        )
    reader = _READERS[layout]
    folder = path.parent if folder is None else folder
    parsed = []
    for place, (row, error) in enumerate(found):
        parsed.append((Row(row.file, row.number, {}), error or _turn(reader, row, place, folder)))
    unread = tuple(name for name in columns if name not in COLUMNS) if layout == "table" else ()
    return Parsed(layout, tuple(parsed), unread)


def _found(path: Path) -> Iterator[tuple[Row, ConfigurationError | None]]:
    if _rows._suffix(path) not in (".jsonl", ".ndjson"):
        yield from ((row, None) for row in _rows.read_rows(path))
        return
    # Line by line, so that a broken one doesn't hide what is wrong with the others.
    with _rows._reading(path), _rows._open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _line(path, number, line)


def _line(path: Path, number: int, line: str) -> tuple[Row, ConfigurationError | None]:
    row = Row(path.name, number, {})
    try:
        values = _rows._json(line, f"{path.name}, row {number}")
    except ConfigurationError as error:
        return row, error
    if not isinstance(values, Mapping):
        return row, row.wrong("it is no object with named fields.")
    return Row(path.name, number, values), None


def _layout(rows: Iterable[Row]) -> Layout:
    first = next(iter(rows), None)
    if first is not None and "messages" in first.values:
        return "sharegpt"
    return "shared" if first is not None and "task_inputs" in first.values else "table"


def _turn(reader: _Reader, row: Row, place: int, folder: Path) -> LabeledTurn | ConfigurationError:
    try:
        values = reader(row, place, folder)
        try:
            return LabeledTurn(**values)
        except ConfigurationError as error:  # what the turn itself refuses, which knows no row
            raise row.wrong(error.message, hint=error.hint) from None
    except ConfigurationError as error:
        return error


def _numbered(row: Row, place: int) -> str:
    """An id for a row that has none; files of other names have other ids."""
    return f"{row.file.partition('.')[0]}-{place:06}"


# ---- tables -------------------------------------------------------------------------------------------------------


def _table(row: Row, place: int, folder: Path) -> dict[str, Any]:
    # A CSV can't tell an empty text from none.
    csv = row.file.endswith((".csv", ".csv.gz", ".csv.xz"))
    values = {name: None if csv and value == "" else value for name, value in row.values.items()}
    row = Row(row.file, row.number, {**dict.fromkeys(COLUMNS), **values})
    response = row.maybe("response")
    prompt_label, response_label = _labels(row, response)
    return {
        "id": readers._word(row, "id") or _numbered(row, place),
        "prompt": row.maybe("prompt"),
        "images": _images(row, row.get("images"), folder),
        "response": response,
        "prompt_label": prompt_label,
        "response_label": response_label,
        "reasoning": row.maybe("reasoning"),
        **{name: readers._word(row, name) for name in ("category", "source", "group", "licence")},
        "weight": _weight(row),
    }


def _labels(row: Row, response: str | None) -> tuple[Label | None, Label | None]:
    one, request, answer = (label_of(row, row.get(name), name) for name in ("label", "prompt_label", "response_label"))
    if one is None:
        return request, answer
    if request is not None or answer is not None:
        raise row.wrong("it has a 'label', and also a label of the prompt or the response.", hint="Leave one out.")
    return (one, None) if response is None else (None, one)


def _weight(row: Row) -> float:
    value = row.get("weight")
    if value is None:
        return 1.0
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise row.wrong("the field 'weight' is no finite number.")
    return number


def _images(row: Row, value: Any, folder: Path) -> tuple[Path | bytes, ...]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise row.wrong("the field 'images' is no list in JSON.") from None
    named = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(_image(row, item, folder) for item in named)


def _image(row: Row, item: Any, folder: Path) -> Path | bytes:
    if isinstance(item, Mapping):  # as `datasets` stores a picture: `bytes`, or else `path`
        item = item.get("path") if item.get("bytes") is None else item["bytes"]
    if isinstance(item, bytes):
        return item
    if isinstance(item, str) and item.startswith("data:"):
        try:
            return read_source(item)
        except ContentError as error:
            raise row.wrong(error.message) from None
    return _rows.picture(row, item, folder)


# ---- GuardReasoner-VLTrain ----------------------------------------------------------------------------------------


def _sharegpt(row: Row, place: int, folder: Path) -> dict[str, Any]:
    user, target = _said(row)
    images = _images(row, row.values.get("images"), folder)
    prompt, response = _asked(row, user, len(images))
    result = _result(row, target)
    if response is None and result.response is Label.HARMFUL:
        raise row.wrong("the response is labelled harmful, and there is no response.")
    return {
        "id": _numbered(row, place),
        "prompt": prompt,
        "images": images,
        "response": response,
        "prompt_label": result.request,
        # "unharmful" of a response that isn't there says no more than "None".
        "response_label": None if response is None else result.response,
        "reasoning": result.reasoning,
        "source": row.file.partition(".")[0],
    }


def _said(row: Row) -> tuple[str, str]:
    """What the user and the assistant say."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise row.wrong("the field 'messages' is no list of objects.")
    texts = [message.get("content") for message in messages]
    if not all(isinstance(text, str) for text in texts):
        raise row.wrong("a message's 'content' is not text.")
    roles = tuple(message.get("role") for message in messages)
    if roles[:1] == ("system",):
        # Another instruction may ask for something else with the same words.
        if texts[0].split() != INSTRUCTION.split():
            raise row.wrong(
                "the system message is not GuardReasoner-VL's instruction.",
                hint="A row may do without a system message.",
            )
        roles, texts = roles[1:], texts[1:]
    if roles != _CHAT:
        raise row.wrong("its messages are not a user's and an assistant's, in this order.")
    return texts[0], texts[1]


def _asked(row: Row, user: str, pictures: int) -> tuple[str | None, str | None]:
    prompt, response = _guardreasoner._transcript(row, user, pictures, Stage.RESPONSE)
    if pictures and not re.search(rf"(?:^|\n\n)Human user:\n(?:{_IMAGE}\n?){{{pictures}}}", user):
        raise row.wrong("the pictures don't stand at the beginning of the request.")
    if prompt is not None and _IMAGE in prompt:
        raise row.wrong(f"it shows more pictures than it names, which are {pictures}.")
    return prompt, response


def _result(row: Row, target: str) -> Result:
    try:
        return parse_text(target)
    except ParseError as error:
        raise row.wrong(
            f"the assistant's text doesn't follow the format: {error.message.rpartition(': ')[2]}"
        ) from None


# ---- the project's data folder ------------------------------------------------------------------------------------


def _shared(row: Row, place: int, folder: Path) -> dict[str, Any]:
    inputs, labels = row.get("task_inputs"), row.get("labels")
    if not isinstance(inputs, Mapping) or not isinstance(labels, Mapping):
        raise row.wrong("the fields 'task_inputs' and 'labels' have to be objects.")
    inner = Row(row.file, row.number, inputs)
    if not isinstance(inputs.get("images"), list):
        raise row.wrong("the field 'images' is no list.")
    id = row.text("id")
    return {
        "id": id,
        "prompt": inner.maybe("prompt"),
        "images": _images(row, inputs["images"], folder),
        "response": inner.maybe("response"),
        "prompt_label": label_of(row, labels.get("prompt"), "labels.prompt"),
        "response_label": label_of(row, labels.get("response"), "labels.response"),
        "category": readers._word(row, "category"),
        "source": row.text("source"),
        "group": id.partition(".")[0],
        "licence": row.text("license"),
    }


_Reader = Callable[[Row, int, Path], dict[str, Any]]
_READERS: Final[Mapping[Layout, _Reader]] = {"table": _table, "sharegpt": _sharegpt, "shared": _shared}
