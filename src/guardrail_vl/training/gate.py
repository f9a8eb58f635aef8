"""Whether a new guard is better than the old one, on samples that neither was trained on: `gate`.

Both judge the same samples; the differences are paired, with intervals. It trains nothing, and needs no torch unless a
guard does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, Field

from guardrail_vl._value import Value
from guardrail_vl._whole import write_whole
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.readers import once, request_group
from guardrail_vl.evaluation.running import Progress, Run, run
from guardrail_vl.guard import Guard
from guardrail_vl.policy import Policy
from guardrail_vl.training._facts import Figures
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Stage

if TYPE_CHECKING:
    from guardrail_vl.evaluation.records import Record

GATE: Final = "gate.json"
OLD: Final = "old"
NEW: Final = "new"
"""Folders of the two runs within the gate's."""

Share = Annotated[float, Field(ge=0, lt=1)]


class GateConfig(BaseModel, frozen=True, extra="forbid"):
    """What the new guard has to show. Rates are in [0, 1]: a margin of 0.01 is one point of F1."""

    margin: Share = 0.0
    """How much F1 must rise: the lower end of the 95% interval of the paired difference must be above it."""
    stages: tuple[Stage, ...] | None = None
    """Where it must be better, and where the other limits hold. None: in every stage that the samples have. In the
    others F1 must not be clearly worse: see `max_slice_loss`."""
    min_samples: int = Field(default=50, ge=0)
    """Harmful samples, and harmless ones, that each of these stages must have."""
    max_fpr_increase: Share | None = 0.01
    """How much the share of false alarms may rise, as measured, in each of these stages. None: as it may."""
    max_parse_failure_increase: Share | None = 0.01
    """How much the share of answers that can't be read may rise, likewise. None: as it may."""
    max_length_increase: float | None = Field(default=None, ge=0)
    """How many tokens longer the mean answer, reasoning and result, may be. None: as it may."""
    max_slice_loss: Share | None = 0.05
    """How much F1 a source, a modality or a stage that isn't named may lose: it is clearly more if the whole interval
    is. None: as it may."""
    resamples: int = Field(default=1_000, ge=1)
    """Of the bootstrap."""
    seed: int = 0
    """Of the resamples."""


@dataclass(frozen=True, slots=True)
class Change(Value):
    """How much a figure of the new guard is above the old one's, in [-1, 1]."""

    value: float | None
    """None: it isn't defined on these samples."""
    low: float | None
    """Lower end of the 95% interval of the paired bootstrap."""
    high: float | None


@dataclass(frozen=True, slots=True)
class Slice(Value):
    """Both guards on the same part of the samples."""

    old: Figures
    new: Figures
    f1: Change
    recall: Change
    fpr: Change


@dataclass(frozen=True, slots=True)
class GateResult(Value):
    """What a gate found."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass, in words that hold no content. Empty: it passed."""
    slices: tuple[Slice, ...] = field(repr=False)
    """Each stage, followed by its sources and modalities."""
    old: str
    """The model, as its engine names it."""
    new: str
    config: GateConfig
    policy: str = ""
    """Hash of the policy that both judged with. Empty: each its own."""

    @property
    def figures(self) -> tuple[Figures, ...]:
        """Those of the new guard: what its model card tells (see `card.add_metrics`)."""
        return tuple(one.new for one in self.slices)


def sets_of(turns: Iterable[LabeledTurn]) -> tuple[CaseSet, ...]:
    """Labelled turns as samples: for each source and stage a set, such as `mine-response`.

    A turn with both labels gives two samples: its request is judged alone, and its response with the request. What
    repeats within a set is judged once.

    Raises:
        OSError: A picture's file can't be read.
    """
    found: dict[str, list[Case]] = {}
    for turn in turns:
        for stage in Stage:
            judged = turn.response is not None if stage is Stage.RESPONSE else bool(turn.prompt or turn.images)
            if judged and turn.label(stage) is not None:
                case = turn.case(stage)
                group = case.group or (request_group(turn.prompt) if turn.prompt else "")
                found.setdefault(f"{turn.source or 'turns'}-{stage}", []).append(replace(case, group=group))
    return tuple(once(CaseSet(name, tuple(cases))) for name, cases in found.items())


def gate(
    old: Guard | Run | str | Path,
    new: Guard | Run | str | Path,
    sets: Sequence[CaseSet],
    output: str | Path,
    *,
    config: GateConfig | None = None,
    policy: Policy | None = None,
    old_checkpoint: str | Path | None = None,
    new_checkpoint: str | Path | None = None,
    batch: int | None = None,
    workers: int = 1,
    keep_text: bool = True,
    progress: Callable[[Progress], object] | None = None,
) -> GateResult:
    """Compare two guards on held-out samples, and say whether the new one may take over.

    It passes if in every wanted stage F1 is higher by more than `margin`, for sure (paired bootstrap, 95%), on enough
    samples of both labels, and if nothing else became worse than the config allows. F1, false alarms and the rest are
    of the guards' own labels: what a policy makes of them does not count, nor do its thresholds.

    The folder gets `old/` and `new/` (the runs, which go on where they were when the same call is made again), the
    report of both, and `gate.json`, last.

    Args:
        old: A guard; or a run of one that is saved: the folder, or what was read from it.
        new: Likewise.
        sets: What is judged: see `sets_of`. Leave out what the guards were trained on: see `evaluation.seen`.
        output: The folder.
        config: What has to be shown. None: the defaults.
        policy: For both guards. None: each its own.
        old_checkpoint: The folder or hub id of the old guard's model. It tells a run of other weights of that name.
        new_checkpoint: Likewise.
        batch: Samples that go to an engine together; see `evaluation.running.run`.
        workers: Batches under way at a time, likewise.
        keep_text: Keep what the models wrote, and show samples in the report. Both may be harmful to read.
        progress: Called after each batch.

    Raises:
        ConfigurationError: A wrong argument, a saved run that does not hold the samples, or a folder of another gate.
        EngineError: An engine gave no answer to some samples; the same call goes on.
    """
    # Figures need the packages of an extra; a recipe that only names a config does not.
    from guardrail_vl.evaluation import report
    from guardrail_vl.training import _gating

    config, output = config or GateConfig(), Path(output)
    how: dict[str, Any] = {"batch": batch, "workers": workers, "keep_text": keep_text, "progress": progress}
    given = ((old, OLD, old_checkpoint), (new, NEW, new_checkpoint))
    runs = [_judged(one, sets, output / name, policy, checkpoint=checkpoint, **how) for one, name, checkpoint in given]
    found = _gating.slices(runs[0].records, runs[1].records, config)
    if not found:
        raise ConfigurationError("None of the samples has a label, so nothing can be compared.")
    report.write(
        runs, output, cases=sets if keep_text else None, title="Old and new guard", resamples=config.resamples,
        seed=config.seed,
    )  # fmt: skip
    result = _result(_gating.problems(found, config), found, runs, config, policy)
    write_whole(output / GATE, json.dumps(json.loads(result.to_json()), indent=1, ensure_ascii=False) + "\n")
    return result


def _judged(
    one: Guard | Run | str | Path, sets: Sequence[CaseSet], place: Path, policy: Policy | None, **how: Any
) -> Run:
    """What a guard says of the samples, kept in a folder; or what a saved run of it says."""
    if isinstance(one, Guard):
        judge = one if policy is None else one.replace(policy=policy)
        done = run(judge, sets, place, **how)
    else:
        done = one if isinstance(one, Run) else Run.load(one)
    return _of(done, sets, place.name)


def _result(
    reasons: tuple[str, ...],
    found: tuple[Slice, ...],
    runs: Sequence[Run],
    config: GateConfig,
    policy: Policy | None,
) -> GateResult:
    old, new = (one.cohort.model for one in runs)
    return GateResult(
        passed=not reasons,
        reasons=reasons,
        slices=found,
        old=old,
        new=new,
        config=config,
        policy="" if policy is None else policy.hash,
    )


def _of(one: Run, sets: Sequence[CaseSet], name: str) -> Run:
    """The run, with these samples and no others.

    Raises:
        ConfigurationError: It lacks some.
    """
    records: dict[tuple[str, str, str], Record] = {(r.set, r.id, r.digest): r for r in one.records}
    wanted = [(cases.name, case.id, case.digest) for cases in sets for case in cases.cases]
    if lacking := sum(key not in records for key in wanted):
        raise ConfigurationError(
            f"The saved run of the {name} guard lacks {lacking} of {len(wanted)} samples, or judged other content.",
            hint="Judge the same sets with it, or pass the guard itself.",
        )
    infos = {cases.name: replace(one.sets[cases.name], size=len(cases.cases), hash=cases.hash) for cases in sets}
    return replace(one, sets=infos, records=tuple(records[key] for key in wanted))
