"""What a step of training costs: ours beside TRL's stock SFTTrainer and GRPOTrainer, on the same work.

Each measurement runs in a process of its own, ours and stock in turn. Writes results.json and results.md. See README.md.

    python benchmarks/training/speed.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KINDS = ("sft", "grpo")
WHO = ("ours", "stock")
FULL = {
    "size": "3b", "side": 756, "prompt_words": 100, "target_words": 130, "batch": 6, "accumulation": 2, "prompts": 8,
    "group": 8, "new_tokens": 192, "micro_batch": 8, "workers": 0, "checkpointing": False, "attention": "auto",
}  # fmt: skip
SMOKE = {
    "size": "tiny", "side": 112, "prompt_words": 20, "target_words": 30, "batch": 4, "accumulation": 1, "prompts": 4,
    "group": 4, "new_tokens": 16, "micro_batch": 4, "workers": 0, "checkpointing": False, "attention": "sdpa",
}  # fmt: skip
STEPS = {"sft": 8, "grpo": 3}
"""Of a measurement; the first one warms up."""


def one(kind: str, who: str, settings: dict[str, Any], limit: float) -> dict[str, Any]:
    """A contender in a process of its own. What failed says why."""
    told = json.dumps({"who": who, "work": {**settings, "kind": kind}})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU: several would change the work
    if settings["size"] == "tiny":
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", told],
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:.0f} s"}
    if done.returncode:
        sys.stderr.write(done.stderr)
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**figures, "process_seconds": time.monotonic() - begun}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all steps of all rounds that came to their end."""
    errors = [run["error"] for run in runs if "error" in run]
    runs = [run for run in runs if "error" not in run]
    if not runs:
        return {"error": errors[0]}
    seconds = [value for run in runs for value in run["seconds"]]
    step = statistics.median(seconds)
    peaks = [run["peak_gib"] for run in runs if run["peak_gib"] is not None]
    return {
        "seconds_per_step": step,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "timed_steps": len(seconds),
        "failed_runs": len(errors),
        "tokens_per_step": runs[0]["tokens_per_step"],
        "tokens_per_second": runs[0]["tokens_per_step"] / step,
        "cpu_seconds_per_step": statistics.median(run["cpu_seconds"] for run in runs),
        "generating_seconds_per_step": statistics.median(run["generating_seconds"] for run in runs),
        "peak_gib": max(peaks) if peaks else None,
    }


def collected(runs: dict[str, list[dict[str, Any]]], facts: dict[str, Any]) -> dict[str, Any]:
    """What results.json holds."""
    table: dict[str, Any] = {}
    for kind in KINDS:
        if not runs.get(f"{kind} ours"):
            continue
        both = {who: summary(runs[f"{kind} {who}"]) for who in WHO}
        table[kind] = both
        if all("error" not in value for value in both.values()):
            # Above 1: ours is faster, or takes more memory.
            names = ("tokens_per_second", "peak_gib")
            table[kind]["ratio"] = {
                name: both["ours"][name] / both["stock"][name] for name in names if both["ours"][name] is not None
            }
    machines = {run["machine"] for several in runs.values() for run in several if "machine" in run}
    return {**facts, "machine": sorted(machines), "results": table, "runs": runs}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    settings = result["settings"]
    lines = [
        "# Speed of training, ours beside TRL's stock trainers", "",
        f"Made by `{result['command']}`",
        f"on {'; '.join(result['machine'])}, Python {result['python']}, {result['cores']} cores, load average",
        f"{result['load_average']:.1f} at the start; {result['rounds']} round(s), ours and stock in turn.",
        f"Model: {'Qwen2.5-VL-3B' if settings['size'] == '3b' else 'tiny Qwen2.5-VL'}, random weights.", "",
        "A step of GRPO is a rollout with its updates. Ratio: ours by stock, in tokens a second and in memory.", "",
        "| work | who | tokens/s | s/step (median) | fastest to slowest | steps | CPU s/step | generating s/step "
        "| peak GiB | ratio tokens/s | ratio memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for kind, both in result["results"].items():
        for who in WHO:
            v = both[who]
            if "error" in v:
                lines.append(f"| {kind} | {who} | failed: {v['error']} |" + " |" * 8)
                continue
            ratio = both.get("ratio", {}) if who == "ours" else {}
            cells = [
                f"{v['tokens_per_second']:.0f}", f"{v['seconds_per_step']:.3f}",
                f"{v['fastest']:.3f} to {v['slowest']:.3f}", str(v["timed_steps"]), f"{v['cpu_seconds_per_step']:.3f}",
                f"{v['generating_seconds_per_step']:.3f}" if kind == "grpo" else "",
                "None" if v["peak_gib"] is None else f"{v['peak_gib']:.1f}",
                *(f"{ratio[name]:.2f}" if name in ratio else "" for name in ("tokens_per_second", "peak_gib")),
            ]  # fmt: skip
            lines.append(f"| {kind} | {who} | {' | '.join(cells)} |")
            if v["failed_runs"]:
                lines.append(f"| {kind} | {who} | {v['failed_runs']} more run(s) failed |" + " |" * 8)
    lines += ["", "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "."]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], output: Path | None) -> None:
    """Both files, if they are wanted."""
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (output / "results.md").write_text(markdown(result), encoding="utf-8")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU: whether it works")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--rounds", type=int, help="how often each contender runs (3; smoke: 1)")
    parser.add_argument("--steps", type=int, help="of each run, 2 at least; the first is not timed (SFT 8, GRPO 3)")
    parser.add_argument("--limit", type=float, default=480, help="seconds: no round begins that would end later")
    parser.add_argument("--output", type=Path, help="folder of the results (this one; smoke: none is written)")
    for name, value in FULL.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(option, action="store_true", default=None)
        elif name == "size":
            parser.add_argument(option, choices=("3b", "tiny"))
        else:
            parser.add_argument(option, type=type(value), help=f"default {value}; smoke {SMOKE[name]}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps is not None and args.steps < 2:
        parser.error("--steps: 2 at least, because the first is not timed")
    return args


def alone(told: str) -> None:
    """In a contender's process."""
    import contenders

    wanted = json.loads(told)
    with tempfile.TemporaryDirectory() as folder:
        figures = contenders.measure(wanted["who"], contenders.Work(**wanted["work"]), Path(folder))
    print(json.dumps(figures))


def main() -> int:
    """Measure in turn. 1: a contender failed."""
    args = parsed()
    if args.one:
        alone(args.one)
        return 0
    settings = {**(SMOKE if args.smoke else FULL)}
    settings |= {name: getattr(args, name) for name in FULL if getattr(args, name) is not None}
    output = args.output or (None if args.smoke else HERE)
    kinds = [args.only] if args.only else list(KINDS)
    rounds = args.rounds or (1 if args.smoke else 3)
    facts: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/training/speed.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "settings": {**settings, "steps": {kind: args.steps or STEPS[kind] for kind in kinds}},
    }
    runs: dict[str, list[dict[str, Any]]] = {f"{kind} {who}": [] for kind in kinds for who in WHO}
    begun, longest, result = time.monotonic(), 0.0, {}
    for number in range(rounds):
        start = time.monotonic()
        for kind in kinds:
            work = {**settings, "steps": args.steps or STEPS[kind]}
            for who in WHO if number % 2 == 0 else WHO[::-1]:
                left = max(30.0, args.limit - (time.monotonic() - begun))
                runs[f"{kind} {who}"].append(one(kind, who, work, left))
            result = collected(runs, {**facts, "rounds": number + 1})
            write(result, output)  # at once: a run that is cut off leaves what it has
        longest = max(longest, time.monotonic() - start)
        if time.monotonic() - begun + longest > args.limit:
            break
    print(markdown(result))
    return int(any("error" in run for several in runs.values() for run in several))


if __name__ == "__main__":
    sys.exit(main())
