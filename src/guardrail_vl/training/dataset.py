"""Labelled turns in files: read, write, check, split, count. Trains nothing; knows no model.

Messages name files, rows, fields and ids, and never repeat a text.
"""

from __future__ import annotations

import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, ContentError, ParseError
from guardrail_vl.evaluation._rows import Row
from guardrail_vl.evaluation._samples import LABELS, Sample, _check_ids, _check_pictures
from guardrail_vl.parts import ImagePart
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL, parse_text
from guardrail_vl.training import _groups, _storing
from guardrail_vl.training._groups import Contradicting, Deduped, Leak, Why, dedupe, leaks
from guardrail_vl.training._layouts import COLUMNS, Layout, Parsed, parse
from guardrail_vl.training._storing import Pictures
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Stage

Kind = Literal["row", "id", "picture", "content", "label", "reasoning", "licence"]
"""What a problem is about. `row`: the row can't be read, or holds a gold that is no label. `content`: a guard couldn't
be given it. `label`: it contradicts the reasoning, or the same content elsewhere."""

SHARES: Final[Mapping[str, float]] = {"train": 0.8, "held_out": 0.2}
"""How `split` divides by default."""

# A conclusion on a line of its own, as `Request: harmful`; a sentence that only begins so is none.
_CONCLUSION: Final = re.compile(
    r"^[ \t>#*_-]*(?P<side>Request|Response)[ \t*_]*:[ \t*_]*(?P<word>harmful|unharmful|harmless|none)[ \t*_.]*$",
    re.MULTILINE | re.IGNORECASE,
)
_STAGES: Final = {"request": Stage.PROMPT, "response": Stage.RESPONSE}
_FORBIDS: Final = re.compile(
    r"training\s+(?:is\s+)?(?:prohibited|forbidden)|no\s+training|test\s+use\s+only", re.IGNORECASE
)


def read(
    path: str | os.PathLike[str], layout: Layout | None = None, *, folder: str | os.PathLike[str] | None = None
) -> tuple[LabeledTurn, ...]:
    """The turns of a file, in its order.

    Args:
        path: The file: `.jsonl`, `.json` (an array), `.csv`, each also `.gz` or `.xz`, or `.parquet`.
        layout: `table`: fields named as in `COLUMNS`, which is also what `write` writes. `sharegpt`: chats with
            `messages` and `images`, as GuardReasoner-VLTrain has them. `shared`: the project's data folder. None: by
            the fields of the first row.
        folder: What the pictures' paths are relative to. None: the file's folder.

    Raises:
        ConfigurationError: The first row that can't be read, by its number; two rows with one id; pictures that aren't
            there. `validate` tells all of them.
    """
    return checked(_parsed(path, layout, folder))


def _parsed(path: str | os.PathLike[str], layout: Layout | None, folder: str | os.PathLike[str] | None) -> Parsed:
    return parse(Path(path), layout, None if folder is None else Path(folder))


def checked(parsed: Parsed) -> tuple[LabeledTurn, ...]:
    """The turns of what was parsed, if all of it is sound; see `read`.

    Raises:
        ConfigurationError: See `read`.
    """
    samples = []
    for row, turn in parsed.rows:
        if isinstance(turn, ConfigurationError):
            raise turn
        samples.append(Sample(row, turn.id, None, turn.prompt, images=turn.images))
    _check_ids(samples)
    _check_pictures(samples)
    return parsed.turns()


def write(path: str | os.PathLike[str], turns: Iterable[LabeledTurn], *, pictures: Pictures = "kept") -> None:
    """Write turns so that `read` gives them back. The file is there whole or not at all.

    Args:
        path: The file: `.jsonl` (also `.gz` or `.xz`) or `.parquet`; written over.
        turns: In order.
        pictures: `kept`: bytes go inside, as `data:` URLs in JSON lines, and files are named by their path; one that
            lies outside the file's folder is copied into it. `beside`: all are files. `inside`: all are bytes. Copies
            lie in a folder that is named after the file.

    Raises:
        ConfigurationError: No turns, two with one id, a picture that can't be read, or a file that can't be written.
    """
    _storing.write(Path(path), list(turns), pictures)


def split(
    turns: Iterable[LabeledTurn], shares: Mapping[str, float] = SHARES, seed: int = 0
) -> dict[str, tuple[LabeledTurn, ...]]:
    """Divide the turns so that no request stands on two sides; see `leaks`, which then finds nothing.

    Turns of one request are those that share a group, the same words and pictures, or, where one has no group, the same
    words. Modalities and labels are spread evenly. The same turns and seed give the same sides, in whatever order they
    come; each side keeps that order.

    Args:
        turns: With ids that differ.
        shares: The name and the share of each side.
        seed: Of the drawing.

    Raises:
        ConfigurationError: Shares that don't add up to 1, a side without turns, two turns with one id, or a picture
            that can't be read.
    """
    given = list(turns)
    if len({turn.id for turn in given}) != len(given):
        raise ConfigurationError("Two turns have one id, so they can't be split.")
    return _groups.split(given, shares, seed)


# ---- what is wrong ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem(Value):
    """Something that is wrong with a row."""

    row: int
    """The row's number, from 1; in JSON lines: of the line."""
    id: str
    """Of the turn; empty where the row gave none."""
    kind: Kind
    message: str
    """What is wrong, without any text of the row."""


def validate(
    path: str | os.PathLike[str], layout: Layout | None = None, *, folder: str | os.PathLike[str] | None = None
) -> tuple[Problem, ...]:
    """Everything that is wrong with a file's rows, in their order; empty: nothing.

    Each picture is opened, and each turn is rendered and written as it will be trained on.

    Args:
        path: See `read`.
        layout: See `read`.
        folder: See `read`.

    Raises:
        ConfigurationError: The file can't be read at all.
    """
    return problems(_parsed(path, layout, folder))


def sound(parsed: Parsed, wrong: Iterable[Problem]) -> tuple[LabeledTurn, ...]:
    """The turns of the rows that have none of these problems."""
    rows = {problem.row for problem in wrong}
    return tuple(turn for row, turn in parsed.rows if isinstance(turn, LabeledTurn) and row.number not in rows)


def problems(parsed: Parsed) -> tuple[Problem, ...]:
    """Everything that is wrong with what was parsed; see `validate`."""
    ids: dict[str, int] = {}
    contents: dict[str, tuple[int, LabeledTurn]] = {}
    broken: dict[Path | bytes, str] = {}
    found = []
    for row, turn in parsed.rows:
        if isinstance(turn, ConfigurationError):
            found.append(Problem(row.number, "", "row", turn.message.removeprefix(f"{row.file}, row {row.number}: ")))
            continue
        told = [*_id(row, turn, ids), *_shown(turn, broken), *_reasoned(turn), *_alike(row, turn, contents)]
        if _FORBIDS.search(turn.licence):
            told.append(("licence", "its licence forbids training."))
        found += [Problem(row.number, turn.id, kind, message) for kind, message in told]
    return tuple(found)


_Told = Iterator[tuple[Kind, str]]


def _id(row: Row, turn: LabeledTurn, ids: dict[str, int]) -> _Told:
    if turn.id in ids:
        yield "id", f"it has the same id as row {ids[turn.id]}."
    ids.setdefault(turn.id, row.number)


def _shown(turn: LabeledTurn, broken: dict[Path | bytes, str]) -> _Told:
    """Whether a guard can be shown it."""
    parts: dict[Path | bytes, ImagePart] = {}
    for image in turn.images:
        try:
            if image not in broken:
                parts[image] = ImagePart.load(image)
        except ContentError as error:
            broken[image] = error.message
    for place, image in enumerate(turn.images, 1):
        if image in broken:
            which = f"picture {place} of {len(turn.images)}" if len(turn.images) > 1 else "the picture"
            yield "picture", f"{which} can't be used: {_lowered(broken[image])}"
    empty = [name for name in ("prompt", "response") if (text := getattr(turn, name)) is not None and not text.strip()]
    for name in empty:
        yield "content", f"the {name} is an empty text: leave it out if there is none."
    if not empty and not any(image in broken for image in turn.images):
        try:
            exchange = turn.exchange(lambda source: parts[source])  # type: ignore[index]  # the turn's own pictures
            GuardReasonerVL().render(exchange, turn.stage, speed="reason")
        except ContentError as error:
            yield "content", f"it can't be judged: {_lowered(error.message)}"


def _reasoned(turn: LabeledTurn) -> _Told:
    """Whether the reasoning leads to the labels, and can be written."""
    if turn.reasoning is None:
        return
    try:
        parse_text(GuardReasonerVL().target(turn.verdict))
    except ConfigurationError:
        yield "reasoning", "the reasoning is empty or holds a <think> or <result> tag."
    except ParseError as error:
        yield "reasoning", f"the reasoning can't be trained on: {error.message.rpartition(': ')[2]}"
    for match in _CONCLUSION.finditer(turn.reasoning):
        stage = _STAGES[match["side"].lower()]
        label = turn.label(stage)
        if label is not None and LABELS.get(match["word"].lower()) is not label:
            yield "label", f"the reasoning concludes otherwise than the label of the {stage}, which is {label}."
            return


def _alike(row: Row, turn: LabeledTurn, contents: dict[str, tuple[int, LabeledTurn]]) -> _Told:
    try:
        digest = turn.content_digest
    except OSError:
        return  # told already, as a picture that can't be used
    number, first = contents.setdefault(digest, (row.number, turn))
    if _groups.contradict((first, turn)):
        yield "label", f"it has the same content as row {number}, and another label."


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


# ---- what there is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lengths(Value):
    """How long texts are, in characters."""

    count: int
    least: int
    median: float
    p95: int
    """95 of 100 are at most as long."""
    most: int


@dataclass(frozen=True, slots=True)
class Statistics(Value):
    """What there is in a set of turns. Keys are names that the turns give; an empty one: they give none."""

    turns: int
    requests: int
    """What `split` keeps together counts once."""
    pictures: int
    unlabelled: int
    """Turns of which a side that is there has no label."""
    without_reasoning: int
    repeated: int
    """Turns whose content came before."""
    contradicting: int
    """Contents that have turns with other labels."""
    modalities: Mapping[str, int]
    prompt_labels: Mapping[str, int]
    """`unknown`: no label is given."""
    response_labels: Mapping[str, int]
    """`unknown`: no label is given; `none`: there is no response."""
    categories: Mapping[str, int]
    sources: Mapping[str, int]
    licences: Mapping[str, int]
    lengths: Mapping[str, Lengths]
    """Of `prompt`, `response` and `reasoning`, of the turns that have one."""


def stats(turns: Iterable[LabeledTurn]) -> Statistics:
    """Count what there is.

    Args:
        turns: Of one set or several; at least one.

    Raises:
        ConfigurationError: No turns, or a picture that can't be read.
    """
    given = list(turns)
    if not given:
        raise ConfigurationError("There are no turns to count.")
    alike: dict[str, list[LabeledTurn]] = {}
    for turn in given:
        alike.setdefault(_groups.content(turn), []).append(turn)
    texts = {name: [t for turn in given if (t := getattr(turn, name)) is not None]
             for name in ("prompt", "response", "reasoning")}  # fmt: skip
    return Statistics(
        turns=len(given),
        requests=len(_groups.requests(given)),
        pictures=sum(len(turn.images) for turn in given),
        unlabelled=sum(not turn.whole for turn in given),
        without_reasoning=sum(turn.reasoning is None for turn in given),
        repeated=len(given) - len(alike),
        contradicting=sum(_groups.contradict(same) for same in alike.values()),
        modalities=_counted(turn.modality for turn in given),
        prompt_labels=_counted(str(turn.prompt_label or "unknown") for turn in given),
        response_labels=_counted(
            "none" if turn.response is None else str(turn.response_label or "unknown") for turn in given
        ),
        categories=_counted(turn.category for turn in given),
        sources=_counted(turn.source for turn in given),
        licences=_counted(turn.licence for turn in given),
        lengths={name: _lengths([len(text) for text in found]) for name, found in texts.items() if found},
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _lengths(found: Sequence[int]) -> Lengths:
    ordered = sorted(found)
    # The nearest rank: a length that is there.
    return Lengths(
        len(ordered), ordered[0], statistics.median(ordered), ordered[-(-95 * len(ordered) // 100) - 1], ordered[-1]
    )


__all__ = [
    "COLUMNS", "SHARES", "Contradicting", "Deduped", "Kind", "LabeledTurn", "Layout", "Leak", "Lengths",
    "Pictures", "Problem", "Statistics", "Why", "dedupe", "leaks", "read", "split", "stats", "validate", "write",
]  # fmt: skip
