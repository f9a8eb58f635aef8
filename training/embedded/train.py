"""Fit the heads on the encoder's served vectors and write `heads.json`.

Logistic regression. A text longer than one window is a bag: of a harmful one the window that looks worst counts (found
by refitting), of a harmless one every window does. Sentences by themselves are scored, not fitted on. Each (source,
label) has weight n^0.25, and both labels the same in all, so that no big source decides. C by grouped cross-validation
on the training rows; Platt scaling and the operating threshold on the dev split. Numbers only: nothing is pickled.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data import Row, one_per_request
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from guardrail_vl.engines._embedded.cases import Case, WindowTable, prepare
from guardrail_vl.engines._embedded.encoder import Encoder
from guardrail_vl.engines._embedded.heads import pair_features, request_vector
from guardrail_vl.engines._embedded.pictures import PictureReader
from guardrail_vl.engines.base import Deadline
from guardrail_vl.prompt_format.embedded import EmbeddedFormat
from guardrail_vl.verdict import Stage

FOREVER = 10**6
GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
POWER = 0.25
SENTENCE_PENALTY = 1.0
"""See RESULTS.md for what was tried."""
ROUNDS = 3
"""Fits of each head: after each, the worst window of a harmful bag is chosen anew."""
ALONE = 0.25
"""Weight of a copy of each response without its request, so that a response alone can be judged."""
CALM = ("everyday", "self_instruct")
ALARMS = 0.06
"""The threshold is one that flags at most this share of the everyday requests on dev (5 of 94: see RESULTS.md)."""
UNTRAINED = {"harmbench_multimodal"}
"""Harmful only together with what the picture shows: the text alone teaches nothing true."""


@dataclass(slots=True)
class Bags:
    """Rows as bags of windows."""

    x: np.ndarray
    """Shape (windows, features)."""
    alone: np.ndarray
    """Whether each window is a sentence by itself: never fitted on, its margin reduced when the bag is scored."""
    bag: np.ndarray
    """Which bag each window is of."""
    y: np.ndarray
    source: np.ndarray
    group: np.ndarray
    split: np.ndarray

    def top(self, margins: np.ndarray) -> np.ndarray:
        """The highest margin of each bag."""
        best = np.full(len(self.y), -np.inf)
        np.maximum.at(best, self.bag, margins - SENTENCE_PENALTY * self.alone)
        return best


def encode(rows: list[Row]) -> tuple[list[Case], np.ndarray]:
    """Every row through the served tokenizer, OCR and encoder."""
    encoder, pictures = Encoder(threads=2), PictureReader(threads=2)
    table = WindowTable(encoder)
    cases = []
    for row in rows:
        stage = Stage.RESPONSE if row.response else Stage.PROMPT
        (prompt,) = EmbeddedFormat().render(row.exchange(), stage, speed="fast")
        case = prepare(prompt, pictures, table, Deadline.after(FOREVER))
        if not isinstance(case, Case):
            raise case
        cases.append(case)
    features, _ = table.encode((row for case in cases for row in case.rows), Deadline.after(FOREVER))
    return cases, features


def prompt_bags(rows: list[Row], cases: list[Case], features: np.ndarray) -> Bags:
    """Requests: one bag each."""
    kept = {id(row) for row in one_per_request(rows)}
    items = [
        (row, features[case.request], features[case.sentences])
        for row, case in zip(rows, cases, strict=True)
        if id(row) in kept and row.label("prompt") is not None and case.request and row.source not in UNTRAINED
    ]
    return _bags(items, "prompt")


def pair_bags(rows: list[Row], cases: list[Case], features: np.ndarray, head: str) -> Bags:
    """Responses beside their requests. The refusal head sees the first window only."""
    items = []
    for row, case in zip(rows, cases, strict=True):
        if row.label(head) is None or not case.response:
            continue
        chosen = features[case.response[:1] if head == "refusal" else case.response]
        items.append((row, pair_features(request_vector(features[case.whole]), chosen), None))
    return _bags(items, head)


def _bags(items: list[tuple[Row, np.ndarray, np.ndarray | None]], head: str) -> Bags:
    parts, alone, bag = [], [], []
    for number, (_, windows, sentences) in enumerate(items):
        for x, is_alone in ((windows, False), (sentences, True)):
            if x is not None and len(x):
                parts.append(x)
                alone += [is_alone] * len(x)
                bag += [number] * len(x)
    rows = [item[0] for item in items]
    return Bags(
        x=np.concatenate(parts).astype(np.float32),
        alone=np.array(alone),
        bag=np.array(bag),
        y=np.array([row.label(head) for row in rows]),
        source=np.array([row.source for row in rows]),
        group=np.array([row.group for row in rows]),
        split=np.array([row.split for row in rows]),
    )


def weights(bags: Bags, chosen: np.ndarray) -> np.ndarray:
    """A weight for each chosen bag, 0 for the others; they add up to the number chosen, half for each label."""
    counts = Counter(zip(bags.source[chosen], bags.y[chosen], strict=True))
    w = np.array([counts[s, y] ** (POWER - 1) if c else 0.0
                  for s, y, c in zip(bags.source, bags.y, chosen, strict=True)])  # fmt: skip
    for value in (False, True):
        w[bags.y == value] *= chosen.sum() / 2 / w[bags.y == value].sum()
    return w


def fit(bags: Bags, chosen: np.ndarray, c: float, *, pairs: bool) -> LogisticRegression:
    """One head, on the chosen bags."""
    w = weights(bags, chosen)
    first = np.r_[True, bags.bag[1:] != bags.bag[:-1]]
    picked = first
    for _ in range(ROUNDS):
        use = chosen[bags.bag] & ~bags.alone & (~bags.y[bags.bag] | picked)
        size = np.bincount(bags.bag[use], minlength=len(bags.y))
        x, y = bags.x[use], bags.y[bags.bag[use]]
        each = (w / np.maximum(size, 1))[bags.bag[use]]
        if pairs:
            alone = x.copy()
            alone[:, : x.shape[1] // 2] = 0
            x, y, each = np.concatenate([x, alone]), np.r_[y, y], np.r_[each, ALONE * each]
        model = LogisticRegression(C=c, max_iter=2000, random_state=0).fit(x, y, sample_weight=each)
        margins = model.decision_function(bags.x)
        whole = np.full(len(bags.y), -np.inf)
        np.maximum.at(whole, bags.bag[~bags.alone], margins[~bags.alone])
        picked = margins >= whole[bags.bag]
    return model


def choose_c(bags: Bags, *, pairs: bool) -> tuple[float, dict[float, float]]:
    """The C with the best weighted AUC in grouped cross-validation on the training rows."""
    train = np.flatnonzero(bags.split == "train")
    found: dict[float, list[float]] = defaultdict(list)
    for inside, outside in GroupKFold(3).split(train, groups=bags.group[train]):
        chosen = np.zeros(len(bags.y), bool)
        chosen[train[inside]] = True
        held = np.zeros_like(chosen)
        held[train[outside]] = True
        w = weights(bags, held)
        for c in GRID:
            top = bags.top(fit(bags, chosen, c, pairs=pairs).decision_function(bags.x))
            found[c].append(roc_auc_score(bags.y[held], top[held], sample_weight=w[held]))
    means = {c: float(np.mean(v)) for c, v in found.items()}
    return max(means, key=means.__getitem__), means


def goodness(bags: Bags, said: np.ndarray, chosen: np.ndarray) -> float:
    """What the threshold is chosen by, between 0 and 1.

    The mean of F1 on mixed sources, recall on sources all of yes, and 1 - false-alarm rate on sources all of no; each
    of these the mean over its sources.
    """
    kinds: dict[str, list[float]] = defaultdict(list)
    for source in sorted(set(bags.source[chosen])):
        rows = chosen & (bags.source == source)
        y, p = bags.y[rows], said[rows]
        if y.all():
            kinds["recall"].append(float(p.mean()))
        elif not y.any():
            kinds["quiet"].append(1 - float(p.mean()))
        else:
            kinds["f1"].append(2 * float((y & p).sum()) / max(1, y.sum() + p.sum()))
    return float(np.mean([np.mean(values) for values in kinds.values()]))


def calibrate(bags: Bags, margins: np.ndarray) -> dict[str, float]:
    """Platt scaling and the operating threshold, on dev."""
    dev = bags.split == "dev"
    w = weights(bags, dev)
    platt = LogisticRegression(C=1e6).fit(margins[dev, None], bags.y[dev], sample_weight=w[dev])
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    p = expit(slope * margins + offset)
    options = np.linspace(0.05, 0.95, 181)
    calm = dev & np.isin(bags.source, CALM)
    values = [goodness(bags, p >= t, dev) - bool(calm.any() and (p >= t)[calm].mean() > ALARMS) for t in options]
    return {"slope": slope, "offset": offset, "threshold": float(options[int(np.argmax(values))])}


def head(bags: Bags, *, pairs: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """One head's numbers, and how they came about."""
    c, tried = choose_c(bags, pairs=pairs)
    model = fit(bags, bags.split == "train", c, pairs=pairs)
    margins = bags.top(model.decision_function(bags.x))
    numbers = calibrate(bags, margins)
    dev = bags.split == "dev"
    facts = {
        "C": c,
        "cross_validated_auc": {str(k): round(v, 4) for k, v in tried.items()},
        "dev_auc": round(float(roc_auc_score(bags.y[dev], margins[dev])), 4),
        "rows": {split: int((bags.split == split).sum()) for split in ("train", "dev", "test")},
        "sources": dict(sorted(Counter(bags.source[bags.split == "train"].tolist()).items())),
    }
    return {
        "weights": [float(f"{v:.6g}") for v in model.coef_[0]],
        "bias": float(model.intercept_[0]),
        **numbers,
    }, facts


def train(rows: list[Row], version: str, out: Path) -> dict[str, Any]:
    """Write `heads.json`; how it came about comes back."""
    if forbidden := sorted({row.source for row in rows if not row.trainable}):
        raise ValueError(f"These rows may not train a shipped model: {', '.join(forbidden)}.")
    cases, features = encode(rows)
    heads, facts = {}, {}
    heads["prompt"], facts["prompt"] = head(prompt_bags(rows, cases, features), pairs=False)
    for name in ("response", "refusal"):
        heads[name], facts[name] = head(pair_bags(rows, cases, features, name), pairs=True)
    raw = {
        "version": version,
        "sentence_penalty": SENTENCE_PENALTY,
        "trained_on": {k: v["sources"] for k, v in facts.items()},
        "heads": heads,
    }
    (out / "heads.json").write_text(json.dumps(raw, separators=(",", ":")) + "\n", encoding="utf-8")
    return facts
