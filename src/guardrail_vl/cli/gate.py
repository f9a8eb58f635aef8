"""`guardrail-vl train gate`: is the new guard better than the old one, by the stated margin? It only asks and shows."""

from __future__ import annotations

import hashlib
import json as jsonlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from guardrail_vl.cli.door import BLOCKED, PASSED, door
from guardrail_vl.cli.evaluated import say, show_table, shown_progress
from guardrail_vl.cli.evaluation import EMBEDDED
from guardrail_vl.cli.labelled import DataOption, LimitOption, SetOption, TableOption, labelled
from guardrail_vl.cli.options import (
    DeadlineOption,
    FormatOption,
    GuardOptions,
    JsonOption,
    PolicyOption,
    Speed,
    SpeedOption,
    make_guard,
)
from guardrail_vl.cli.show import print_line, printable
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.verdict import Stage

if TYPE_CHECKING:
    from guardrail_vl.evaluation.cases import CaseSet
    from guardrail_vl.evaluation.running import Run
    from guardrail_vl.training.gate import Change, GateResult

GATES: Final = "gates"
"""Where gates go unless a folder is named."""

_DATA: Final = "Which data"
_RULES: Final = "What has to be shown"
_RUN: Final = "How it runs"
_SEEN: Final = "seen.txt"


def _limit(value: str | float) -> float | None:
    """A share in [0, 1), or `none`: no limit."""
    if str(value).strip().lower() == "none":
        return None
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise typer.BadParameter("give a share from 0 to below 1, such as 0.01, or none")
    return share


@door
def train_gate(
    old: Annotated[
        str,
        typer.Argument(metavar="OLD", help=f"A model, a server's URL, {EMBEDDED!r}, or the folder of a saved run."),
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Likewise.")],
    turns: Annotated[
        list[Path] | None,
        typer.Option("--turns", metavar="FILE", help="Labelled turns. May be repeated.", rich_help_panel=_DATA),
    ] = None,
    data: DataOption = None,
    set_: SetOption = None,
    table: TableOption = None,
    limit: LimitOption = None,
    seen: Annotated[
        list[Path] | None,
        typer.Option(
            "--seen",
            metavar="FILE",
            help=f"Leave out the samples whose requests are listed here. Always: those in {_SEEN} of OLD and NEW.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            "--margin",
            min=0,
            max=0.99,
            help="How much F1 must rise, for sure; 0.01 is a point.",
            rich_help_panel=_RULES,
        ),
    ] = 0.0,
    stage: Annotated[
        list[Stage] | None,
        typer.Option(
            "--stage",
            help="Where it must be better and keep the limits. Default: all that the samples have.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    min_samples: Annotated[
        int,
        typer.Option(
            "--min-samples", min=0, help="Harmful ones, and harmless ones, in each stage.", rich_help_panel=_RULES
        ),
    ] = 50,
    max_fpr_increase: Annotated[
        float | None,
        typer.Option(
            "--max-fpr-increase",
            parser=_limit,
            metavar="SHARE|none",
            help="How much false alarms may rise. none: as they may.",
            rich_help_panel=_RULES,
        ),
    ] = 0.01,
    max_length_increase: Annotated[
        float | None,
        typer.Option(
            "--max-length-increase", min=0, help="Tokens that the mean answer may be longer.", rich_help_panel=_RULES
        ),
    ] = None,
    max_slice_loss: Annotated[
        float | None,
        typer.Option(
            "--max-slice-loss",
            parser=_limit,
            metavar="SHARE|none",
            help="F1 that a source or modality may lose. none: as it may.",
            rich_help_panel=_RULES,
        ),
    ] = 0.05,
    policy: PolicyOption = None,
    format: FormatOption = None,
    speed: SpeedOption = None,
    deadline: DeadlineOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help=f"Default: a folder of its own under {GATES}.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Samples that go to the engine together.", rich_help_panel=_RUN),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Batches under way at a time, for servers.", rich_help_panel=_RUN)
    ] = 1,
    no_text: Annotated[
        bool,
        typer.Option("--no-text", help="Keep nothing that the models wrote, and show no sample in the report."),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Judge held-out samples with two guards, and say whether the new one may take over.

    F1 must be higher by more than the margin, for sure, in every stage, on enough samples; and nothing else may become
    worse than is allowed. The two are judged one after the other. After Ctrl-C the same command goes on.

    Exit status: 0 it is better, 1 it is not, or that isn't sure, 2 on an error, 130 after Ctrl-C.
    """
    from guardrail_vl.training.gate import NEW, OLD, GateConfig, gate

    config = GateConfig(
        margin=margin,
        stages=tuple(dict.fromkeys(stage)) if stage else None,
        min_samples=min_samples,
        max_fpr_increase=max_fpr_increase,
        max_length_increase=max_length_increase,
        max_slice_loss=max_slice_loss,
    )
    sets = _held_out(turns, data, set_, table, limit, [*(seen or ()), *_lists(old, new)])
    folder = out or Path(GATES) / _name(old, new, sets, policy, speed)
    typer.echo(f"{len(sets)} sets into {folder}", err=True)
    runs = []
    for name, place in ((old, folder / OLD), (new, folder / NEW)):
        options = GuardOptions(**_which(name), policy=policy, format=format, speed=speed, deadline=deadline)
        runs.append(_judged(name, options, sets, place, batch=batch, jobs=jobs, keep_text=not no_text))
    result = gate(runs[0], runs[1], sets, folder, config=config, keep_text=not no_text)
    if json:
        print_line({**jsonlib.loads(result.to_json()), "folder": str(folder)})
    else:
        _show(result, folder)
    return PASSED if result.passed else BLOCKED


# ---- samples ------------------------------------------------------------------------------------------------------


def _held_out(
    turns: Sequence[Path] | None,
    data: Path | None,
    names: Sequence[str] | None,
    tables: Sequence[Path] | None,
    limit: int | None,
    seen: Sequence[Path],
) -> list[CaseSet]:
    from guardrail_vl.evaluation.running import spread
    from guardrail_vl.evaluation.seen import leave_out, read

    sets: list[CaseSet] = []
    if turns:
        from guardrail_vl.training.dataset import read as read_turns
        from guardrail_vl.training.gate import sets_of

        sets += sets_of([turn for file in turns for turn in read_turns(file)])
    if data is not None or names or tables or not turns:
        sets += labelled(data, names, tables, own="--turns or --table")
    if len({one.name for one in sets}) != len(sets):
        raise ConfigurationError("Two sets have one name.", hint="A table is called as its file: give it another name.")
    if seen:
        kept, lost = leave_out(sets, frozenset().union(*(read(file) for file in seen)))
        if lost:
            typer.echo(f"Left out: {sum(lost.values())} samples that the guards were trained on.", err=True)
        if not kept:
            raise ConfigurationError("The guards were trained on all of these samples, so there is nothing to compare.")
        sets = list(kept)
    return sets if limit is None else [spread(one, limit) for one in sets]


def _lists(*names: str) -> list[Path]:
    """What exported guards were trained on."""
    return [file for name in names if (file := Path(name) / _SEEN).is_file()]


# ---- guards -------------------------------------------------------------------------------------------------------


def _which(name: str) -> dict[str, Any]:
    if re.match(r"https?://", name):
        return {"url": name}
    return {} if name == EMBEDDED else {"model": name}


def _judged(
    name: str,
    options: GuardOptions,
    sets: Sequence[CaseSet],
    folder: Path,
    *,
    batch: int | None,
    jobs: int,
    keep_text: bool,
) -> Run:
    """The run of one guard, which is closed before the next is loaded: two may not fit into memory."""
    from guardrail_vl.evaluation.running import Run, run

    if (Path(name) / "run.json").is_file():
        return Run.load(name)
    with make_guard(options) as guard, shown_progress(folder.name) as tick:
        return run(
            guard, sets, folder, batch=batch, workers=jobs, keep_text=keep_text, checkpoint=options.model, progress=tick
        )


def _name(old: str, new: str, sets: Sequence[CaseSet], policy: str | None, speed: Speed | None) -> str:
    # The same command goes on in the same folder.
    told = repr((old, new, [one.hash for one in sets], policy, speed))
    words = re.sub(r"[^A-Za-z0-9._]+", "-", f"{Path(new).name}-over-{Path(old).name}").strip("-.")[:60]
    return f"{words}-{hashlib.blake2b(told.encode(), digest_size=4).hexdigest()}"


# ---- out ----------------------------------------------------------------------------------------------------------


def _show(result: GateResult, folder: Path) -> None:
    from guardrail_vl.evaluation._text import percent, points

    def moved(change: Change) -> str:
        if change.low is None or change.high is None:
            return points(change.value)
        return f"{points(change.value)} ({points(change.low)} to {points(change.high)})"

    heads = ["task", "on", "n", "F1 old", "F1 new", "F1 change", "FPR old", "FPR new", "no verdict", "not readable"]
    heads.append("tokens")
    rows = []
    for one in result.slices:
        name = "all" if one.new.by == "stage" else one.new.name
        tokens = " → ".join("–" if side.tokens is None else f"{side.tokens:.0f}" for side in (one.old, one.new))
        unread = " → ".join(percent(side.parse_failures) for side in (one.old, one.new))
        silent = " → ".join("–" if side.no_verdict is None else str(side.no_verdict) for side in (one.old, one.new))
        rows.append(
            [str(one.new.stage), name, str(one.new.samples), percent(one.old.f1), percent(one.new.f1), moved(one.f1),
             percent(one.old.fpr), percent(one.new.fpr), silent, unread, tokens]
        )  # fmt: skip
    say(f"Old: {result.old}\nNew: {result.new}")
    show_table(heads, rows)
    for reason in result.reasons:
        say(f"Not passed: {printable(reason)}")
    if result.passed:
        say("Passed: the new guard is better.")
    say("In %; the change is the new guard less the old one, in points, with its 95% interval.")
    say("No verdict: how many samples got no label, for whatever reason. They count as not flagged.")
    say(f"The report: {folder / 'report.html'}")
