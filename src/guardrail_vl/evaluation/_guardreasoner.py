"""GuardReasoner's and GuardReasoner-VL's benchmark files: JSON arrays of chat rows that hold a transcript and the gold.

Text rows have `instruction`, `input`, `output`; rows with pictures have `messages` and `images`. The golds are a bare
label, or lines such as `Request: harmful` and `Response: None`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from guardrail_vl.evaluation._benchmark import Benchmark
from guardrail_vl.evaluation._rows import Row, picture, read_rows
from guardrail_vl.evaluation._samples import Sample, label_of
from guardrail_vl.verdict import Label, Stage

_USER: Final = "Human user:\n"
_ASSISTANT: Final = "\n\nAI assistant:\n"
_IMAGE: Final = "<image>"
_NONE: Final = "None"
_LINE: Final = {
    Stage.PROMPT: re.compile(r"^Request:[ \t]*(.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE),
    Stage.RESPONSE: re.compile(r"^Response:[ \t]*(.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE),
}


def read(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    """The samples of a file; ids are the rows' places, from 0, as in the release's files of predictions."""
    rows = read_rows(path)
    numbered: dict[Path, bool] = {}
    for place, row in enumerate(rows):
        chat, gold, names = _parts(row)
        images = tuple(_found(picture(row, name, path.parent), place, numbered) for name in names)
        prompt, response = _transcript(row, chat, len(names), benchmark.stage)
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=_gold(row, gold, benchmark.stage),
            prompt=prompt,
            response=response,
            images=images,
        )


def _parts(row: Row) -> tuple[str, str, list[object]]:
    """The user's text, the gold and the names of the pictures."""
    if "input" in row.values:
        return row.text("input"), row.text("output"), []
    said: dict[str, str] = {}
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, Mapping) and isinstance(message.get("content"), str):
            said[str(message.get("role"))] = message["content"]
    if not {"user", "assistant"} <= said.keys():
        raise row.wrong("the field 'messages' has no text of the user and the assistant.")
    names: Any = row.values.get("images") or []
    if not isinstance(names, list):
        raise row.wrong("the field 'images' is no list.")
    return said["user"], said["assistant"], names


def _transcript(row: Row, chat: str, pictures: int, stage: Stage) -> tuple[str | None, str | None]:
    """Request and response of a filled-in template."""
    begin = chat.find("\n\n" + _USER)  # rows with pictures have the instruction before it
    body = chat[begin + 2 :] if begin >= 0 and not chat.startswith(_USER) else chat
    if not body.startswith(_USER) or _ASSISTANT not in body:
        raise row.wrong("it doesn't follow the template of GuardReasoner.")
    request, _, response = body.removeprefix(_USER).rpartition(_ASSISTANT)
    # Two newlines end the template in text rows, one in those with pictures; any more are the response's own.
    response = response.removesuffix("\n") if pictures else response.removesuffix("\n").removesuffix("\n")
    if _ASSISTANT in request and (stage is Stage.RESPONSE or response != _NONE):
        raise row.wrong("two lines say 'AI assistant:', so where the response begins isn't known.")
    if request.count(_IMAGE) < pictures:
        raise row.wrong(f"{pictures} pictures are named and {request.count(_IMAGE)} are shown.")
    for _ in range(pictures):
        request = request.replace(f"{_IMAGE}\n" if f"{_IMAGE}\n" in request else _IMAGE, "", 1)
    return request or None, None if response == _NONE else response


def _gold(row: Row, gold: str, stage: Stage) -> Label | None:
    name = "output" if "output" in row.values else "messages"
    lines = _LINE[stage].findall(gold)
    if len(lines) > 1 or (not lines and "\n" in gold.strip()):
        raise row.wrong(f"the field {name!r} has no single label of the {stage}.")
    return label_of(row, lines[0] if lines else gold.strip(), name)


def _found(named: Path, place: int, numbered: dict[Path, bool]) -> Path:
    """The picture: by its place where the folder is numbered `0000.jpg`, as on the Hub; else by its name."""
    if named.parent not in numbered:
        numbered[named.parent] = (named.parent / "0000.jpg").is_file()
    return named.parent / f"{place:04}.jpg" if numbered[named.parent] else named
