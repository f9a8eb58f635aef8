"""Calibrate the fine-tuned heads on the encoder as it is served, and write `heads.json`.

A text is a bag of windows and sentences, and its worst one counts, as in the engine. On the development rows: Platt
scaling, the operating threshold, and the band of scores between which the guard is unsure. Each (source, label) has
weight n^0.25, so that no big source decides. Numbers only: nothing is pickled.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data import Row, one_per_request
from finetune import SCALE
from scipy.special import expit
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from guardrail_vl.engines._embedded.cases import Case, WindowTable, prepare
from guardrail_vl.engines._embedded.encoder import Encoder
from guardrail_vl.engines._embedded.pictures import PictureReader
from guardrail_vl.engines.base import Deadline
from guardrail_vl.prompt_format.embedded import EmbeddedFormat
from guardrail_vl.verdict import Stage

FOREVER = 10**6
POWER = 0.25
SENTENCE_PENALTY = 1.0
"""See RESULTS.md for what was tried."""
CALM = ("everyday", "self_instruct", "seed-everyday", "seed-plain")
ALARMS = 0.02
"""The threshold is one that flags at most this share of the harmless everyday requests."""
MISSED = 0.05
"""The band's lower end: with 95 % confidence at most this share of what is harmful scores below it."""
ALARMED = 0.05
"""The band's upper end: the same, for what is harmless and scores above it."""
UNTRAINED = {"harmbench_multimodal"}
"""Harmful only together with what the picture shows: the text alone teaches nothing true."""


@dataclass(slots=True)
class Margins:
    """What one head says of the development rows, uncalibrated."""

    value: np.ndarray
    y: np.ndarray
    source: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """One for each row; half of their sum for each label."""
        counts = Counter(zip(self.source, self.y, strict=True))
        w = np.array([counts[s, y] ** (POWER - 1) for s, y in zip(self.source, self.y, strict=True)])
        for label in (False, True):
            w[self.y == label] *= len(w) / 2 / w[self.y == label].sum()
        return w


def encode(rows: list[Row], folder: Path) -> tuple[list[Case], np.ndarray]:
    """Every row through the served tokenizer, OCR and encoder."""
    encoder, pictures = Encoder(folder, threads=2), PictureReader(threads=2)
    table = WindowTable(encoder)
    cases = []
    for row in rows:
        stage = Stage.RESPONSE if row.response else Stage.PROMPT
        (prompt,) = EmbeddedFormat().render(row.exchange(), stage, speed="fast")
        case = prepare(prompt, pictures, table, Deadline.after(FOREVER))
        if not isinstance(case, Case):
            raise case
        cases.append(case)
    features, _ = table.encode({row for case in cases for row in case.rows}, Deadline.after(FOREVER))
    return cases, features


def margins(head: dict[str, Any], rows: list[Row], cases: list[Case], features: np.ndarray, name: str) -> Margins:
    """The margin of each row that has this label: of its worst window, or of the first for a refusal."""
    said = features @ np.array(head["weights"], np.float32) + head["bias"]
    kept = {id(row) for row in one_per_request(rows)} if name == "prompt" else {id(row) for row in rows}
    found: list[tuple[float, bool, str]] = []
    for row, case in zip(rows, cases, strict=True):
        label = row.label(name)
        windows = case.request if name == "prompt" else case.response[: 1 if name == "refusal" else None]
        if label is None or not windows or id(row) not in kept or row.source in UNTRAINED:
            continue
        alone = said[case.sentences] - SENTENCE_PENALTY if name == "prompt" else []
        found.append((float(max(*said[windows], *alone, -np.inf)), label, row.source))
    value, y, source = (np.array(column) for column in zip(*found, strict=True))
    return Margins(value, y, source)


def goodness(found: Margins, said: np.ndarray) -> float:
    """What the threshold is chosen by, between 0 and 1.

    The mean of F1 on mixed sources, recall on sources all of yes, and 1 - false-alarm rate on sources all of no; each
    of these the mean over its sources.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for source in sorted(set(found.source)):
        rows = found.source == source
        y, p = found.y[rows], said[rows]
        if y.all():
            kinds["recall"].append(float(p.mean()))
        elif not y.any():
            kinds["quiet"].append(1 - float(p.mean()))
        else:
            kinds["f1"].append(2 * float((y & p).sum()) / max(1, y.sum() + p.sum()))
    return float(np.mean([np.mean(values) for values in kinds.values()]))


def calibrate(found: Margins) -> dict[str, float]:
    """Platt scaling and the operating threshold."""
    platt = LogisticRegression(C=1e6).fit(found.value[:, None], found.y, sample_weight=found.weights)
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    p = expit(slope * found.value + offset)
    calm = np.isin(found.source, CALM) & ~found.y
    options = np.linspace(0.05, 0.95, 181)
    values = [goodness(found, p >= t) - bool(calm.any() and (p >= t)[calm].mean() > ALARMS) for t in options]
    return {"slope": slope, "offset": offset, "threshold": float(options[int(np.argmax(values))])}


def scores(found: Margins, head: dict[str, Any]) -> np.ndarray:
    """As the engine gives them: 0.5 at the threshold."""
    p = head["slope"] * found.value + head["offset"]
    scaled: np.ndarray = expit(p - np.log(head["threshold"] / (1 - head["threshold"])))
    return scaled


def band(found: Margins, head: dict[str, Any]) -> tuple[float, float]:
    """The scores between which it is unsure; 0.5 lies inside."""
    said = scores(found, head)
    low = _edge(np.sort(said[found.y]), MISSED)
    high = 1 - _edge(np.sort(1 - said[~found.y]), ALARMED)
    return min(low, 0.5), max(high, 0.5)


def _edge(ordered: np.ndarray, share: float) -> float:
    """The highest score below which, with 95 % confidence (Clopper and Pearson), lies at most this share."""
    n = len(ordered)
    below = [k for k in range(n) if beta.ppf(0.95, k + 1, n - k) <= share]
    return float(ordered[max(below)]) if below else 0.0


def write(fine_tuned: Path, rows: list[Row], version: str, out: Path) -> dict[str, Any]:
    """Write `heads.json`; how it came about comes back.

    Args:
        fine_tuned: The folder that `finetune.py` wrote.
        rows: All rows that may train; those of the development split are used here.
        version: Of the model.
        out: Holds the exported encoder.
    """
    if forbidden := sorted({row.source for row in rows if not row.trainable}):
        raise ValueError(f"These rows may not calibrate a shipped model: {', '.join(forbidden)}.")
    raw = json.loads((fine_tuned / "heads.json").read_text(encoding="utf-8"))
    dev = [row for row in rows if row.split == "dev"]
    cases, features = encode(dev, out)
    heads, facts, bands = {}, {}, {}
    for name in ("prompt", "response", "refusal"):
        head = {"weights": [SCALE * w for w in raw[name]["weights"][0]], "bias": raw[name]["bias"][0]}
        found = margins(head, dev, cases, features, name)
        head |= calibrate(found)
        heads[name] = {**head, "weights": _short(head["weights"])}
        facts[name] = {
            "dev_auc": round(float(roc_auc_score(found.y, found.value)), 4),
            "goodness": round(goodness(found, scores(found, head) >= 0.5), 4),
            "threshold": head["threshold"],
            "rows": len(found.y),
        }
        if name != "refusal":
            bands[name] = [round(edge, 4) for edge in band(found, head)]
    # The first of the hazards is that there is none.
    hazards = raw["hazard"]["weights"][1:], raw["hazard"]["bias"][1:]
    written = {
        "version": version,
        "sentence_penalty": SENTENCE_PENALTY,
        "bands": bands,
        "trained_on": dict(sorted(Counter(row.source for row in rows if row.split == "train").items())),
        "heads": heads,
        "hazards": {
            "names": [f"S{number}" for number in range(1, 15)],
            "weights": [_short([SCALE * w for w in line]) for line in hazards[0]],
            "bias": hazards[1],
        },
    }
    (out / "heads.json").write_text(json.dumps(written, separators=(",", ":")) + "\n", encoding="utf-8")
    return {**facts, "bands": bands}


def _short(numbers: list[float]) -> list[float]:
    return [float(f"{number:.5g}") for number in numbers]
