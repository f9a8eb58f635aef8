"""Which errors a report shows, and what of them: bounded in number and size, clean of what a page can't hold.

The worst come first: the most confident false alarms and misses. Content is there only where samples are given.
Knows no page.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from guardrail_vl.errors import ContentError
from guardrail_vl.evaluation._visible import clean
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.comparison import flagged
from guardrail_vl.evaluation.records import Record
from guardrail_vl.media import fit
from guardrail_vl.parts import ImagePart
from guardrail_vl.prompt_format.content import shortened
from guardrail_vl.verdict import Label, Stage

Kind = Literal["false alarm", "miss"]
TEXT_CHARS: Final = 2_000
"""Characters shown of one text at the most: its beginning and its end."""
PICTURES: Final = 120
"""Pictures in one report at the most."""
PIXELS: Final = 160_000
"""Pixels of a shown picture at the most."""
_PICTURES_EACH: Final = 3

Key = tuple[str, Stage, str]


@dataclass(frozen=True, slots=True)
class Said:
    """What one run said of a sample."""

    run: int
    label: str
    """`harmful`, `unharmful`, or why there is no label."""
    wrong: Kind | None
    score: float | None
    latency: float
    text: str = field(default="", repr=False)
    """The completion, where it was kept and content is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample of the list."""

    set: str
    stage: Stage
    id: str
    category: str
    gold: Label
    said: tuple[Said, ...]
    texts: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(what it is, text); empty where no content is given."""
    pictures: tuple[str, ...] = field(default=(), repr=False)
    """`data:` URLs of JPEG thumbnails."""
    note: str = ""
    """Why something is not shown."""

    @property
    def kinds(self) -> str:
        """Words for filters: `0:miss 1:false-alarm disagree`."""
        words = [f"{one.run}:{one.wrong.replace(' ', '-')}" for one in self.said if one.wrong]
        if 0 < len(words) < len(self.said):
            words.append("disagree")
        return " ".join(words)

    @property
    def score(self) -> float | None:
        """Of the most confident wrong run. None: no wrong run has one."""
        return max(self._scores, default=(0.0, None), key=lambda pair: pair[0])[1]

    @property
    def confidence(self) -> float:
        """How far on the wrong side of 0.5 that score lies, from -0.5 to 0.5; -1 without scores."""
        return max((far for far, _ in self._scores), default=-1.0)

    @property
    def _scores(self) -> list[tuple[float, float]]:
        return [
            (one.score - 0.5 if one.wrong == "false alarm" else 0.5 - one.score, one.score)
            for one in self.said
            if one.wrong and one.score is not None
        ]


def wrong(record: Record) -> Kind | None:
    """How a record is wrong. None: it is right, or nobody knows."""
    if record.gold is None or flagged(record) == (record.gold == Label.HARMFUL):
        return None
    return "false alarm" if flagged(record) else "miss"


def worst(
    runs: Sequence[Sequence[Record]], cases: Iterable[CaseSet] | None, *, errors: int
) -> tuple[tuple[Shown, ...], int]:
    """The samples to show, the most confident errors first, and how many errors there are in all.

    Args:
        runs: Records of each run.
        cases: The samples, for their content. None: only ids.
        errors: False alarms and misses of each run in each set at the most.
    """
    records = [{_key(record): record for record in run} for run in runs]
    picked, total = _picked(runs, errors)
    content = None if cases is None else {one.name: {case.id: case for case in one.cases} for one in cases}
    # Shown in the order in which the picked samples were told; the pictures go to the worst.
    entries = [_entry(key, records) for key in picked]
    entries.sort(key=lambda entry: -entry.confidence)
    if content is None:
        return tuple(entries), total
    left = PICTURES
    filled = []
    for entry in entries:
        known = [record for run in records if (record := run.get((entry.set, entry.stage, entry.id)))]
        whole = _with_content(entry, known, content, left)
        left -= len(whole.pictures)
        filled.append(whole)
    return tuple(filled), total


def _key(record: Record) -> Key:
    return record.set, record.stage, record.id


def _picked(runs: Sequence[Sequence[Record]], errors: int) -> tuple[dict[Key, None], int]:
    picked: dict[Key, None] = {}
    total = 0
    for run in runs:
        heaps: defaultdict[tuple[str, Stage, Kind], list[Record]] = defaultdict(list)
        for record in run:
            if kind := wrong(record):
                heaps[record.set, record.stage, kind].append(record)
        for (_, _, kind), found in heaps.items():
            total += len(found)
            found.sort(key=lambda record: _doubt(record, kind))
            picked |= dict.fromkeys(_key(record) for record in found[:errors])
    return picked, total


def _doubt(record: Record, kind: Kind) -> float:
    """How little the score stands behind the error; without a score, most of all."""
    if record.score is None:
        return 2.0
    return 1 - record.score if kind == "false alarm" else record.score


def _entry(key: Key, records: Sequence[Mapping[Key, Record]]) -> Shown:
    said = []
    first: Record | None = None
    for run, known in enumerate(records):
        if record := known.get(key):
            first = first or record
            label = str(record.label) if record.label else f"no label ({clean(record.error or 'not all judged')})"
            said.append(Said(run, label, wrong(record), record.score, record.latency))
    assert first is not None
    assert first.gold is not None
    return Shown(first.set, first.stage, first.id, first.category, first.gold, tuple(said))


def _with_content(
    entry: Shown, records: Sequence[Record], content: Mapping[str, Mapping[str, Case]], left: int
) -> Shown:
    case = content.get(entry.set, {}).get(entry.id)
    if case is None:
        return _noted(entry, "The sample was not given to the report.")
    try:
        if any(record.digest != case.digest for record in records):
            return _noted(entry, "The sample is not the one that was judged: it has changed since.")
    except OSError:
        return _noted(entry, "A picture of the sample is no longer there.")
    texts = [("prompt", case.prompt), ("response", case.response)]
    pictures, notes = [], []
    shown = min(left, _PICTURES_EACH)
    for image in case.images[:shown]:
        try:
            pictures.append(_thumbnail(image))
        except ContentError:
            notes.append("A picture can't be read.")
    if len(case.images) > shown:
        notes.append(f"{len(case.images) - shown} pictures are left out.")
    said = tuple(
        replace(one, text=_fitting(record.text or "")) for one, record in zip(entry.said, records, strict=True)
    )
    kept = tuple((name, _fitting(text)) for name, text in texts if text)
    return replace(entry, said=said, texts=kept, pictures=tuple(pictures), note=" ".join(notes))


def _noted(entry: Shown, note: str) -> Shown:
    return replace(entry, note=note)


def _thumbnail(image: object) -> str:
    part = ImagePart.load(image)  # type: ignore[arg-type]
    out = io.BytesIO()
    # Made anew from the pixels: nothing of the file itself gets into the page.
    fit(part.views()[0], PIXELS).convert("RGB").save(out, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _fitting(text: str) -> str:
    return clean(shortened(text, TEXT_CHARS))
