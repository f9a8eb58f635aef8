"""Logistic heads on the encoder's vectors: harm of the request, harm of the response, refusal.

Knows no text. The numbers come from `heads.json`, which `training/embedded` writes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from guardrail_vl.engines._embedded.encoder import HERE, Vector
from guardrail_vl.errors import ConfigurationError

REQUEST_WINDOWS: Final = 4
"""Windows of the request that a response is judged with: the first ones."""


@dataclass(frozen=True, slots=True)
class Head:
    """One logistic head, calibrated, and moved so that its operating threshold is a score of 0.5."""

    weights: Vector
    bias: float
    slope: float
    """Platt scaling: logit of the probability = slope · margin + offset."""
    offset: float
    threshold: float
    """The probability that counts as yes, chosen on the development split."""

    def margins(self, features: Vector) -> Vector:
        """The uncalibrated margin of each row; shape (rows,)."""
        margins: Vector = features @ self.weights + np.float32(self.bias)
        return margins

    def score(self, margin: float) -> float:
        """The score in [0, 1]: 0.5 exactly at the threshold, rising with the probability."""
        logit = self.slope * margin + self.offset - math.log(self.threshold / (1 - self.threshold))
        # Clipped: math.exp overflows beyond 700.
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


@dataclass(frozen=True, slots=True)
class Heads:
    """The three heads of one version."""

    version: str
    prompt: Head
    response: Head
    refusal: Head
    sentence_penalty: float
    """Taken off the request margin of a sentence looked at alone: out of its context, much sounds worse."""

    @classmethod
    def load(cls, folder: Path = HERE) -> Heads:
        """Read `heads.json`.

        Raises:
            ConfigurationError: The file is missing or is not one.
        """
        try:
            raw = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
            heads = {name: _head(raw["heads"][name]) for name in ("prompt", "response", "refusal")}
            return cls(str(raw["version"]), sentence_penalty=float(raw["sentence_penalty"]), **heads)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError("The embedded guard's heads can't be read.") from error


def _head(raw: dict[str, Any]) -> Head:
    return Head(
        weights=np.asarray(raw["weights"], np.float32),
        **{name: float(raw[name]) for name in ("bias", "slope", "offset", "threshold")},
    )


def request_vector(features: Vector) -> Vector:
    """One vector of length 1 for a request; zeros for one without a window.

    Args:
        features: Its windows' vectors, in order; shape (windows, features).
    """
    if not len(features):
        return np.zeros(features.shape[1], np.float32)
    mean: Vector = features[:REQUEST_WINDOWS].mean(axis=0)
    unit: Vector = mean / max(float(np.linalg.norm(mean)), 1e-6)
    return unit


def pair_features(request: Vector, response: Vector) -> Vector:
    """What the response heads see: the request beside each window of the response; shape (windows, 2 · features)."""
    return np.hstack([np.broadcast_to(request, response.shape), response])
