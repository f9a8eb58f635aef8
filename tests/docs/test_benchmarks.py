"""The benchmarks run. They check themselves that nothing leaks, is lost or is asked for too often."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs.fences import ROOT


def _smoke(name: str, *phases: str) -> str:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}/run.py", *phases, "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_benchmark_of_the_openai_client_runs() -> None:
    told = _smoke("openai_client", "seq", "stream")
    rows = re.findall(r"^\| (?:guarded|clean: (?:window|full)|violation at \d+: (?:window|full)) .*$", told, re.M)
    assert len(rows) > 20


def test_the_benchmark_of_langchain_apps_runs() -> None:
    pytest.importorskip("langchain_openai.middleware")
    told = _smoke("langchain", "seq", "stream", "tool")
    rows = re.findall(r"^\| (?:harmful at \d+: )?(?:agent, GuardMiddleware|chat model, guarded).*$", told, re.M)
    assert len(rows) > 10
