"""What this machine's CPU is, and computes in. Knows no engine."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself. One that does not emulates it, several times slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def ask_for_amx() -> None:
    """Ask Linux for this process's use of a CPU's matrix units (AMX), where it has them. Needs torch.

    vLLM computes on them without asking, and the process then dies of an illegal instruction unless something else in
    it, such as a large enough product of matrices, happened to ask before.
    """
    import torch

    getattr(torch.cpu, "_init_amx", bool)()
