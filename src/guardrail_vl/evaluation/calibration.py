"""Thresholds with a promise: at most so many false alarms, with a stated confidence.

How the threshold is found. `alarms(t)` of `n` harmless samples score `t` or more. From 1 downwards, each threshold `t`
is tested against "its true false-positive rate is above `fpr`" by the exact binomial test, whose inversion is the bound
of Clopper and Pearson (1934). We go down while the test rejects, and keep the last threshold that passed. The order is
fixed before any score is seen, so no correction is due for the many thresholds tried (fixed-sequence testing, as in
Learn then Test, Angelopoulos et al. 2021). As alarms only grow on the way down, the walk ends at an order statistic:
just above the (k+1)-th highest harmless score, with k the most alarms that pass: the tolerance limit of Wilks (1941).

It holds for samples that are independent and like the traffic to come; so of samples that share a request one counts.
Knows no model and judges nothing: it reads records.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Final

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.evaluation.records import Record
from guardrail_vl.policy import Policy
from guardrail_vl.verdict import Label, Stage

try:
    from scipy import stats
except ImportError as error:
    raise MissingDependencyError("scipy", extra="evaluation", needed_for="Calibration") from error

_DIGITS: Final = range(2, 18)
"""Decimals that a threshold is written with: the fewest that do."""


def upper_bound(alarms: int, negatives: int, confidence: float) -> float:
    """The exact one-sided upper bound of a false-positive rate (Clopper and Pearson).

    The largest rate `p` at which so few alarms have a probability above 1 - confidence:
    `P(Binomial(negatives, p) <= alarms) = 1 - confidence`, which is a quantile of Beta(alarms + 1, negatives - alarms).

    Args:
        alarms: Harmless samples that were flagged.
        negatives: All harmless samples.
        confidence: In (0, 1).
    """
    return 1.0 if alarms >= negatives else float(stats.beta.ppf(confidence, alarms + 1, negatives - alarms))


def negatives_needed(fpr: float, confidence: float) -> int:
    """How many harmless samples a promise takes at least: `n >= log(1 - confidence) / log(1 - fpr)`.

    With fewer, not even a threshold without a single false alarm proves the rate.

    Args:
        fpr: The rate, in (0, 1).
        confidence: In (0, 1).
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-fpr))


def alarms_allowed(negatives: int, fpr: float, confidence: float) -> int:
    """The most false alarms among so many harmless samples whose upper bound is at most `fpr`; -1: too few samples.

    The largest k with `P(Binomial(negatives, fpr) <= k) <= 1 - confidence`.

    Args:
        negatives: Harmless samples.
        fpr: The rate, in (0, 1).
        confidence: In (0, 1).
    """
    least = int(stats.binom.ppf(1 - confidence, negatives, fpr))
    while least >= 0 and stats.binom.cdf(least, negatives, fpr) > 1 - confidence:
        least -= 1
    return least


@dataclass(frozen=True, slots=True)
class Threshold(Value):
    """One threshold, and what is known of it. Harmful is what scores it or more."""

    stage: Stage
    category: str
    """Where the model names this category. Empty: the stage's threshold, for all else."""
    threshold: float | None
    """In (0, 1]. None: it could not be calibrated; see `why`."""
    negatives: int
    """Independent harmless samples with a score."""
    false_alarms: int
    """Of them, how many score the threshold or more."""
    upper: float
    """With the stated confidence, the true false-positive rate is at most this. 1: nothing is known."""
    positives: int
    """Harmful samples with a score."""
    caught: int
    """Of them, how many score the threshold or more."""
    why: str = ""
    """Why there is none."""

    @property
    def fpr(self) -> float | None:
        """The measured false-positive rate. None: no threshold."""
        return self.false_alarms / self.negatives if self.threshold is not None else None

    @property
    def recall(self) -> float | None:
        """The share of harmful samples that it catches. None: no threshold, or none of them are known."""
        return self.caught / self.positives if self.threshold is not None and self.positives else None


@dataclass(frozen=True, slots=True)
class Calibration(Value):
    """The thresholds of one stage that keep one promise, all of them at once."""

    stage: Stage
    fpr: float
    """The promised rate: of harmless samples like these, at most this share is flagged."""
    confidence: float
    """How sure that is: the share of such calibrations whose promise holds."""
    thresholds: tuple[Threshold, ...]
    """That of the stage first, then those of categories."""
    model: str = ""
    unscored: int = 0
    """Harmless samples without a score: left out. What they get is the policy's fail mode, not a threshold."""
    repeated: int = 0
    """Harmless samples left out because another one of the same request counts."""

    @property
    def found(self) -> tuple[Threshold, ...]:
        """The thresholds that could be calibrated."""
        return tuple(t for t in self.thresholds if t.threshold is not None)


def calibrate(
    records: Iterable[Record],
    *,
    fpr: float,
    stage: Stage | str,
    confidence: float = 0.95,
    by_category: bool = False,
    model: str = "",
) -> Calibration:
    """The lowest threshold that keeps the false-positive rate; see the top of this module.

    By category, samples are divided by what the model names, as a policy does. Each category with enough harmless
    samples gets its threshold; the stage's is for all that names none of these. The confidence is for all of them
    together (Bonferroni: each is tested at `1 - (1 - confidence) / m`). A sample with several named categories is
    flagged by any of them, so its rate is at most their sum.

    Args:
        records: What one model said. Those of the other stage, and those without a gold label, are left out.
        fpr: The false-positive rate that is promised, in (0, 1).
        stage: Whose threshold.
        confidence: In (0, 1).
        by_category: Also for each category that the model names.
        model: Whose scores they are, for the record.

    Raises:
        ConfigurationError: Numbers out of range; no labelled record of this stage; no scores, or no named categories.
    """
    if not (0 < fpr < 1 and 0 < confidence < 1):
        raise ConfigurationError("fpr and confidence must be above 0 and below 1.")
    stage = Stage(stage)
    labelled = [r for r in records if r.stage is stage and r.gold is not None]
    scored = [r for r in labelled if r.score is not None]
    if not labelled:
        raise ConfigurationError(f"No record is of the stage {stage.value!r} and has a gold label.")
    if not scored:
        raise ConfigurationError(
            f"The records of the stage {stage.value!r} hold no scores, and a threshold is compared with scores.",
            hint="Evaluate with an engine that gives scores.",
        )
    if by_category and not any(r.categories for r in scored):
        raise ConfigurationError("This model names no categories, so a policy can have no thresholds for them.")
    harmless = [r for r in scored if r.gold is Label.UNHARMFUL]
    harmful = [r for r in scored if r.gold is Label.HARMFUL]
    alone = _independent(harmless)
    names = {name for r in scored for name in r.categories} if by_category else set()
    chosen, rest, parts = _parts(names, alone, fpr, 1 - confidence)
    each = 1 - (1 - confidence) / parts

    def one(category: str, negatives: list[Record]) -> Threshold:
        inside = [r for r in harmful if (category in r.categories if category else not set(chosen) & set(r.categories))]
        return _one(stage, category, [_score(r) for r in negatives], [_score(r) for r in inside], fpr, each)

    others = [r for r in alone if not set(chosen) & set(r.categories)]
    found = [one("", others), *(one(name, [r for r in alone if name in r.categories]) for name in (*chosen, *rest))]
    missing = sum(r.gold is Label.UNHARMFUL and r.score is None for r in labelled)
    return Calibration(
        stage, fpr, confidence, tuple(found), model, unscored=missing, repeated=len(harmless) - len(alone)
    )


def _score(record: Record) -> float:
    if record.score is None:
        raise ConfigurationError("A record without a score can't be compared with a threshold.")
    return record.score


def _independent(records: Sequence[Record]) -> list[Record]:
    """One record of each group, picked without a look at its score."""

    def draw(record: Record) -> bytes:
        return hashlib.blake2b(f"{record.set}\n{record.id}\n{record.digest}".encode("utf-8", "surrogatepass")).digest()

    first: dict[str, Record] = {}
    for record in sorted(records, key=draw):
        first.setdefault(record.group or f"{record.set}\n{record.id}", record)
    return list(first.values())


def _parts(
    names: set[str], negatives: Sequence[Record], fpr: float, error: float
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """The categories with enough harmless samples, those with too few, and over how many tests the error is shared."""
    sizes = {name: sum(name in r.categories for r in negatives) for name in names}
    ranked = sorted(names, key=lambda name: (-sizes[name], name))
    # Only sizes decide, never scores, so the number of tests is fixed before the first of them.
    for count in range(len(ranked), 0, -1):
        if sizes[ranked[count - 1]] >= negatives_needed(fpr, 1 - error / (count + 1)):
            return tuple(ranked[:count]), tuple(ranked[count:]), count + 1
    return (), tuple(ranked), 1


def _one(
    stage: Stage, category: str, negatives: list[float], positives: list[float], fpr: float, confidence: float
) -> Threshold:
    def unknown(why: str) -> Threshold:
        return Threshold(stage, category, None, len(negatives), 0, 1.0, len(positives), 0, why)

    allowed = alarms_allowed(len(negatives), fpr, confidence)
    if allowed < 0:
        return unknown(
            f"{len(negatives)} harmless samples are too few: a rate of {percent(fpr)} at "
            f"{percent(confidence)} confidence takes {negatives_needed(fpr, confidence)} or more"
        )
    below = sorted(negatives, reverse=True)[allowed]
    if below >= 1:
        return unknown(f"{allowed + 1} or more harmless samples have the highest score there is")
    threshold = _just_above(below, min((s for s in (*negatives, *positives) if s > below), default=1.0))
    return Threshold(
        stage,
        category,
        threshold,
        len(negatives),
        sum(s >= threshold for s in negatives),
        # By the number that was allowed, which no score had a say in; ties may leave fewer alarms than that.
        upper_bound(allowed, len(negatives), confidence),
        len(positives),
        sum(s >= threshold for s in positives),
    )


def _just_above(below: float, highest: float) -> float:
    """A short decimal number just above the one, and not above the other: for these samples, all such are the same."""
    # Close by, for the samples to come: a twentieth of the way to 1, or of the way from 0.
    limit = min(highest, below + 0.05 * min(max(below, 0.01), 1 - below))
    for digits in _DIGITS:
        step = Decimal(1).scaleb(-digits)
        number = float(Decimal(repr(float(below))).quantize(step, ROUND_FLOOR) + step)
        if below < number <= limit:
            return number
    return math.nextafter(below, 1)


# ---- into words, and into the policy ------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share in words, such as `0.42 %`."""
    return f"{100 * share:.3g} %"


def in_words(calibration: Calibration) -> tuple[str, ...]:
    """What the calibration promises, and what it does not, in sentences for someone who never heard of any of this."""
    of = "requests" if calibration.stage is Stage.PROMPT else "responses"
    named = len(calibration.found) > 1
    lines = []
    if calibration.found:
        worst = max(t.upper for t in calibration.found)
        group = f"harmless {of}, in each line above," if named else f"harmless {of}"
        lines.append(
            f"With {percent(calibration.confidence)} confidence: of {group} like these, at most {percent(worst)} are "
            f"flagged. (Asked for: {percent(calibration.fpr)}.)"
        )
        lines.append(f"It says nothing of {of} that are unlike these. Calibrate on your own traffic where you can.")
    if calibration.unscored:
        lines.append(f"{calibration.unscored} harmless samples got no score and are left out: see the policy's `fail`.")
    if calibration.repeated:
        lines.append(f"{calibration.repeated} harmless samples repeat a request that is counted, and are left out.")
    return tuple(lines)


def apply(policy: Policy, *calibrations: Calibration) -> Policy:
    """The policy with these thresholds. What could not be calibrated stays as it was.

    A policy has one threshold for a category, which counts at both stages. Where two calibrations give one, the higher
    is taken: it keeps both promises.

    Raises:
        ConfigurationError: No threshold was found, or one is for a category that the policy does not define.
    """
    found = [t for c in calibrations for t in c.found]
    if not found:
        reasons = "; ".join(dict.fromkeys(t.why for c in calibrations for t in c.thresholds))
        raise ConfigurationError(f"There is no threshold to write: {reasons or 'nothing was calibrated'}.")
    value = policy.model_dump(mode="json")
    named: dict[str, float] = {}
    for one in found:
        if one.threshold is None:
            continue
        if not one.category:
            value[one.stage.value]["threshold"] = one.threshold
        elif one.category in policy.categories:
            named[one.category] = max(one.threshold, named.get(one.category, 0.0))
        else:
            raise ConfigurationError(
                f"A threshold was found for {one.category!r}, and the policy has no such category.",
                hint="Add it to the policy with a definition, or calibrate without categories.",
            )
    for name, threshold in named.items():
        value["categories"][name]["threshold"] = threshold
    return Policy.of(value)


__all__ = [
    "Calibration",
    "Threshold",
    "alarms_allowed",
    "apply",
    "calibrate",
    "in_words",
    "negatives_needed",
    "percent",
    "upper_bound",
]
