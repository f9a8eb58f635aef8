"""`guardrail-vl eval`: judge labelled sets, replay saved completions, report, compare. Decides nothing by itself."""

from __future__ import annotations

import hashlib
import json as jsonlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail_vl.cli.door import BLOCKED, PASSED, door
from guardrail_vl.cli.evaluated import (
    say,
    score_values,
    scored,
    show_parity,
    show_scores,
    show_table,
    shown_progress,
)
from guardrail_vl.cli.labelled import (
    DataOption,
    LimitOption,
    SeenOption,
    SetOption,
    ShownOption,
    TableOption,
    TransformOption,
    disguised,
    labelled,
)
from guardrail_vl.cli.options import (
    DeadlineOption,
    FormatOption,
    GuardOptions,
    JsonOption,
    PolicyOption,
    Speed,
    SpeedOption,
    UrlOption,
    make_guard,
)
from guardrail_vl.cli.show import print_line
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard

if TYPE_CHECKING:
    from guardrail_vl.evaluation.benchmarks import Benchmark
    from guardrail_vl.evaluation.cases import Case, CaseSet
    from guardrail_vl.evaluation.running import Run

EMBEDDED = "embedded"
"""What `parity` calls the guard that ships inside the package."""
BASELINES: Mapping[str, tuple[str, ...]] = {
    "constant-harmful": ("constant", "harmful"),
    "constant-unharmful": ("constant", "unharmful"),
    "keywords": ("keywords",),
    "alt-profanity-check": ("alt_profanity_check",),
    "better-profanity": ("better_profanity",),
}
"""What each is in `evaluation.baselines`: a function, and what it is given."""
RUNS = "eval-runs"
"""Where runs go unless a folder is named."""

_RUN = "How it runs"

OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help=f"Default: a folder of its own under {RUNS}.")
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", min=1, help="Samples that go to the engine together.", rich_help_panel=_RUN),
]
TextOption = Annotated[
    bool,
    typer.Option("--no-text", help="Keep nothing that the model wrote, and show no sample in the report."),
]


@door
def eval_run(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A checkpoint folder or hub id; with --url, the model's name there. Without either, the embedded one.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    set_: SetOption = None,
    table: TableOption = None,
    seen: SeenOption = None,
    limit: LimitOption = None,
    transform: TransformOption = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="NAME",
            help=f"In the same report: {', '.join(BASELINES)}. May be repeated.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    out: OutOption = None,
    no_text: TextOption = False,
    json: JsonOption = False,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Batches under way at a time, for servers.", rich_help_panel=_RUN)
    ] = 1,
    batch: BatchOption = None,
    url: UrlOption = None,
    policy: PolicyOption = None,
    format: FormatOption = None,
    speed: SpeedOption = None,
    deadline: DeadlineOption = None,
) -> int:
    """Judge labelled sets with a guard, and write a report.

    Every verdict is kept as it comes: after Ctrl-C or a crash the same command goes on from there. The report holds
    samples and what the model wrote of them, unless --no-text is given.

    Exit status: 0 all was judged, 2 on an error, 130 after Ctrl-C.
    """
    from guardrail_vl.evaluation.running import run

    simple = _baselines(baseline or ())
    sets = disguised(labelled(data, set_, table, seen=seen, limit=limit), transform)
    with make_guard(GuardOptions(model, url, policy, format, speed, None, deadline)) as guard:
        folder = out or _folder_for(guard, sets)
        typer.echo(f"{len(sets)} sets into {folder}", err=True)
        work = [(guard, folder, None if url else model)]
        work += [(one, folder / "baselines" / name, None) for name, one in simple.items()]
        done = []
        try:
            for one, place, checkpoint in work:
                with shown_progress("starting") as tick:
                    done.append(
                        run(
                            one,
                            sets,
                            place,
                            batch=batch,
                            workers=jobs,
                            keep_text=not no_text,
                            checkpoint=checkpoint,
                            progress=tick,
                        )
                    )
        except KeyboardInterrupt:
            typer.echo(f"What was judged is kept in {folder}: the same command goes on from there.", err=True)
            raise
    return _finish(done, folder, None if no_text else sets, json=json)


@door
def eval_list(
    set_: SetOption = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="Say which of them lie here."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Name the benchmarks that can be read, and where a user gets them."""
    from guardrail_vl.evaluation.benchmarks import BENCHMARKS, discover, pick

    chosen = pick(set_) if set_ else BENCHMARKS
    found = {} if data is None else {one.name: path for one, path in discover(data)}
    if json:
        for one in chosen:
            print_line({**_about(one), **({} if data is None else {"file": _relative(found.get(one.name), data)})})
        return PASSED
    heads = ["set", "task", "modality", "samples", "licence", "from" if data is None else "file"]
    rows = []
    for one in chosen:
        where = str(one.url or "") if data is None else _relative(found.get(one.name), data) or "not there"
        size = "" if one.size is None else str(one.size)
        rows.append([one.name, str(one.stage), one.modality, size, one.licence, where])
    show_table(heads, rows)
    return PASSED


@door
def eval_replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Saved completions: JSON lines, a JSON list, or a run's folder.")
    ],
    data: DataOption = None,
    set_: SetOption = None,
    table: TableOption = None,
    format: FormatOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Whose completions they are. Default: as the file says."),
    ] = None,
    out: OutOption = None,
    no_text: TextOption = False,
    json: JsonOption = False,
) -> int:
    """Score completions that were saved, without a model: ours, or anyone's.

    A row holds a completion in `text_output`, `text`, `completion` or `predict`, and may have an `id`; without one the
    order of the set counts. A run's folder is replayed on the sets that it names.
    """
    from guardrail_vl.evaluation.replays import replay_run
    from guardrail_vl.evaluation.running import Run

    if set_ is None and data is not None:
        if not file.is_dir():
            raise ConfigurationError("--set is missing: the file does not say which data it is of.")
        set_ = list(Run.load(file).sets)
    sets = labelled(data, set_, table)
    folder = out or Path(RUNS) / _slug(f"replay-{model or file.name}", file.resolve(), format, *(s.hash for s in sets))
    done = replay_run(file, sets, folder, format=format, model=model, keep_text=not no_text)
    return _finish([done], folder, None if no_text else sets, json=json)


@door
def eval_report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="For the report. Default: the first run's folder."),
    ] = None,
    data: ShownOption = None,
    table: TableOption = None,
    json: JsonOption = False,
) -> int:
    """Write the report of one run, or of several beside each other."""
    return _report(runs, out, data, table, json=json)


@door
def eval_compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another one's.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="For the report. Default: `comparison` in the second's folder."),
    ] = None,
    data: ShownOption = None,
    table: TableOption = None,
    json: JsonOption = False,
) -> int:
    """Write a report of two runs side by side, with what differs between them."""
    return _report([first, second], out or second / "comparison", data, table, json=json)


@door
def eval_parity(
    first: Annotated[
        str,
        typer.Argument(metavar="GUARD", help=f"A run's folder, a model, a server's URL, or {EMBEDDED!r}."),
    ],
    second: Annotated[str, typer.Argument(metavar="GUARD", help="Another one; both are runs, or neither is.")],
    data: DataOption = None,
    set_: SetOption = None,
    table: TableOption = None,
    limit: LimitOption = None,
    labels: Annotated[float, typer.Option("--labels", min=0, max=1, help="The least share of equal labels.")] = 1.0,
    actions: Annotated[float, typer.Option("--actions", min=0, max=1, help="The least share of equal actions.")] = 1.0,
    drift: Annotated[float, typer.Option("--drift", min=0, help="The largest difference of two scores.")] = 0.02,
    failures: Annotated[
        float, typer.Option("--failures", min=0, max=1, help="The largest share without a verdict.")
    ] = 0.0,
    policy: PolicyOption = None,
    speed: SpeedOption = None,
    second_speed: Annotated[
        Speed | None, typer.Option("--second-speed", help="Of the second. Default: --speed.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples that go to an engine together.")] = 32,
    json: JsonOption = False,
) -> int:
    """Judge the same samples with two guards, or compare two runs: do they say the same?

    Exit status: 0 within the tolerance, 1 outside, 2 on an error.
    """
    from guardrail_vl.evaluation.parity import Tolerance, compare, compare_runs
    from guardrail_vl.evaluation.running import Run

    tolerance = Tolerance(labels=labels, actions=actions, drift=drift, failures=failures)
    kinds = [_is_run(first), _is_run(second)]
    if any(kinds):
        if not all(kinds) or data is not None or table:
            raise ConfigurationError("Compare two runs, or two guards on --data or --table.")
        found = compare_runs(Run.load(first), Run.load(second), tolerance=tolerance)
    else:
        sets = labelled(data, set_, table, limit=limit)
        # Ids are unique in their set only.
        cases = [_renamed(one.name, case) for one in sets for case in one.cases]
        with _guard_named(first, speed, policy) as one, _guard_named(second, second_speed or speed, policy) as other:
            found = compare(one, other, cases, tolerance=tolerance, batch=batch)
    if json:
        print_line({**jsonlib.loads(found.to_json()), "passed": found.passed, "problems": list(found.problems)})
    else:
        show_parity(found)
    return PASSED if found.passed else BLOCKED


def _about(one: Benchmark) -> dict[str, Any]:
    names = ("name", "title", "modality", "size", "harmful", "unharmful", "weight", "licence", "url", "group", "notes")
    return {"stage": str(one.stage), **{name: getattr(one, name) for name in names}}


def _relative(path: Path | None, folder: Path) -> str | None:
    return None if path is None else path.relative_to(folder).as_posix()


def _renamed(set_: str, case: Case) -> Case:
    return replace(case, id=f"{set_}:{case.id}")


# ---- guards and folders -------------------------------------------------------------------------------------------


def _guard_named(name: str, speed: Speed | None, policy: str | None) -> Guard:
    url = name if re.match(r"https?://", name) else None
    model = None if url or name == EMBEDDED else name
    return make_guard(GuardOptions(model=model, url=url, policy=policy, speed=speed))


def _is_run(name: str) -> bool:
    return (Path(name) / "run.json").is_file()


def _baselines(names: Iterable[str]) -> dict[str, Guard]:
    from guardrail_vl.evaluation import baselines

    made = {}
    for name in names:
        if name not in BASELINES:
            raise ConfigurationError(f"There is no baseline {name!r}.", hint=f"There are: {', '.join(BASELINES)}.")
        function, *given = BASELINES[name]
        made[name] = Guard(engine=getattr(baselines, function)(*given))
    return made


def _folder_for(guard: Guard, sets: Sequence[CaseSet]) -> Path:
    # The same command goes on in the same folder; another guard or other data have another one.
    told = (guard.format.id, guard.policy.hash, type(guard.engine).__name__, *(one.hash for one in sets))
    return Path(RUNS) / _slug(f"{guard.engine.model}-{guard.speed}", *told)


def _slug(name: str, *conditions: object) -> str:
    words = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60]
    return f"{words}-{hashlib.blake2b(repr(conditions).encode(), digest_size=4).hexdigest()}"


# ---- reports ------------------------------------------------------------------------------------------------------


def _report(
    folders: Sequence[Path], out: Path | None, data: Path | None, tables: Sequence[Path] | None, *, json: bool
) -> int:
    from guardrail_vl.evaluation.running import Run

    runs = [Run.load(folder) for folder in folders]
    sets = _of_runs(runs, data, tables) if data is not None or tables else None
    return _finish(runs, out or folders[0], sets, json=json)


def _of_runs(runs: Sequence[Run], data: Path | None, tables: Sequence[Path] | None) -> list[CaseSet]:
    """The samples of these runs, as far as they are there."""
    from guardrail_vl.evaluation.benchmarks import BENCHMARKS

    told = dict.fromkeys(name for run in runs for name in run.sets)
    plain = {name.partition("+")[0] for name in told}
    known = [one.name for one in BENCHMARKS if one.name in plain]
    sets = labelled(data, None if data is None else known, tables)
    changes = dict.fromkeys(change for name in told if (change := name.partition("+")[2]))
    return [one for one in disguised(sets, tuple(changes)) if one.name in told]


def _finish(runs: Sequence[Run], folder: Path, sets: Sequence[CaseSet] | None, *, json: bool) -> int:
    """Write the report and show the small table."""
    from guardrail_vl.evaluation import report

    page = report.write(runs, folder, cases=sets)
    rows = scored(runs)
    if json:
        told = [{"folder": str(run.folder), "cohort": jsonlib.loads(run.cohort.to_json()), "missing": run.missing}
                for run in runs]  # fmt: skip
        print_line({"report": str(page), "runs": told, "scores": score_values(rows)})
        return PASSED
    show_scores(rows)
    for run in runs:
        if run.missing:
            say(f"Not finished: {run.missing} samples of {run.folder} are not judged yet.")
    say(f"F1, precision, recall, FPR and parse failures in %. The report: {page}")
    return PASSED
