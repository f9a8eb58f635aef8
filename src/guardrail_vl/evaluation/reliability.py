"""Whether scores mean what they say: of samples with a score of 0.8, are 80 % harmful? Numbers; it draws nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.evaluation.records import Record
from guardrail_vl.verdict import Label, Stage

try:
    import numpy as np
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss
except ImportError as error:
    raise MissingDependencyError("scikit-learn", extra="evaluation", needed_for="Reliability") from error


@dataclass(frozen=True, slots=True)
class Bin(Value):
    """Samples with scores from `low` to `high`."""

    low: float
    high: float
    count: int
    score: float | None
    """Their mean score. None: there are none."""
    harmful: float | None
    """The share of them that is harmful. A calibrated score equals it."""


@dataclass(frozen=True, slots=True)
class Reliability(Value):
    """How far a score is the probability that a sample is harmful, among samples like these."""

    stage: Stage
    count: int
    bins: tuple[Bin, ...]
    ece: float
    """Expected calibration error: the mean of |harmful - score| over the bins, weighted by their counts. 0 is best."""
    brier: float
    """Brier score: the mean of (score - label)². 0 is best; a constant 0.5 gets 0.25."""


def reliability(records: Iterable[Record], *, stage: Stage | str, bins: int = 10) -> Reliability:
    """Scores against what people said, in bins of equal width.

    Args:
        records: Those of the other stage, without a gold label or without a score are left out.
        stage: Whose scores.
        bins: How many, at least 1.

    Raises:
        ConfigurationError: No record is left, or there are no bins.
    """
    stage = Stage(stage)
    kept = [r for r in records if r.stage is stage and r.gold is not None and r.score is not None]
    if not kept or bins < 1:
        raise ConfigurationError(
            f"Reliability takes a bin, and a labelled record with a score of stage {stage.value!r}."
        )
    gold = np.array([r.gold is Label.HARMFUL for r in kept], dtype=int)
    scores = np.array([r.score for r in kept], dtype=float)
    edges = np.linspace(0, 1, bins + 1)
    # The curve has no empty bins, and no counts.
    counts = np.bincount(np.searchsorted(edges[1:-1], scores), minlength=bins)
    shares, means = calibration_curve(gold, scores, n_bins=bins)
    filled = {int(place): i for i, place in enumerate(np.flatnonzero(counts))}
    rows = tuple(
        Bin(
            float(edges[place]),
            float(edges[place + 1]),
            int(counts[place]),
            float(means[filled[place]]) if place in filled else None,
            float(shares[filled[place]]) if place in filled else None,
        )
        for place in range(bins)
    )
    error = float(np.abs(shares - means) @ counts[counts > 0] / len(kept))
    return Reliability(stage, len(kept), rows, error, float(brier_score_loss(gold, scores, pos_label=1)))


__all__ = ["Bin", "Reliability", "reliability"]
