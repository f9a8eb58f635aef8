"""Under which conditions a guard judges here, as a `Cohort`: model, format, policy, machine. Judges nothing."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import guardrail_vl
from guardrail_vl.engines._hardware import cpu_cores
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.evaluation.records import CASCADE, Cohort
from guardrail_vl.guard import Guard
from guardrail_vl.verdict import Stage

MODEL_LABELS: Final = "model's own labels"
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
_BLOCK: Final = 1 << 22


def cohort_of(guard: Guard, *, batch: int, workers: int, checkpoint: str | Path | None = None) -> Cohort:
    """The conditions of a run.

    Args:
        guard: Judges.
        batch: Samples that go to the engine together; latencies depend on it.
        workers: Batches under way at a time; likewise.
        checkpoint: The folder or hub id that the engine has loaded, for its revision; of a cascade, the last engine.
            None: its name says it all.
    """
    revision = "" if checkpoint is None else revision_of(checkpoint)
    model = guard.engine.model
    named = f"{model}@{revision}" if revision and "@" not in model else model
    engine, style, speed = type(guard.engine).__name__, guard.format.id, str(guard.speed)
    if guard.first is not None:
        engine = CASCADE
        named = _in_a_row([*(rung.engine.model for rung in guard.rungs if rung.engine is not guard.engine), named])
        style = _in_a_row([rung.format.id for rung in guard.rungs])
        speed = _in_a_row([f"{rung.speed} {rung.band}" if rung.band else rung.speed for rung in guard.rungs])
    return Cohort(
        model=named,
        engine=engine,
        format=style,
        speed=speed,
        policy=guard.policy.hash,
        thresholds=thresholds_of(guard),
        version=guardrail_vl.__version__,
        machine=f"{machine_of(guard)}; batch {batch}, {workers} at a time",
    )


def _in_a_row(names: Sequence[str]) -> str:
    return " > ".join(dict.fromkeys(names))


def thresholds_of(guard: Guard) -> str:
    """What makes labels of scores, and actions of both, in words."""
    policy = guard.policy
    rules = [f"{stage} {limit:g}" for stage in Stage if (limit := policy.rule(stage).threshold) is not None]
    rules += [f"{name} {one.threshold:g}" for name, one in policy.categories.items() if one.threshold is not None]
    return MODEL_LABELS + (f"; actions by the policy's scores: {', '.join(rules)}" if rules else "")


def revision_of(checkpoint: str | Path) -> str:
    """Which weights these are: 12 hex digits of a folder's files, or the commit of a hub id. Empty: not known."""
    folder = Path(checkpoint)
    return _hash(folder) if folder.is_dir() else _commit(str(checkpoint))


def _hash(folder: Path) -> str:
    state = hashlib.blake2b(digest_size=6)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (*_WEIGHTS, ".json", ".jinja", ".txt", ".model"):
            state.update(f"{file.name}\n{file.stat().st_size}\n".encode())
            with file.open("rb") as data:
                while block := data.read(_BLOCK):
                    state.update(block)
    return state.hexdigest()


def _commit(model: str) -> str:
    # Whoever loaded it from the hub has this imported. A file in the cache lies under its commit.
    hub = sys.modules.get("huggingface_hub")
    found = None if hub is None else hub.try_to_load_from_cache(model, "config.json")
    return Path(found).parent.name[:12] if isinstance(found, str) else ""


def machine_of(guard: Guard) -> str:
    """What the engine runs on: CPU, cores, Python, and the GPU where torch sees one."""
    here = f"{_cpu()}, {cpu_cores()} cores, Python {platform.python_version()}"
    if any(isinstance(rung.engine, RemoteEngine) for rung in guard.rungs):
        return f"a server whose machine is not known; asked from {here}"
    gpu = _gpu()
    return f"{here}, {gpu}" if gpu else here


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def _gpu() -> str:
    # An engine that uses a GPU has torch imported; for the others it would be imported for nothing.
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return "Apple GPU" if torch.backends.mps.is_available() else ""
