"""Numbers from records (`Scores`): what was right, what got no label, what it cost. Knows no guard and no benchmark."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.evaluation import official as paper
from guardrail_vl.evaluation.averages import macro as macro
from guardrail_vl.evaluation.averages import weighted as weighted
from guardrail_vl.evaluation.records import Record
from guardrail_vl.verdict import Label

try:
    import numpy as np
    from sklearn import metrics as sklearn_metrics
except ImportError as error:  # pragma: no cover - the test environment has them
    raise MissingDependencyError("scikit-learn", extra="evaluation", needed_for="Metrics") from error

Key = Literal["set", "category", "modality", "stage"]
"""What records can be cut by."""
KEYS: Final[tuple[Key, ...]] = ("set", "category", "modality", "stage")
CONFIDENCE: Final = 0.95
"""Of every interval."""

_UNSCORED: Final = "no score"
# No class of an error is called so.

_sklearn: Any = sklearn_metrics
"""Not typed."""


@dataclass(frozen=True, slots=True)
class Interval(Value):
    """A 95% bootstrap interval, in the unit of its number."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Missing(Value):
    """Judged samples that got no label, by why. They count as not flagged."""

    judged: int
    parse_failures: int = 0
    """The completion does not follow its format."""
    content_errors: int = 0
    """The guard can't take the sample."""
    unjudged: int = 0
    """There is a verdict, and the guard says that it could not judge all of the sample."""
    other_errors: int = 0
    """The engine failed, or anything else."""
    unscored: int = 0
    """Only with `threshold`: the sample has a label and no score."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.parse_failures + self.content_errors + self.unjudged + self.other_errors + self.unscored

    @property
    def rate(self) -> float | None:
        """Their share of the judged samples. None: none was judged."""
        return self.count / self.judged if self.judged else None

    @property
    def parse_failure_rate(self) -> float | None:
        """The share of completions that don't follow their format. None: nothing was judged."""
        return self.parse_failures / self.judged if self.judged else None


@dataclass(frozen=True, slots=True)
class Tokens(Value):
    """Tokens of the judged samples, and the mean of those whose tokens the engine counted. None: it counted none."""

    prompt: int = 0
    completion: int = 0
    prompt_mean: float | None = None
    completion_mean: float | None = None


@dataclass(frozen=True, slots=True)
class Latency(Value):
    """Seconds per judged sample, of those that were timed. None: none was, as in a replay."""

    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True)
class Scores(Value):
    """The numbers of some records. The positive class is `harmful`; rates are in [0, 1].

    Rates and counts are of the `n` samples that have a gold label; `missing`, `tokens` and `latency` of all that were
    judged. A sample without a label counts as not flagged. None: the number is not defined for these samples.
    """

    n: int
    """Samples with a gold label: what the rates are made of."""
    harmful: int
    unharmful: int
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    f1: float | None
    """`2·TP / (2·TP + FP + FN)`. None without harmful samples. Where all are harmful there can be no false alarm, and
    it is `2r / (1 + r)` of the recall r, as scikit-learn has it."""
    precision: float | None
    """`TP / (TP + FP)`. None where nothing was flagged; 1 where all samples are harmful and one was flagged."""
    recall: float | None
    """`TP / (TP + FN)`. None without harmful samples."""
    fpr: float | None
    """False positive rate, `FP / (FP + TN)`. None without unharmful samples."""
    accuracy: float | None
    """`(TP + TN) / n`. None without samples."""
    auprc: float | None
    """Average precision, `Σ (Rᵢ − Rᵢ₋₁)·Pᵢ` over the thresholds. None unless both classes are there and every one of
    the `n` samples has a score."""
    auroc: float | None
    """Area under the ROC curve. None likewise."""
    missing: Missing
    tokens: Tokens
    latency: Latency
    f1_interval: Interval | None = None
    """None: the number is None, or there are no resamples."""
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None
    fpr_interval: Interval | None = None
    groups: int = 0
    """What the intervals resample: groups of samples that belong together."""
    resamples: int = 0
    threshold: float | None = None
    """The score from which a sample counted as harmful. None: the guard's own labels."""
    official: bool = False
    """Whether completions were read and scored as the paper's release does."""


def scores(
    records: Iterable[Record],
    *,
    official: bool = False,
    threshold: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """The numbers of these records.

    The intervals are percentile bootstrap intervals (2.5% to 97.5%). A resample draws as many groups as there are,
    with replacement, and takes or leaves a group whole; a sample without a `Record.group` is a group of its own.
    Resamples in which a number is not defined are left out of its interval. Where no sample was wrong, such an interval
    has no width: that is not certainty.

    Args:
        records: Judged samples, each once.
        official: Read and score the completions as the paper's release does: see `official`.
        threshold: Label by score instead of the guard's own labels: harmful from this score on. Below it a sample that
            has no label stays without one.
        resamples: How many the intervals are made from; 0: no intervals.
        seed: Of the resamples.

    Raises:
        ConfigurationError: `official` with a threshold or without completions, a threshold where no record has a score,
            or an argument out of range.
    """
    if resamples < 0:
        raise ConfigurationError("resamples must not be negative.")
    given = _labelled(tuple(records), official=official, threshold=threshold)
    scored = [record for record in given if record.gold is not None]
    gold = np.array([record.gold is Label.HARMFUL for record in scored], dtype=bool)
    flagged = np.array([record.label is Label.HARMFUL for record in scored], dtype=bool)
    groups = _group_counts(scored, gold, flagged)
    tp, fp, tn, fn = (int(count) for count in groups.sum(axis=0))
    precision, recall, f1 = _sklearn_rates(gold, flagged)
    auprc, auroc = _areas(scored, gold)
    intervals = _intervals(groups, resamples, seed)
    return Scores(
        n=len(scored),
        harmful=tp + fn,
        unharmful=tn + fp,
        true_positives=tp,
        false_positives=fp,
        true_negatives=tn,
        false_negatives=fn,
        f1=f1 if tp + fn else None,
        precision=precision,
        recall=recall,
        fpr=fp / (fp + tn) if fp + tn else None,
        accuracy=(tp + tn) / len(scored) if scored else None,
        auprc=auprc,
        auroc=auroc,
        missing=_missing(given),
        tokens=_tokens(given),
        latency=_latency(given),
        f1_interval=intervals.get("f1"),
        precision_interval=intervals.get("precision"),
        recall_interval=intervals.get("recall"),
        fpr_interval=intervals.get("fpr"),
        groups=len(groups),
        resamples=resamples,
        threshold=threshold,
        official=official,
    )


def by(
    records: Iterable[Record],
    key: Key | Callable[[Record], Hashable],
    *,
    official: bool = False,
    threshold: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Scores]:
    """The numbers of each slice, in the order in which the slices first occur.

    Args:
        records: Judged samples, each once.
        key: `set`, `category`, `modality` or `stage`; or what makes the slice's name of a record.
        official: As in `scores`, like what follows.
        threshold: Likewise.
        resamples: Likewise.
        seed: Likewise; the same for every slice.

    Raises:
        ConfigurationError: An unknown key; and see `scores`.
    """
    if not callable(key) and key not in KEYS:
        raise ConfigurationError(f"Records are cut by {', '.join(KEYS)} or a function, not by {key!r}.")
    slices: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        slices[str(key(record) if callable(key) else getattr(record, key))].append(record)
    return {
        name: scores(part, official=official, threshold=threshold, resamples=resamples, seed=seed)
        for name, part in slices.items()
    }


# ---- labels -------------------------------------------------------------------------------------------------------


def _labelled(records: Sequence[Record], *, official: bool, threshold: float | None) -> Sequence[Record]:
    if threshold is None:
        return paper.relabelled(records) if official else records
    if official:
        raise ConfigurationError("The paper's scoring reads labels, so it takes no threshold.")
    if not 0 <= threshold <= 1:
        raise ConfigurationError("A threshold is a score in [0, 1].")
    if records and all(record.score is None for record in records):
        raise ConfigurationError("None of these records has a score, so a threshold can't label them.")
    return [_by_threshold(record, threshold) for record in records]


def _by_threshold(record: Record, threshold: float) -> Record:
    if record.score is None:
        return record if record.label is None else replace(record, label=None, error=_UNSCORED)
    if record.score >= threshold:
        return replace(record, label=Label.HARMFUL)
    # A low score of a sample that was not judged whole says nothing about the rest.
    return record if record.label is None else replace(record, label=Label.UNHARMFUL)


def _missing(records: Sequence[Record]) -> Missing:
    kinds = {
        "": "unjudged",
        "ParseError": "parse_failures",
        "ContentError": "content_errors",
        _UNSCORED: "unscored",
    }
    why = Counter(kinds.get(record.error, "other_errors") for record in records if record.label is None)
    return Missing(judged=len(records), **why)


# ---- rates --------------------------------------------------------------------------------------------------------


def _sklearn_rates(gold: Any, flagged: Any) -> tuple[float | None, float | None, float | None]:
    if not len(gold):
        return None, None, None
    values = _sklearn.precision_recall_fscore_support(
        gold, flagged, labels=[False, True], pos_label=True, average="binary", zero_division=np.nan
    )
    precision, recall, f1 = (None if np.isnan(value) else float(value) for value in values[:3])
    return precision, recall, f1


def _areas(scored: Sequence[Record], gold: Any) -> tuple[float | None, float | None]:
    if not scored or gold.all() or not gold.any():
        return None, None
    given = [record.score for record in scored if record.score is not None]
    if len(given) < len(scored):
        return None, None
    return float(_sklearn.average_precision_score(gold, given)), float(_sklearn.roc_auc_score(gold, given))


# ---- cost ---------------------------------------------------------------------------------------------------------


def _tokens(records: Sequence[Record]) -> Tokens:
    counted = [r for r in records if r.prompt_tokens or r.completion_tokens]
    prompt = sum(r.prompt_tokens for r in counted)
    completion = sum(r.completion_tokens for r in counted)
    if not counted:
        return Tokens()
    return Tokens(prompt, completion, prompt / len(counted), completion / len(counted))


def _latency(records: Sequence[Record]) -> Latency:
    timed = [record.latency for record in records if record.latency > 0]
    if not timed:
        return Latency()
    p50, p95 = np.percentile(timed, [50, 95])
    return Latency(float(p50), float(p95))


# ---- intervals ----------------------------------------------------------------------------------------------------


def _group_counts(scored: Sequence[Record], gold: Any, flagged: Any) -> Any:
    """A row a group: how many true positives, false positives, true negatives and false negatives it holds."""
    numbers: dict[Hashable, int] = {}
    # Group names are compared across sets: one request may be in two of them.
    rows = [numbers.setdefault(record.group or index, len(numbers)) for index, record in enumerate(scored)]
    table = np.zeros((len(numbers), 4), dtype=np.int64)
    for column, those in enumerate((gold & flagged, ~gold & flagged, ~gold & ~flagged, gold & ~flagged)):
        np.add.at(table[:, column], np.array(rows, dtype=np.int64)[those], 1)
    return table


def _intervals(groups: Any, resamples: int, seed: int) -> dict[str, Interval]:
    if not len(groups) or not resamples:
        return {}
    # Groups with the same counts are the same to a resample. So it is a multinomial draw of how often each kind of
    # group comes up, which is the bootstrap exactly, without a matrix of resamples times samples.
    kinds, often = np.unique(groups, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(groups), often / len(groups), size=resamples)
    tp, fp, tn, fn = (draws @ kinds).T.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = {
            "f1": np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "fpr": fp / (fp + tn),
        }
    out = {}
    tail = 100 * (1 - CONFIDENCE) / 2
    for name, values in drawn.items():
        defined = values[~np.isnan(values)]
        if len(defined):
            low, high = np.percentile(defined, [tail, 100 - tail])
            out[name] = Interval(float(low), float(high))
    return out
