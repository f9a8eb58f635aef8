"""A run of `sft` in a process of its own, or in several: `python -m tests.training.killed MODEL OUTPUT [STEPS]`.

It says each step that it takes.
"""

from __future__ import annotations

import sys

import torch

from guardrail_vl.training import synthetic
from guardrail_vl.training._trainer import Step
from guardrail_vl.training.sft import SFTConfig, sft

CONFIG = SFTConfig(learning_rate=3e-3, batch_size=4, accumulation=2, epochs=3, save_steps=2, dtype="float32")
TURNS = synthetic.turns(20, seed=4)
"""Two steps and a half an epoch: a checkpoint falls into the middle of one."""


def say(step: Step) -> None:
    print("step", step.step, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else None
    sft(sys.argv[1], TURNS, sys.argv[2], config=CONFIG.model_copy(update={"max_steps": steps}), progress=say)
