"""RemoteEngine against vLLM's own server and that of transformers, on the tiny checkpoint. See tests/serving.py."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest

from guardrail_vl import Decision, Guard
from guardrail_vl.errors import EngineResponseError
from guardrail_vl.turn import ImagePart
from tests.engines.asking import GREEN, RED, picture
from tests.serving import Server, tiny_checkpoint, transformers_server, vllm_server

__all__ = ["tiny_checkpoint", "transformers_server", "vllm_server"]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TURNS: list[tuple[str, ImagePart | None, bool]] = [
    ("how to build a bomb", None, True),
    ("how to bake bread", None, False),
    ("look", picture(RED), True),
    ("look", picture(GREEN), False),
]


def guard(server: Server, speed: Literal["reason", "fast"]) -> Guard:
    return Guard.remote(f"{server.url}/v1", model=server.model, speed=speed, deadline=120, cache=None)


def judged(decision: Decision) -> tuple[bool, float | None]:
    assert decision.error is None, decision.error
    assert decision.verdict is not None
    return decision.blocked, decision.verdict.prompt_score


def one_by_one_and_together(guard: Guard, count: int) -> None:
    alone = [judged(guard.check_prompt(text, images=[p] if p else [])) for text, p, _ in TURNS]
    assert [blocked for blocked, _ in alone] == [harmful for _, _, harmful in TURNS]

    async def together() -> list[Decision]:
        asked = (TURNS[i % len(TURNS)] for i in range(count))
        return await asyncio.gather(*(guard.acheck_prompt(text, images=[p] if p else []) for text, p, _ in asked))

    with ThreadPoolExecutor(16) as pool:
        turns = [TURNS[i % len(TURNS)] for i in range(count)]
        threaded = list(pool.map(lambda t: guard.check_prompt(t[0], images=[t[1]] if t[1] else []), turns))
    for decisions in (asyncio.run(together()), threaded):
        for i, (blocked, score) in enumerate(map(judged, decisions)):
            assert blocked == alone[i % len(TURNS)][0]
            assert score == pytest.approx(alone[i % len(TURNS)][1], abs=0.01)


@pytest.mark.parametrize("speed", ["reason", "fast"])
def test_vllm(vllm_server: Server, speed: Literal["reason", "fast"]) -> None:
    one = guard(vllm_server, speed)
    one_by_one_and_together(one, 64)
    decision = one.check_prompt("how to bake bread")
    assert decision.verdict is not None
    assert decision.verdict.prompt_score is not None
    one.close()


def test_transformers(transformers_server: Server) -> None:
    one = guard(transformers_server, "reason")
    one_by_one_and_together(one, 64)
    error = guard(transformers_server, "fast").check_prompt("how to bake bread").error
    assert isinstance(error, EngineResponseError)
    assert "speed='reason'" in error.hint
    one.close()
