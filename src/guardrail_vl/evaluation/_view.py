"""What a report says, as values: the same for the page, the Markdown and the JSON. Knows no markup.

All tables are cut by task first: a figure of prompts and one of responses are never averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation import averages, metrics
from guardrail_vl.evaluation._folder import Run
from guardrail_vl.evaluation.benchmarks import BENCHMARKS
from guardrail_vl.evaluation.comparison import Difference, Figure, Pairs, agreement, differences
from guardrail_vl.evaluation.metrics import Scores
from guardrail_vl.evaluation.plots import Scored
from guardrail_vl.evaluation.records import Cohort, Record
from guardrail_vl.verdict import Label, Stage

CATEGORIES: Final = 40
"""Categories in a table at the most: those with the most samples."""
CATEGORY_SAMPLES: Final = 5
"""Samples that a category must have to be told."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of the table of conditions: what each run has."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs are not the same in it."""
        return len(set(self.values)) > 1


@dataclass(frozen=True, slots=True)
class Row:
    """One run's figures for a set or a slice."""

    run: int
    strict: Scores
    official: Scores | None = None
    """As the paper's release scores. None: there are no completions to read."""


@dataclass(frozen=True, slots=True)
class Block:
    """A set or a slice: its name, and a row for each run that has it."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Average:
    """One run's averages over the sets of a task, in [0, 1]. None: no set has the figure."""

    run: int
    sets: int
    """How many sets are in them: those that every run judged."""
    weighted: Mapping[str, float | None]
    """By samples: `Σ nᵢ·vᵢ / Σ nᵢ` over the sets where the figure is defined."""
    macro: Mapping[str, float | None]
    """Each set counts the same."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's averages, by name, where its benchmarks are there: its weights, of the official F1, or of the strict
    one where there are no completions to read."""


@dataclass(frozen=True, slots=True)
class Task:
    """Everything about prompts, or about responses."""

    stage: Stage
    sets: tuple[Block, ...]
    averages: tuple[Average, ...]
    modalities: tuple[Block, ...]
    categories: tuple[Block, ...]
    categories_left: int
    """Categories that are not shown: small ones, and those past the first `CATEGORIES`."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One set (or all of a task, with an empty name) in two runs."""

    name: str
    stage: Stage
    samples: int
    figures: Mapping[Figure, Difference]
    agreement: float
    fixed: int
    """Samples that the first run got wrong and the second right."""
    broken: int
    """The other way round."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against the first one."""

    run: int
    alone: tuple[int, int]
    rows: tuple[Compared, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The whole report but for its errors and plots."""

    title: str
    names: tuple[str, ...]
    runs: tuple[Run, ...] = field(repr=False)
    conditions: tuple[Condition, ...]
    data: tuple[Condition, ...]
    tasks: tuple[Task, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def several(self) -> bool:
        """Whether there is more than one run."""
        return len(self.runs) > 1


def view(runs: Sequence[Run], *, title: str | None, resamples: int, seed: int) -> View:
    """Work out every figure.

    Raises:
        ConfigurationError: No runs, or one without a record.
    """
    if not runs or not all(run.records for run in runs):
        raise ConfigurationError("A report needs runs, each with at least one judged sample.")
    names = _names(runs)
    work = _Work(runs, resamples, seed)
    stages = [stage for stage in Stage if any(record.stage == stage for run in runs for record in run.records)]
    return View(
        title or f"Evaluation of {names[0] if len(runs) == 1 else f'{len(runs)} guards'}",
        names,
        tuple(runs),
        _conditions(runs),
        _data(runs),
        tuple(work.task(stage) for stage in stages),
        tuple(_comparison(runs, number, resamples, seed) for number in range(1, len(runs))),
    )


def scored(run: Run, name: str, stage: Stage) -> Scored:
    """The labelled samples of a task that have a score."""
    rows = [r for r in run.records if r.stage == stage and r.gold is not None and r.score is not None]
    return Scored(name, [r.gold == Label.HARMFUL for r in rows], [r.score for r in rows if r.score is not None])


# ---- the head -----------------------------------------------------------------------------------------------------


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    """The model of each run; where two share it, with what tells them apart."""
    told = ("speed", "format", "engine", "thresholds", "parser", "policy", "version")
    often = Counter(run.cohort.model for run in runs)
    names = []
    for run in runs:
        twins = [other.cohort for other in runs if other.cohort.model == run.cohort.model]
        apart = [key for key in told if len({getattr(cohort, key) for cohort in twins}) > 1]
        shown = ", ".join(str(getattr(run.cohort, key)) for key in apart[:2])
        names.append(f"{run.cohort.model} ({shown})" if often[run.cohort.model] > 1 and shown else run.cohort.model)
    again = Counter(names)
    return tuple(f"{name} #{place + 1}" if again[name] > 1 else name for place, name in enumerate(names))


def _conditions(runs: Sequence[Run]) -> tuple[Condition, ...]:
    rows = [Condition(one.name, tuple(str(getattr(run.cohort, one.name)) for run in runs)) for one in fields(Cohort)]
    rows.append(Condition("started", tuple(run.started for run in runs)))
    judged = tuple(
        f"{len(run.records):,}" + (f" of {len(run.records) + run.missing:,}" if run.missing else "") for run in runs
    )
    return (*rows, Condition("samples judged", judged))


def _data(runs: Sequence[Run]) -> tuple[Condition, ...]:
    names = dict.fromkeys(name for run in runs for name in run.sets)
    return tuple(
        Condition(
            name,
            tuple(f"{run.sets[name].size:,} @ {run.sets[name].hash}" if name in run.sets else "–" for run in runs),
        )
        for name in names
    )


# ---- the figures --------------------------------------------------------------------------------------------------

_RATES: Final = ("f1", "precision", "recall", "fpr", "official f1")


class _Work:
    """Figures of several runs, cut alike."""

    def __init__(self, runs: Sequence[Run], resamples: int, seed: int) -> None:
        self.runs = runs
        self.resamples = resamples
        self.seed = seed

    def task(self, stage: Stage) -> Task:
        sets = self._blocks(stage, lambda record: record.set, official=True)
        blocks = self._blocks(stage, lambda record: record.category, some=self._large(stage))
        categories = sorted(blocks, key=lambda block: -block.rows[0].strict.n)
        named = {r.category for run in self.runs for r in run.records if r.stage == stage and r.category}
        return Task(
            stage,
            sets,
            tuple(self._average(number, stage, sets) for number in range(len(self.runs))),
            self._blocks(stage, lambda record: record.modality),
            tuple(categories),
            len(named) - len(categories),
        )

    def _large(self, stage: Stage) -> set[str]:
        """The categories with the most samples."""
        count: Counter[str] = Counter()
        for run in self.runs:
            # The largest of the runs counts: the same samples in two runs are no more samples.
            found = Counter(r.category for r in run.records if r.stage == stage and r.gold is not None and r.category)
            count |= found
        return {name for name, samples in count.most_common(CATEGORIES) if samples >= CATEGORY_SAMPLES}

    def _blocks(
        self,
        stage: Stage,
        key: Callable[[Record], str],
        *,
        some: set[str] | None = None,
        official: bool = False,
    ) -> tuple[Block, ...]:
        rows: dict[str, list[Row]] = {}
        for number, run in enumerate(self.runs):
            parts: dict[str, list[Record]] = {}
            for record in run.records:
                if record.stage == stage and (some is None or key(record) in some):
                    parts.setdefault(key(record), []).append(record)
            for name, part in parts.items():
                rows.setdefault(name, []).append(
                    Row(number, self._scores(part), self._official(part) if official else None)
                )
        return tuple(Block(name, tuple(found)) for name, found in rows.items())

    def _scores(self, records: Sequence[Record]) -> Scores:
        return metrics.scores(records, resamples=self.resamples, seed=self.seed)

    def _official(self, records: Sequence[Record]) -> Scores | None:
        if not any(record.text for record in records):
            return None
        try:
            return metrics.scores(records, official=True, resamples=0)
        except ConfigurationError:  # some completions were not kept
            return None

    def _average(self, number: int, stage: Stage, sets: Sequence[Block]) -> Average:
        shared = [block for block in sets if len(block.rows) == len(self.runs)]
        rows = [(block.name, row) for block in shared for row in block.rows if row.run == number]
        weighted: dict[str, float | None] = {}
        macro: dict[str, float | None] = {}
        for rate in _RATES:
            known = [(value, row.strict.n) for _, row in rows if (value := _rate(row, rate)) is not None]
            weighted[rate] = averages.weighted(known) if known else None
            macro[rate] = averages.macro(value for value, _ in known) if known else None
        own = [(block.name, row) for block in sets for row in block.rows if row.run == number]
        return Average(number, len(shared), weighted, macro, _paper(self.runs[number], own, stage))


def _rate(row: Row, name: str) -> float | None:
    if name == "official f1":
        return None if row.official is None else row.official.f1
    if name == "precision" and not (row.strict.harmful and row.strict.unharmful):
        return None  # it is 0 or 1 there by what the set is, and says nothing of the guard
    value: float | None = getattr(row.strict, name)
    return value


def _paper(run: Run, rows: Sequence[tuple[str, Row]], stage: Stage) -> dict[str, float]:
    """The paper's averages, where its benchmarks are there, and there in full."""
    known = {one.name: one for one in BENCHMARKS if one.stage == stage and one.weight and one.paper_name}
    values = {}
    for name, row in rows:
        one = known.get(name)
        score = (row.official or row.strict).f1
        # A part of a benchmark is not that benchmark; a copy may lack a few rows.
        if one and one.weight and score is not None and run.sets[name].size >= 0.95 * one.weight:
            values[one.paper_name] = score
    found = {}
    for title, text_only in (("Average (Text)", True), ("Average (All)", False)):
        try:
            found[title] = averages.paper_average(values, stage, text_only=text_only)
        except ConfigurationError:  # not all of its sets are there
            continue
    return found


# ---- two runs -----------------------------------------------------------------------------------------------------


def _comparison(runs: Sequence[Run], number: int, resamples: int, seed: int) -> Comparison:
    pairs = Pairs.of(runs[0].records, runs[number].records)
    rows = []
    for stage in Stage:
        task = pairs.only(stage=stage)
        names = list(dict.fromkeys(record.set for record in task.first))
        for name in [*([""] if len(names) > 1 else []), *names]:
            part = task.only(name) if name else task
            share = agreement(part)
            if share is None:
                continue
            apart = part.differing()
            fixed = sum((other.label == Label.HARMFUL) == (other.gold == Label.HARMFUL) for _, other in apart)
            figures = differences(part, resamples=max(1, resamples), seed=seed)
            rows.append(Compared(name, stage, len(part.first), figures, share, fixed, len(apart) - fixed))
    return Comparison(number, pairs.alone, tuple(rows))
