"""Which labelled samples a command is given: benchmarks in a folder, tables of the user's own, and their disguises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guardrail_vl.cli.show import printable
from guardrail_vl.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrail_vl.evaluation.cases import CaseSet

_DATA: Final = "Which data"

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Where the benchmarks' files lie; they are found by their names.",
        rich_help_panel=_DATA,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME",
        help="Only these benchmarks: a name, a pattern, or a group (paper, shared, other). May be repeated.",
        rich_help_panel=_DATA,
    ),
]
TableOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--table",
        metavar="FILE",
        help="Your own samples, in JSON lines, CSV or Parquet: label, and prompt, response or images. May be repeated.",
        rich_help_panel=_DATA,
    ),
]
ShownOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Show the samples too, read from here.", rich_help_panel=_DATA),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Samples of each set, spread evenly over it.", rich_help_panel=_DATA),
]
SeenOption = Annotated[
    Path | None,
    typer.Option(
        "--seen",
        metavar="FILE",
        help="Leave out the samples whose requests are listed here by hash: what the guard was trained on.",
        rich_help_panel=_DATA,
    ),
]
TransformOption = Annotated[
    list[str] | None,
    typer.Option(
        "--transform",
        metavar="NAME",
        help="Judge each set also disguised: typographic, base64, leetspeak, joined, … May be repeated.",
        rich_help_panel=_DATA,
    ),
]


def labelled(
    folder: Path | None,
    names: Sequence[str] | None,
    tables: Sequence[Path] | None,
    *,
    seen: Path | None = None,
    limit: int | None = None,
    own: str = "--table",
) -> list[CaseSet]:
    """The named benchmarks in a folder, and the tables, without what was seen; at most so many samples of each.

    Without names: all that are in the folder and don't repeat another one's requests.

    Raises:
        ConfigurationError: There is no data, or it can't be read.
    """
    from guardrail_vl.evaluation.running import spread

    if folder is None and names:
        raise ConfigurationError("--set names benchmarks, and --data is missing: the folder that they lie in.")
    if folder is None and not tables:
        raise ConfigurationError(
            "There is nothing to judge.", hint=f"Name a folder of benchmarks by --data, or your own file by {own}."
        )
    sets = [] if folder is None or names == [] else _benchmarks(folder, names)
    sets += [_table(path) for path in tables or ()]
    if len({one.name for one in sets}) != len(sets):
        raise ConfigurationError("Two sets have one name.", hint="A table is called as its file: give it another name.")
    sets = sets if seen is None else _unseen(sets, seen)
    return sets if limit is None else [spread(one, limit) for one in sets]


def disguised(sets: Sequence[CaseSet], names: Sequence[str] | None) -> list[CaseSet]:
    """The sets, each followed by its disguises. Says on stderr where one can't be made.

    Raises:
        ConfigurationError: There is no such transform.
    """
    from guardrail_vl.evaluation.transforms import apply, named

    wanted = [named(name).name for name in dict.fromkeys(names or ())]
    found = []
    for one in sets:
        found.append(one)
        for name in wanted:
            try:
                found.append(apply(name, one))
            except ConfigurationError as error:
                typer.echo(f"Left out: {error.message}", err=True)
    return found


def _benchmarks(folder: Path, names: Sequence[str] | None) -> list[CaseSet]:
    from guardrail_vl.evaluation.benchmarks import discover, pick, without_repeats
    from guardrail_vl.evaluation.readers import read

    there = discover(folder)
    if names is None:
        found = without_repeats(there)
        if not found:
            raise ConfigurationError(
                f"The folder {folder.name!r} holds no benchmark.", hint="guardrail-vl eval list says what is known."
            )
        if left := len(there) - len(found):
            typer.echo(f"Left out: {left} sets that repeat the requests of others. Name them with --set.", err=True)
    else:
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            if not {one.name for one in pick([name])} & {one.name for one, _ in there}:
                raise ConfigurationError(
                    f"The folder {folder.name!r} does not hold {name!r}.",
                    hint=f"guardrail-vl eval list --data {folder.name} says what is there.",
                )
        chosen = {one.name for one in pick(wanted)}
        found = tuple((one, path) for one, path in there if one.name in chosen)
    return [read(one, path) for one, path in found]


def _unseen(sets: Sequence[CaseSet], path: Path) -> list[CaseSet]:
    from guardrail_vl.evaluation.seen import leave_out, read

    kept, lost = leave_out(sets, read(path))
    if lost:
        typer.echo(f"Left out: {sum(lost.values())} samples of {len(lost)} sets, which {path.name} lists.", err=True)
    if gone := [one.name for one in sets if one.name not in {other.name for other in kept}]:
        typer.echo(f"Nothing is left of: {', '.join(printable(name) for name in gone)}", err=True)
    if not kept:
        raise ConfigurationError(f"All samples are listed in {path.name}, so there is nothing to judge.")
    return list(kept)


def _table(path: Path) -> CaseSet:
    from guardrail_vl.evaluation.readers import read_own

    cases, left = read_own(path)
    if left:
        typer.echo(f"Columns of {path.name} that are not read: {printable(', '.join(left))}", err=True)
    return cases
