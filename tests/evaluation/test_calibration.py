from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

pytest.importorskip("scipy", reason="needs the extra 'evaluation'")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.calibration import (
    Calibration,
    alarms_allowed,
    apply,
    calibrate,
    in_words,
    negatives_needed,
    upper_bound,
)
from guardrail_vl.evaluation.records import Record
from guardrail_vl.evaluation.reliability import reliability
from guardrail_vl.policy import Policy
from guardrail_vl.verdict import Label, Stage, Verdict

H, U = Label.HARMFUL, Label.UNHARMFUL
PROMPT, RESPONSE = Stage.PROMPT, Stage.RESPONSE


def records(
    harmless: Sequence[float | None], harmful: Sequence[float | None] = (), *, stage: Stage = PROMPT
) -> list[Record]:
    rows = [(U, score) for score in harmless] + [(H, score) for score in harmful]
    return [Record("s", f"{i}", f"{i:x}", stage, gold, None, score=score) for i, (gold, score) in enumerate(rows)]


def only(calibration: Calibration) -> tuple[float, int]:
    (one,) = calibration.thresholds
    assert one.threshold is not None
    return one.threshold, one.false_alarms


# ---- the bound ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alarms", "negatives", "confidence", "bound"),
    [
        (0, 299, 0.95, 1 - 0.05 ** (1 / 299)),
        (1, 10, 0.95, 0.3941633),  # the table of Clopper and Pearson for 1 of 10, 90 % two-sided
        (5, 100, 0.975, 0.1128349),
        (10, 10, 0.95, 1.0),
        (0, 0, 0.95, 1.0),
    ],
)
def test_the_bound_is_clopper_and_pearson(alarms: int, negatives: int, confidence: float, bound: float) -> None:
    assert upper_bound(alarms, negatives, confidence) == pytest.approx(bound, abs=1e-6)


@given(st.integers(1, 3000), st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_what_is_allowed_is_the_most_whose_bound_keeps_the_rate(n: int, fpr: float, confidence: float) -> None:
    allowed = alarms_allowed(n, fpr, confidence)
    assert allowed < 0 or upper_bound(allowed, n, confidence) <= fpr + 1e-9
    assert upper_bound(allowed + 1, n, confidence) > fpr - 1e-9
    assert (allowed >= 0) == (n >= negatives_needed(fpr, confidence))


def test_how_many_are_needed() -> None:
    assert negatives_needed(0.01, 0.95) == 299
    assert negatives_needed(0.05, 0.95) == 59
    assert negatives_needed(0.001, 0.99) == 4603


# ---- the promise holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "fpr"), [(400, 0.05), (299, 0.01), (1500, 0.01)])
def test_the_promise_holds_in_95_of_100_calibrations(n: int, fpr: float) -> None:
    """Known distributions, so the true rate of each threshold is known: of a continuous score, and of one with ties."""
    chance = np.random.default_rng(5)
    exact = tied = 0
    levels = np.linspace(0, 0.95, 20)
    weights = stats.binom.pmf(range(20), 19, 0.2)
    for _ in range(200):
        threshold, _ = only(calibrate(records(chance.beta(2, 5, n).tolist()), fpr=fpr, stage=PROMPT))
        exact += bool(stats.beta.sf(threshold, 2, 5) <= fpr)
        threshold, _ = only(calibrate(records(chance.choice(levels, n, p=weights).tolist()), fpr=fpr, stage=PROMPT))
        tied += bool(weights[levels >= threshold].sum() <= fpr)
    assert exact >= 190
    assert tied >= 190


@pytest.mark.parametrize(("n", "fpr", "confidence"), [(400, 0.05, 0.95), (1500, 0.01, 0.95), (700, 0.02, 0.8)])
def test_the_promise_holds_by_arithmetic(n: int, fpr: float, confidence: float) -> None:
    """The share of the population above the (k+1)-th highest of n scores is Beta(k + 1, n - k), whatever the scores."""
    allowed = alarms_allowed(n, fpr, confidence)
    assert stats.beta.cdf(fpr, allowed + 1, n - allowed) >= confidence
    # One more would not keep it: nothing is given away.
    assert stats.beta.cdf(fpr, allowed + 2, n - allowed - 1) < confidence


def test_the_measured_rate_of_a_held_out_half_stays_under_the_bound() -> None:
    """Here chance is in both halves, so the calibration is asked for more confidence than the 95 of 100 that are seen."""
    chance = np.random.default_rng(7)
    kept = 0
    for _ in range(200):
        scores = chance.beta(2, 5, 4000)
        calibration = calibrate(records(scores[:2000].tolist()), fpr=0.02, confidence=0.999, stage=PROMPT)
        threshold, _ = only(calibration)
        kept += bool((scores[2000:] >= threshold).mean() <= calibration.thresholds[0].upper)
    assert kept >= 190


def test_a_naive_threshold_does_not_keep_it() -> None:
    """What the bound is for: the score at the very rate keeps the promise about half of the time."""
    chance = np.random.default_rng(5)
    kept = sum(bool(stats.beta.sf(np.quantile(chance.beta(2, 5, 400), 0.95), 2, 5) <= 0.05) for _ in range(200))
    assert kept < 150


# ---- the threshold --------------------------------------------------------------------------------------------------

EVEN = [i / 1000 for i in range(1000)]


def test_the_threshold_is_the_lowest_that_passes() -> None:
    calibration = calibrate(records(EVEN, [0.2, 0.97, 0.995, 1.0]), fpr=0.02, stage=PROMPT)
    (one,) = calibration.thresholds
    allowed = alarms_allowed(1000, 0.02, 0.95)
    assert (allowed, one.false_alarms) == (12, 12)
    assert one.threshold == 0.9871  # 0.987 is the 13th highest, and must not be flagged
    assert (one.negatives, one.positives, one.caught) == (1000, 4, 2)
    assert (one.fpr, one.recall) == (0.012, 0.5)
    assert one.upper == pytest.approx(upper_bound(12, 1000, 0.95))
    assert one.upper <= 0.02
    assert upper_bound(13, 1000, 0.95) > 0.02


def test_ties_are_all_flagged_or_none() -> None:
    threshold, alarms = only(calibrate(records([0.9] * 20 + [0.1] * 980), fpr=0.02, stage=PROMPT))
    assert alarms == 0
    assert 0.9 < threshold <= 1
    # The bound is that of the number allowed beforehand: how many tie was not known then.
    (one,) = calibrate(records([0.9] * 20 + [0.1] * 980), fpr=0.02, stage=PROMPT).thresholds
    assert one.upper == pytest.approx(upper_bound(12, 1000, 0.95))


@given(st.lists(st.floats(0, 1), min_size=60, max_size=120), st.lists(st.floats(0, 1), max_size=20))
def test_whatever_the_scores(harmless: list[float], harmful: list[float]) -> None:
    (one,) = calibrate(records(harmless, harmful), fpr=0.05, stage=PROMPT).thresholds
    if one.threshold is None:
        assert sum(score == 1 for score in harmless) > alarms_allowed(len(harmless), 0.05, 0.95)
        return
    assert 0 < one.threshold <= 1
    assert sum(score >= one.threshold for score in harmless) == one.false_alarms
    assert one.false_alarms <= alarms_allowed(len(harmless), 0.05, 0.95)
    # Lower would flag one too many.
    below = max(score for score in harmless if score < one.threshold)
    assert sum(score >= below for score in harmless) > alarms_allowed(len(harmless), 0.05, 0.95)
    assert not any(below < score < one.threshold for score in harmful)


@pytest.mark.parametrize(
    ("below", "threshold"),
    [(0.0, 0.0001), (0.02, 0.021), (0.5, 0.51), (0.123456, 0.124), (0.9975, 0.9976), (0.99999, 0.9999901)],
)
def test_the_threshold_is_a_short_number_close_by(below: float, threshold: float) -> None:
    """With no score between it and 1, a threshold of 1 would do for these samples, and flag nothing that comes."""
    assert only(calibrate(records([below] * 59), fpr=0.05, stage=PROMPT)) == (threshold, 0)


def test_scores_near_1_are_told_apart() -> None:
    high = [1 - 10.0**-i for i in range(3, 15)] * 10
    threshold, alarms = only(calibrate(records(high), fpr=0.2, stage=PROMPT))
    assert alarms == sum(score >= threshold for score in high) == 10
    assert high[10] < threshold < 1


def test_too_few_are_told_with_how_many_it_takes() -> None:
    (one,) = calibrate(records([0.1] * 298, [0.9]), fpr=0.01, stage=PROMPT).thresholds
    assert one.threshold is None
    assert one.why == "298 harmless samples are too few: a rate of 1 % at 95 % confidence takes 299 or more"
    assert (one.fpr, one.recall, one.upper) == (None, None, 1.0)
    assert calibrate(records([0.1] * 299), fpr=0.01, stage=PROMPT).thresholds[0].threshold is not None


def test_no_threshold_is_above_the_highest_score() -> None:
    (one,) = calibrate(records([1.0] * 100 + [0.1] * 900), fpr=0.02, stage=PROMPT).thresholds
    assert one.threshold is None
    assert one.why == "13 or more harmless samples have the highest score there is"


def test_one_of_a_request_counts() -> None:
    once = records([i / 400 for i in range(400)])
    again = [dataclasses.replace(r, id=f"again-{r.id}", group=f"g{r.id}") for r in once]
    once = [dataclasses.replace(r, group=f"g{r.id}") for r in once]
    calibration = calibrate([*once, *again], fpr=0.02, stage=PROMPT)
    assert (calibration.thresholds[0].negatives, calibration.repeated) == (400, 400)
    # Which one is drawn without a look at its score.
    higher = [dataclasses.replace(r, score=1.0) for r in again]
    drawn, other = (calibrate(rows, fpr=0.7, stage=PROMPT) for rows in ([*once, *higher], [*higher, *once]))
    assert drawn == other
    # About half of the 400 are 1: of the others, 64 more may be flagged. Always the higher: none; always the lower: 0.34.
    assert 0.5 < only(drawn)[0] < 0.85


def test_what_has_no_score_or_label_is_left_out_and_told() -> None:
    rows = records([*EVEN, None, None], [None, 0.99])
    unknown = [dataclasses.replace(rows[0], id="x", gold=None)]
    other = records([0.99] * 50, stage=RESPONSE)
    calibration = calibrate([*rows, *unknown, *other], fpr=0.02, stage=PROMPT)
    assert calibration.unscored == 2
    assert (calibration.thresholds[0].negatives, calibration.thresholds[0].positives) == (1000, 1)
    assert any("2 harmless samples got no score" in line for line in in_words(calibration))


@pytest.mark.parametrize(("fpr", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1), (math.nan, 0.9)])
def test_rates_and_confidences_are_shares(fpr: float, confidence: float) -> None:
    with pytest.raises(ConfigurationError, match="above 0 and below 1"):
        calibrate(records(EVEN), fpr=fpr, confidence=confidence, stage=PROMPT)


def test_records_without_scores_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="hold no scores"):
        calibrate(records([None] * 9), fpr=0.1, stage=PROMPT)
    with pytest.raises(ConfigurationError, match="No record is of the stage 'response'"):
        calibrate(records(EVEN), fpr=0.1, stage="response")
    with pytest.raises(ConfigurationError, match="names no categories"):
        calibrate(records(EVEN), fpr=0.1, stage=PROMPT, by_category=True)


# ---- by category ----------------------------------------------------------------------------------------------------


def named(records: list[Record], *categories: str) -> list[Record]:
    prefix = "".join(categories) or "none"
    return [dataclasses.replace(r, id=f"{prefix}-{r.id}", categories=categories) for r in records]


def by_category() -> list[Record]:
    return [
        *named(records(EVEN, [0.95] * 5)),
        *named(records([s / 2 for s in EVEN], [0.6] * 4), "PII"),
        *named(records([0.9] * 30, [0.99] * 3), "Violent"),
    ]


def test_each_category_with_enough_samples_has_its_threshold() -> None:
    calibration = calibrate(by_category(), fpr=0.05, stage=PROMPT, by_category=True)
    rest, pii, violent = calibration.thresholds
    assert [t.category for t in calibration.thresholds] == ["", "PII", "Violent"]
    # Two tests share the error of 5 %.
    allowed = alarms_allowed(1000, 0.05, 0.975)
    assert pii.threshold is not None
    assert (pii.negatives, pii.false_alarms, pii.positives, pii.caught) == (1000, allowed, 4, 4)
    assert pii.threshold < 0.5
    # What names no calibrated category is the stage's: also the 30 that are too few by themselves.
    assert (rest.negatives, rest.positives) == (1030, 8)
    assert violent.threshold is None
    assert violent.why.startswith("30 harmless samples are too few: a rate of 5 % at 97.5 % confidence takes 72")


def test_all_categories_together_keep_the_confidence() -> None:
    """With three thresholds of one confidence each, some promise would be broken in nearly 15 of 100."""
    chance = np.random.default_rng(3)
    kept = 0
    for _ in range(200):
        rows = [
            *named(records(chance.random(200).tolist())),
            *named(records(chance.random(200).tolist()), "A"),
            *named(records(chance.random(200).tolist()), "B"),
        ]
        calibration = calibrate(rows, fpr=0.1, stage=PROMPT, by_category=True)
        assert len(calibration.found) == 3
        kept += all(1 - t.threshold <= 0.1 for t in calibration.found if t.threshold is not None)
    assert kept >= 190


def test_a_policy_flags_what_the_calibration_says() -> None:
    policy = Policy.of({"categories": {"PII": {"definition": "d"}, "Violent": {"definition": "d"}}})
    rows = by_category()
    calibration = calibrate(rows, fpr=0.05, stage=PROMPT, by_category=True)
    changed = apply(policy, calibration)

    def flagged(row: Record) -> bool:
        return changed.is_harmful(PROMPT, Verdict(U, prompt_score=row.score, categories=row.categories))

    alarms = sum(flagged(row) for row in rows if row.gold is U)
    assert alarms == sum(t.false_alarms for t in calibration.found)
    assert sum(flagged(row) for row in rows if row.gold is H) == sum(t.caught for t in calibration.found)
    assert alarms <= 0.05 * 2030


# ---- into a policy --------------------------------------------------------------------------------------------------


def test_thresholds_go_into_the_policy_and_nothing_else_changes() -> None:
    policy = Policy.of({"name": "house", "prompt": "annotate", "response": {"action": "block", "threshold": 0.3}})
    calibration = calibrate(records(EVEN), fpr=0.02, stage=PROMPT)
    changed = apply(policy, calibration)
    assert changed.prompt.threshold == calibration.thresholds[0].threshold
    assert (changed.name, changed.prompt.action, changed.response) == ("house", policy.prompt.action, policy.response)
    assert changed.hash != policy.hash
    assert policy.prompt.threshold is None
    both = apply(policy, calibration, calibrate(records(EVEN, stage=RESPONSE), fpr=0.1, stage=RESPONSE))
    assert both.response.threshold not in (None, 0.3)


def test_a_category_counts_at_both_stages_so_the_higher_threshold_is_taken() -> None:
    policy = Policy.of({"categories": {"PII": {"definition": "d"}}})
    low = calibrate(named(records(EVEN), "PII"), fpr=0.1, stage=PROMPT, by_category=True)
    high = calibrate(named(records(EVEN, stage=RESPONSE), "PII"), fpr=0.01, stage=RESPONSE, by_category=True)
    for order in ((low, high), (high, low)):
        assert apply(policy, *order).categories["PII"].threshold == high.thresholds[1].threshold


def test_what_can_not_be_written_is_told() -> None:
    few = calibrate(records([0.1] * 9), fpr=0.02, stage=PROMPT)
    with pytest.raises(ConfigurationError, match="There is no threshold to write: 9 harmless samples are too few"):
        apply(Policy(), few)
    found = calibrate(named(records(EVEN), "PII"), fpr=0.1, stage=PROMPT, by_category=True)
    with pytest.raises(ConfigurationError, match="found for 'PII', and the policy has no such category"):
        apply(Policy(), found)


def test_a_calibration_is_a_value() -> None:
    calibration = calibrate(records(EVEN, [0.99]), fpr=0.02, stage=PROMPT, model="tiny")
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_the_promise_in_words() -> None:
    words = in_words(calibrate(records(EVEN), fpr=0.02, stage=PROMPT))
    assert words[0] == (
        "With 95 % confidence: of harmless requests like these, at most 1.94 % are flagged. (Asked for: 2 %.)"
    )
    assert in_words(calibrate(records([0.1]), fpr=0.02, stage=PROMPT)) == ()


# ---- reliability ----------------------------------------------------------------------------------------------------


def test_reliability_as_computed_by_hand() -> None:
    rows = records([0.1, 0.1, 0.1, 0.7], [0.3, 0.9, 0.9, 1.0])
    found = reliability([*rows, *records([None], stage=PROMPT), *records([0.5], stage=RESPONSE)], stage=PROMPT, bins=2)
    low, high = found.bins
    assert (found.count, low.count, high.count) == (8, 4, 4)
    assert low.score == pytest.approx(0.15)
    assert high.score == pytest.approx(0.875)
    assert (low.harmful, high.harmful) == (0.25, 0.75)
    assert found.ece == pytest.approx((0.10 + 0.125) / 2)
    assert found.brier == pytest.approx((3 * 0.01 + 0.49 + 0.49 + 2 * 0.01) / 8)


def test_empty_bins_are_there() -> None:
    found = reliability(records([0.05], [0.95]), stage=PROMPT)
    assert [b.count for b in found.bins] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (found.bins[4].score, found.bins[4].harmful) == (None, None)
    assert [b.low for b in found.bins] == pytest.approx([i / 10 for i in range(10)])


def test_a_score_that_is_a_probability_is_reliable() -> None:
    chance = np.random.default_rng(1)
    scores = chance.random(20_000)
    harmful = chance.random(20_000) < scores
    true = records(scores[~harmful].tolist(), scores[harmful].tolist())
    bold = [dataclasses.replace(r, score=float((r.score or 0) > 0.5)) for r in true]
    assert reliability(true, stage=PROMPT).ece < 0.02
    assert reliability(bold, stage=PROMPT).ece > 0.2
    assert reliability(bold, stage=PROMPT).brier > reliability(true, stage=PROMPT).brier


def test_reliability_takes_labelled_scores() -> None:
    for rows, bins in (([], 10), (records([None]), 10), (records([0.1]), 0)):
        with pytest.raises(ConfigurationError, match="Reliability takes"):
            reliability(rows, stage=PROMPT, bins=bins)
    assert reliability(records([0.25, 0.35]), stage=PROMPT).ece == pytest.approx(0.3)
