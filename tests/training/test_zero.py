"""DeepSpeed's ZeRO-3, as the shipped configuration starts it, with two processes on a CPU: SFT, then RL on its model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("torch", "trl", "accelerate", "deepspeed"):
    pytest.importorskip(package)

from guardrail_vl.engines.transformers import TransformersEngine
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training.sft import SFTConfig, sft
from tests.training.checkpoints import weights

ROOT = Path(__file__).parents[2]
CONFIG = SFTConfig(learning_rate=4e-3, batch_size=4, accumulation=1, max_steps=3, save_steps=2, dtype="bfloat16")
_SFT = """
import sys
from guardrail_vl.training import synthetic
from guardrail_vl.training.sft import sft
from tests.training.test_zero import CONFIG
sft(sys.argv[1], synthetic.turns(24, seed=1), sys.argv[2], config=CONFIG)
"""
_RL = """
import sys
from guardrail_vl.training import synthetic
from guardrail_vl.training.rl import RLConfig, rl
config = RLConfig(
    group=4, prompts_per_rollout=4, prompts_per_update=2, micro_batch=4, max_tokens=12, learning_rate=1e-3,
    reward={"unit": "characters", "limit": 80}, dtype="bfloat16",
)
rl(sys.argv[1], synthetic.turns(4, seed=2), sys.argv[2], config=config)
"""


def launched(script: Path, text: str, *arguments: Path) -> None:
    script.write_text(text, encoding="utf-8")
    shipped = ROOT / "training" / "accelerate" / "zero3-4gpu.yaml"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(shipped),
        "--num_processes",
        "2",
    ]
    places = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    got = subprocess.run(
        [*command, "--cpu", str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": places, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert got.returncode == 0, got.stderr[-2000:]


def test_zero_3_trains_and_leaves_what_can_be_served(tmp_path: Path) -> None:
    base, one, tuned, reinforced = (tmp_path / name for name in ("base", "one", "sft", "rl"))
    tiny.build(base)
    launched(tmp_path / "sft.py", _SFT, base, tuned)
    sft(base, synthetic.turns(24, seed=1), one, config=CONFIG.model_copy(update={"accumulation": 2}))
    told, alone = (json.loads((folder / "result.json").read_text()) for folder in (tuned, one))
    assert told["parameters"] == alone["parameters"]
    assert told["loss"] == pytest.approx(alone["loss"], abs=0.05)
    launched(tmp_path / "rl.py", _RL, tuned / "model", reinforced)
    for folder in (tuned, reinforced):
        # Under the names of the base, which is what other engines look for.
        assert set(weights(folder / "model")) - {"lm_head.weight"} == set(weights(base))
        TransformersEngine(folder / "model", device="cpu").close()
