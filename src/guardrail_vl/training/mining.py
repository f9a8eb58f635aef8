"""Hard turns: those that a model still gets wrong when it is asked several times (`mine`). They are what RL trains on.

GuardReasoner-VL (arXiv 2505.11049, section 2.3.1 and appendix A.5.2) draws 4 answers to each turn at temperature 1.0
and top-p 0.95, and keeps a turn if all 4 are wrong. Its released code differs in details; each is a switch of
`MiningConfig`. It trains nothing, and needs torch only where it has to load a model itself.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import BaseModel, Field

from guardrail_vl._value import Value
from guardrail_vl._whole import write_whole, written
from guardrail_vl.errors import ConfigurationError, ContentError, ParseError
from guardrail_vl.evaluation import official
from guardrail_vl.prompt_format import GuardReasonerVL, PromptFormat
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.training import dataset, sampling
from guardrail_vl.training._output import Output, Step, digest_of_model, digest_of_turns
from guardrail_vl.training._samples import SAMPLES, SampleLog, SampleRecord, Tally, read_samples
from guardrail_vl.training.sampling import MAX_TEMPERATURE, Kind, Sample, Sampler, kind_for, open_sampler
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage

TURNS: Final = "turns.jsonl"


class MiningConfig(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """How answers are drawn and which turns are kept. The defaults are the paper's, except for `max_tokens`.

    The release: `labels="release", keep_pictures=True, max_tokens=4096`.
    """

    samples: int = Field(default=4, ge=1)
    """Answers to each turn."""
    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    """Logits are divided by it. 0: always the likeliest token, so more than one sample tells nothing more."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Only the likeliest tokens that together have at least this probability."""
    top_k: int = Field(default=0, ge=0)
    """Only so many of the likeliest tokens. 0: all."""
    max_tokens: int = Field(default=2048, ge=1)
    """Of an answer. 2048 is what serving allows; the release takes 4096. An answer that is cut off is wrong."""
    rule: Literal["all_wrong", "some_wrong", "mixed"] = "all_wrong"
    """Which turns are hard: no answer is right (paper), at least one is wrong, or at least one is wrong and one right.
    Answers of the last kind always earn unlike rewards, without which GRPO learns nothing from a turn."""
    sides: Literal["both", "prompt", "response"] = "both"
    """Whose labels have to be right: every one that is known, or only that of the request or of the response. A turn
    whose label is not known there is left out."""
    labels: Literal["strict", "release"] = "strict"
    """How an answer is read: as the guard reads it when it serves, or as the release does: the first `Request:` and
    `Response:` in the whole text, and where there is no response, it has to be called unharmful or none."""
    keep_pictures: bool = False
    """Whether every turn that is only pictures is kept, however it was answered (release)."""
    limit: int | None = Field(default=12_000, ge=1)
    """Turns that are kept at most; from more, so many are drawn by `seed`. None: all."""
    seed: int = 0
    keep_text: bool = False
    """Whether `samples.jsonl` holds the answers. They may repeat what is in the turns."""
    chunk: int = Field(default=64, ge=1)
    """Turns that are sampled together and then written: what a crash loses. Pictures of so many turns are in memory
    at a time. vLLM is faster with more, such as 512."""
    engine: Kind = "auto"
    """What runs the model: see `open_sampler`. Means nothing where `mine` is given a sampler."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share the model, with vLLM. Means nothing where `mine` is given a sampler."""

    HOW: ClassVar[frozenset[str]] = frozenset({"tensor_parallel"})
    """Fields that may change while a run is under way: they decide nothing of what comes out."""


@dataclass(frozen=True, slots=True)
class MiningFigures(Value):
    """What `result.json` holds."""

    outcomes: dict[str, int]
    """Turns by how they were answered: `all_wrong`, `mixed`, `all_right`; `unjudged` could not be sampled, `unlabelled`
    have no label that had to be right."""
    hard: int
    """Turns that the rule keeps, `keep_pictures` included."""
    kept: int
    """Of these, after the limit."""
    overall: Tally
    """Of the turns that were sampled."""
    modalities: dict[str, Tally]
    sources: dict[str, Tally]


@dataclass(frozen=True, slots=True)
class MiningResult:
    """What `mine` found."""

    turns: tuple[LabeledTurn, ...] = field(repr=False)
    """The hard ones, in the order in which they were given."""
    figures: MiningFigures
    output: Path

    @property
    def counts(self) -> Mapping[str, int]:
        """Turns by outcome: see `MiningFigures.outcomes`."""
        return self.figures.outcomes


def mine(
    model: str | Path,
    turns: Sequence[LabeledTurn],
    output: str | Path,
    *,
    config: MiningConfig | None = None,
    format: str = "guardreasoner-vl/1",
    sampler: Sampler | None = None,
    progress: Callable[[Step], object] | None = None,
) -> MiningResult:
    """Find the turns that a model gets wrong.

    Written as it goes: the same call after a crash samples only what has no record, and comes to the same result. A
    folder that is done is read, and no model is loaded.

    Args:
        model: A checkpoint folder or hub id. With a sampler of your own: what it samples from, for the record.
        turns: With ids that differ.
        output: A folder: `samples.jsonl` (a `SampleRecord` a turn), `metrics.jsonl`, `turns.jsonl` (the hard turns;
            pictures beside it or inside it) and, last, `result.json` (`MiningFigures`).
        config: None: the defaults.
        format: Id of the prompt format.
        sampler: What to sample with; it stays open. None: one is loaded.
        progress: Is told after every chunk: turns done, pass rate, turns that are hard so far.

    Raises:
        ConfigurationError: Two turns have one id, the folder holds a run of other inputs or is in use, the model can't
            be loaded, or something can't be written.
        EngineError: The model failed.
    """
    turns, config = tuple(turns), config or MiningConfig()
    format_ = sampling.reasoning_format(format)
    _check(turns, config, format_)
    kind = sampler.name if sampler is not None else kind_for(model, config.engine)
    decisive = config.model_dump(mode="json", exclude=set(config.HOW))
    inputs = {"config": decisive, "turns": digest_of_turns(turns)}
    inputs |= {"model": digest_of_model(model), "format": format, "sampler": kind}
    out = Output(output, "mine", inputs)
    figures = out.begin(MiningFigures)
    if figures is not None:
        return MiningResult(choose(turns, read_samples(out.folder), config), figures, out.folder)
    _mark(out)
    with SampleLog(out.folder) as log, contextlib.ExitStack() as stack:
        if any(_todo(turns, log, config)):
            if sampler is None:
                sampler = stack.enter_context(
                    open_sampler(model, format=format, engine=config.engine, tensor_parallel=config.tensor_parallel)
                )
            _sample(sampler, turns, log, out, config, format_, progress)
        return _finish(turns, tuple(log.records.values()), out, config)


def _mark(out: Output) -> None:
    """Leave a mark, before the first sample and until the result is there, by which other inputs are refused."""
    mark = out.checkpoints / "samples"
    if (out.folder / SAMPLES).exists() and not mark.exists():
        raise ConfigurationError(
            f"The folder {out.folder.name!r} holds a {SAMPLES} without the run that it belongs to.",
            hint="Name another one, or delete that file.",
        )
    with written(out.folder.name):
        out.checkpoints.mkdir(exist_ok=True)
        mark.touch()


def choose(
    turns: Sequence[LabeledTurn], records: Sequence[SampleRecord], config: MiningConfig
) -> tuple[LabeledTurn, ...]:
    """The hard turns among those that were sampled. Samples nothing, so other rules can be tried on the same samples.

    Args:
        turns: The turns, whether they were sampled or not.
        records: See `read_samples`.
        config: `rule`, `keep_pictures`, `limit` and `seed` are used.

    Returns:
        In the order of `turns`.
    """
    hard = _hard(turns, records, config)
    if config.limit is None or len(hard) <= config.limit:
        return tuple(hard)
    drawn = random.Random(config.seed).sample(range(len(hard)), config.limit)
    return tuple(hard[place] for place in sorted(drawn))


def _hard(turns: Sequence[LabeledTurn], records: Sequence[SampleRecord], config: MiningConfig) -> list[LabeledTurn]:
    by_id = {record.id: record for record in records}
    return [turn for turn in turns if turn.id in by_id and _is_hard(turn, by_id[turn.id], config)]


def _is_hard(turn: LabeledTurn, record: SampleRecord, config: MiningConfig) -> bool:
    outcome = _outcome(record)
    if config.keep_pictures and turn.modality == "image" and outcome != "unjudged":
        return True
    hard = {"all_wrong": ("all_wrong",), "some_wrong": ("all_wrong", "mixed"), "mixed": ("mixed",)}
    return outcome in hard[config.rule]


def _outcome(record: SampleRecord) -> str:
    if not record.right:
        return "unjudged"
    if all(record.right):
        return "all_right"
    return "mixed" if any(record.right) else "all_wrong"


def _check(turns: Sequence[LabeledTurn], config: MiningConfig, format: PromptFormat) -> None:
    if not turns:
        raise ConfigurationError("There are no turns to mine.")
    seen: set[str] = set()
    for turn in turns:
        if turn.id in seen:
            raise ConfigurationError(f"Two turns have the id {turn.id!r}.")
        seen.add(turn.id)
    if config.labels == "release" and not isinstance(format, GuardReasonerVL):
        raise ConfigurationError(f"labels='release' reads answers of {GuardReasonerVL.id!r}, not of {format.id!r}.")


# --- sampling and judging --------------------------------------------------------------------------------------------


def _gold(turn: LabeledTurn, config: MiningConfig) -> dict[Stage, Label]:
    """The labels that an answer has to get right."""
    gold = {
        stage: label
        for stage in Stage
        if config.sides in ("both", str(stage)) and (label := turn.label(stage)) is not None
    }
    if gold and config.labels == "release" and config.sides != "prompt" and turn.response is None:
        gold[Stage.RESPONSE] = Label.UNHARMFUL
    return gold


def _todo(turns: Sequence[LabeledTurn], log: SampleLog, config: MiningConfig) -> Iterator[tuple[LabeledTurn, ...]]:
    """The turns without a record. Chunks lie where they lay in the first run, so that batches are the same."""
    for start in range(0, len(turns), config.chunk):
        chunk = turns[start : start + config.chunk]
        if todo := tuple(turn for turn in chunk if turn.id not in log.records and _gold(turn, config)):
            yield todo


def _sample(
    sampler: Sampler,
    turns: Sequence[LabeledTurn],
    log: SampleLog,
    out: Output,
    config: MiningConfig,
    format: PromptFormat,
    progress: Callable[[Step], object] | None,
) -> None:
    total = sum(bool(_gold(turn, config)) for turn in turns)
    out.rewind(len(log.records))
    tally, hard = Tally(), len(_hard(turns, tuple(log.records.values()), config))
    for record in log.records.values():
        tally = tally.plus(record)
    for chunk in list(_todo(turns, log, config)):
        drawn = _drawn(sampler, chunk, config)
        records = [_record(turn, one, config, format) for turn, one in zip(chunk, drawn, strict=True)]
        log.append(records)
        for record in records:
            tally = tally.plus(record)
        hard += len(_hard(chunk, records, config))
        step = Step("mine", len(log.records), total, _values(tally, hard))
        out.log(step)
        if progress is not None:
            progress(step)


def _values(tally: Tally, hard: int) -> dict[str, float]:
    return {
        "pass_rate": tally.pass_rate,
        "readable": tally.readable_rate,
        "tokens": tally.mean_tokens,
        "hard": float(hard),
    }


def _drawn(
    sampler: Sampler, turns: Sequence[LabeledTurn], config: MiningConfig
) -> list[Sequence[Sample] | ContentError]:
    """Samples of each turn, or why there are none: a turn that can't be judged does not spoil its chunk."""
    try:
        return list(
            sampler.sample(
                turns,
                count=config.samples,
                temperature=config.temperature,
                top_p=config.top_p,
                top_k=config.top_k,
                max_tokens=config.max_tokens,
                seed=config.seed,
            )
        )
    except ContentError as error:
        if len(turns) == 1:
            return [error]
    middle = len(turns) // 2
    return [*_drawn(sampler, turns[:middle], config), *_drawn(sampler, turns[middle:], config)]


def _record(
    turn: LabeledTurn, drawn: Sequence[Sample] | ContentError, config: MiningConfig, format: PromptFormat
) -> SampleRecord:
    gold = _gold(turn, config)
    read = _read_as_release if config.labels == "release" else _read_strictly
    try:
        if isinstance(drawn, ContentError):
            raise drawn
        said = read(turn, drawn, gold, format)
        digest = turn.content_digest
    except (ContentError, OSError) as error:
        why = error.message if isinstance(error, ContentError) else "A picture can't be read."
        return SampleRecord(turn.id, "", error=why)
    return SampleRecord(
        id=turn.id,
        digest=digest,
        right=tuple(labels is not None and all(labels[stage] is gold[stage] for stage in gold) for labels in said),
        readable=tuple(labels is not None for labels in said),
        tokens=tuple(sample.tokens for sample in drawn),
        texts=tuple(sample.text for sample in drawn) if config.keep_text else None,
    )


_Said = list[dict[Stage, Label | None] | None]
"""The labels that each sample gives; None: it can't be read."""


def _read_strictly(
    turn: LabeledTurn, drawn: Sequence[Sample], gold: Mapping[Stage, Label], format: PromptFormat
) -> _Said:
    exchange = turn.exchange()
    # The stage is the one whose label an answer must not leave out.
    stage = Stage.RESPONSE if Stage.RESPONSE in gold else Stage.PROMPT
    out: _Said = []
    for sample in drawn:
        try:
            verdict = format.parse([Completion(sample.text, sample.finish)], exchange, stage, speed="reason")
        except ParseError:
            out.append(None)
        else:
            out.append({stage: verdict.label(stage) for stage in gold})
    return out


def _read_as_release(
    turn: LabeledTurn, drawn: Sequence[Sample], gold: Mapping[Stage, Label], format: PromptFormat
) -> _Said:
    said = [{stage: official.label(sample.text, stage, turn.modality) for stage in gold} for sample in drawn]
    return [None if None in labels.values() else dict(labels) for labels in said]


# --- the end ---------------------------------------------------------------------------------------------------------


def _finish(
    turns: Sequence[LabeledTurn], records: Sequence[SampleRecord], out: Output, config: MiningConfig
) -> MiningResult:
    chosen = choose(turns, records, config)
    by_id = {record.id: record for record in records}
    outcomes = dict.fromkeys(("all_wrong", "mixed", "all_right", "unjudged", "unlabelled"), 0)
    modalities: dict[str, Tally] = {}
    sources: dict[str, Tally] = {}
    everything = Tally()
    for turn in turns:
        record = by_id.get(turn.id)
        outcomes["unlabelled" if record is None else _outcome(record)] += 1
        if record is not None and record.right:
            everything = everything.plus(record)
            modalities[turn.modality] = modalities.get(turn.modality, Tally()).plus(record)
            sources[turn.source] = sources.get(turn.source, Tally()).plus(record)
    figures = MiningFigures(
        outcomes=outcomes,
        hard=len(_hard(turns, records, config)),
        kept=len(chosen),
        overall=everything,
        modalities=modalities,
        sources=sources,
    )
    if chosen:
        dataset.write(out.folder / TURNS, chosen)
    else:  # there is nothing hard, which is a result too
        write_whole(out.folder / TURNS, b"")
    out.finish(figures)
    return MiningResult(chosen, figures, out.folder)


__all__ = [
    "TURNS", "MiningConfig", "MiningFigures", "MiningResult", "SampleRecord", "Tally", "choose", "mine", "read_samples",
]  # fmt: skip
