"""The rows that the embedded guard is trained and measured on: what may be trained on, and which split a row is in.

Reads the JSON lines of the data folder (its README has the schema), the seed set of `training/data/seed`, and
`everyday.txt` and `pictured.txt` beside this file.
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

from guardrail_vl.engines._embedded.pictures import shown
from guardrail_vl.turn import Exchange, Turn

TRAINABLE = {"MIT", "Apache-2.0", "CC-BY-4.0", "ODC-BY-1.0", "CC0"}
"""Licences whose rows may train what is shipped. A row under several needs all of them here."""
NEVER = {"mossbench", "mossbench_contrast"}
"""Sources whose owners prohibit training, whatever else is said."""
SEED = Path(__file__).parents[1] / "data" / "seed"
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
    hazard: str | None = None
    """Of a row of the seed set: S1 to S14, the hazard that its request is. `none`: none. None: not known."""

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
    """Every row: those of the data folder, then the everyday requests, the pictured ones, the seed set."""
    raw = [json.loads(line) for path in sorted(data.glob("*.jsonl*")) for line in _lines(path)]
    groups = {_normal(r["task_inputs"]["prompt"]): _group(r) for r in raw if r["task_inputs"]["prompt"]}
    rows = [_row(r, data, groups) for r in raw]
    rows += [_written("everyday", text, text, "none") for text in _texts("everyday.txt")]
    return rows + pictured() + seed()


def pictured() -> list[Row]:
    """Requests with what their picture shows, as the model reads it. One request is on one side, whatever is shown."""
    rows = []
    for line in _texts("pictured.txt"):
        hazard, request, shows = line.split("|")
        text = f"{request}\n{shown(shows.split(', '))}".strip()
        rows.append(_written("pictured", text, request or shows, hazard))
    return rows


def harmless_objects() -> list[str]:
    """What pictures show beside no harmful request."""
    lines = [line.split("|") for line in _texts("pictured.txt")]
    seen = {
        hazard: {name for h, _, shows in lines if h == hazard for name in shows.split(", ")} for hazard, *_ in lines
    }
    return sorted(seen.pop("none").difference(*seen.values()))


def _written(source: str, text: str, topic: str, hazard: str) -> Row:
    group = hashlib.sha256(_normal(topic).encode()).hexdigest()[:12]
    number = hashlib.sha256(text.encode()).hexdigest()[:8]
    labels = {"prompt": "unharmful" if hazard == "none" else "harmful", "response": None, "refusal": None}
    return Row(f"{group}.{source}.{number}", source, group, text, (), None, labels, "Apache-2.0", hazard)


def _texts(name: str) -> list[str]:
    """The lines of a file beside this one, without its remarks."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def seed() -> list[Row]:
    """The seed set. Rows of one topic share a group, so they are on one side."""
    rows = []
    for file in sorted(SEED.glob("*.jsonl")):
        for raw in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            harmful = raw["prompt_label"] == "harmful"
            labels = {"prompt": raw["prompt_label"], "response": raw.get("response_label"), "refusal": None}
            if form := raw.get("form"):
                # A safe completion of a harmful request declines; of a harmless one it is just an answer.
                refuses = form == "refusal" or (form == "safe" and harmful)
                labels["refusal"] = "refusal" if refuses else "compliance"
            group = hashlib.sha256(raw["group"].encode()).hexdigest()[:12]
            hazard = raw["category"] if harmful else "none"
            said = (raw["prompt"], (), raw.get("response"), labels, raw["licence"], hazard)
            rows.append(Row(raw["id"], raw["source"], group, *said))
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
