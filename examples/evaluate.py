"""Measure a guard on labelled samples of your own, beside a list of words, and write a report.

Needs: pip install 'guardrail-vl[embedded,evaluation]'
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from guardrail_vl import Guard
from guardrail_vl.evaluation import baselines, metrics, report
from guardrail_vl.evaluation.readers import read_own
from guardrail_vl.evaluation.running import run
from guardrail_vl.evaluation.transforms import apply

HERE = Path(__file__).parent


def main() -> None:
    """Judge `samples.jsonl` plain and in leetspeak with two guards."""
    plain, _ = read_own(HERE / "samples.jsonl")
    sets = [plain, apply("leetspeak", plain)]
    folder = Path(tempfile.mkdtemp())
    # A run that was stopped goes on where it was: the folder is the memory.
    runs = [
        run(Guard(), sets, folder / "embedded"),
        run(Guard(engine=baselines.keywords()), sets, folder / "keywords"),
    ]
    print("guard                      set                 F1     FPR")
    for one in runs:
        for name, scores in metrics.by(one.records, "set").items():
            print(f"{one.cohort.model:26} {name:18} {scores.f1:5.2f}   {scores.fpr:5.2f}")
    print(report.write(runs, folder / "report", cases=sets).name, "is written")


if __name__ == "__main__":
    main()
