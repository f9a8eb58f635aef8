"""How fast `moderate` is beside a plain loop of `guard.check`, and how much memory a million rows take.

    python benchmarks/bulk/rate.py --data FOLDER          the rows of a folder of JSON lines: prompts, responses, pictures
    python benchmarks/bulk/rate.py --synthetic 1000000    rows made up, judged by an engine that only counts

The loop and `moderate` judge the same rows with the same guard in one process: slice by slice, each way once for each
slice, in an order that rotates. The loop reads the rows from memory and writes nothing, so it is the rate that the guard
alone can give. No verdict is remembered.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guardrail_vl import Guard
from guardrail_vl.bulk import RayPool, Summary, moderate
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.testing import ScriptedEngine
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Decision, Stage

TEXT = "<think># Task 1\n\n## Reasoning Step 1\nNone.\n</think>\n\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>"


class Stub(ScriptedEngine):
    """Finds everything harmless, and keeps nothing: a real one would not keep prompts either."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: Completion(TEXT, model="stub"), model="stub")

    def _note(self, prompts: object) -> None:
        pass


def rows_of(folder: Path) -> Iterator[dict[str, object]]:
    """The rows of every file of a folder, in the order of their names."""
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for i, line in enumerate(lines):
                told = json.loads(line).get("task_inputs") or {}
                images = [str(folder / image) for image in told.get("images") or ()]
                if told.get("prompt") or images:
                    yield {
                        "id": f"{path.name}:{i}", "prompt": told.get("prompt") or "", "images": images,
                        "response": told.get("response"),
                    }  # fmt: skip


def write(path: Path, rows: Iterator[dict[str, object]]) -> int:
    """Write rows to `.jsonl` or `.parquet`, as many as there are."""
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            return sum(file.write(json.dumps(row) + "\n") > 0 for row in rows)
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, writer = 0, None
    while group := list(itertools.islice(rows, 50_000)):
        table = pa.Table.from_pylist(group)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        count += len(group)
    assert writer is not None
    writer.close()
    return count


def peak() -> float:
    """Most memory that this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def check(guard: Guard, row: dict[str, Any]) -> Decision:
    """As a loop of one's own would."""
    stage = Stage.PROMPT if row["response"] is None else Stage.RESPONSE
    return guard.check(Turn.from_prompt(row["prompt"], images=row["images"], response=row["response"]), stage=stage)


def compare(folder: Path, data: Path, rows: int | None, size: int, batch: int, workers: int | None) -> None:
    """The loop and `moderate`, slice by slice."""
    every = list(itertools.islice(rows_of(data), rows))
    guard = Guard(cache=False)
    seen = every[:1] + [row for row in every if row["images"]][:1]  # what is loaded once is not counted
    ways: dict[str, Callable[[list[dict[str, Any]], Path], object]] = {
        "for row in rows: guard.check(row)": lambda part, _: [check(guard, row) for row in part],
        "moderate in.jsonl -o out.parquet": lambda part, source: moderate(
            guard, source, folder / "out.parquet", batch=batch, overwrite=True
        ),
    }
    if workers:
        pool = RayPool(workers=workers)
        ways[f"moderate, {workers} workers on Ray, its start included"] = lambda part, source: moderate(
            guard, source, folder / "ray.jsonl", batch=batch, overwrite=True, pool=pool
        )
    source = folder / "in.jsonl"
    write(source, iter(seen))
    for work in ways.values():
        work(seen, source)
    took: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(0, len(every), size):
        part = every[i : i + size]
        write(source, iter(part))
        for name in names:
            took[name].append(timed(functools.partial(ways[name], part, source)))
        names.append(names.pop(0))
    pictures = sum(bool(row["images"]) for row in every)
    responses = sum(row["response"] is not None for row in every)
    print(f"{len(every)} rows, {responses} with a response, {pictures} with pictures; embedded guard; slices of {size}")
    base = took[next(iter(ways))]
    for name, seconds in took.items():
        ratios = sorted(loop / one for loop, one in zip(base, seconds, strict=True))
        middle = statistics.median(ratios)
        print(
            f"{name:55} {len(every) / sum(seconds):8.1f} rows/s, x{middle:.2f} in the median of {len(ratios)} slices "
            f"({ratios[len(ratios) // 4]:.2f} to {ratios[-len(ratios) // 4]:.2f} in their middle half)"
        )


def synthetic(folder: Path, rows: int, source: str, output: str) -> None:
    """Many rows through an engine that only counts."""
    path = folder / f"in.{source}"
    write(path, ({"id": i, "prompt": f"Question {i}: how do I bake a cake of {i % 997} layers?"} for i in range(rows)))
    guard = Guard(engine=Stub())
    before = peak()
    found: list[Summary] = []
    seconds = timed(lambda: found.append(moderate(guard, path, folder / f"out.{output}")))
    assert found[0].allow == rows
    size = (folder / f"out.{output}").stat().st_size / 2**20
    print(
        f"{rows} rows, {source} to {output}: {rows / seconds:.0f} rows/s, {seconds:.0f} s; output {size:.0f} MiB; "
        f"peak memory {peak():.0f} MiB, {before:.0f} before"
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="A folder of JSON lines with task_inputs.")
    parser.add_argument("--rows", type=int, help="The first of --data. Default: all.")
    parser.add_argument("--slice", type=int, default=500, help="Rows that each way judges before the next way does.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, help="Also on Ray, with so many workers.")
    parser.add_argument("--synthetic", type=int, metavar="ROWS")
    parser.add_argument("--from", dest="source", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--to", dest="output", choices=("jsonl", "csv", "parquet"), default="parquet")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.data:
            compare(Path(folder), asked.data, asked.rows, asked.slice, asked.batch, asked.workers)
        if asked.synthetic:
            synthetic(Path(folder), asked.synthetic, asked.source, asked.output)


if __name__ == "__main__":
    main()
