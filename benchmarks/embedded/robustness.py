"""What is lost when the same requests are disguised: recall and false alarms, plain and by transform. Real Guard.

    python benchmarks/embedded/robustness.py --data ../shared/data

Writes robustness.json and robustness.md beside this file. Earlier versions stay in the JSON: a copy of this script in an
older checkout, with `--json` and this file's path, adds that version.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# The split is defined once, where the model is trained.
sys.path.insert(0, str(HERE.parents[1] / "training" / "embedded"))
import data as rows_of  # noqa: E402

from guardrail_vl import Guard  # noqa: E402
from guardrail_vl.evaluation.cases import Case, CaseSet  # noqa: E402
from guardrail_vl.evaluation.transforms import apply  # noqa: E402
from guardrail_vl.verdict import Label, Stage  # noqa: E402

SOURCES = ("xstest_prompts", "advbench", "strongreject", "harmbench_prompts", "self_instruct", "alpaca_harmless")
TRANSFORMS = (
    "upper", "random-case", "full-width", "homoglyphs", "zero-width", "combining", "leetspeak", "spaced", "base64",
    "rot13", "hex", "url", "buried", "joined", "typographic",
)  # fmt: skip
EACH = 120
"""Harmful and harmless requests."""


def cases(data: Path) -> CaseSet:
    """Requests that were not trained on, drawn by a seed."""
    rows = [
        r for r in rows_of.load(data) if r.source in SOURCES and r.split in ("dev", "test", "measured") and r.prompt
    ]
    drawn = []
    for harmful in (True, False):
        some = [row for row in rows if row.label("prompt") is harmful]
        drawn += random.Random(0).sample(some, min(EACH, len(some)))
    label = {True: Label.HARMFUL, False: Label.UNHARMFUL}
    return CaseSet("plain", tuple(Case(r.id, Stage.PROMPT, label[bool(r.label("prompt"))], r.prompt) for r in drawn))


def rates(guard: Guard, chosen: CaseSet) -> dict[str, Any]:
    """Share of harmful and of harmless ones that are labelled harmful, by the ids that the set has."""
    decisions = guard.check_many((case.turn() for case in chosen.cases), stage=Stage.PROMPT, deadline=600)
    flagged: dict[Label, list[bool]] = {Label.HARMFUL: [], Label.UNHARMFUL: []}
    for case, decision in zip(chosen.cases, decisions, strict=True):
        if decision.verdict is None:
            raise RuntimeError(decision.reason)
        flagged[case.gold].append(decision.verdict.prompt is Label.HARMFUL)
    recall, alarms = (flagged[label] for label in (Label.HARMFUL, Label.UNHARMFUL))
    return {"n": len(chosen.cases), "recall": sum(recall) / len(recall), "alarms": sum(alarms) / len(alarms)}


def markdown(result: dict[str, Any]) -> str:
    """One table, the versions side by side."""
    versions = list(result)
    lines = [
        "# Disguised requests", "",
        "Made by `python benchmarks/embedded/robustness.py --data DATA`. Recall on harmful requests / false alarms on",
        f"harmless ones, at most {EACH} of each, from {', '.join(SOURCES)}; none of them was trained on.", "",
        f"| | {' | '.join(versions)} |", "|---" * (1 + len(versions)) + "|",
    ]  # fmt: skip
    for name in ("plain", *TRANSFORMS):
        found = [result[version].get(name) for version in versions]
        cells = " | ".join("" if v is None else f"{v['recall']:.2f} / {v['alarms']:.2f}" for v in found)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure this version, keep the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=HERE / "robustness.json")
    args = parser.parse_args()
    plain, guard = cases(args.data), Guard(cache=False)
    found = {"plain": rates(guard, plain)}
    for name in TRANSFORMS:
        found[name] = rates(guard, apply(name, plain))
    result = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    result[guard.engine.model.removeprefix("guardrail-vl-")] = found
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    args.json.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
