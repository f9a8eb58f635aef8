"""How fast `moderate` is beside a plain loop of `guard.check`, and how much memory a million rows take.

    python benchmarks/bulk/rate.py --data FOLDER          rows of the prompts in a folder of JSON lines
    python benchmarks/bulk/rate.py --synthetic 1000000    rows made up, judged by an engine that only counts

The loop and `moderate` judge the same rows with the same guard in one process, in turns. The loop reads the rows from
memory and writes nothing, so it is the rate that the guard alone can give. No verdict is remembered from turn to turn.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from guardrail_vl import Guard
from guardrail_vl.bulk import RayPool, Summary, moderate
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.testing import ScriptedEngine

TEXT = "<think># Task 1\n\n## Reasoning Step 1\nNone.\n</think>\n\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>"


class Stub(ScriptedEngine):
    """Finds everything harmless, and keeps nothing: a real one would not keep prompts either."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: Completion(TEXT, model="stub"), model="stub")

    def _note(self, prompts: object) -> None:
        pass


def prompts(folder: Path) -> Iterator[str]:
    """Distinct prompts of every file of a folder, in the order of their names."""
    seen = set()
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for line in lines:
                told = json.loads(line).get("task_inputs") or {}
                text = told.get("prompt")
                if text and not told.get("images") and text not in seen:
                    seen.add(text)
                    yield text


def write(path: Path, rows: Iterator[dict[str, object]]) -> int:
    """Write rows to `.jsonl` or `.parquet`, as many as there are."""
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            return sum(file.write(json.dumps(row) + "\n") > 0 for row in rows)
    import itertools

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


def compare(folder: Path, data: Path, rows: int, turns: int, batch: int, workers: int | None) -> None:
    """The loop and `moderate`, in turns."""
    texts = [text for text, _ in zip(prompts(data), range(rows), strict=False)]
    source = folder / "in.jsonl"
    write(source, ({"id": i, "prompt": text} for i, text in enumerate(texts)))
    guard = Guard(cache=False)
    guard.check("Hello.")
    ways: dict[str, Callable[[], object]] = {
        "for text in rows: guard.check(text)": lambda: [guard.check(text) for text in texts],
        f"guard.check_many(rows, batch={batch})": lambda: list(guard.check_many(texts, batch=batch)),
    }
    for form in ("jsonl", "csv", "parquet"):
        ways[f"moderate in.jsonl -o out.{form}"] = lambda form=form: moderate(
            guard, source, folder / f"out.{form}", batch=batch, overwrite=True
        )
    if workers:
        pool = RayPool(workers=workers)
        ways[f"moderate, {workers} workers on Ray, its start included"] = lambda: moderate(
            guard, source, folder / "ray.jsonl", batch=batch, overwrite=True, pool=pool
        )
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, work in ways.items():
            took[name].append(timed(work))
    print(f"{len(texts)} prompts, embedded guard, median of {turns} turns")
    base = statistics.median(took[next(iter(ways))])
    for name, seconds in took.items():
        middle = statistics.median(seconds)
        spread = f"{len(texts) / max(seconds):.0f} to {len(texts) / min(seconds):.0f}"
        print(f"{name:55} {len(texts) / middle:8.0f} rows/s ({spread})  x{base / middle:.2f}")


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
    parser.add_argument("--data", type=Path, help="A folder of JSON lines with task_inputs.prompt.")
    parser.add_argument("--rows", type=int, default=2000, help="Of --data.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, help="Also on Ray, with so many workers.")
    parser.add_argument("--synthetic", type=int, metavar="ROWS")
    parser.add_argument("--from", dest="source", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--to", dest="output", choices=("jsonl", "csv", "parquet"), default="parquet")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.data:
            compare(Path(folder), asked.data, asked.rows, asked.turns, asked.batch, asked.workers)
        if asked.synthetic:
            synthetic(Path(folder), asked.synthetic, asked.source, asked.output)


if __name__ == "__main__":
    main()
