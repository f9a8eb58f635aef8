"""`guardrail-vl train`: run a recipe, show how far a run is, check a recipe. Trains nothing by itself."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from guardrail_vl.cli.door import BLOCKED, PASSED, door
from guardrail_vl.cli.evaluated import say, show_table
from guardrail_vl.cli.options import JsonOption
from guardrail_vl.cli.show import PipedConsole, print_line, printable

if TYPE_CHECKING:
    from guardrail_vl.training._output import Step
    from guardrail_vl.training._state import StageRun, TrainingRun
    from guardrail_vl.training.recipe import Recipe

_EVERY: Final = 30.0
"""Seconds between two lines of progress where there is no terminal."""
_FIGURES: Final = 4
"""Figures of a step that are shown."""

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file: see training/recipes.")]


@door
def train_run(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where the run goes, and goes on.")],
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="The last stage to run. Default: all.")
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            min=0,
            metavar="N",
            help="Write so many held-out turns with the new guard's answers into samples.md. It holds their content.",
        ),
    ] = 0,
    json: JsonOption = False,
) -> int:
    """Train a guard by a recipe: data, synthesize, sft, mine, concat, rl, export, gate.

    The same command goes on where it was stopped or killed; a stage that is done is not run again.

    Exit status: 0 done, 1 the gate did not pass, 2 on an error, 130 after Ctrl-C.
    """
    from guardrail_vl.training import runs
    from guardrail_vl.training.recipe import Recipe
    from guardrail_vl.training.stages import is_first

    read = Recipe.load(recipe)
    try:
        with _shown() as (tick, watch):
            done = runs.run(read, output, until=until, samples=samples, progress=tick, watch=watch)
    except KeyboardInterrupt:
        typer.echo(f"What was done is kept in {output}: the same command goes on from there.", err=True)
        raise
    if json and is_first():
        print_line(_value(done))
    elif is_first():
        _show(done, output)
    return BLOCKED if done.passed is False else PASSED


@door
def train_stages(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's folder.")], json: JsonOption = False
) -> int:
    """Show how far a training run is. A stage is `running` while its process lives, else `stopped`.

    Exit status: 0, or 1 if its gate did not pass.
    """
    from guardrail_vl.training._state import load

    found = load(folder)
    if json:
        print_line(_value(found))
    else:
        _show(found, folder)
        for one in found.stages:
            if one.state == "stopped":
                say(f"{one.stage} was stopped: the same train run command goes on from there.")
    return BLOCKED if found.passed is False else PASSED


@door
def train_check(recipe: RecipeArgument, json: JsonOption = False) -> int:
    """Check a recipe without running it: its keys, its files, its policy, and which stages it has.

    Loads no model and no data. Exit status: 0 it can be run, 2 it can't.
    """
    from guardrail_vl.training.recipe import Recipe

    read = Recipe.load(recipe)
    read.check()
    if json:
        told = {"name": read.name, "stages": read.stages, "base": read.base.name or "tiny", "policy": _policy(read)}
        print_line({**told, "conditions": read.conditions()})
        return PASSED
    rows = [("name", read.name), ("stages", ", ".join(read.stages)), ("base", read.base.name or "tiny, built here")]
    rows += [("format", read.format), ("policy", _policy(read)), ("data", _data(read))]
    show_table(("", ""), rows)
    return PASSED


def _policy(recipe: Recipe) -> str:
    policy = recipe.house_policy
    return f"{policy.name} @{policy.hash}"


def _data(recipe: Recipe) -> str:
    data = recipe.data
    if data.synthetic is not None:
        return f"synthetic, {data.synthetic.train} turns and {data.synthetic.held_out} held out"
    held = ", ".join(one.file for one in data.held_out) or (f"{data.share:.0%} of them" if data.share else "none")
    return f"{', '.join(one.file for one in data.train)}; held out: {held}"


def _value(run: TrainingRun) -> dict[str, Any]:
    value: dict[str, Any] = jsonlib.loads(run.to_json())
    return {**value, "done": run.done, "passed": run.passed}


def _show(run: TrainingRun, folder: Path) -> None:
    rows = []
    for one in run.stages:
        told = one.error or ", ".join(f"{name} {_number(value)}" for name, value in (one.figures or {}).items()
                                      if isinstance(value, int | float | str))  # fmt: skip
        rows.append((one.stage, one.state, f"{one.seconds:.0f} s" if one.seconds else "", told))
    show_table(("stage", "state", "time", "figures"), rows)
    gate = next((one for one in run.stages if one.stage == "gate" and one.figures), None)
    if gate is not None and gate.figures is not None and run.passed is False:
        reasons = gate.figures.get("reasons")
        for reason in reasons if isinstance(reasons, list) else []:
            say(f"The gate: {reason}")
    if run.passed is not None:
        say(
            "The gate passed." if run.passed else "The gate did not pass: the new guard should not replace the old one."
        )
    if run.done and (folder / "model").is_dir():
        say(f"The guard: Guard({str(folder / 'model')!r})")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


# ---- progress -------------------------------------------------------------------------------------------------------

Tick = Callable[["Step"], None]
Watch = Callable[["StageRun"], None]


@contextmanager
def _shown() -> Iterator[tuple[Tick, Watch]]:
    """Progress on stderr: a line as a stage begins and ends, and within it a bar on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield _lines(), _ended(lambda line: typer.echo(line, err=True))
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"), console=PipedConsole(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting", total=None, figures="")
        told = _ended(lambda line: bar.console.print(line, markup=False, highlight=False))

        def watch(stage: StageRun) -> None:
            told(stage)
            if stage.state == "running":
                bar.reset(task, description=stage.stage, total=None, figures="")

        yield (
            lambda step: bar.update(task, completed=step.step, total=step.total or None, figures=_figures(step)),
            watch,
        )


def _ended(write: Callable[[str], object]) -> Watch:
    def watch(stage: StageRun) -> None:
        if stage.state == "running":
            again = f", after {stage.seconds:.0f} s before" if stage.seconds else ""
            write(f"{stage.stage}: begun{again}")
        else:
            write(f"{stage.stage}: {stage.state} in {stage.seconds:.0f} s")

    return watch


def _lines() -> Tick:
    last: Step | None = None
    at = time.monotonic()

    def tick(step: Step) -> None:
        nonlocal last, at
        now = time.monotonic()
        if last is None or last.stage != step.stage:
            at = now
        elif now - at >= _EVERY:
            at = now
            typer.echo(f"{step.stage}: {step.step} of {step.total} {_figures(step)}".rstrip(), err=True)
        last = step

    return tick


def _figures(step: Step) -> str:
    return "  ".join(f"{printable(name)} {value:.4g}" for name, value in list(step.values.items())[:_FIGURES])
