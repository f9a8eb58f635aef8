"""Whether the seed set is sound: rows, labels, repeats, and leaks from the benchmarks that it is measured with.

    python training/data/seed/check.py [--data ../shared/data]

Without `--data` it checks the set alone. A row repeats another, or a benchmark's, if its words are the same, or if
most of its runs of four words are. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from guardrail_vl.training import dataset
from guardrail_vl.training.turns import LabeledTurn

HERE = Path(__file__).parent
CATEGORIES = frozenset({f"S{number}" for number in range(1, 15)} | {"none"})
FORMS = frozenset({"refusal", "safe", "partial", "full"})
RUN = 4
"""Words of a run."""
FEWEST = 3
"""Runs that a row has to have to be compared by them: "How do I do this?" is nobody's."""
NEAR = 0.6
"""The share of a row's runs that stand in another row, from which on the two count as the same."""


def main() -> int:
    """Print what is wrong and what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of benchmarks")
    args = parser.parse_args()
    rows = list(read())
    turns = [turn for file in files() for turn in dataset.read(file)]
    wrong = [*malformed(rows), *contradictions(turns), *repeats(turns)]
    if args.data is not None:
        wrong += leaks(turns, args.data)
    for one in wrong:
        print(one)
    print(json.dumps(counts(rows), indent=1))
    return bool(wrong)


def files() -> list[Path]:
    """The parts of the set."""
    return sorted(HERE.glob("*.jsonl"))


def read() -> Iterator[dict[str, str]]:
    """Every row, as it stands in its file."""
    for file in files():
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def malformed(rows: Iterable[dict[str, str]]) -> Iterator[str]:
    """Rows that say something the set has no word for."""
    ids: set[str] = set()
    for row in rows:
        if row["id"] in ids:
            yield f"{row['id']}: the id is there twice"
        ids.add(row["id"])
        if row["category"] not in CATEGORIES:
            yield f"{row['id']}: there is no category {row['category']!r}"
        if row["category"] == "none" and row["prompt_label"] == "harmful":
            yield f"{row['id']}: harmful, and of no category"
        if ("response" in row) != (row.get("form") in FORMS):
            yield f"{row['id']}: a response and its form go together"
        if row.get("form") == "refusal" and row["response_label"] == "harmful":
            yield f"{row['id']}: a refusal that is harmful"


def contradictions(turns: Iterable[LabeledTurn]) -> Iterator[str]:
    """One request with two labels."""
    labels: dict[str, LabeledTurn] = {}
    for turn in turns:
        first = labels.setdefault(" ".join(_words(turn.prompt)), turn)
        if first.prompt_label is not turn.prompt_label:
            yield f"{turn.id}: the request of {first.id} has another label"


def repeats(turns: list[LabeledTurn]) -> Iterator[str]:
    """Requests of unlike groups that say the same; the same exchange twice."""
    seen: dict[tuple[str, str], str] = {}
    for turn in turns:
        key = (" ".join(_words(turn.prompt)), " ".join(_words(turn.response)))
        if key in seen:
            yield f"{turn.id}: repeats {seen[key]}"
        seen.setdefault(key, turn.id)
    for one, other in _near(turns, turns):
        if one.group != other.group:
            yield f"{one.id}: nearly repeats {other.id}"


def leaks(turns: list[LabeledTurn], data: Path) -> Iterator[str]:
    """Rows that a benchmark has too."""
    others = []
    for file in sorted(data.glob("*.jsonl*")):
        others += [turn for turn in dataset.read(file, layout="shared") if turn.prompt]
    for leak in dataset.leaks(others, turns):
        yield f"{leak.test}: is in a benchmark, as {leak.train}"
    for one, other in _near(turns, others):
        yield f"{one.id}: is nearly in a benchmark, as {other.id}"


def _near(turns: Iterable[LabeledTurn], others: Iterable[LabeledTurn]) -> Iterator[tuple[LabeledTurn, LabeledTurn]]:
    index: defaultdict[tuple[str, ...], list[LabeledTurn]] = defaultdict(list)
    for other in others:
        for run in _runs(other):
            index[run].append(other)
    for turn in turns:
        runs = _runs(turn)
        met = [other for run in runs for other in index[run] if other.id > turn.id or other.source != turn.source]
        hits = Counter(other.id for other in met)
        by = {other.id: other for other in met}
        for id, count in hits.items():
            shorter = min(len(runs), len(_runs(by[id])))
            if shorter >= FEWEST and count / shorter > NEAR:
                yield turn, by[id]


def _runs(turn: LabeledTurn) -> frozenset[tuple[str, ...]]:
    words = _words(turn.prompt)
    return frozenset(zip(*(words[start:] for start in range(RUN)), strict=False))


def _words(text: str | None) -> list[str]:
    return re.sub(r"\W+", " ", (text or "").lower()).split()


def counts(rows: list[dict[str, str]]) -> dict[str, object]:
    """What there is."""
    told: dict[str, object] = {"turns": len(rows), "requests": len({" ".join(_words(row["prompt"])) for row in rows})}
    for name in ("prompt_label", "response_label", "form", "language", "technique"):
        told[name] = dict(Counter(row[name] for row in rows if name in row).most_common())
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        table[row["category"]][row["prompt_label"]] += 1
    told["category"] = {name: dict(table[name]) for name in sorted(table, key=lambda c: (len(c), c))}
    return told


if __name__ == "__main__":
    sys.exit(main())
