"""Heads on the encoder's vectors: harm of the request, harm of the response, refusal, and which hazard it is.

Knows no text. The numbers come from `heads.json`, which `training/embedded` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from guardrail_vl.engines._embedded.encoder import HERE, Vector
from guardrail_vl.errors import ConfigurationError


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
class Hazards:
    """Which hazard a harmful request is."""

    names: tuple[str, ...]
    weights: Vector
    """Shape (hazards, features)."""
    bias: Vector

    def likely(self, vector: Vector) -> dict[str, float]:
        """The probability of each hazard, if it is one; they add up to 1."""
        margins = self.weights @ vector + self.bias
        likely = np.exp(margins - margins.max())
        return dict(zip(self.names, (likely / likely.sum()).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one version."""

    version: str
    prompt: Head
    response: Head
    refusal: Head
    hazards: Hazards
    bands: Mapping[str, tuple[float, float]]
    """By stage: the scores between which it is unsure (see `training/embedded`)."""
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
            return cls(
                str(raw["version"]),
                hazards=_hazards(raw["hazards"]),
                bands=MappingProxyType({stage: (float(lo), float(hi)) for stage, (lo, hi) in raw["bands"].items()}),
                sentence_penalty=float(raw["sentence_penalty"]),
                **heads,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError("The embedded guard's heads can't be read.") from error


def _hazards(raw: dict[str, Any]) -> Hazards:
    weights, bias = (np.asarray(raw[name], np.float32) for name in ("weights", "bias"))
    return Hazards(tuple(raw["names"]), weights, bias)


def _head(raw: dict[str, Any]) -> Head:
    return Head(
        weights=np.asarray(raw["weights"], np.float32),
        **{name: float(raw[name]) for name in ("bias", "slope", "offset", "threshold")},
    )
