"""`guardrail-vl data`: check, count, convert and divide labelled turns. Decides nothing by itself; shows no text.

Exit status: 0 fine, 1 problems were found (or rows were left out), 2 an error: nothing was done.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from guardrail_vl.cli.door import BLOCKED, PASSED, door
from guardrail_vl.cli.evaluated import say, show_table
from guardrail_vl.cli.options import JsonOption
from guardrail_vl.cli.show import print_line, printable
from guardrail_vl.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrail_vl.training._layouts import Parsed
    from guardrail_vl.training.dataset import LabeledTurn, Statistics

FOUND: Final = BLOCKED
"""Problems were found."""
_SHOWN: Final = 20
"""Names of one kind that are shown; a longer name may be somebody's text, and is counted only."""
_NAME: Final = 40
"""Characters of a name that is shown."""
_LONGEST: Final = 120
"""Characters of a name without spaces that is shown."""


class LayoutChoice(StrEnum):
    """See `training.dataset.Layout`."""

    TABLE = "table"
    SHAREGPT = "sharegpt"
    SHARED = "shared"


class PicturesChoice(StrEnum):
    """See `training.dataset.Pictures`."""

    KEPT = "kept"
    BESIDE = "beside"
    INSIDE = "inside"


class DedupeChoice(StrEnum):
    """See `training.dataset.Contradicting`."""

    DROP = "drop"
    KEEP = "keep"


FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE…", help="JSON lines, JSON, CSV or Parquet.", show_default=False)
]
LayoutOption = Annotated[
    LayoutChoice | None,
    typer.Option("--layout", help="How rows are laid out. Default: by the fields of the first row."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", metavar="FOLDER", help="What the pictures' paths are relative to. Default: the file's."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Write over files that are there.")]
PicturesOption = Annotated[
    PicturesChoice,
    typer.Option("--pictures", help="Where pictures go: as they are, all beside the file, or all inside it."),
]


@door
def data_validate(
    files: FilesArgument,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="FILE", help="Turns that are tested on: tell what leaks. May be repeated."),
    ] = None,
    layout: LayoutOption = None,
    folder: FolderOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Problems of each file that are shown.")] = 100,
    json: JsonOption = False,
) -> int:
    """Tell everything that is wrong with labelled turns, row by row."""
    from guardrail_vl.training import dataset

    told: list[dict[str, Any]] = []
    turns: list[LabeledTurn] = []
    for file in files:
        parsed = _parse(file, layout, folder)
        problems = dataset.problems(parsed)
        turns += dataset.sound(parsed, problems)
        told += [{"file": file.name, **jsonlib.loads(problem.to_json())} for problem in problems]
        if not json:
            for problem in problems[:limit]:
                id = f" ({_clipped(problem.id)})" if problem.id else ""
                say(f"{file.name}, row {problem.row}{id}: {problem.message}")
            if len(problems) > limit:
                say(f"{file.name}: and {len(problems) - limit} more")
            wrong = len({problem.row for problem in problems})
            say(f"{file.name}: {len(parsed.rows)} rows, {wrong} of them with problems")
    leaks = dataset.leaks(turns, _joined(against, layout, folder)) if against else ()
    if json:
        print_line({"problems": told, "leaks": [leak._asdict() for leak in leaks]})
    elif against:
        for leak in leaks[:limit]:
            say(f"{_clipped(leak.test)} is tested on, and {_clipped(leak.train)} has the same {leak.why}")
        say(f"{len(leaks)} tested turns leak")
    return FOUND if told or leaks else PASSED


@door
def data_stats(
    files: FilesArgument, layout: LayoutOption = None, folder: FolderOption = None, json: JsonOption = False
) -> int:
    """Count labelled turns: by modality, label, source, category and licence, and how long they are."""
    from guardrail_vl.training import dataset

    found = dataset.stats(_joined(files, layout, folder))
    if json:
        print_line(jsonlib.loads(found.to_json()))
    else:
        _show(found)
    return PASSED


@door
def data_convert(
    files: FilesArgument,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="What to write: .jsonl (also .gz or .xz) or .parquet.")
    ],
    layout: LayoutOption = None,
    folder: FolderOption = None,
    pictures: PicturesOption = PicturesChoice.KEPT,
    leave_out: Annotated[
        bool,
        typer.Option("--leave-out", help="Leave out the rows that validate finds fault with. The status is then 1."),
    ] = False,
    dedupe: Annotated[
        DedupeChoice | None,
        typer.Option("--dedupe", help="Each content once; what contradicts itself is dropped or kept."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> int:
    """Write labelled turns of any layout as one file of ours."""
    from guardrail_vl.training import dataset

    _check_free(output, overwrite)
    turns, lost = _sound(files, layout, folder) if leave_out else (_joined(files, layout, folder), 0)
    contradicting: Sequence[Sequence[str]] = ()
    if dedupe is not None:
        once = dataset.dedupe(turns, contradicting=dedupe.value)
        turns, contradicting = list(once.turns), once.contradicting
        typer.echo(f"Left out: {len(once.repeated)} turns that repeat another.", err=True)
    for ids in contradicting[:_SHOWN]:
        typer.echo(f"The same content with other labels: {', '.join(_clipped(id) for id in ids[:_SHOWN])}", err=True)
    if contradicting:
        what = "dropped" if dedupe is DedupeChoice.DROP else "kept"
        typer.echo(f"{sum(map(len, contradicting))} turns contradict each other; {what}.", err=True)
    if lost:
        typer.echo(f"Left out: {lost} rows with problems. guardrail-vl data validate says what they are.", err=True)
    dataset.write(output, turns, pictures=pictures.value)
    say(f"{len(turns)} turns in {output}")
    return FOUND if lost or contradicting else PASSED


@door
def data_split(
    files: FilesArgument,
    output: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="Where each side gets a file of its name.")
    ],
    share: Annotated[
        list[str] | None,
        typer.Option("--share", metavar="NAME=SHARE", help="A side and its share. Default: train=0.8, held_out=0.2."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the drawing.")] = 0,
    layout: LayoutOption = None,
    folder: FolderOption = None,
    pictures: PicturesOption = PicturesChoice.KEPT,
    overwrite: OverwriteOption = False,
) -> int:
    """Divide labelled turns so that no request stands on two sides."""
    from guardrail_vl.training import dataset

    shares = _shares(share) if share else dataset.SHARES
    sides = dataset.split(_joined(files, layout, folder), shares, seed)
    ending = ".parquet" if all(file.suffix == ".parquet" for file in files) else ".jsonl"
    for name in sides:
        _check_free(output / f"{name}{ending}", overwrite)
    for name, turns in sides.items():
        dataset.write(output / f"{name}{ending}", turns, pictures=pictures.value)
        say(f"{len(turns)} turns in {output / f'{name}{ending}'}")
    return PASSED


def _shares(given: Sequence[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for one in given:
        name, _, share = one.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not name.replace("_", "").replace("-", "").isalnum() or name in shares or value < 0:
            raise ConfigurationError("A --share is not NAME=SHARE.", hint="Write, for example, --share train=0.8")
        shares[name] = value
    return shares


# ---- files --------------------------------------------------------------------------------------------------------


def _check_free(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise ConfigurationError(f"The file {output.name!r} is there.", hint="--overwrite writes over it.")


def _parse(file: Path, layout: LayoutChoice | None, folder: Path | None) -> Parsed:
    from guardrail_vl.training._layouts import parse

    parsed = parse(file, None if layout is None else layout.value, folder)
    if parsed.unread:
        names = ", ".join(_clipped(name) for name in parsed.unread[:_SHOWN])
        typer.echo(f"Columns of {file.name} that are not read: {names}", err=True)
    return parsed


def _joined(files: Sequence[Path], layout: LayoutChoice | None, folder: Path | None) -> list[LabeledTurn]:
    from guardrail_vl.training.dataset import checked

    return [turn for file in files for turn in checked(_parse(file, layout, folder))]


def _sound(files: Sequence[Path], layout: LayoutChoice | None, folder: Path | None) -> tuple[list[LabeledTurn], int]:
    """The turns without a problem, and how many rows have one."""
    from guardrail_vl.training import dataset

    turns: list[LabeledTurn] = []
    rows = 0
    for file in files:
        parsed = _parse(file, layout, folder)
        turns += dataset.sound(parsed, dataset.problems(parsed))
        rows += len(parsed.rows)
    return turns, rows - len(turns)


# ---- words --------------------------------------------------------------------------------------------------------


def _show(found: Statistics) -> None:
    counts = ("turns", "requests", "pictures", "unlabelled", "without_reasoning", "repeated", "contradicting")
    show_table(("what", "how many"), [(name.replace("_", " "), f"{getattr(found, name):,}") for name in counts])
    kinds = ("modalities", "prompt_labels", "response_labels", "sources", "categories", "licences")
    for kind in kinds:
        say("")
        show_table((kind.replace("_", " "), "turns"), _names(getattr(found, kind)))
    rows = [
        (name, f"{one.count:,}", f"{one.least:,}", f"{one.median:,.0f}", f"{one.p95:,}", f"{one.most:,}")
        for name, one in found.lengths.items()
    ]
    say("")
    show_table(("characters", "turns", "least", "median", "p95", "most"), rows)


def _names(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    # A sentence that stands there once is a text rather than a name.
    shown = [name for name in counts if len(name) <= _NAME and (counts[name] > 1 or " " not in name)][:_SHOWN]
    rows = [(name or "(none)", f"{counts[name]:,}") for name in shown]
    rest = len(counts) - len(shown)
    if rest:
        left = sum(counts.values()) - sum(counts[name] for name in shown)
        rows.append((f"({rest} others)", f"{left:,}"))
    return rows


def _clipped(name: str) -> str:
    """A name as it may be shown: one with spaces, or a long one, may be somebody's text."""
    if len(name) > _LONGEST or (len(name) > _NAME and " " in name):
        return "a long name"
    return printable(name).replace("\n", " ")
