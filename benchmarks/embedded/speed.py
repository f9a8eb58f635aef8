"""What a check costs: p50 and p95 per text and per picture, throughput, load time, peak memory. Real Guard, no cache.

Each measurement runs in a process of its own, so that peak memory is its own. Writes speed.json and speed.md.

    taskset -c 0,1 python benchmarks/embedded/speed.py

With `--baseline` it is measured beside what it replaced: the same encoder, frozen, in torch with 32-bit floats.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = re.findall(
    r"\w+", "the committee will meet on friday to discuss how the town could use its old station in winter"
)


def text_of(words: int, salt: int) -> str:
    """English of about so many tokens, different for each salt."""
    return f"Note {salt}: " + " ".join(WORDS[(i + salt) % len(WORDS)] for i in range(words))


def picture(lines: int, salt: int) -> bytes:
    """A 512 x 512 page with so many lines of text."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (512, 512), "white")
    draw = ImageDraw.Draw(image)
    for i in range(lines):
        draw.text((30, 30 + 56 * i), text_of(4, salt + i), fill="black", font=ImageFont.load_default(30))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def timed(call: Callable[[int], object], n: int, warm: int = 3) -> dict[str, float]:
    """p50 and p95 in milliseconds, and CPU milliseconds a call."""
    for i in range(warm):
        call(10_000 + i)
    times = []
    cpu = time.process_time()
    for i in range(n):
        start = time.perf_counter()
        call(i)
        times.append(1e3 * (time.perf_counter() - start))
    cpu = time.process_time() - cpu
    return {
        "n": n,
        "p50_ms": statistics.median(times),
        "p95_ms": statistics.quantiles(times, n=20)[18],
        "cpu_ms": 1e3 * cpu / n,
    }


def measure(case: str, n: int) -> dict[str, float]:
    """One case, in this process."""
    kind, _, size = case.partition(":")
    if kind.startswith("torch"):
        return baseline(kind, int(size), n)
    start = time.perf_counter()
    from guardrail_vl import Guard
    from guardrail_vl.engines.embedded import EmbeddedEngine

    guard = Guard(engine=EmbeddedEngine(), cache=False)
    load = 1e3 * (time.perf_counter() - start)
    if kind == "text":
        result = timed(lambda i: guard.check_prompt(text_of(int(size), i)), n)
    elif kind == "response":
        result = timed(lambda i: guard.check_response(text_of(int(size), i), prompt=text_of(20, i)), n)
    elif kind == "picture":
        pictures = {i: picture(int(size), i) for i in [*range(n), *range(10_000, 10_003)]}
        result = timed(lambda i: guard.check_prompt("What does it say?", images=[pictures[i]]), n)
    else:
        turns = [text_of(int(size), i) for i in range(n)]
        guard.check_prompt("warm")
        begin = time.perf_counter()
        list(guard.check_many(turns))
        result = {"n": n, "per_second": n / (time.perf_counter() - begin)}
    return {**result, "load_ms": load, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def baseline(kind: str, size: int, n: int) -> dict[str, float]:
    """The encoder in torch, as sentence-transformers would run it; the folder is in the environment."""
    start = time.perf_counter()
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = os.environ["BASELINE"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    load = 1e3 * (time.perf_counter() - start)

    def encode(texts: list[str]) -> None:
        with torch.inference_mode():
            model(**tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt"))

    if kind == "torch":
        result = timed(lambda i: encode([text_of(size, i)]), n)
    else:
        turns = [text_of(size, i) for i in range(n)]
        encode(turns[:2])
        begin = time.perf_counter()
        for place in range(0, n, 32):
            encode(turns[place : place + 32])
        result = {"n": n, "per_second": n / (time.perf_counter() - begin)}
    return {**result, "load_ms": load, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


CASES = {
    "text:16": 300, "text:56": 300, "text:220": 150, "text:2000": 20, "response:200": 150, "many:56": 512,
    "picture:0": 30, "picture:1": 30, "picture:8": 30,
}  # fmt: skip
BASELINE = {"torch:56": 300, "torch-many:56": 512}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Speed of the embedded guard", "",
        "Made by `taskset -c 0,1 python benchmarks/embedded/speed.py`",
        f"on {result['machine']}, {result['cores']} cores, load average {result['load_average']:.1f} at the start.",
        "A check is `Guard.check_prompt` or `check_response` with no cache; `many` is `check_many`.",
        "The number is words a text, or lines of text in a 512 x 512 picture. `torch` is the same encoder, frozen, in",
        "torch with 32-bit floats, without heads, windows or a guard around it.", "",
        "| case | n | p50 ms | p95 ms | CPU ms | a second | load ms | peak RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case, v in result["cases"].items():
        cells = (f"{v[k]:.1f}" if k in v else "" for k in ("p50_ms", "p95_ms", "cpu_ms", "per_second"))
        lines.append(f"| {case} | {v['n']} | {' | '.join(cells)} | {v['load_ms']:.0f} | {v['peak_rss_mb']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every case in its own process and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--baseline", type=Path, help="the folder of all-MiniLM-L6-v2, as transformers loads it")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, (CASES | BASELINE)[args.case])))
        return
    cases, environment = list(CASES), dict(os.environ)
    if args.baseline:
        cases += BASELINE
        environment["BASELINE"] = str(args.baseline)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    result: dict[str, Any] = {"machine": machine, "cores": cores, "load_average": os.getloadavg()[0], "cases": {}}
    for case in cases:
        command = [sys.executable, __file__, "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        result["cases"][case] = json.loads(done.stdout.splitlines()[-1])
    (HERE / "speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "speed.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
