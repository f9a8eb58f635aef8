"""The safety reward of GuardReasoner-VL: right labels earn the most, and reasoning earns only where a label is wrong.

`r = (-1 + r_safety) / min(l_norm, beta)²` (arXiv 2505.11049, equations 8 to 10). The paper and its released code differ
in details; each is a switch of `RewardConfig`. Knows no trainer, no tokenizer and no torch.

The exporters copy the functions below, as they stand, into a file that runs without this package, on Python 3.9: they
use nothing newer, and nothing that `_exporting` does not name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from guardrail_vl.errors import ConfigurationError, ParseError
from guardrail_vl.prompt_format.guardreasoner_vl import parse_text
from guardrail_vl.verdict import Label


class RewardConfig(BaseModel, frozen=True, extra="forbid"):
    """What a completion earns. The defaults are the paper's.

    Raises:
        ConfigurationError: `beta` is given, and `clamp` is off.
    """

    beta: float = Field(default=1.0, gt=0, le=1)
    """The share of `limit` beyond which length earns nothing more: 1 (GuardReasoner-VL) or 1/6 (Eco)."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What a completion's length is counted in: tokens (paper) or characters (release)."""
    limit: int = Field(default=3072, ge=1)
    """Tokens, or characters, that count as 1: the most tokens of a completion. The release takes the same number of
    characters."""
    floor: float = Field(default=1 / 64, gt=0, le=1)
    """The least a length counts as, so that an empty completion isn't divided by zero. Ours: neither source has one."""
    clamp: bool = True
    """Whether a length counts as `beta` at most. False (release, but for Eco): it has no upper end."""
    needs_think: bool = True
    """Whether `<think>` and `</think>` are part of the format (paper). False (release): the result is enough."""
    labels: Literal["strict", "release"] = "strict"
    """How labels are read: as the guard itself reads them when it serves, or as the release's reward does (see
    `read`)."""

    @model_validator(mode="after")
    def _beta_is_used(self) -> RewardConfig:
        if not self.clamp and self.beta != 1.0:
            raise ConfigurationError("The reward has a beta, and clamp=False switches it off.")
        return self


class Reward(NamedTuple):
    """What one completion earned."""

    value: float
    """At most 0, which is for right labels in the right format."""
    safety: float
    """`r_safety`: the share of the known labels that are right, in [0, 1]; 0 if the format is not followed."""
    format: bool
    """Whether the format was followed."""
    l_norm: float
    """The length as a share of `limit`, before `beta`: from `floor` to 1, or beyond 1 if there is no clamp."""


PAPER: Final = RewardConfig()
ECO: Final = RewardConfig(beta=1 / 6)
RELEASE: Final = RewardConfig(unit="characters", clamp=False, needs_think=False, labels="release")
RELEASE_ECO: Final = RewardConfig(beta=500 / 3072, unit="characters", needs_think=False, labels="release")
REWARDS: Final[Mapping[str, RewardConfig]] = MappingProxyType(
    {"paper": PAPER, "eco": ECO, "release": RELEASE, "release-eco": RELEASE_ECO}
)
"""By name: the paper's two, and what its released code does."""

_THOUGHT: Final = re.compile(r"<think>.*?</think>", re.DOTALL)
_FIRST_RESULT: Final = re.compile(r"<result>(.*?)</result>", re.DOTALL)
_SAID: Final = r":\s*(harmful|unharmful|none)"


def read(text: str, config: RewardConfig) -> tuple[Label | None, Label | None] | None:
    """The labels of request and response that a completion gives. None: it does not follow the format.

    `strict` is the project's own parser: what a guard could not be served with earns nothing. `release` reads the first
    `<result>` block, wherever it stands, in any case; `none` is unharmful, and a label that is missing there is None.

    Args:
        text: The whole completion, without special tokens.
        config: `labels` and `needs_think`.
    """
    if config.labels == "strict":
        bare = not config.needs_think and "<think>" not in text
        try:
            result = parse_text(f"<think></think>{text}" if bare else text)
        except ParseError:
            return None
        return result.request, result.response
    block = _FIRST_RESULT.search(text)
    if block is None or (config.needs_think and not _THOUGHT.search(text)):
        return None
    return _said("Request", block[1]), _said("Response", block[1])


def _said(line: str, block: str) -> Label | None:
    match = re.search(line + _SAID, block, re.IGNORECASE)
    if match is None:
        return None
    return Label.HARMFUL if match[1].lower() == "harmful" else Label.UNHARMFUL


def safety(text: str, gold_prompt: Label | None, gold_response: Label | None, config: RewardConfig) -> float:
    """`r_safety = I_format · (0.5·1[request right] + 0.5·1[response right])` (equation 8).

    A side whose gold label is not known (None) is not rewarded, and the other one counts whole: 1 or 0. What the
    completion says of that side is not looked at.

    Args:
        text: The whole completion, without special tokens.
        gold_prompt: The request's label.
        gold_response: The response's label.
        config: How labels are read.

    Returns:
        0, 0.5 or 1.

    Raises:
        ConfigurationError: Neither label is known.
    """
    if gold_prompt is None and gold_response is None:
        raise ConfigurationError("There is no gold label to reward a completion by.")
    said = read(text, config)
    if said is None:
        return 0.0
    sides = ((said[0], gold_prompt), (said[1], gold_response))
    right = [float(label == gold) for label, gold in sides if gold is not None]
    return sum(right) / len(right)


def normalised(text: str, length: float | None, config: RewardConfig) -> float:
    """`l_norm`: the completion's length as a share of `limit`.

    The whole completion counts, as in the release; the paper speaks of the reasoning, which is nearly all of it.

    Args:
        text: The whole completion; counted if the unit is characters.
        length: Its tokens, with the end token. Not used if the unit is characters.
        config: Unit, limit, floor and clamp.

    Raises:
        ConfigurationError: The unit is tokens, and there is no length.
    """
    if config.unit == "characters":
        length = len(text)
    elif length is None:
        raise ConfigurationError("The reward counts tokens, and the number of tokens is not given.")
    share = max(length / config.limit, config.floor)
    return min(share, 1.0) if config.clamp else share


def reward(
    text: str,
    gold_prompt: Label | None,
    gold_response: Label | None,
    length: float | None,
    config: RewardConfig,
) -> Reward:
    """What a completion earns: `(-1 + r_safety) / min(l_norm, beta)²` (equation 10).

    A right answer earns 0 whatever its length. A wrong one loses less the longer it is, up to `beta`.

    Args:
        text: The whole completion, without special tokens.
        gold_prompt: The request's label; None: not known, see `safety`.
        gold_response: The response's label; None likewise.
        length: Tokens of the completion, with the end token. Not used if the unit is characters.
        config: The switches.

    Raises:
        ConfigurationError: Neither label is known, or the number of tokens is needed and not given.
    """
    share = normalised(text, length, config)
    right = safety(text, gold_prompt, gold_response, config)
    followed = read(text, config) is not None
    divisor = min(share, config.beta) if config.clamp else share
    return Reward((right - 1.0) / divisor**2, right, followed, share)


__all__ = [
    "ECO",
    "PAPER",
    "RELEASE",
    "RELEASE_ECO",
    "REWARDS",
    "Reward",
    "RewardConfig",
    "normalised",
    "read",
    "reward",
    "safety",
]
