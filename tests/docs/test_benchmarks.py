"""The benchmarks run. They check themselves that nothing leaks, is lost or is asked for too often."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

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


def test_the_benchmark_of_training_runs(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    done = subprocess.run(
        [sys.executable, "benchmarks/training/speed.py", "--smoke", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for kind in ("sft", "grpo"):
        both = result["results"][kind]
        assert both["ours"]["tokens_per_step"] == both["stock"]["tokens_per_step"] > 0
        assert both["ratio"]["tokens_per_second"] > 0
        for who in ("ours", "stock"):
            assert both[who]["seconds_per_step"] > 0
            assert both[who]["peak_gib"] is None
            assert len(re.findall(rf"^\| {kind} \| {who} \| \d+ \|", done.stdout, re.M)) == 1
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == done.stdout.removesuffix("\n")
