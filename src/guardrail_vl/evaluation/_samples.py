"""From what a row says (`Sample`) to a set of cases. Knows no file format and no layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._rows import Row, shown
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.verdict import Label, Stage

LABELS: Final[Mapping[str, Label]] = {
    **dict.fromkeys(("harmful", "unsafe", "true", "1"), Label.HARMFUL),
    **dict.fromkeys(("unharmful", "harmless", "safe", "false", "0"), Label.UNHARMFUL),
}
"""The words that are read as labels, in lower case."""
_NO_LABEL: Final = ("", "none", "null", "nan")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a row says of one sample."""

    row: Row
    id: str
    gold: Label | None
    prompt: str | None = field(repr=False)
    response: str | None = field(default=None, repr=False)
    images: tuple[Path | bytes, ...] = field(default=(), repr=False)
    category: str = ""
    group: str | None = None
    """None: by the request's words."""
    licence: str = ""


def request_group(text: str) -> str:
    """12 hex digits that requests of the same words share, whatever their case and punctuation.

    The data folder's groups are made the same way: SHA-256 of the runs of `a-z0-9`, joined by spaces. A request that
    has none of them goes by its letters in any script.
    """
    words = re.findall(r"[a-z0-9]+", text.lower()) or re.findall(r"\w+", text.lower())
    return hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def label(row: Row, name: str, words: Mapping[str, Label] = LABELS) -> Label | None:
    """The label in a field; None if the field is empty or says `none`.

    Raises:
        ConfigurationError: The field isn't there, or its value is no known label.
    """
    return label_of(row, row.get(name), name, words)


def label_of(row: Row, value: object, name: str, words: Mapping[str, Label] = LABELS) -> Label | None:
    """The label that a value stands for; see `label`.

    Raises:
        ConfigurationError: It is no known label.
    """
    if value is None:
        return None
    word = str(int(value)) if isinstance(value, bool | float) and value in (0, 1) else str(value).strip().lower()
    if word in words:
        return words[word]
    if word in _NO_LABEL:
        return None
    known = ", ".join(sorted(words))
    raise row.wrong(f"the field {name!r} holds an unknown label{shown(value)}.", hint=f"Known are {known}.")


def assemble(
    name: str, stage: Stage, samples: Iterable[Sample], *, licence: str = "", unlabelled: bool = False
) -> CaseSet:
    """The set of these samples.

    Args:
        name: Of the set.
        stage: What is judged.
        samples: In order.
        licence: Of samples that tell none.
        unlabelled: Whether samples without a label are kept; without a response they never are, at that stage.

    Raises:
        ConfigurationError: No samples, two with one id, one with nothing to judge, or pictures that aren't there.
    """
    kept = [s for s in samples if s.gold is not None or (unlabelled and _judgeable(s, stage))]
    if not kept:
        raise ConfigurationError(f"The set {name!r} has no samples with a label of the {stage}.")
    _check_ids(kept)
    _check_pictures(kept)
    return CaseSet(name, tuple(_case(sample, stage, licence) for sample in kept))


def _judgeable(sample: Sample, stage: Stage) -> bool:
    return sample.response is not None if stage is Stage.RESPONSE else bool(sample.prompt or sample.images)


def _case(sample: Sample, stage: Stage, licence: str) -> Case:
    if not _judgeable(sample, stage):
        raise sample.row.wrong(f"there is a label of the {stage}, and no {stage}.")
    group = sample.group
    if group is None:
        group = request_group(sample.prompt) if sample.prompt else ""
    return Case(
        id=sample.id,
        stage=stage,
        gold=sample.gold,
        prompt=sample.prompt or None,
        response=sample.response if stage is Stage.RESPONSE else None,
        images=sample.images,
        category=sample.category,
        group=group,
        licence=sample.licence or licence,
    )


def _check_ids(samples: Iterable[Sample]) -> None:
    seen: dict[str, int] = {}
    for sample in samples:
        if sample.id in seen:
            raise sample.row.wrong(f"it has the same id as row {seen[sample.id]}.")
        seen[sample.id] = sample.row.number


def _check_pictures(samples: Iterable[Sample]) -> None:
    pictures = [(s.row, image) for s in samples for image in s.images if isinstance(image, Path)]
    missing = [(row, path) for row, path in pictures if not path.is_file()]
    if missing:
        row, path = missing[0]
        raise row.wrong(
            f"the picture {path.name!r} isn't there; {len(missing)} of {len(pictures)} pictures are missing.",
            hint="Put the pictures beside the file, under the paths that it names.",
        )
