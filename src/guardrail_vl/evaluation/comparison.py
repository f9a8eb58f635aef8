"""Two runs on the same samples: how far each figure differs, how sure that is, and on which samples they differ.

Both are scored on the samples that both judged (same set, id and content). The interval is a paired bootstrap: samples
are drawn with replacement, those of one group together, and both runs are scored on the same draw; so what is hard for
both cancels out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.evaluation.records import Record
from guardrail_vl.verdict import Label, Stage

try:
    import numpy as np
except ImportError as error:
    raise MissingDependencyError("numpy", extra="evaluation", needed_for="Comparing two runs") from error

Figure = Literal["f1", "precision", "recall", "fpr"]
FIGURES: Final[tuple[Figure, ...]] = ("f1", "precision", "recall", "fpr")
_CELL: Final = {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}
"""Column of a sample by (is harmful, was flagged): TP, FP, FN, TN."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The second run's figure less the first one's, on shared samples."""

    first: float | None
    """In [0, 1]. None: it isn't defined on these samples (no harmful ones, or no harmless ones)."""
    second: float | None
    low: float | None
    """The 2.5th percentile of the difference over the resamples. None: it isn't defined in most of them."""
    high: float | None
    """The 97.5th."""

    @property
    def value(self) -> float | None:
        """The difference, in [-1, 1]."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Pairs:
    """What two runs said of the samples that both judged."""

    first: tuple[Record, ...] = field(repr=False)
    second: tuple[Record, ...] = field(repr=False)
    """In the order of `first`."""
    alone: tuple[int, int]
    """How many samples only the first run, and only the second, judged; a changed sample counts in both."""

    @classmethod
    def of(cls, first: Iterable[Record], second: Iterable[Record]) -> Pairs:
        """Pair by set, stage, id and content."""
        ours, theirs = ({_key(one): one for one in records} for records in (first, second))
        shared = [key for key in ours if key in theirs]
        alone = (len(ours) - len(shared), len(theirs) - len(shared))
        return cls(tuple(ours[key] for key in shared), tuple(theirs[key] for key in shared), alone)

    def only(self, name: str | None = None, stage: Stage | None = None) -> Pairs:
        """Those of a set, or of a stage."""
        kept = [
            (one, other)
            for one, other in zip(self.first, self.second, strict=True)
            if name in (None, one.set) and stage in (None, one.stage)
        ]
        return Pairs(tuple(one for one, _ in kept), tuple(other for _, other in kept), (0, 0))

    def differing(self) -> tuple[tuple[Record, Record], ...]:
        """The labelled samples that one run got right and the other wrong."""
        return tuple(
            (one, other)
            for one, other in zip(self.first, self.second, strict=True)
            if one.gold is not None and flagged(one) != flagged(other)
        )


def flagged(record: Record) -> bool:
    """Whether the guard said harmful. No label is no flag, as in the strict scores."""
    return record.label == Label.HARMFUL


def differences(pairs: Pairs, *, resamples: int = 1_000, seed: int = 0) -> dict[Figure, Difference]:
    """How the figures differ, with 95% intervals.

    With the counts of a run: F1 = 2TP / (2TP + FP + FN), precision = TP / (TP + FP), recall = TP / (TP + FN),
    FPR = FP / (FP + TN). Without samples of both labels a precision says nothing of the guard, and there is none. A
    draw in which a figure is not defined is left out of its interval.

    Args:
        pairs: What both said.
        resamples: Draws of the bootstrap.
        seed: Of the draws: the same one gives the same interval.

    Raises:
        ConfigurationError: No resamples.
    """
    if resamples < 1:
        raise ConfigurationError(f"resamples must be at least 1, not {resamples!r}.")
    counts = _counts(pairs)
    totals = counts.sum(axis=0, keepdims=True)
    first, second = _figures(totals[:, :4]), _figures(totals[:, 4:])
    draws = _resampled(counts, resamples, seed)
    firsts, seconds = _figures(draws[:, :4]), _figures(draws[:, 4:])
    found: dict[Figure, Difference] = {}
    for name in FIGURES:
        spread = (seconds[name] - firsts[name])[np.isfinite(seconds[name] - firsts[name])]
        # An interval of a few lucky draws would say more than is known.
        low, high = np.percentile(spread, (2.5, 97.5)).tolist() if 2 * len(spread) > resamples else (None, None)
        found[name] = Difference(_plain(first[name][0]), _plain(second[name][0]), low, high)
    return found


def _key(record: Record) -> tuple[str, str, str, str]:
    return record.set, str(record.stage), record.id, record.digest


def _counts(pairs: Pairs) -> np.ndarray:
    """One row a group: TP, FP, FN, TN of the first run, then of the second."""
    groups: dict[tuple[str, ...], int] = {}
    rows: list[np.ndarray] = []
    for one, other in zip(pairs.first, pairs.second, strict=True):
        if one.gold is None:
            continue
        key = (one.group,) if one.group else _key(one)
        if key not in groups:
            groups[key] = len(rows)
            rows.append(np.zeros(8))
        for offset, record in ((0, one), (4, other)):
            rows[groups[key]][offset + _CELL[record.gold == Label.HARMFUL, flagged(record)]] += 1
    return np.stack(rows) if rows else np.zeros((0, 8))


def _resampled(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The summed counts of each draw of as many groups as there are."""
    size = len(counts)
    if not size:
        return np.zeros((resamples, 8))
    generator = np.random.default_rng(seed)
    sums = []
    for _ in range(resamples):
        often = np.bincount(generator.integers(size, size=size), minlength=size)
        sums.append(often @ counts)
    return np.stack(sums)


def _figures(counts: np.ndarray) -> dict[Figure, np.ndarray]:
    """The figures of rows of counts; not a number where one isn't defined."""
    hit, false, missed, passed = counts.T
    some = hit + missed > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "f1": np.where(some, 2 * hit / (2 * hit + false + missed), np.nan),
            "precision": np.where(some & (false + passed > 0), hit / (hit + false), np.nan),
            "recall": hit / (hit + missed),
            "fpr": false / (false + passed),
        }


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def agreement(pairs: Pairs) -> float | None:
    """The share of the shared samples on which both gave the same label, or neither gave one. None: there are none."""
    same: Sequence[bool] = [one.label == other.label for one, other in zip(pairs.first, pairs.second, strict=True)]
    return sum(same) / len(same) if same else None
