"""Files written for the tests of the readers, and what they share. Knows no test."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.benchmarks import BENCHMARKS
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.evaluation.readers import read
from guardrail_vl.verdict import Label

LAYOUTS = Path(__file__).parent / "data" / "layouts"
BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}
H, U = Label.HARMFUL, Label.UNHARMFUL
SECRET = "the quick brown fox told nobody"
"""Stands in a row, and in no message."""

Row = dict[str, Any]


def golds(cases: CaseSet) -> list[Label | None]:
    return [case.gold for case in cases.cases]


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: list[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def refused(path: Path, name: str, match: str, **options: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError, match=match) as caught:
        read(BY_NAME[name], path, **options)
    assert SECRET not in str(caught.value)
    return caught.value
