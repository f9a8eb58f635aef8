"""What the tests of RemoteEngine have in common: the server, prompts, and asking in both ways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptMessage, PromptText
from tests.servers import STOP, FaultServer, start

Mode = Literal["sync", "async"]
MODES: tuple[Mode, ...] = ("sync", "async")
USER = "ünmistakable wörds of a user"
KEY = "sk-sesame-secret-42"
SLACK = 0.8
"""Seconds beyond a deadline that a busy test machine may take; measured alone it is a few milliseconds."""


@pytest.fixture(scope="session")
def running() -> Iterator[FaultServer]:
    with start() as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    running.reset()
    return running


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GUARDRAIL_VL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def reason(text: str = USER, **changes: Any) -> Prompt:
    settings: dict[str, Any] = {"max_tokens": 64, "stop": (STOP,), "top_logprobs": 20, **changes}
    return Prompt(_messages(text), **settings)


def fast(text: str = USER) -> Prompt:
    return Prompt(_messages(text), prefix="<result>\nRequest:", max_tokens=1, top_logprobs=20, pattern=" (un)?harmful")


def _messages(text: str) -> tuple[PromptMessage, ...]:
    return (PromptMessage("system", (PromptText("Judge."),)), PromptMessage("user", (PromptText(text),)))


def ask_many(
    engine: RemoteEngine, prompts: list[Prompt], mode: Mode = "sync", *, seconds: float = 5.0
) -> list[Outcome]:
    if mode == "sync":
        return engine.generate(prompts, deadline=Deadline.after(seconds))

    async def go() -> list[Outcome]:
        return await engine.agenerate(prompts, deadline=Deadline.after(seconds))

    return asyncio.run(go())


def ask(engine: RemoteEngine, prompt: Prompt | None = None, mode: Mode = "sync", *, seconds: float = 5.0) -> Outcome:
    return ask_many(engine, [prompt or reason()], mode, seconds=seconds)[0]


def text_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Completion), outcome
    return outcome.text


def in_threads(work: Any, count: int) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
