"""`guardrail-vl calibrate`: from the scores of a run to thresholds with a promise, and into a policy file."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from guardrail_vl.cli.door import PASSED, door
from guardrail_vl.cli.options import JsonOption
from guardrail_vl.cli.show import PipedConsole, print_line, printable
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.policy import Policy
from guardrail_vl.verdict import Stage

if TYPE_CHECKING:  # the extra may be missing, and the other commands need none of it
    from guardrail_vl.evaluation.calibration import Calibration, Threshold
    from guardrail_vl.evaluation.records import Record
    from guardrail_vl.evaluation.running import Run

_SUFFIXES: Final = (".yaml", ".yml", ".json")


@door
def calibrate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that `guardrail-vl eval` wrote, of one guard.")
    ],
    fpr: Annotated[
        float, typer.Option("--fpr", metavar="SHARE", help="The share of harmless samples that may be flagged.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option("--confidence", metavar="SHARE", help="How sure that must be.")] = 0.95,
    stage: Annotated[
        Stage | None, typer.Option("--stage", help="Only requests, or only responses. Default: what was judged.")
    ] = None,
    by_category: Annotated[
        bool, typer.Option("--by-category", help="A threshold for each category that the model names, too.")
    ] = False,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE", help="The policy that gets the thresholds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it here, as .yaml or .json. Default: nowhere.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a file that is there. Its comments are lost.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Find the lowest score to flag from, such that false alarms stay rare: a stated share, with a stated confidence.

    Exit status: 0 a threshold was found, 2 none was.
    """
    from guardrail_vl.evaluation.calibration import apply, in_words
    from guardrail_vl.evaluation.calibration import calibrate as find

    if policy is not None and out is None:
        raise ConfigurationError("--policy needs --out: the file that gets the thresholds.")
    given = Policy.of(policy)
    if out is not None:
        _check_target(out, overwrite)
    loaded = _load(runs)
    records = _records(loaded)
    stages = [stage] if stage is not None else [s for s in Stage if any(_counts(r, s) for r in records)]
    if not stages:
        raise ConfigurationError("These runs hold no sample with a gold label, so nothing can be calibrated.")
    model = loaded[0].cohort.model
    found = [
        find(records, fpr=fpr, stage=s, confidence=confidence, by_category=by_category, model=model) for s in stages
    ]
    written = ""
    if out is not None or not any(one.found for one in found):
        changed = apply(given, *found)  # says why, where there is no threshold
        written = "" if out is None else _write(changed, found, out)
    if json:
        print_line({"calibrations": [jsonlib.loads(one.to_json()) for one in found], "policy": written})
        return PASSED
    console = PipedConsole(highlight=False, width=None if sys.stdout.isatty() else 200)
    for one in found:
        _show(console, one)
        for line in in_words(one):
            _say(console, line)
        console.print()
    if out is not None:
        for line in (
            *_kept(given, found),
            f"Written: {out.name}, version {written}, and {_beside(out).name} beside it.",
        ):
            _say(console, line)
    return PASSED


def _load(folders: Sequence[Path]) -> list[Run]:
    from guardrail_vl.evaluation.records import CASCADE
    from guardrail_vl.evaluation.running import Run

    runs = [Run.load(folder) for folder in folders]
    if any(run.cohort.engine == CASCADE for run in runs):
        raise ConfigurationError(
            "The scores of a cascade are of several models, and one threshold can't hold for all of them.",
            hint="Calibrate each guard by itself.",
        )
    guards = {(r.cohort.model, r.cohort.engine, r.cohort.format, r.cohort.speed) for r in runs}
    if len(guards) > 1:
        listed = "; ".join(sorted(" ".join(part for part in guard if part) for guard in guards))
        raise ConfigurationError(
            f"These runs are of several guards, whose scores can't be compared: {printable(listed)}.",
            hint="Calibrate each by itself.",
        )
    for run in runs:
        if run.missing:
            raise ConfigurationError(
                f"The run in {run.folder.name!r} is not complete: {run.missing} samples are not judged.",
                hint="Finish it: the command that began it goes on where it was.",
            )
    return runs


def _records(runs: Sequence[Run]) -> list[Record]:
    """The records of all, each sample once."""
    once = {(record.set, record.id, record.digest): record for run in runs for record in run.records}
    return list(once.values())


def _counts(record: Record, stage: Stage) -> bool:
    return record.stage is stage and record.gold is not None


# ---- out ----------------------------------------------------------------------------------------------------------


def _check_target(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigurationError(f"--out writes .yaml or .json, not {out.suffix or out.name!r}.")
    if out.exists() and not overwrite:
        raise ConfigurationError(
            f"The file {out.name!r} is there.", hint="--overwrite writes over it; its comments are lost."
        )


def _beside(out: Path) -> Path:
    return out.with_suffix(".calibration.json")


def _kept(given: Policy, found: Sequence[Calibration]) -> list[str]:
    """Thresholds of the policy that stay, and of which the promise says nothing."""
    new = {one.category for calibration in found for one in calibration.found}
    names = [name for name, one in given.categories.items() if one.threshold is not None and name not in new]
    return [f"The policy's own thresholds stay for: {', '.join(names)}. Nothing is promised of these."] if names else []


def _write(policy: Policy, found: Sequence[Calibration], out: Path) -> str:
    """Write the policy, and the calibrations beside it; the version of what was written."""
    from guardrail_vl.evaluation.calibration import in_words

    value = policy.model_dump(mode="json", exclude_defaults=True)
    # As in the file that was read: pictures are found from where the policy is.
    for examples in (value, *value.get("categories", {}).values()):
        for example in (*examples.get("harmful", ()), *examples.get("harmless", ())):
            if "images" in example:
                example["images"] = [_from(out, image) for image in example["images"]]
    if out.suffix.lower() == ".json":
        text = jsonlib.dumps(value, indent=2, ensure_ascii=False) + "\n"
    else:
        import yaml

        notes = [
            f"# {printable(line)}\n"
            for one in found
            for line in (f"Thresholds by guardrail-vl calibrate, for {one.stage.value}s: {one.model}", *in_words(one))
        ]
        text = "".join(notes) + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    out.write_text(text, encoding="utf-8")
    _beside(out).write_text(f"[{', '.join(one.to_json() for one in found)}]\n", encoding="utf-8")
    return Policy.load(out).hash


def _from(out: Path, image: str) -> str:
    return image if image.startswith("data:") else os.path.relpath(image, out.parent)


def _show(console: PipedConsole, calibration: Calibration) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    rows = [_cells(one, len(calibration.thresholds) > 1) for one in calibration.thresholds]
    columns = ("for", "flag from", "false alarms", "at most", "catches", "why not")
    shown = columns if any(row[-1] for row in rows) else columns[:-1]
    for column in shown:
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row[: len(shown)]))
    console.print(table)
    console.print()


def _cells(one: Threshold, several: bool) -> tuple[str, ...]:
    from guardrail_vl.evaluation.calibration import percent

    place = f"{one.stage.value}, {one.category or 'all else'}" if several else one.stage.value
    if one.threshold is None or one.fpr is None:
        return place, "-", f"- of {one.negatives}", "-", f"- of {one.positives}", one.why
    caught = f"{one.caught} of {one.positives}" + (f" ({percent(one.recall)})" if one.recall is not None else "")
    alarms = f"{one.false_alarms} of {one.negatives} ({percent(one.fpr)})"
    return place, str(one.threshold), alarms, percent(one.upper), caught, ""


def _say(console: PipedConsole, line: str) -> None:
    console.print(Text(printable(line)), soft_wrap=True)
