from __future__ import annotations

import platform
import subprocess

import pytest

from guardrail_vl.engines._hardware import cpu_has_bfloat16


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_it_says_what_the_system_says() -> None:
    try:
        flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no lscpu")
    assert cpu_has_bfloat16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
