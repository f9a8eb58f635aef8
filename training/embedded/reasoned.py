"""Turns for the reasoning rung: the seed set's, those that have a rationale with it. See training/recipes.

    python training/embedded/reasoned.py --out FOLDER

Writes `train.jsonl` and `held_out.jsonl`, as `guardrail-vl train` reads them. The split is that of the embedded guard
(`data.py`). Rationales were written for this project, as the seed set was: training/data/rationales.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import data
from data import Row

from guardrail_vl.training.dataset import write
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

RATIONALES = data.SEED.parent / "rationales.jsonl"
LONGEST = 500
"""Characters of a request and its response together: it is trained on a CPU."""
PLAIN = 900
"""Turns without a rationale, at most."""
HELD_OUT = 600


def rationales() -> dict[str, str]:
    """By id of the turn."""
    lines = RATIONALES.read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["why"] for row in map(json.loads, lines)}


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    why = rationales()
    chance = random.Random(0)
    rows = [row for row in data.seed() if len(row.prompt or "") + len(row.response or "") <= LONGEST]
    told = [row for row in rows if row.split == "train" and row.id in why]
    plain = [row for row in rows if row.split == "train" and row.id not in why]
    train = [*told, *chance.sample(plain, min(PLAIN, len(plain)))]
    chance.shuffle(train)
    held_out = [row for row in rows if row.split == "test"]
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "train.jsonl", [_turn(row, why.get(row.id)) for row in train])
    write(args.out / "held_out.jsonl", [_turn(row, None) for row in chance.sample(held_out, HELD_OUT)])


def _turn(row: Row, reasoning: str | None) -> LabeledTurn:
    request, response = (Label(said) if (said := row.labels[name]) else None for name in ("prompt", "response"))
    return LabeledTurn(
        id=row.id,
        prompt=row.prompt or "",
        response=row.response,
        prompt_label=request,
        response_label=response,
        reasoning=reasoning,
        source=row.source,
        group=row.group,
        licence=row.license,
    )


if __name__ == "__main__":
    main()
