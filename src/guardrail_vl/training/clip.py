"""How far one update may move the policy: the clip of GRPO, fixed or falling. Knows no trainer.

The dynamic clip is GuardReasoner-VL's (arXiv 2505.11049, equation 7): `B_s = ε · Π_{i=1..s} (s_total - i) / s_total`.
It falls like the right half of a bell, and is 0 in the last step, so it has a floor here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from guardrail_vl.errors import ConfigurationError


class DynamicClip(BaseModel, frozen=True, extra="forbid"):
    """The paper's clip, which falls from step to step.

    Raises:
        ConfigurationError: The floor is above epsilon.
    """

    kind: Literal["dynamic"] = "dynamic"
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Where it begins. The first step already has a little less: `ε · (s_total - 1) / s_total`."""
    floor: float = Field(default=1e-4, gt=0)
    """It falls no lower. Ours: the paper's is 0 in the last step, which would keep every token as it is."""

    @model_validator(mode="after")
    def _floor_is_lower(self) -> DynamicClip:
        if self.floor > self.epsilon:
            raise ConfigurationError("The floor of the clip is above its epsilon.")
        return self

    def at(self, step: int, total: int) -> float:
        """`B_s`: a token's probability ratio is held between `1 - B_s` and `1 + B_s`.

        Args:
            step: From 1. The paper counts batches of completions, not optimiser updates: all updates of a batch share
                its clip.
            total: How many steps the whole run has. Later steps than that have the floor.

        Returns:
            More than 0, at most epsilon.

        Raises:
            ConfigurationError: A step before the first, or a run of none.
        """
        _check(step, total)
        if step >= total:
            return self.floor
        return max(self.floor, self.epsilon * math.prod((total - i) / total for i in range(1, step + 1)))


class FixedClip(BaseModel, frozen=True, extra="forbid"):
    """The same clip in every step: GRPO's own, and what the released code comes down to."""

    kind: Literal["fixed"] = "fixed"
    epsilon: float = Field(default=0.2, gt=0, lt=1)

    def at(self, step: int, total: int) -> float:
        """Epsilon, whatever the step.

        Raises:
            ConfigurationError: A step before the first, or a run of none.
        """
        _check(step, total)
        return self.epsilon


Clip = Annotated[DynamicClip | FixedClip, Field(discriminator="kind")]
"""Either, told apart by `kind` where it is read from a file."""


def _check(step: int, total: int) -> None:
    if step < 1 or total < 1:
        raise ConfigurationError(f"There is no step {step} of {total}: steps count from 1.")


__all__ = ["Clip", "DynamicClip", "FixedClip"]
