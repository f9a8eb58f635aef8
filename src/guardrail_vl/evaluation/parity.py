"""The same samples through two guards: do engines, speeds or quantisations say the same? A gate for CI.

Neither guard is right here: gold labels are not looked at, and `metrics` says which one is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, GuardrailError, MissingDependencyError, ParseError
from guardrail_vl.evaluation._conditions import cohort_of
from guardrail_vl.evaluation._judging import Job, Judge
from guardrail_vl.evaluation.cases import Case
from guardrail_vl.evaluation.records import Cohort, Record
from guardrail_vl.evaluation.running import Run
from guardrail_vl.guard import Guard
from guardrail_vl.verdict import Action, Label

try:
    import numpy as np
except ImportError as error:
    raise MissingDependencyError("numpy", extra="evaluation", needed_for="Parity") from error

MAX_WORST: Final = 20
"""Samples that a comparison names."""


class ParityError(GuardrailError):
    """Two guards differ by more than is tolerated."""


@dataclass(frozen=True, slots=True)
class Tolerance(Value):
    """How far two guards may differ.

    Raises:
        ConfigurationError: A share is not in [0, 1], or a drift is negative.
    """

    labels: float = 1.0
    """The least share of samples with the same label."""
    actions: float = 1.0
    """The least share of samples with the same action."""
    drift: float | None = 0.02
    """The largest difference of two scores of one sample. None: scores are not looked at."""
    failures: float = 0.0
    """The largest share of samples for which either guard gives no verdict."""

    def __post_init__(self) -> None:
        shares = (self.labels, self.actions, self.failures)
        if not all(0 <= share <= 1 for share in shares) or (self.drift is not None and not self.drift >= 0):
            raise ConfigurationError("A tolerance holds shares from 0 to 1, and a drift of 0 or more.")


EXACT: Final = Tolerance(drift=1e-6)
"""Nothing but rounding."""


@dataclass(frozen=True, slots=True)
class Difference(Value):
    """One sample, and what the two said of it. Holds no content."""

    set: str
    id: str
    labels: tuple[Label | None, Label | None]
    actions: tuple[Action | None, Action | None]
    scores: tuple[float | None, float | None]
    errors: tuple[str, str]
    """Class names; empty: there is a verdict."""

    @property
    def drift(self) -> float | None:
        """How far the scores are apart. None: one of them is missing."""
        first, second = self.scores
        return None if first is None or second is None else abs(first - second)

    @property
    def judged(self) -> bool:
        """Whether both gave a verdict."""
        return not any(self.errors)

    @property
    def agrees(self) -> bool:
        """Whether both gave a verdict, with one label and one action."""
        return self.judged and self.labels[0] == self.labels[1] and self.actions[0] == self.actions[1]


@dataclass(frozen=True, slots=True)
class Parity(Value):
    """What a comparison found. A sample without a verdict from either guard agrees with nothing."""

    first: str
    """Which guard, in words."""
    second: str
    tolerance: Tolerance
    cases: int
    """Samples compared."""
    label_agreement: float
    """Share of samples that both judged and gave one label."""
    action_agreement: float
    """Share of samples that both judged and gave one action."""
    unjudged: int
    """Samples without a verdict from one of them, or from both."""
    failures: tuple[int, int]
    """Samples without a verdict, of each."""
    parse_failures: tuple[int, int]
    """Of these, those where the model's answer could not be read."""
    one_sided: int
    """Samples where only one of two verdicts has a score."""
    scored: int
    """Samples where both have one: of these are the next three. None of them: the three are None."""
    drift_mean: float | None
    drift_p95: float | None
    """95 % of these samples drift by at most this."""
    drift_max: float | None
    worst: tuple[Difference, ...]
    """The samples that differ most, worst first, at most `MAX_WORST`."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is outside the tolerance, in words; empty: nothing."""
        limit = self.tolerance
        found = []
        if self.unjudged > limit.failures * self.cases:
            found.append(
                f"{self.failures[0]} and {self.failures[1]} of {self.cases} samples got no verdict "
                f"({self.parse_failures[0]} and {self.parse_failures[1]} could not be parsed)"
            )
        for what, share, least in (
            ("labels", self.label_agreement, limit.labels),
            ("actions", self.action_agreement, limit.actions),
        ):
            if share < least:
                found.append(f"{what} agree on {share:.2%}, less than {least:.2%}")
        if limit.drift is not None:
            if self.one_sided:
                found.append(f"{self.one_sided} samples have a score from one guard only")
            if self.drift_max is not None and self.drift_max > limit.drift:
                found.append(f"scores drift by up to {self.drift_max:.3g}, more than {limit.drift:.3g}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance."""
        return not self.problems

    def raise_if_outside(self) -> None:
        """The gate.

        Raises:
            ParityError: Something is outside the tolerance; names the worst samples by their ids.
        """
        if not self.passed:
            named = ", ".join(f"{d.set}:{d.id}" if d.set else d.id for d in self.worst[:5])
            raise ParityError(
                f"{self.first} and {self.second} differ: {'; '.join(self.problems)}.", hint=f"The worst: {named}."
            )


def compare(
    first: Guard, second: Guard, cases: Iterable[Case], *, tolerance: Tolerance | None = None, batch: int = 32
) -> Parity:
    """Judge the same samples with both, without their caches and hooks.

    Args:
        first: A guard.
        second: Another one: another engine, speed, format or quantisation.
        cases: Without two of one id.
        tolerance: None: the same labels and actions everywhere, scores at most 0.02 apart.
        batch: Samples that go to an engine together.

    Raises:
        ConfigurationError: No samples, or two with one id.
    """
    jobs = [Job("", case, case.digest) for case in cases]
    if batch < 1:
        raise ConfigurationError("batch must be at least 1.")
    said = [_judged(guard, jobs, batch) for guard in (first, second)]
    names = [_cohort_named(cohort_of(guard, batch=batch, workers=1)) for guard in (first, second)]
    return _parity(said[0], said[1], (names[0], names[1]), tolerance or Tolerance())


def compare_runs(first: Run, second: Run, *, tolerance: Tolerance | None = None) -> Parity:
    """The same for two runs on the same data.

    Raises:
        ConfigurationError: A sample is in one of them only, or is not the same in both.
    """
    names = (_cohort_named(first.cohort), _cohort_named(second.cohort))
    return _parity(first.records, second.records, names, tolerance or Tolerance())


def _judged(guard: Guard, jobs: Sequence[Job], batch: int) -> list[Record]:
    judge = Judge(guard, keep_text=False)
    out = []
    for _, group in groupby(jobs, key=lambda job: job.case.stage):
        alike = list(group)
        for start in range(0, len(alike), batch):
            out += [record for record, _ in judge(alike[start : start + batch])]
    return out


def _cohort_named(cohort: Cohort) -> str:
    return f"{cohort.model} ({cohort.engine}, {cohort.format}, {cohort.speed})"


def _parity(first: Sequence[Record], second: Sequence[Record], names: tuple[str, str], tolerance: Tolerance) -> Parity:
    rows = _paired(first, second)
    judged = [row for row in rows if row.judged]
    drifts = [row.drift for row in rows if row.drift is not None]
    different = [row for row in rows if not row.agrees or row.drift]
    return Parity(
        first=names[0],
        second=names[1],
        tolerance=tolerance,
        cases=len(rows),
        label_agreement=sum(row.labels[0] == row.labels[1] for row in judged) / len(rows),
        action_agreement=sum(row.actions[0] == row.actions[1] for row in judged) / len(rows),
        unjudged=len(rows) - len(judged),
        failures=(sum(bool(row.errors[0]) for row in rows), sum(bool(row.errors[1]) for row in rows)),
        parse_failures=(
            sum(row.errors[0] == ParseError.__name__ for row in rows),
            sum(row.errors[1] == ParseError.__name__ for row in rows),
        ),
        one_sided=sum((row.scores[0] is None) != (row.scores[1] is None) for row in judged),
        scored=len(drifts),
        drift_mean=float(np.mean(drifts)) if drifts else None,
        drift_p95=float(np.percentile(drifts, 95)) if drifts else None,
        drift_max=max(drifts, default=None),
        worst=tuple(sorted(different, key=_badness)[:MAX_WORST]),
    )


def _paired(first: Sequence[Record], second: Sequence[Record]) -> list[Difference]:
    others = {(record.set, record.id): record for record in second}
    if not first or len(others) != len(second) or len({(r.set, r.id) for r in first}) != len(first):
        raise ConfigurationError("A comparison takes samples, and no two of one id.")
    alone = len({(r.set, r.id) for r in first} ^ others.keys())
    changed = sum(r.digest != others[r.set, r.id].digest for r in first if (r.set, r.id) in others)
    if alone or changed:
        raise ConfigurationError(
            f"{alone} samples are on one side only, and {changed} are not the same on both.",
            hint="Compare runs on the same data, both complete.",
        )
    return [_difference(record, others[record.set, record.id]) for record in first]


def _difference(one: Record, other: Record) -> Difference:
    return Difference(
        one.set,
        one.id,
        (one.label, other.label),
        (one.action, other.action),
        (one.score, other.score),
        (one.error, other.error),
    )


def _badness(row: Difference) -> tuple[bool, bool, float, str, str]:
    """For sorting: what decides otherwise first, then what is not judged, then by drift."""
    return not (row.judged and not row.agrees), row.judged, -(row.drift or 0.0), row.set, row.id


__all__ = ["EXACT", "Difference", "Parity", "ParityError", "Tolerance", "compare", "compare_runs"]
