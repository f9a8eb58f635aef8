"""The table of docs/evaluation/results.md, from a run of `guardrail-vl eval run … --baseline …`: see README.md here.

    python benchmarks/evaluation/table.py RUN

Writes results.json and results.md beside this file. Every number in them is worked out from the run's records.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardrail_vl.evaluation import averages, metrics
from guardrail_vl.evaluation.benchmarks import BENCHMARKS
from guardrail_vl.evaluation.metrics import Interval
from guardrail_vl.evaluation.running import Run
from guardrail_vl.verdict import Stage

HERE = Path(__file__).parent
COMMAND = """\
guardrail-vl eval run --data DATA --seen training/embedded/seen.txt --out RUN \\
  --baseline constant-harmful --baseline keywords --baseline alt-profanity-check
python benchmarks/evaluation/table.py RUN"""
GUARD = "embedded"
SHORT = {"constant-harmful": "constant", "keywords": "keywords", "alt-profanity-check": "profanity"}
"""Names of the columns."""
FIRST = ("f1", "recall", "fpr")
RATES = (*FIRST, "precision", "auprc", "auroc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--remark", default="", help="on the latencies: what else the machine did")
    args = parser.parse_args()
    folder = args.run
    runs = {GUARD: Run.load(folder), **{name: Run.load(folder / "baselines" / name) for name in SHORT}}
    found = {"remark": args.remark, **measured(runs)}
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "results.md").write_text(as_markdown(found), encoding="utf-8")


def measured(runs: Mapping[str, Run]) -> dict[str, Any]:
    first = runs[GUARD]
    whole = {one.name: one.size for one in BENCHMARKS}
    rows = []
    for name in first.sets:
        scores = {run: metrics.scores(r for r in one.records if r.set == name) for run, one in runs.items()}
        own = scores[GUARD]
        stage = next(str(r.stage) for r in first.records if r.set == name)
        rows.append(
            {
                "set": name,
                "task": stage,
                "hash": first.sets[name].hash,
                "n": own.n,
                "of": whole[name],
                "harmful": own.harmful,
                "no_label": own.missing.count,
                "p50_ms": None if own.latency.p50 is None else round(1000 * own.latency.p50, 2),
                "p95_ms": None if own.latency.p95 is None else round(1000 * own.latency.p95, 2),
                "scores": {run: told(one) for run, one in scores.items()},
            }
        )
    return {"runs": {name: json.loads(run.cohort.to_json()) for name, run in runs.items()}, "sets": rows}


def told(scores: metrics.Scores) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rate in RATES:
        value = getattr(scores, rate)
        found[rate] = None if value is None else round(100 * value, 4)
        if isinstance(interval := getattr(scores, f"{rate}_interval", None), Interval):
            found[f"{rate}_interval"] = [round(100 * interval.low, 4), round(100 * interval.high, 4)]
    return found


def as_markdown(found: dict[str, Any]) -> str:
    cohort = found["runs"][GUARD]
    lines = [
        "# The embedded guard on every set",
        "",
        "Every set of this project's data folder, without the samples whose requests the guard was trained or calibrated on",
        "(`seen.txt` lists their hashes), beside three baselines. In %; in brackets the 95 % interval. By",
        "",
        "```bash",
        COMMAND,
        "```",
        "",
        f"{cohort['model']}, version {cohort['version']}, {cohort['machine']}. *of*: samples of the set, with those that "
        "were left out. *no label*: the guard said that it could not judge all of the sample, which counts as not flagged; "
        "of pictures it reads the text and the main object, and says so each time. *p50*: median milliseconds of a sample "
        f"alone{found['remark'] and ', ' + found['remark']}. "
        "*constant*: always harmful. *keywords*: a list of 100 words. *profanity*: alt-profanity-check.",
        "",
        "**Read F1 and FPR together.** Always saying *harmful* has a high F1 on sets that are mostly harmful, at an FPR of "
        "100. Where all samples are harmful or all harmless, there is no F1 here, and such a set is not in the average of F1.",
    ]
    for stage in Stage:
        rows = [row for row in found["sets"] if row["task"] == stage]
        lines += ["", f"## {str(stage).capitalize()}s", ""]
        lines += ["| set | n | of | harmful | F1 | recall | FPR | AUPRC | no label | p50 |"]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        lines += [_own(row) for row in rows]
        lines += ["", f"The same {stage}s, F1 / recall / FPR of the baselines:", ""]
        lines += [f"| set | embedded | {' | '.join(SHORT.values())} |", "|---|---|---|---|---|"]
        lines += [f"| `{row['set']}` | {' | '.join(_pair(row, run) for run in (GUARD, *SHORT))} |" for row in rows]
        lines += [f"| **all, weighted by samples** | {' | '.join(_average(rows, run) for run in (GUARD, *SHORT))} |"]
    return "\n".join(lines) + "\n"


def _own(row: dict[str, Any]) -> str:
    scores = row["scores"][GUARD]
    mixed = 0 < row["harmful"] < row["n"]
    cells = [f"`{row['set']}`", row["n"], row["of"], row["harmful"]]
    cells += [_with_interval(scores, rate) if mixed or rate != "f1" else "" for rate in FIRST]
    cells += [_number(scores["auprc"]), row["no_label"], _number(row["p50_ms"])]
    return f"| {' | '.join(map(str, cells))} |"


def _with_interval(scores: dict[str, Any], rate: str) -> str:
    if scores[rate] is None:
        return ""
    low, high = scores[f"{rate}_interval"]
    return f"{scores[rate]:.1f} [{low:.1f}, {high:.1f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _pair(row: dict[str, Any], run: str) -> str:
    scores = row["scores"][run]
    mixed = 0 < row["harmful"] < row["n"]
    f1 = scores["f1"] if mixed else None
    return " / ".join(_number(value) or "–" for value in (f1, scores["recall"], scores["fpr"]))


def _average(rows: list[dict[str, Any]], run: str) -> str:
    """F1 over the sets that have both labels, recall over those with harmful, FPR over those with harmless samples."""
    mixed = [(row["scores"][run]["f1"], row["n"]) for row in rows if 0 < row["harmful"] < row["n"]]
    harmless = [(row["scores"][run]["fpr"], row["n"]) for row in rows if row["harmful"] < row["n"]]
    harmful = [(row["scores"][run]["recall"], row["n"]) for row in rows if row["harmful"]]
    return " / ".join(f"{averages.weighted(one):.1f}" for one in (mixed, harmful, harmless))


if __name__ == "__main__":
    main()
