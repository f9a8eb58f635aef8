"""The settings of fine-tuning. Knows nothing of how it is done."""

from __future__ import annotations

from typing import ClassVar, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator

TARGETS: Final = r"(?!.*visual).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""All linear layers of the text model, and none of the vision tower, which vLLM can't adapt."""


class LoRAConfig(BaseModel, frozen=True, extra="forbid"):
    """Low-rank adapters instead of the weights themselves (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    """Of each adapter."""
    alpha: int = Field(default=32, ge=1)
    """Adapters count `alpha / rank` times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are left out in training."""
    targets: str = TARGETS
    """Regular expression that the whole name of an adapted layer follows."""


class SFTConfig(BaseModel, frozen=True, extra="forbid"):
    """How to fine-tune. The defaults are the paper's (A.5.2): 192 turns a step on 4 GPUs."""

    learning_rate: float = Field(default=5e-5, gt=0)
    """Its highest; it falls to 0 along a cosine."""
    warm_up: int = Field(default=0, ge=0)
    """Steps in which it rises."""
    epochs: float = Field(default=3.0, gt=0)
    """How often each turn is seen."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps instead of `epochs`."""
    batch_size: int = Field(default=6, ge=1)
    """Turns that one device takes at once."""
    accumulation: int = Field(default=8, ge=1)
    """Such batches in one step: `batch_size * accumulation * devices` turns."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are cut to it."""
    max_length: int = Field(default=2048, ge=1)
    """Tokens of a turn with its target, pictures included. Longer ones are unfit: nothing is ever cut."""
    seed: int = 42
    """Of the order, the adapters and the fast share."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in. `auto`: bfloat16 where the device computes in it. Weights that are trained stay in float32,
    because steps this small are lost in bfloat16."""
    lora: LoRAConfig | None = None
    """None: the weights themselves are trained."""
    train_vision: bool = False
    """Train the vision tower too."""
    train_projector: bool = False
    """Train what leads from the vision tower to the text model."""
    fast_share: float = Field(default=0.0, ge=0, le=1)
    """Share of turns trained with an empty think, so that `speed="fast"` is a trained behaviour. Turns without
    reasoning come first. 1: plain SFT without reasoning."""
    unfit: Literal["refuse", "drop"] = "refuse"
    """What to do with turns that can't be trained on: a label missing, no reasoning and no fast share left for it, too
    long, unreadable. `drop`: they are left out and counted."""
    activation_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third slower."""
    save_steps: int = Field(default=200, ge=0)
    """Steps from one checkpoint to the next. 0: none, but on ctrl-C."""
    logging_steps: int = Field(default=1, ge=1)
    """Steps from one line of `metrics.jsonl` to the next."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that prepare batches beside each training process. None: up to 4 where a GPU would wait for pictures
    otherwise, as far as there are CPU cores left; 0 on a CPU, whose cores are busy with training."""

    HOW: ClassVar[frozenset[str]] = frozenset({"workers"})
    """Fields that may change while a run is under way: they decide nothing of what comes out."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lora is not None and (self.train_vision or self.train_projector):
            raise ValueError("LoRA adapts the text model alone: train_vision and train_projector don't go with it")
        return self
