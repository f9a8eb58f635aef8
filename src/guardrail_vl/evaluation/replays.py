"""Replays: completions that were saved, ours or anyone's, to records, without a model.

A completion is read by a prompt format's own strict parser, as it would have been when it was written. What a run
measured besides (latency, scores) is not in a text, so a replay has none of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import guardrail_vl
from guardrail_vl.errors import ConfigurationError, ContentError, GuardrailError, ParseError
from guardrail_vl.evaluation._conditions import MODEL_LABELS
from guardrail_vl.evaluation._folder import MANIFEST, RECORDS, Run, RunWriter
from guardrail_vl.evaluation._judging import BETWEEN_TEXTS, Job, record_of, writable
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.records import CASCADE, Cohort, Record
from guardrail_vl.prompt_format import PromptFormat, get_format
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.turn import Exchange, Turn
from guardrail_vl.verdict import Label, Stage, Verdict

ENGINE: Final = "replay"
TEXT_FIELDS: Final = ("text_output", "text", "completion", "predict")
"""Where a row's completion stands; the first that is there. GuardReasoner's release writes `text_output`, and the label
that it read in `predict`; LLaMA-Factory writes the completion in `predict`."""

_FORMAT: Final = "guardreasoner-vl/1"
_LABEL: Final = {
    Stage.PROMPT: re.compile(r"Request:\s*(harmful|unharmful)\b", re.IGNORECASE),
    Stage.RESPONSE: re.compile(r"Response:\s*(harmful|unharmful)\b", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Saved:
    """One saved completion."""

    text: str = field(repr=False)
    id: str | None = None
    """Of its sample. None: the file says nothing, and its order counts."""
    set: str | None = None
    digest: str | None = None
    gold: Mapping[Stage, Label] = field(default_factory=dict)
    """The labels that the file itself gives: they show whether it is in the samples' order."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SavedFile:
    """Saved completions, with what their file says of where they come from."""

    rows: tuple[Saved, ...] = field(repr=False)
    model: str = ""
    """Empty: the file does not say."""
    format: str = ""
    """Empty: likewise."""


def read(path: str | Path) -> SavedFile:
    """Read saved completions.

    Args:
        path: A run's folder or its `records.jsonl`; or a file of JSON objects, one a line or in a list, with the
            completion in one of `TEXT_FIELDS` and perhaps an `id`: LLaMA-Factory's and the GuardReasoner release's
            `generated_predictions.jsonl` are such.

    Raises:
        ConfigurationError: No such file, not of these layouts, or its run's completions can't be read again.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RECORDS
    if path.name == RECORDS and (path.parent / MANIFEST).is_file():
        return _of_run(Run.load(path.parent))
    return SavedFile(tuple(_row(value, place) for place, value in _objects(path)))


def replay(cases: CaseSet, saved: Sequence[Saved], *, format: PromptFormat | str = _FORMAT) -> tuple[Record, ...]:
    """The records of one set's saved completions.

    Args:
        cases: The set.
        saved: One completion for each sample: by id where all have one, else in the samples' order.
        format: Whose parser reads them.

    Raises:
        ConfigurationError: Some are missing or too many, or they belong to other samples: says how many, and the
            first id.
    """
    parser = format if isinstance(format, PromptFormat) else get_format(format)
    named = [one for one in saved if one.id is not None]
    if named and len(named) != len(saved):
        raise ConfigurationError(f"{len(saved) - len(named)} of {len(saved)} completions have no id, the others have.")
    pairs = _by_id(cases, named) if named else _by_order(cases, saved)
    return tuple(_record(Job(cases.name, case, case.digest), one, parser) for case, one in pairs)


def replay_run(
    path: str | Path,
    sets: Sequence[CaseSet],
    folder: str | Path,
    *,
    format: str | None = None,
    model: str | None = None,
    keep_text: bool = True,
) -> Run:
    """A run's folder from saved completions, for the same reports as any other run.

    Args:
        path: See `read`.
        sets: One set; or the sets of a run of ours.
        folder: For the new run.
        format: Id of the prompt format whose parser reads them. None: as the file says, else `guardreasoner-vl/1`.
        model: Whose completions they are. None: as the file says, else its name.
        keep_text: Keep the completions.

    Raises:
        ConfigurationError: See `read` and `replay`; or the folder can't be used.
    """
    file = read(path)
    format = format or file.format or _FORMAT
    parser = get_format(format)
    cohort = Cohort(
        model=model or file.model or Path(path).name,
        engine=ENGINE,
        format=format,
        speed=parser.speeds[0],
        policy="",
        thresholds=MODEL_LABELS,
        version=guardrail_vl.__version__,
    )
    by_set: dict[str, tuple[Record, ...]] = {}
    for one in sets:
        rows = [row for row in file.rows if row.set is None or row.set == one.name]
        if len(sets) > 1 and any(row.set is None for row in rows):
            raise ConfigurationError("The file does not say of which set its completions are.", hint="Name one set.")
        by_set[one.name] = replay(one, rows, format=parser)
    with RunWriter(folder, cohort, sets) as writer:
        for name, records in by_set.items():
            new = [record for record in records if (name, record.id) not in writer.done]
            writer.append(new if keep_text else [_without_text(record) for record in new])
    return Run.load(folder)


# ---- files --------------------------------------------------------------------------------------------------------


def _of_run(run: Run) -> SavedFile:
    if run.cohort.engine == CASCADE:
        raise ConfigurationError(
            "The completions of a cascade are of several models, and can't be read again as one's."
        )
    parser = get_format(run.cohort.format)
    if run.cohort.speed != parser.speeds[0]:
        raise ConfigurationError(
            f"The completions of a run with speed {run.cohort.speed!r} can't be read again: labels that were read at "
            "once come from probabilities, which were not kept."
        )
    silent = [record.id for record in run.records if record.text is None and record.error != "ContentError"]
    if silent:
        raise ConfigurationError(
            f"{len(silent)} of {len(run.records)} records hold no completion (the first: {silent[0]!r}).",
            hint="A model that gives scores writes none, and a run can be told to keep none.",
        )
    rows = (
        Saved(
            text=record.text or "",
            id=record.id,
            set=record.set,
            digest=record.digest,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
        )
        for record in run.records
    )
    return SavedFile(tuple(rows), run.cohort.model, run.cohort.format)


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """What the file holds, each with its place for messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"Can't read {path.name!r}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path.name!r} is not UTF-8.") from None
    if text.lstrip().startswith("["):
        values = _json(text, path.name)
        yield from ((f"item {number} of {path.name!r}", value) for number, value in enumerate(values))
        return
    # Not splitlines: a line of JSON may hold U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"line {number} of {path.name!r}"
            yield place, _json(line, place)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigurationError(f"There is no valid JSON in {place}.") from None


def _row(value: Any, place: str) -> Saved:
    if not isinstance(value, dict):
        raise ConfigurationError(f"There is no object in {place}.")
    text = next((value[name] for name in TEXT_FIELDS if name in value), None)
    if not isinstance(text, str):
        raise ConfigurationError(f"There is no completion in {place}.", hint=f"Looked in: {', '.join(TEXT_FIELDS)}.")
    if text.strip().lower() in list(Label) and "predict" in value:
        raise ConfigurationError(f"There is a label in {place}, and no completion: there is nothing to parse.")
    told = value.get("id")
    return Saved(text=text, id=None if told is None else str(told), set=value.get("set"), gold=_gold(value))


def _gold(row: dict[str, Any]) -> dict[Stage, Label]:
    """The labels of a row: a word as in the release, or a target text as in LLaMA-Factory."""
    told = row.get("label")
    if not isinstance(told, str):
        return {}
    found = {stage: match[1] for stage, pattern in _LABEL.items() if (match := pattern.search(told))}
    if not found:
        # Rows that are judged by both sides have `label` for the request and `label_res` for the response.
        of_response = row.get("label_res")
        both = {Stage.PROMPT: told, Stage.RESPONSE: told if of_response is None else of_response}
        found = {stage: word for stage, word in both.items() if isinstance(word, str)}
    return {stage: Label(word.lower()) for stage, word in found.items() if word.lower() in list(Label)}


# ---- which completion is whose ------------------------------------------------------------------------------------


def _by_id(cases: CaseSet, saved: Sequence[Saved]) -> Iterator[tuple[Case, Saved]]:
    there = {one.id: one for one in saved}
    if len(there) != len(saved):
        twice = Counter(one.id for one in saved).most_common(1)[0][0]
        raise ConfigurationError(f"{len(saved) - len(there)} ids stand twice in the file (one of them: {twice!r}).")
    ids = {case.id for case in cases.cases}
    _complain(cases.name, [case.id for case in cases.cases if case.id not in there], "have no completion")
    _complain(cases.name, [str(one.id) for one in saved if one.id not in ids], "have a completion and no sample")
    for case in cases.cases:
        one = there[case.id]
        if one.digest is not None and one.digest != case.digest:
            raise ConfigurationError(f"The completion of {case.id!r} in {cases.name!r} was written for other content.")
        yield case, one


def _by_order(cases: CaseSet, saved: Sequence[Saved]) -> Iterator[tuple[Case, Saved]]:
    _complain(cases.name, [case.id for case in cases.cases[len(saved) :]], "have no completion")
    if len(saved) > len(cases.cases):
        extra = len(saved) - len(cases.cases)
        last = cases.cases[-1].id
        raise ConfigurationError(
            f"There are {extra} completions too many for {cases.name!r}, which ends with {last!r}."
        )
    pairs = list(zip(cases.cases, saved, strict=True))
    other = [c.id for c, one in pairs if c.gold is not None and one.gold.get(c.stage, c.gold) is not c.gold]
    _complain(cases.name, other, "have another label in the file, which is then in another order or of other data")
    yield from pairs


def _complain(name: str, ids: Sequence[str], what: str) -> None:
    if ids:
        raise ConfigurationError(f"{len(ids)} samples of {name!r} {what} (the first: {ids[0]!r}).")


# ---- parsing ------------------------------------------------------------------------------------------------------


def _record(job: Job, one: Saved, parser: PromptFormat) -> Record:
    return record_of(
        job,
        _parse(job.case, one.text, parser),
        text=writable(one.text),
        prompt_tokens=one.prompt_tokens,
        completion_tokens=one.completion_tokens,
    )


def _parse(case: Case, text: str, parser: PromptFormat) -> Verdict | GuardrailError:
    try:
        exchange = _exchange(case)
        completions = [Completion(part) for part in text.split(BETWEEN_TEXTS)]
        verdict = parser.parse(completions, exchange, case.stage, speed=parser.speeds[0])
    except (ContentError, ParseError) as error:
        return error
    if verdict.label(case.stage) is None and not verdict.unjudged:
        return ParseError("There is no label for what was judged.", text=text)
    return verdict


def _exchange(case: Case) -> Exchange:
    # A parser reads what was written of the pictures, not the pictures.
    asked = "[picture]" if case.prompt is None and case.images else case.prompt
    response = case.response if case.stage is Stage.RESPONSE else None
    return Turn.from_prompt(asked, response=response).exchanges()[-1]


def _without_text(record: Record) -> Record:
    return replace(record, text=None)


__all__ = ["ENGINE", "TEXT_FIELDS", "Saved", "SavedFile", "read", "replay", "replay_run"]
