"""Turns for the real-data run: from the data folder, those whose licence lets a shipped model be trained on them.

    python training/real/prepare.py --data ../shared/data --out FOLDER

Writes `train.jsonl`, `held_out.jsonl` and `counts.json`. A request goes where the embedded guard's split has it
(training/embedded/data.py), so that both are measured on requests that neither saw. Texts only, and short ones: the
model that is trained reads no pictures, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

from guardrail_vl.training.dataset import write
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

sys.path.insert(0, str(Path(__file__).parents[1] / "embedded"))
import data as embedded

LONGEST = 700
"""Characters of a request and its response together."""
SOURCES = {
    "harmfulqa": 150, "catqa": 100, "advbench": 120, "strongreject": 80, "harmbench_prompts": 100,
    "simple_safety_tests": 40, "aegis_safety_test": 180, "openai_moderation": 500, "xstest_prompts": 210,
    "xstest_response": 210, "jbb_artifacts": 150, "mitre_frr": 150, "self_instruct": 210, "gsm8k": 60, "everyday": 180,
}  # fmt: skip
"""Turns of each source to train on, at most: none of them drowns the others."""


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sides: dict[str, dict[str, list[LabeledTurn]]] = {"train": defaultdict(list), "test": defaultdict(list)}
    for row in embedded.load(args.data):
        if row.source in SOURCES and row.split in sides and not row.images and (turn := _turn(row)) is not None:
            sides[row.split][row.source].append(turn)
    chance = random.Random(0)
    train = [
        turn for name, turns in sides["train"].items() for turn in chance.sample(turns, min(len(turns), SOURCES[name]))
    ]
    chance.shuffle(train)
    held_out = [turn for turns in sides["test"].values() for turn in turns]
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "train.jsonl", train)
    write(args.out / "held_out.jsonl", held_out)
    counts = {name: _counts(turns) for name, turns in (("train", train), ("held_out", held_out))}
    (args.out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def _turn(row: embedded.Row) -> LabeledTurn | None:
    request, response = row.labels["prompt"], row.labels["response"]
    # A target holds both labels, so a response whose label isn't known is left out.
    answer = row.response if response else None
    if not row.prompt or not request or len(row.prompt) + len(answer or "") > LONGEST:
        return None
    return LabeledTurn(
        id=row.id,
        prompt=row.prompt,
        response=answer,
        prompt_label=Label(request),
        response_label=Label(response) if answer and response else None,
        source=row.source,
        group=row.group,
        licence=row.license,
    )


def _counts(turns: list[LabeledTurn]) -> dict[str, dict[str, int]]:
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns:
        found[turn.source][f"prompt {turn.prompt_label}"] += 1
        if turn.response_label:
            found[turn.source][f"response {turn.response_label}"] += 1
    return {name: dict(count) for name, count in sorted(found.items())}


if __name__ == "__main__":
    main()
