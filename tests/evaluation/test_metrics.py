"""Scores of records: against scikit-learn, by hand where a number is not defined, and intervals by simulation."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra 'evaluation'")

from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.metrics import KEYS, Interval, Latency, Missing, Scores, Tokens, by, scores, weighted
from guardrail_vl.evaluation.records import Record
from guardrail_vl.verdict import Label, Stage


def rec(
    gold: bool | None, flagged: bool | None = None, score: float | None = None, index: int = 0, **rest: object
) -> Record:
    """A record; `flagged` None: no label."""
    made = Record(
        set="s",
        id=str(index),
        digest="",
        stage=Stage.PROMPT,
        gold=None if gold is None else label(gold),
        label=None if flagged is None else label(flagged),
        score=score,
    )
    return replace(made, **rest)  # type: ignore[arg-type]


def label(harmful: bool) -> Label:
    return Label.HARMFUL if harmful else Label.UNHARMFUL


def several(tp: int = 0, fp: int = 0, tn: int = 0, fn: int = 0) -> list[Record]:
    pairs = [(True, True)] * tp + [(False, True)] * fp + [(False, False)] * tn + [(True, False)] * fn
    return [rec(gold, flagged, index=index) for index, (gold, flagged) in enumerate(pairs)]


# ---- against scikit-learn -----------------------------------------------------------------------------------------

SAMPLES = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=60)


@given(SAMPLES)
def test_rates_and_areas_are_scikit_learn_s(samples: list[tuple[bool, bool, int]]) -> None:
    gold = [a for a, _, _ in samples]
    flagged = [b for _, b, _ in samples]
    score = [c / 5 for _, _, c in samples]
    made = scores(map(rec, gold, flagged, score), resamples=0)
    assert (made.n, made.harmful, made.unharmful) == (len(gold), sum(gold), len(gold) - sum(gold))
    counts = (made.true_negatives, made.false_positives, made.false_negatives, made.true_positives)
    assert counts == tuple(sk.confusion_matrix(gold, flagged, labels=[False, True]).ravel())
    assert made.accuracy == pytest.approx(sk.accuracy_score(gold, flagged))
    assert made.f1 == (pytest.approx(sk.f1_score(gold, flagged, zero_division=0)) if any(gold) else None)
    assert made.recall == (pytest.approx(sk.recall_score(gold, flagged, zero_division=0)) if any(gold) else None)
    assert made.precision == (pytest.approx(sk.precision_score(gold, flagged)) if any(flagged) else None)
    # The false positive rate is one less the recall of the other class.
    unharmful = [not g for g in gold]
    specificity = sk.recall_score(unharmful, [not f for f in flagged], zero_division=0)
    assert made.fpr == (pytest.approx(1 - specificity) if any(unharmful) else None)
    both = any(gold) and any(unharmful)
    assert made.auroc == (pytest.approx(sk.roc_auc_score(gold, score)) if both else None)
    assert made.auprc == (pytest.approx(sk.average_precision_score(gold, score)) if both else None)


@given(SAMPLES, st.integers(0, 5))
def test_a_threshold_labels_by_score(samples: list[tuple[bool, bool, int]], cut: int) -> None:
    gold = [a for a, _, _ in samples]
    made = scores((rec(a, b, c / 5) for a, b, c in samples), threshold=cut / 5, resamples=0)
    assert made.true_positives + made.false_positives == sum(c >= cut for _, _, c in samples)
    assert made.f1 == (
        pytest.approx(sk.f1_score(gold, [c >= cut for _, _, c in samples], zero_division=0)) if any(gold) else None
    )
    assert (made.threshold, made.missing.count) == (cut / 5, 0)


# ---- by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tp", "fn", "percent"),
    [(99, 1, 99.50), (98, 2, 98.99), (231, 8, 98.30), (192, 47, 89.10)],
)
def test_f1_where_all_are_harmful_is_the_paper_s(tp: int, fn: int, percent: float) -> None:
    """Its SimpleSafetyTests and HarmBench values: 2r / (1 + r) of the recall r."""
    made = scores(several(tp=tp, fn=fn), resamples=0)
    recall = tp / (tp + fn)
    assert made.f1 == pytest.approx(2 * recall / (1 + recall))
    assert made.f1 is not None
    assert 100 * made.f1 == pytest.approx(percent, abs=0.005)
    assert (made.precision, made.fpr, made.auroc, made.auprc) == (1, None, None, None)


def test_f1_of_always_harmful_is_not_zero() -> None:
    """837 harmful of 3,295 pictures, and 1,000 of 2,000 responses: what the paper's rows are to beat."""
    pictures, responses = scores(several(tp=837, fp=2458)), scores(several(tp=1000, fp=1000))
    assert pictures.f1 == pytest.approx(0.405, abs=0.0005)
    assert responses.f1 == pytest.approx(2 / 3)
    assert (pictures.fpr, pictures.recall, pictures.fpr_interval) == (1, 1, Interval(1, 1))


def test_what_is_not_defined_is_none() -> None:
    nothing = scores([])
    assert nothing == Scores(
        *(0, 0, 0, 0, 0, 0, 0),
        *(None, None, None, None, None, None, None),
        missing=Missing(0),
        tokens=Tokens(),
        latency=Latency(),
        resamples=1000,
    )
    assert (nothing.missing.rate, nothing.missing.parse_failure_rate) == (None, None)
    harmless = scores(several(fp=1, tn=3))
    assert (harmless.f1, harmless.recall, harmless.f1_interval, harmless.recall_interval) == (None,) * 4
    assert (harmless.precision, harmless.fpr, harmless.accuracy) == (0, 0.25, 0.75)
    silent = scores(several(tn=2, fn=2))
    assert (silent.f1, silent.precision, silent.recall, silent.fpr) == (0, None, 0, 0)
    assert (silent.f1_interval, silent.precision_interval) == (Interval(0, 0), None)


def test_samples_without_a_gold_label_are_judged_and_not_scored() -> None:
    made = scores([*several(tp=1, tn=1), rec(None, True, latency=3.0), rec(None, error="ParseError")])
    assert (made.n, made.false_positives, made.groups) == (2, 0, 2)
    assert made.missing == Missing(4, parse_failures=1)
    assert (made.missing.rate, made.missing.parse_failure_rate, made.latency.p50) == (0.25, 0.25, 3)


def test_samples_without_a_label_count_as_not_flagged_and_apart() -> None:
    made = scores(
        [
            rec(True, error="ParseError"),
            rec(False, error="ParseError"),
            rec(True, error="ContentError"),
            rec(True, unjudged=("image 1",), score=0.1),
            rec(True, True, unjudged=("image 1",)),
            rec(False, error="EngineUnavailableError"),
        ]
    )
    assert (made.true_positives, made.false_negatives, made.true_negatives, made.false_positives) == (1, 3, 2, 0)
    assert made.missing == Missing(6, parse_failures=2, content_errors=1, unjudged=1, other_errors=1)
    assert (made.missing.count, made.missing.rate, made.missing.parse_failure_rate) == (5, 5 / 6, 2 / 6)


def test_areas_need_every_score() -> None:
    records = [rec(True, True, 0.9), rec(False, False, 0.2), rec(True, True, None)]
    assert (scores(records).auroc, scores(records).auprc) == (None, None)
    assert (scores(records[:2]).auroc, scores(records[:2]).auprc) == (1, 1)
    # A sample that is not scored may lack one.
    assert scores([*records[:2], rec(None, True)]).auroc == 1


def test_a_threshold_leaves_what_was_not_judged() -> None:
    records = [
        rec(True, None, 0.2, unjudged=("image 1",)),  # below, and not judged whole: no label
        rec(True, None, 0.7, unjudged=("image 1",)),  # above: what was seen is enough
        rec(False, True, 0.4),
        rec(True, True, None),  # a label without a score
        rec(True, error="ParseError"),
    ]
    made = scores(records, threshold=0.5)
    assert (made.true_positives, made.false_positives, made.false_negatives) == (1, 0, 3)
    assert made.missing == Missing(5, parse_failures=1, unjudged=1, unscored=1)
    assert scores([replace(records[2], score=0.5)], threshold=0.5).false_positives == 1
    with pytest.raises(ConfigurationError, match="None of these records has a score"):
        scores(records[3:], threshold=0.5)
    with pytest.raises(ConfigurationError, match="in \\[0, 1\\]"):
        scores(records, threshold=1.5)
    with pytest.raises(ConfigurationError, match="negative"):
        scores(records, resamples=-1)


def test_cost_is_of_what_was_counted_and_timed() -> None:
    records = [rec(True, True, latency=float(i), prompt_tokens=100, completion_tokens=10 * i) for i in range(1, 22)]
    made = scores([*records, rec(True, error="ContentError")])  # it took nothing
    assert made.tokens == Tokens(2100, 2310, 100, 110)
    assert made.latency == Latency(11, 20)  # of 1 … 21 seconds
    assert scores(several(tp=1)).latency == Latency(None, None)
    assert scores(several(tp=1)).tokens == Tokens(0, 0, None, None)


def test_slices() -> None:
    records = [
        rec(True, True, set="b", category="x", modality="text"),
        rec(False, True, set="a", category="y", modality="image"),
        rec(True, False, set="b", category="y", modality="text", stage=Stage.RESPONSE),
    ]
    assert [list(by(records, key)) for key in KEYS] == [
        ["b", "a"],
        ["x", "y"],
        ["text", "image"],
        ["prompt", "response"],
    ]
    assert by(records, "set") == {"b": scores([records[0], records[2]]), "a": scores([records[1]])}
    assert list(by(records, lambda record: f"{record.set} {record.stage}")) == ["b prompt", "a prompt", "b response"]
    part = by([replace(r, score=0.5) for r in records], "set", threshold=0.5, resamples=10, seed=3)["b"]
    assert (part.resamples, part.threshold, part.recall) == (10, 0.5, 1)
    with pytest.raises(ConfigurationError, match="by set, category"):
        by(records, "colour")  # type: ignore[arg-type]
    average = weighted((s.recall, s.n) for s in by(records, "stage").values() if s.recall is not None)
    assert average == pytest.approx((1 * 2 + 0 * 1) / 3)


def test_json_round_trip() -> None:
    made = scores([*several(tp=3, fp=2, tn=4, fn=1), rec(False, error="ParseError", score=None)])
    assert made.f1_interval is not None
    assert Scores.from_json(made.to_json()) == made


# ---- intervals ----------------------------------------------------------------------------------------------------


def mixed(seed: int, n: int, *, groups: int | None = None) -> list[Record]:
    """Random records: 40% harmful, 80% of them found, 15% false alarms; in groups that are right or wrong together."""
    rng = np.random.default_rng(seed)
    kinds = groups or n
    gold, luck = rng.random(kinds) < 0.4, rng.random(kinds)
    of = rng.integers(0, kinds, n) if groups else np.arange(n)
    return [
        rec(bool(gold[g]), bool(luck[g] < (0.8 if gold[g] else 0.15)), index=i, group=f"g{g}" if groups else "")
        for i, g in enumerate(of)
    ]


def test_intervals_are_those_of_resampling_groups_one_by_one() -> None:
    """Against the plain bootstrap: draw groups with replacement, join their samples, let scikit-learn score them."""
    records = mixed(1, 240, groups=60)
    made = scores(records, resamples=4000)
    names = sorted({record.group for record in records})
    members = {name: [r for r in records if r.group == name] for name in names}
    rng = np.random.default_rng(5)
    f1, fpr = [], []
    for _ in range(1500):
        drawn = [r for i in rng.integers(0, len(names), len(names)) for r in members[names[i]]]
        gold = [r.gold is Label.HARMFUL for r in drawn]
        flagged = [r.label is Label.HARMFUL for r in drawn]
        tp = sum(a and b for a, b in zip(gold, flagged, strict=True))
        fp = sum(b and not a for a, b in zip(gold, flagged, strict=True))
        f1.append(2 * tp / (sum(gold) + sum(flagged)))
        fpr.append(fp / (len(gold) - sum(gold)))
    assert made.groups == len(names)
    for interval, plain in ((made.f1_interval, f1), (made.fpr_interval, fpr)):
        assert interval is not None
        assert [interval.low, interval.high] == pytest.approx(list(np.percentile(plain, [2.5, 97.5])), abs=0.02)


def test_copies_in_one_group_make_nothing_surer() -> None:
    once = [replace(r, group=r.id) for r in mixed(2, 150)]
    copies = [replace(r, id=f"{r.id}/{i}") for r in once for i in range(9)]
    apart = [replace(r, group="") for r in copies]

    def interval(records: list[Record]) -> Interval:
        found = scores(records).recall_interval
        assert found is not None
        return found

    assert interval(copies) == interval(once)
    widths = [found.high - found.low for found in (interval(apart), interval(copies))]
    assert widths[0] * 3 == pytest.approx(widths[1], rel=0.15)  # nine times the samples, by mistake


def test_a_group_in_two_sets_is_one_group() -> None:
    records = [rec(True, True, group="q1", set="a"), rec(False, False, group="q1", set="b"), rec(True, False)]
    assert scores(records).groups == 2


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 400 sets of 300 samples, about 95% have the true rates in their intervals (0.8 recall, 0.15 FPR)."""
    held = {"recall": 0, "fpr": 0}
    for seed in range(400):
        made = scores(mixed(seed + 100, 300), resamples=400, seed=seed)
        assert made.recall_interval is not None
        assert made.fpr_interval is not None
        held["recall"] += made.recall_interval.low <= 0.8 <= made.recall_interval.high
        held["fpr"] += made.fpr_interval.low <= 0.15 <= made.fpr_interval.high
    # 95% of 400 is 380; chance alone, and a bootstrap's small optimism, leave it within 360 to 396.
    assert all(360 <= count <= 396 for count in held.values()), held


def test_intervals_are_seeded_and_optional() -> None:
    records = mixed(3, 200)
    assert scores(records) == scores(records)
    assert scores(records, seed=1).f1_interval != scores(records).f1_interval
    bare = scores(records, resamples=0)
    assert (bare.f1_interval, bare.precision_interval, bare.recall_interval, bare.fpr_interval) == (None,) * 4
    assert bare.f1 == scores(records).f1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_intervals_are_within_bounds_and_in_order(seed: int, n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = scores(mixed(seed, n), resamples=100)
    for rate, interval in (
        (made.f1, made.f1_interval),
        (made.precision, made.precision_interval),
        (made.recall, made.recall_interval),
        (made.fpr, made.fpr_interval),
    ):
        assert (rate is None) == (interval is None)
        if interval is not None:
            assert 0 <= interval.low <= interval.high <= 1


def test_twenty_thousand_records_take_seconds() -> None:
    records = mixed(4, 20_000, groups=7_000)
    start = time.perf_counter()
    made = scores(records, resamples=1000)
    assert time.perf_counter() - start < 10  # a loop over resamples and records takes minutes
    assert made.groups > 6_000
