"""The benchmark of the guarded client runs. It checks itself that nothing leaks, is lost or is asked for too often."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.docs.fences import ROOT


def test_the_benchmark_of_the_openai_client_runs() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/openai_client/run.py", "seq", "stream", "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^\| (?:guarded|clean: (?:window|full)|violation at \d+: (?:window|full)) .*$", done.stdout, re.M
    )
    assert len(rows) > 20
