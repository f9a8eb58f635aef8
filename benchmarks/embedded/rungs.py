"""Small reasoning guards, and cascades, beside the embedded guard: what they get right, what is asked twice, what it costs.

Requests of the dev split, at most some of each source. Writes rungs.json and rungs.md beside this file.

    python benchmarks/embedded/rungs.py --data ../shared/data SFT=run/3-sft/merged RL=run/model

Each NAME=FOLDER is a guard that `guardrail-vl train run training/recipes/reason-smollm2.yaml` wrote; the last one is the
second guard of the cascades.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from quality import HARD as MIXED
from quality import HERE, rates, rows_of

from guardrail_vl import Guard

HARMFUL = ("advbench", "harmfulqa", "strongreject")
HARMLESS = ("alpaca_harmless", "self_instruct")
MOST = {"toxic_chat": 200, "alpaca_harmless": 100, "openai_moderation": 100}
"""Rows of a source. Elsewhere 40."""
BANDS = {"calibrated": None, "wider": (0.04, 0.9), "wide": (0.02, 0.95)}
BATCH = 8


@dataclass(frozen=True, slots=True)
class Said:
    """What a guard said of one row."""

    row: rows_of.Row
    flagged: bool | None
    """None: no verdict."""
    score: float | None
    model: str


def chosen(folder: Path) -> list[rows_of.Row]:
    """Requests without pictures: dev where the source may be trained on, else any."""
    found = []
    everything = rows_of.load(folder)
    for source in (*MIXED, *HARMFUL, *HARMLESS):
        rows = [r for r in everything if r.source == source and r.split in ("dev", "measured") and not r.images]
        found += random.Random(0).sample(rows, min(len(rows), MOST.get(source, 40)))
    return found


def judge(guard: Guard, rows: Sequence[rows_of.Row]) -> tuple[list[Said], float]:
    """What it says of each, and seconds."""
    start = time.perf_counter()
    decisions = guard.check_many((row.prompt for row in rows), batch=BATCH, deadline=600)
    said = [
        Said(row, None, None, "")
        if decision.verdict is None or decision.verdict.prompt is None
        else Said(row, decision.verdict.prompt == "harmful", decision.verdict.score, decision.verdict.model or "")
        for row, decision in zip(rows, decisions, strict=True)
    ]
    return said, time.perf_counter() - start


def figures(said: Sequence[Said], seconds: float) -> dict[str, Any]:
    """F1, recall and false alarms, each the mean over its sources. A row without a verdict counts as wrong."""
    f1 = {source: _f1([s for s in said if s.row.source == source]) for source in MIXED}
    return {
        "n": len(said),
        "f1": f1,
        "macro": float(np.mean(list(f1.values()))),
        "recall": float(np.mean([_flagged(said, source) for source in HARMFUL])),
        "alarms": float(np.mean([_flagged(said, source) for source in HARMLESS])),
        "without": sum(s.flagged is None for s in said),
        "ms": 1000 * seconds / len(said),
    }


def _f1(said: Sequence[Said]) -> float:
    y = np.array([bool(s.row.label("prompt")) for s in said])
    p = np.array([not truth if s.flagged is None else s.flagged for truth, s in zip(y, said, strict=True)])
    f1 = rates(y, p)["f1"]
    assert f1 is not None, "a mixed source has both labels"
    return f1


def _flagged(said: Sequence[Said], source: str) -> float:
    return float(np.mean([s.flagged is True for s in said if s.row.source == source]))


def _unsure(one: Said, edges: tuple[float, float]) -> bool:
    return one.score is None or edges[0] <= one.score <= edges[1]


def _mixed(said: Sequence[Said], edges: tuple[float, float]) -> float:
    """The share of the mixed sources' rows in a band, each source counting the same."""
    found = [[_unsure(s, edges) for s in said if s.row.source == one] for one in MIXED]
    return float(np.mean([np.mean(rows) for rows in found]))


def asked_twice(said: Sequence[Said], first: str) -> dict[str, float]:
    """The share of rows that the second judged, by source; `mixed`: of mixed ones, each source counting the same."""
    shares = {
        source: float(np.mean([s.model != first for s in said if s.row.source == source]))
        for source in (*MIXED, *HARMFUL, *HARMLESS)
    }
    return {**shares, "mixed": float(np.mean([shares[source] for source in MIXED]))}


def sure_but_wrong(said: Sequence[Said], band: tuple[float, float]) -> dict[str, float]:
    """Of what the first guard alone says: harmful rows below the band, harmless ones above it."""
    scores = [(bool(s.row.label("prompt")), s.score) for s in said if s.row.source in MIXED and s.score is not None]
    low = [score < band[0] for harmful, score in scores if harmful]
    high = [score > band[1] for harmful, score in scores if not harmful]
    return {"missed": float(np.mean(low)), "alarms": float(np.mean(high))}


def guards(reasoning: dict[str, str]) -> Iterator[tuple[str, Guard]]:
    """Those that are measured."""
    yield "embedded", Guard(cache=False)
    for name, folder in reasoning.items():
        for speed in ("fast", "reason"):
            yield f"{name}, {speed}", Guard(folder, speed=speed, cache=False)
    second = Guard(list(reasoning.values())[-1], speed="reason", cache=False)
    yield "cascade of both", Guard(first=Guard(cache=False), then=second, cache=False)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("reasoning", nargs="+", metavar="NAME=FOLDER")
    args = parser.parse_args()
    rows = chosen(args.data)
    result: dict[str, Any] = {"guards": {}, "bands": {}}
    alone: list[Said] = []
    for name, guard in guards(dict(one.split("=", 1) for one in args.reasoning)):
        with guard:
            guard.check_prompt("Good morning!")  # what loads late, loads now
            said, seconds = judge(guard, rows)
            result["guards"][name] = figures(said, seconds)
            if name == "embedded":
                alone = said
                calibrated = guard.rungs[-1].engine.calibrated_band
            if name.startswith("cascade"):
                result["guards"][name]["twice"] = asked_twice(said, alone[0].model)
        print(name, result["guards"][name], flush=True)
    for name, band in BANDS.items():
        edges = tuple(band or calibrated["prompt"])
        perfect = [replace(s, flagged=bool(s.row.label("prompt"))) if _unsure(s, edges) else s for s in alone]
        result["bands"][name] = {
            "band": edges, "twice": _mixed(alone, edges), **sure_but_wrong(alone, edges), "perfect": figures(perfect, 0)["macro"],
        }  # fmt: skip
    (HERE / "rungs.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "rungs.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        "# A small reasoning guard, and cascades", "",
        f"Made by `python benchmarks/embedded/rungs.py --data DATA SFT=… RL=…`: {result['guards']['embedded']['n']} requests of the "
        f"dev split, in batches of {BATCH}.",
        "F1 by source and their mean; recall on harmful sources; false alarms on harmless ones; checks without a verdict",
        "(counted as wrong); share of the mixed sources' requests that the second guard was asked; milliseconds a check.", "",
        "| | XSTest | Aegis | OpenAI | ToxicChat | mean | recall | false alarms | no verdict | asked twice | ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in result["guards"].items():
        twice = f"{found['twice']['mixed']:.2f}" if "twice" in found else ""
        cells = [*(f"{found['f1'][s]:.3f}" for s in MIXED), f"{found['macro']:.3f}", f"{found['recall']:.3f}"]
        cells += [f"{found['alarms']:.3f}", str(found["without"]), twice, f"{found['ms']:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "", "What a band leaves to the first guard, on the mixed sources: the share that is asked twice, harmful requests below",
        "it (missed for good), harmless ones above it, and the mean F1 if the second guard were always right.", "",
        "| band | from | to | asked twice | missed | false alarms | mean F1 at best |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in result["bands"].items():
        low, high = found["band"]
        best = (found["twice"], found["missed"], found["alarms"], found["perfect"])
        lines.append(f"| {name} | {low:.2f} | {high:.2f} | {' | '.join(f'{value:.3f}' for value in best)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
