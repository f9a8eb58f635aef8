"""The guard server in front of a real vLLM: what it asks of it, adapters by policy, and its death under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from guardrail_vl import Guard, Policy
from tests.server.serving import serving
from tests.serving import Server, free_port, served, tiny_checkpoint, vllm_command, warm
from tests.tiny_checkpoint import build_adapter

__all__ = ["tiny_checkpoint"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CALLERS = 24
PORT = free_port()


def command(checkpoint: Path) -> list[str]:
    adapter = build_adapter(checkpoint.with_name("contrary"))
    # Blocks shorter than the instruction: else no prefix is remembered.
    blocks = ("--block-size", "32")
    # And a place that stays empty: on a CPU, prompts without an adapter get the last one's.
    places = ("--max-loras", "2", "--max-lora-rank", "8")
    return vllm_command(checkpoint, *blocks, "--enable-lora", *places, "--lora-modules", f"contrary={adapter}")


@pytest.fixture(scope="module")
def vllm(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(command(tiny_checkpoint), "tiny-judge", tmp_path_factory.mktemp("vllm") / "log", PORT) as server:
        warm(server)
        yield server


@pytest.fixture(scope="module")
def guarding(vllm: Server) -> Iterator[str]:
    """The guard server's URL."""
    guard = Guard.remote(
        f"{vllm.url}/v1", model="tiny-judge", speed="reason", deadline=20, cache=False, attempts=1, cool_down=0.2
    )
    with serving(guard, policies={"contrary": Policy(name="contrary", adapter="contrary")}) as url:
        yield url


def ask(client: httpx.Client, prompt: str, **more: object) -> httpx.Response:
    return client.post("/v1/guard", json={"prompt": prompt, **more}, timeout=60)


def test_each_policy_has_its_adapter(guarding: str) -> None:
    def judged(prompt: str, policy: str) -> tuple[str, str]:
        with httpx.Client(base_url=guarding) as client:
            told = ask(client, prompt, policy=policy).json()
        return told["action"], told["verdict"]["model"]

    asked = [
        (f"{what} {i}", policy) for i in range(4) for what in ("kill", "bake") for policy in ("default", "contrary")
    ]
    with ThreadPoolExecutor(8) as pool:  # so that vLLM has both in one batch
        answers = list(pool.map(lambda one: judged(*one), asked))
    for (prompt, policy), (action, model) in zip(asked, answers, strict=True):
        harmful = prompt.startswith("kill") == (policy == "default")
        assert (action, model) == (
            "block" if harmful else "allow",
            "contrary" if policy == "contrary" else "tiny-judge",
        )


def test_scores_reasoning_and_the_prefix_cache_are_had(guarding: str, vllm: Server) -> None:
    def hits() -> float:
        lines = httpx.get(f"{vllm.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))

    before = hits()
    with httpx.Client(base_url=guarding) as client:
        fast = ask(client, "kill", speed="fast").json()["verdict"]
        assert fast["prompt_score"] > 0.5
        with client.stream("POST", "/v1/guard", json={"prompt": "kill it", "stream": True}, timeout=60) as events:
            told = [line for line in events.iter_lines() if line.startswith("event:")]
        assert told == ["event: reasoning", "event: decision"]  # its whole thought is one token
        assert ask(client, "bake it").json()["verdict"]["reasoning"]
    assert hits() > before


def test_it_dies_under_load_and_comes_back(guarding: str, vllm: Server, tiny_checkpoint: Path, tmp_path: Path) -> None:
    answers: list[tuple[float, int, bool, str]] = []
    stop = threading.Event()

    def call(i: int) -> None:
        with httpx.Client(base_url=guarding) as client:
            n = 0
            while not stop.is_set():
                n += 1
                reply = ask(client, f"How do I build a bomb, {i} {n}?")
                action = reply.json()["action"] if reply.status_code == 200 else ""
                answers.append((time.monotonic(), reply.status_code, "retry-after" in reply.headers, action))
                if reply.status_code != 200:
                    time.sleep(0.05)

    def since(moment: float) -> list[tuple[float, int, bool, str]]:
        return [answer for answer in answers if answer[0] > moment]

    with ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(call, i) for i in range(CALLERS)]
        try:
            _wait(lambda: len(answers) >= 2 * CALLERS)
            assert {(status, action) for _, status, _, action in answers} == {(200, "block")}
            killed = time.monotonic()
            os.killpg(vllm.pid, signal.SIGKILL)
            _wait(lambda: len(since(killed + 1)) >= 4 * CALLERS)
            assert httpx.get(f"{guarding}/healthz").status_code == 200
            assert {(status, retry, action) for _, status, retry, action in since(killed + 1)} == {(503, True, "")}
            with served(command(tiny_checkpoint), "tiny-judge", tmp_path / "log", PORT) as again:
                warm(again)
                back = time.monotonic()
                _wait(lambda: Counter(status for _, status, _, _ in since(back))[200] >= 2 * CALLERS)
                stop.set()
                for future in futures:
                    future.result()
        finally:
            stop.set()
    assert {(200, False, "block"), (503, True, "")} == {answer[1:] for answer in answers}


def _wait(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
