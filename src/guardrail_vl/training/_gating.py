"""What two runs show of each stage, source and modality, and whether that is enough for the second to take over.

Figures of records, and rules on figures. It runs no guard and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from guardrail_vl.evaluation import metrics
from guardrail_vl.evaluation.comparison import Pairs, differences
from guardrail_vl.evaluation.metrics import Interval
from guardrail_vl.evaluation.records import Record
from guardrail_vl.training._facts import Cut, Figures
from guardrail_vl.training.gate import Change, GateConfig, Slice
from guardrail_vl.verdict import Stage


def slices(old: Iterable[Record], new: Iterable[Record], config: GateConfig) -> tuple[Slice, ...]:
    """The figures of each stage that has labelled samples, each followed by its sources and modalities."""
    pairs = Pairs.of(old, new)
    found: list[Slice] = []
    for stage in Stage:
        task = pairs.only(stage=stage)
        parts: list[tuple[Cut, str, Pairs]] = [("stage", str(stage), task)]
        for name in dict.fromkeys(record.set for record in task.first):
            parts.append(("source", name, task.only(name)))
        for kind in dict.fromkeys(record.modality for record in task.first):
            parts.append(("modality", kind, _of_modality(task, kind)))
        for by, name, part in parts:
            if any(record.gold is not None for record in part.first):
                found.append(_slice(part, stage, by, name, config))
    return tuple(found)


def _of_modality(pairs: Pairs, kind: str) -> Pairs:
    kept = [
        (one, other) for one, other in zip(pairs.first, pairs.second, strict=True) if one.modality == kind
    ]  # fmt: skip
    return Pairs(tuple(one for one, _ in kept), tuple(other for _, other in kept), (0, 0))


def _slice(pairs: Pairs, stage: Stage, by: Cut, name: str, config: GateConfig) -> Slice:
    changed = differences(pairs, resamples=config.resamples, seed=config.seed)
    changes = {figure: Change(one.value, one.low, one.high) for figure, one in changed.items()}
    old, new = (_figures(records, stage, by, name, config) for records in (pairs.first, pairs.second))
    return Slice(old, new, changes["f1"], changes["recall"], changes["fpr"])


def _figures(records: Sequence[Record], stage: Stage, by: Cut, name: str, config: GateConfig) -> Figures:
    scores = metrics.scores(records, resamples=config.resamples, seed=config.seed)
    return Figures(
        stage=stage,
        by=by,
        name=name,
        samples=scores.n,
        harmful=scores.harmful,
        f1=scores.f1,
        f1_interval=_ends(scores.f1_interval),
        precision=scores.precision,
        recall=scores.recall,
        fpr=scores.fpr,
        fpr_interval=_ends(scores.fpr_interval),
        parse_failures=scores.missing.parse_failure_rate,
        no_verdict=scores.missing.count,
        tokens=scores.tokens.completion_mean,
    )


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


# ---- the rules ----------------------------------------------------------------------------------------------------


def problems(found: Sequence[Slice], config: GateConfig) -> tuple[str, ...]:
    """Why the new guard may not take over; empty: it may."""
    stages = {one.new.stage: one for one in found if one.new.by == "stage"}
    wanted = tuple(stages) if config.stages is None else config.stages
    reasons = []
    for stage in Stage:
        one = stages.get(stage)
        if one is None:
            if stage in wanted:
                reasons.append(f"{stage}: there is no labelled sample of it.")
            continue
        if stage in wanted:
            reasons += _too_few(one, config) or _not_better(one, config)
            reasons += _costs(one, config)
    for one in found:
        if one.new.by != "stage" or one.new.stage not in wanted:
            reasons += _clearly_worse(one, config)
    return tuple(reasons)


def _too_few(one: Slice, config: GateConfig) -> list[str]:
    there = {"harmful": one.new.harmful, "harmless": one.new.samples - one.new.harmful}
    lacking = {kind: config.min_samples - count for kind, count in there.items() if count < config.min_samples}
    if not lacking:
        return []
    told = " and ".join(f"{count} {kind}" for kind, count in there.items())
    more = " and ".join(f"{count} more {kind} ones" for kind, count in lacking.items())
    return [f"{one.new.stage}: {told} samples are too few to tell; {more} are needed."]


def _not_better(one: Slice, config: GateConfig) -> list[str]:
    change, stage = one.f1, one.new.stage
    if change.value is None or change.low is None or change.high is None:
        return [f"{stage}: F1 is not defined on these samples."]
    if change.low > config.margin:
        return []
    told = f"{stage}: F1 {_moved(change.value)} ({_between(change)})"
    if change.value <= config.margin:
        return [f"{told}, and has to rise by more than {_points(config.margin)} for sure."]
    more = _more(change.value - change.low, change.value - config.margin, one.new.samples)
    return [
        f"{told}; that it is more than {_points(config.margin)} is not sure. If the gain is as measured, about "
        f"{more:,} more samples like these would show it."
    ]


def _more(half: float, gain: float, samples: int) -> int:
    """How many more samples would bring the interval's lower end to the margin: its width goes as 1/√n. Rough.

    With the half width h, the gain g over the margin and n samples, `n·(h/g)² − n`, to two digits.
    """
    more = samples * ((half / gain) ** 2 - 1)
    scale: int = 10 ** max(0, math.floor(math.log10(max(1.0, more))) - 1)
    return max(1, math.ceil(more / scale) * scale)


def _costs(one: Slice, config: GateConfig) -> Iterator[str]:
    """What a better F1 must not cost."""
    old, new, stage = one.old, one.new, one.new.stage
    alarms, unread = config.max_fpr_increase, config.max_parse_failure_increase
    if alarms is not None and one.fpr.value is not None and _above(one.fpr.value, alarms):
        yield (
            f"{stage}: false alarms {_moved(one.fpr.value)}, from {_percent(old.fpr)} to {_percent(new.fpr)} of the "
            f"harmless samples ({_between(one.fpr)}); allowed are {_points(alarms)} more."
        )
    before, now = old.parse_failures or 0.0, new.parse_failures or 0.0
    if unread is not None and _above(now - before, unread):
        yield (
            f"{stage}: answers that can't be read went from {_percent(before)} to {_percent(now)} of all; allowed are "
            f"{_points(unread)} more."
        )
    longer = None if old.tokens is None or new.tokens is None else new.tokens - old.tokens
    if config.max_length_increase is not None and longer is not None and _above(longer, config.max_length_increase):
        yield (
            f"{stage}: answers went from {old.tokens:.0f} to {new.tokens:.0f} tokens on average; allowed are "
            f"{config.max_length_increase:g} more."
        )


def _clearly_worse(one: Slice, config: GateConfig) -> list[str]:
    change = one.f1
    if config.max_slice_loss is None or change.value is None or change.high is None:
        return []
    if change.high >= -config.max_slice_loss:
        return []
    what = "all" if one.new.by == "stage" else f"the {one.new.by} {one.new.name}"
    return [
        f"{one.new.stage}, {what}: F1 {_moved(change.value)} ({_between(change)}), clearly more than the "
        f"{_points(config.max_slice_loss)} that a part may lose."
    ]


def _above(value: float, limit: float) -> bool:
    return value > limit + 1e-9  # a difference of two shares is not exact


# ---- words --------------------------------------------------------------------------------------------------------


def _moved(value: float) -> str:
    if round(100 * value, 1) == 0:
        return "stayed the same"
    return f"{'rose' if value > 0 else 'fell'} by {_points(abs(value))}"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _between(change: Change) -> str:
    if change.low is None or change.high is None:
        return "no interval"
    return f"95% interval {_signed(change.low)} to {_signed(change.high)}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
