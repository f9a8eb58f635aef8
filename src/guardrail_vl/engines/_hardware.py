"""What this machine's CPU computes in. Knows no engine."""

from __future__ import annotations

from pathlib import Path


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself. One that does not emulates it, several times slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
