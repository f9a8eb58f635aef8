"""The registry: which benchmarks there are, what is known of each, which of them lie in a folder. Reads no sample."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._benchmark import Benchmark, Group, Kind, Layout
from guardrail_vl.evaluation._paper import PAPER, RELEASE
from guardrail_vl.evaluation._shared import SHARED
from guardrail_vl.verdict import Stage

__all__ = [
    "BENCHMARKS",
    "RELEASE",
    "Benchmark",
    "Group",
    "Kind",
    "Layout",
    "as_markdown",
    "discover",
    "locate",
    "pick",
    "without_repeats",
]

_OTHER: Final = (
    Benchmark(
        name="xstest",
        title="XSTest",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(Layout("xstest_prompts", ("xstest_prompts.csv", "xstest_v2_prompts.csv")),),
        licence="CC-BY-4.0",
        url="https://github.com/paul-rottger/exaggerated-safety",
        group="other",
        size=450,
        harmful=200,
        unharmful=250,
        notes="Harmless requests that look harmful, and their harmful contrasts: measures over-refusal.",
    ),
)

BENCHMARKS: Final[tuple[Benchmark, ...]] = PAPER + _OTHER + SHARED
"""All of them: the paper's 14 in its order, then the others, then the sources of this project's data folder."""

MAX_DEPTH: Final = 4
"""Folders below the one searched that `discover` goes into: as deep as the owners' own copies are."""


def pick(names: Iterable[str]) -> tuple[Benchmark, ...]:
    """Benchmarks by name, in the registry's order.

    Args:
        names: Names, patterns such as `shared_*`, the groups `paper`, `shared` and `other`, or `all`.

    Raises:
        ConfigurationError: No name, or one that fits no benchmark.
    """
    wanted = tuple(names)
    if not wanted:
        raise ConfigurationError("No benchmark is named.", hint="Name one, a pattern, or a group such as 'paper'.")
    for name in wanted:
        if not any(_fits(benchmark, name) for benchmark in BENCHMARKS):
            near = difflib.get_close_matches(name, [b.name for b in BENCHMARKS], n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else "docs/evaluation/benchmarks.md lists them."
            raise ConfigurationError(f"There is no benchmark {name!r}.", hint=hint)
    return tuple(b for b in BENCHMARKS if any(_fits(b, name) for name in wanted))


def _fits(benchmark: Benchmark, name: str) -> bool:
    return name in ("all", benchmark.group) or fnmatchcase(benchmark.name, name)


def discover(folder: Path, *, repeats: bool = True) -> tuple[tuple[Benchmark, Path], ...]:
    """The benchmarks whose files lie in a folder, by the names of the files; nothing is opened.

    Args:
        folder: Searched, with the folders in it, `MAX_DEPTH` deep; hidden ones are passed over.
        repeats: Whether to tell of benchmarks too that repeat the requests of another one that is there.

    Returns:
        Benchmark and file, in the registry's order. The file of the first layout, by its best name.

    Raises:
        ConfigurationError: It is no folder, or two files are equally good for a benchmark.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder.name!r}.")
    files = tuple(sorted(_files(folder)))
    found = tuple((b, path) for b in BENCHMARKS if (path := _best(b, files, folder)) is not None)
    return found if repeats else without_repeats(found)


def without_repeats(found: Iterable[tuple[Benchmark, Path]]) -> tuple[tuple[Benchmark, Path], ...]:
    """These without the benchmarks that repeat the requests of another one among them."""
    found = tuple(found)
    there = {benchmark.name for benchmark, _ in found}
    return tuple((benchmark, path) for benchmark, path in found if benchmark.repeats not in there)


def locate(benchmark: Benchmark, folder: Path) -> Path | None:
    """The file in a folder that the benchmark is read from; None if there is none. See `discover`.

    Raises:
        ConfigurationError: Two files are equally good.
    """
    return _best(benchmark, tuple(sorted(_files(folder))), folder)


def _best(benchmark: Benchmark, files: tuple[Path, ...], folder: Path) -> Path | None:
    for layout in benchmark.layouts:
        ranked = [(rank, path) for path in files if (rank := layout.rank(path.relative_to(folder))) is not None]
        best = [path for rank, path in ranked if rank == min(rank for rank, _ in ranked)]
        if len(best) > 1:
            names = " and ".join(path.relative_to(folder).as_posix() for path in best[:2])
            raise ConfigurationError(
                f"The benchmark {benchmark.name!r} lies there twice: {names}.", hint="Name the file, or move one away."
            )
        if best:
            return best[0]
    return None


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        deep = len(Path(place).relative_to(folder).parts)
        folders[:] = [name for name in folders if deep < MAX_DEPTH and not name.startswith(".")]
        yield from (Path(place, name) for name in names)


def as_markdown(group: Group) -> str:
    """The group as the table of the documentation."""
    columns = ("name", "task", "modality", "samples", "harmful / unharmful", "licence", "from", "notes")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_cells(b))} |" for b in BENCHMARKS if b.group == group]
    return "\n".join(lines) + "\n"


def _cells(benchmark: Benchmark) -> tuple[str, ...]:
    size = "" if benchmark.size is None else f"{benchmark.size:,}"
    if benchmark.weight not in (None, benchmark.size):
        size += f" (weight {benchmark.weight:,})"
    known = benchmark.harmful is not None and benchmark.unharmful is not None
    counts = f"{benchmark.harmful:,} / {benchmark.unharmful:,}" if known else "unknown"
    origin = "Debian packages" if benchmark.url is None else f"[{benchmark.title}]({benchmark.url})"
    prohibited = "Training on it is prohibited." if benchmark.training_prohibited else ""
    repeats = f"Repeats the requests of `{benchmark.repeats}`." if benchmark.repeats else ""
    notes = " ".join(note for note in (benchmark.notes, prohibited, repeats) if note)
    name, licence = f"`{benchmark.name}`", benchmark.licence
    return name, str(benchmark.stage), benchmark.modality, size, counts, licence, origin, notes
