"""Real servers for tests: vLLM's OpenAI-compatible one, and that of transformers, on the tiny checkpoint.

They run in the environment that `.ci/serving/make_venv.sh` makes. A test imports a fixture from here:

    from tests.serving import vllm_server  # noqa: F401

Where `GUARDRAIL_VL_SERVING_PYTHON` does not name that environment's python, such tests are skipped, and say so.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.tiny_checkpoint import build_checkpoint

VARIABLE = "GUARDRAIL_VL_SERVING_PYTHON"
START_SECONDS = 300
"""A vLLM server takes 40 to 110 s to start on two busy cores."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    """Base URL without the `/v1`."""
    model: str
    """What requests must name as `model`."""
    pid: int
    """Of the leader of its process group."""
    log: Path


def serving_python() -> Path:
    """The python of the serving environment; skips the test where there is none."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        pytest.skip(f"{VARIABLE} is not set: make the environment with .ci/serving/make_venv.sh")
    if not Path(python).is_file():
        pytest.fail(f"{VARIABLE} names no file")
    return Path(python)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The judge of tests/tiny_checkpoint.py, called `tiny-judge`."""
    return build_checkpoint(tmp_path_factory.mktemp("served") / "tiny-judge")


@pytest.fixture(scope="session")
def vllm_server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's OpenAI-compatible server on the tiny checkpoint. One for the whole run."""
    command = vllm_command(tiny_checkpoint)
    with served(command, "tiny-judge", tmp_path_factory.mktemp("vllm-server") / "log") as server:
        warm(server)
        yield server


def vllm_command(checkpoint: Path, *more: str) -> list[str]:
    """The command that serves the tiny checkpoint with vLLM, as `tiny-judge`."""
    return [
        *(str(serving_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)),
        *("--served-model-name", "tiny-judge", "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "2048", "--max-num-seqs", "32", "--limit-mm-per-prompt", '{"image": 4, "video": 0}'),
        *more,
    ]


@pytest.fixture(scope="session")
def transformers_server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`transformers serve` on the tiny checkpoint: knows no log-probabilities and refuses unknown fields with 422."""
    command = serving_python().parent / "transformers"
    arguments = ["serve", str(tiny_checkpoint), "--device", "cpu"]
    log = tmp_path_factory.mktemp("transformers-server") / "log"
    with served([str(command), *arguments], str(tiny_checkpoint), log) as server:
        yield server


def free_port() -> int:
    """One that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def served(command: Sequence[str], model: str, log: Path, port: int = 0) -> Iterator[Server]:
    """Run the command, with a host and a free port added, until the block ends.

    Args:
        command: A server that takes `--host` and `--port` and answers `GET /health` once it is ready.
        model: What requests must name.
        log: Where its output goes.
        port: 0: any that is free.
    """
    port = port or free_port()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}", log)
        yield Server(f"http://127.0.0.1:{port}", model, process.pid, log)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    tail = log.read_text(errors="replace")[-3000:]
    pytest.fail(f"The server did not get ready (exit status {process.poll()}). The end of its log:\n{tail}")


def warm(server: Server) -> None:
    """The first answers take up to 10 s each, which would be some test's deadline."""
    ask = {"model": server.model, "messages": [{"role": "user", "content": "warm"}], "max_tokens": 2, "temperature": 0}
    for more in ({}, {"logprobs": True, "top_logprobs": 20}, {"structured_outputs": {"regex": "a+"}}):
        body = json.dumps({**ask, **more})
        httpx.post(
            f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=120
        ).raise_for_status()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    for sign, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
