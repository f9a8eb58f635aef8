"""The rows that the embedded guard is trained and measured on: what may be trained on, and which split a row is in.

Reads the JSON lines of the data folder (its README has the schema) and `everyday.txt` beside this file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail_vl.turn import Exchange, Turn

TRAINABLE = {"MIT", "Apache-2.0", "CC-BY-4.0", "ODC-BY-1.0", "CC0"}
"""Licences whose rows may train what is shipped. A row under several needs all of them here."""
NEVER = {"mossbench", "mossbench_contrast"}
"""Sources whose owners prohibit training, whatever else is said."""
SHARES = (0.70, 0.15, 0.15)
"""Train, dev, test: by a hash of the group, so that one request is on one side, whichever sources carry it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample."""

    id: str
    source: str
    group: str
    """Hash of the normalised request; a rendered text has the group of the text."""
    prompt: str | None
    images: tuple[Path, ...]
    response: str | None
    labels: dict[str, str | None]
    license: str

    @property
    def trainable(self) -> bool:
        """Whether a shipped model may be trained on it."""
        return self.source not in NEVER and all(part.strip() in TRAINABLE for part in self.license.split(","))

    @property
    def split(self) -> str:
        """`train`, `dev` or `test`; `measured` for what may not be trained on, none of which is ever seen before."""
        if not self.trainable:
            return "measured"
        place = int(hashlib.sha256(f"guardrail-vl/{self.group}".encode()).hexdigest()[:8], 16) / 2**32
        return "train" if place < SHARES[0] else "dev" if place < SHARES[0] + SHARES[1] else "test"

    def label(self, head: str) -> bool | None:
        """Yes, no or unknown, for the heads `prompt`, `response` and `refusal`."""
        value = self.labels[head]
        return None if value is None else value in ("harmful", "refusal")

    def exchange(self) -> Exchange:
        """The row as the guard gets it."""
        return Turn.from_prompt(self.prompt, images=self.images, response=self.response).exchanges()[-1]


def load(data: Path) -> list[Row]:
    """Every row: those of the data folder, then the everyday requests."""
    raw = [json.loads(line) for path in sorted(data.glob("*.jsonl*")) for line in _lines(path)]
    groups = {_normal(r["task_inputs"]["prompt"]): _group(r) for r in raw if r["task_inputs"]["prompt"]}
    rows = [_row(r, data, groups) for r in raw]
    everyday = Path(__file__).with_name("everyday.txt").read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(everyday):
        group = hashlib.sha256(_normal(text).encode()).hexdigest()[:12]
        labels = {"prompt": "unharmful", "response": None, "refusal": None}
        rows.append(Row(f"{group}.everyday.{number:05}", "everyday", group, text, (), None, labels, "Apache-2.0"))
    return rows


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from file


def _row(raw: dict[str, Any], data: Path, groups: dict[str, str]) -> Row:
    inputs = raw["task_inputs"]
    group = _group(raw)
    if raw["source"] == "typographic_benign":
        # The picture of a text goes where the text goes.
        rendered = re.sub(r"^rendered from [^:]*: ", "", raw["category"])
        group = groups.get(_normal(rendered), group)
    return Row(
        id=raw["id"],
        source=raw["source"],
        group=group,
        prompt=inputs["prompt"],
        images=tuple(data / name for name in inputs["images"]),
        response=inputs["response"],
        labels=raw["labels"],
        license=raw["license"],
    )


def _group(raw: dict[str, Any]) -> str:
    return str(raw["id"]).split(".")[0]


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def one_per_request(rows: list[Row]) -> list[Row]:
    """Rows without those whose request another row of the same kind carries already: XSTest's answers repeat it."""
    repeated = {"xstest_completions", "xstest_response", "harmbench_multimodal_responses"}
    return [row for row in rows if row.source not in repeated]
