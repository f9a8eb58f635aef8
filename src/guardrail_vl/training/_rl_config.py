"""The settings of reinforcement. Knows nothing of how it is done."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training._sft_config import LoRAConfig, SFTConfig
from guardrail_vl.training.clip import Clip, DynamicClip
from guardrail_vl.training.rewards import RewardConfig


class VLLMConfig(BaseModel, frozen=True, extra="forbid"):
    """How vLLM makes the rollouts: handed to TRL as it stands."""

    mode: Literal["colocate", "server"] = "colocate"
    """On the GPUs that train, or on others where `vllm serve` runs."""
    gpu_memory: float = Field(default=0.3, gt=0, lt=1)
    """colocate: the share of a GPU's memory that vLLM takes."""
    tensor_parallel: int = Field(default=1, ge=1)
    """colocate: GPUs that share one copy."""
    sleep: bool = False
    """colocate: whether it gives its memory back while the weights are updated."""
    max_length: int | None = Field(default=None, ge=1)
    """colocate: tokens of the longest prompt and its completion. None: as many as the model takes."""
    url: str | None = None
    """server: where it listens, such as `http://10.0.0.5:8000`."""
    timeout: float = Field(default=240.0, gt=0)
    """server: seconds to wait for it to come up."""
    correct: bool = False
    """Whether completions that vLLM and the trainer give unlike probabilities count less, or are left out (TRL's
    importance-sampling correction). The paper has none."""


class RLConfig(BaseModel, frozen=True, extra="forbid"):
    """How it is trained. The defaults are the paper's (A.5.2), where it gives a number.

    Raises:
        ConfigurationError: Sizes that don't divide, or a falling clip that could never clip anything.
    """

    group: int = Field(default=16, ge=2)
    """Completions of each prompt."""
    temperature: float = Field(default=1.2, gt=0)
    """Of the rollouts. The loss takes the probabilities at the same temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the rollouts."""
    max_tokens: int = Field(default=3072, ge=1)
    """Of a completion. (Release; the paper gives none.)"""
    prompts_per_rollout: int = Field(default=512, ge=1)
    """Prompts that are completed between two changes of the policy that writes: the paper's rollout batch."""
    prompts_per_update: int = Field(default=256, ge=1)
    """Prompts in one update of the weights: the paper's actor batch."""
    iterations: int = Field(default=1, ge=1)
    """How often each rollout is trained on."""
    passes: int = Field(default=1, ge=1)
    """How often each turn is used."""
    rollouts: int | None = Field(default=None, ge=1)
    """At most so many, for a trial. None: all that the turns make."""
    learning_rate: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    warm_up: int = Field(default=0, ge=0)
    """Updates in which the learning rate rises; it is constant from there."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    clip: Clip = DynamicClip()
    """See `clip`. Its step is the rollout, as in the paper: all updates of a rollout share a value."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the model it began with. 0: none, and no second model in memory."""
    loss: Literal["token-mean", "sequence-mean", "rollout-token-mean"] = "token-mean"
    """Over the tokens of a micro-batch (release), over each completion and then over all (the paper's formula as it is
    printed), or over the tokens of a whole update."""
    mask_truncated: bool = False
    """Whether completions that reach `max_tokens` are left out of the loss. Neither source does."""
    reward: RewardConfig = RewardConfig()
    """What a completion earns."""
    layout: Literal["served", "release"] = "served"
    """How rollouts are asked. `release`: the instruction in the user's turn, unlike SFT and serving, as the released
    code does, by accident it seems; only to compare with it."""
    patience: int = Field(default=5, ge=1)
    """It stops after so many rollouts in a row in which no group has two unlike rewards."""
    lora: LoRAConfig | None = None
    """Train a small adapter of the text model. None: all weights."""
    train_vision: bool | None = None
    """Whether the vision tower and the projector are trained. None: yes, as in the release, but for LoRA, which leaves
    them alone."""
    use_vllm: VLLMConfig | None = None
    """Who makes the rollouts. None: transformers, in this process. `colocate` or `server`: vLLM, by its defaults."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in: see `SFTConfig.dtype`."""
    micro_batch: int = Field(default=4, ge=1)
    """Completions in one forward pass on a device."""
    generate_batch: int = Field(default=64, ge=1)
    """Completions that transformers generates at once on a device."""
    activation_checkpointing: bool = True
    """Less memory for more time, on a GPU."""
    checkpoint_every: int = Field(default=5, ge=1)
    """Rollouts between two checkpoints. What came after the last one is done again after a kill."""
    seed: int = 0

    @field_validator("use_vllm", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.prompts_per_rollout % self.prompts_per_update:
            raise ConfigurationError("prompts_per_rollout is not a multiple of prompts_per_update.")
        if self.lora is not None and self.train_vision:
            raise ConfigurationError("LoRA trains the text model only: leave train_vision out.")
        if isinstance(self.clip, DynamicClip) and self.updates_per_rollout == 1:
            raise ConfigurationError(
                "The clip falls from step to step, but nothing would ever be clipped: with one update a rollout, the "
                "policy that is trained is the one that wrote.",
                hint="Make prompts_per_update smaller than prompts_per_rollout, or iterations larger, or take a fixed "
                "clip.",
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        """Updates of the weights between two rollouts."""
        return self.prompts_per_rollout // self.prompts_per_update * self.iterations

    @property
    def opened(self) -> SFTConfig:
        """What of the model is trained, and how it is loaded, in the words of SFT."""
        vision = self.lora is None and self.train_vision is not False
        return SFTConfig(dtype=self.dtype, lora=self.lora, train_vision=vision, train_projector=vision, seed=self.seed)
