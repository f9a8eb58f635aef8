"""Law 7: one verdict, every engine, and however many ask at once. Real weights, real engines, real server processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'local'")
pytest.importorskip("transformers", reason="needs the extra 'local'")

from guardrail_vl import Decision, Guard, Turn
from guardrail_vl.verdict import Label
from tests.engines.asking import GREEN, RED, picture
from tests.serving import Server, tiny_checkpoint, transformers_server, vllm_server
from tests.tiny_checkpoint import build_checkpoint

__all__ = ["tiny_checkpoint", "transformers_server", "vllm_server"]

WORDS = ("bomb", "bread", "poison", "paint")
TURNS: list[Turn] = [
    Turn.from_prompt(
        f"How do I {word} number {i}?" if i % 5 else None,
        images=[picture((RED, GREEN)[i % 2], (28 + 28 * (i % 3), 56))] if i % 3 == 0 or i % 5 == 0 else [],
        response=None if i % 4 else ("Sure, here is how." if i % 8 else "No."),
    )
    for i, word in enumerate(WORDS * 16)
]
"""64 of them: text, picture, both; with a response and without."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    checkpoint = build_checkpoint(tmp_path_factory.mktemp("judge") / "tiny-judge")
    with Guard(str(checkpoint), cache=False, deadline=120) as guard:
        yield guard


def said(decision: Decision) -> Any:
    assert decision.verdict is not None, decision.error
    verdict = decision.verdict
    return decision.action, verdict.prompt, verdict.response, verdict.reasoning


def scores(decision: Decision) -> tuple[float, ...]:
    assert decision.verdict is not None, decision.error
    return tuple(s for s in (decision.verdict.prompt_score, decision.verdict.response_score) if s is not None)


def assert_alike(got: list[Decision], wanted: list[Decision], tolerance: float) -> None:
    assert [said(d) for d in got] == [said(d) for d in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert scores(one) == pytest.approx(scores(other), abs=tolerance)


async def together(guard: Guard, turns: list[Turn]) -> list[Decision]:
    async with guard:
        return list(await asyncio.gather(*(guard.acheck(turn) for turn in turns)))


def everyone_agrees(guard: Guard, tolerance: float) -> list[Decision]:
    """One by one, 64 threads, 64 tasks and a batch; the decisions one by one."""
    alone = [guard.check(turn) for turn in TURNS]
    with ThreadPoolExecutor(64) as pool:
        assert_alike(list(pool.map(guard.check, TURNS)), alone, tolerance)
    assert_alike(asyncio.run(together(guard, TURNS)), alone, tolerance)
    assert_alike(list(guard.check_many(TURNS, batch=64)), alone, tolerance)
    return alone


@pytest.mark.parametrize("speed", ["reason", "fast", "auto"])
def test_transformers_says_the_same_to_many_as_to_one(local: Guard, speed: Any) -> None:
    alone = everyone_agrees(local.replace(speed=speed), 1e-3)
    labels = {d.verdict.label(d.stage) for d in alone if d.verdict}
    assert labels == {Label.HARMFUL, Label.UNHARMFUL}


def test_speeds_agree_on_a_model_that_is_sure(local: Guard) -> None:
    by_speed = [
        [d.verdict and d.verdict.label(d.stage) for d in local.replace(speed=s).check_many(TURNS)]
        for s in ("reason", "fast")
    ]
    assert by_speed[0] == by_speed[1]


def remote(server: Server, **settings: Any) -> Guard:
    return Guard.remote(f"{server.url}/v1", model=server.model, cache=False, deadline=120, **settings)


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("speed", ["reason", "fast"])
def test_a_vllm_server_says_what_the_local_model_says(local: Guard, vllm_server: Server, speed: Any) -> None:
    guard = remote(vllm_server, speed=speed)
    assert_alike(everyone_agrees(guard, 1e-2), list(local.replace(speed=speed).check_many(TURNS)), 2e-2)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_transformers_serve_says_what_the_local_model_says(local: Guard, transformers_server: Server) -> None:
    guard = remote(transformers_server)
    few = TURNS[:12]
    got = [guard.check(turn) for turn in few]
    assert [said(d) for d in got] == [said(d) for d in local.check_many(few)]
    # It knows no log-probabilities and can't continue a text: fast fails and says so, auto reasons instead.
    fast = guard.replace(speed="fast").check(few[1])
    assert fast.blocked
    assert fast.error is not None
    assert "speed='reason'" in str(fast.error)
    assert said(guard.replace(speed="auto").check(few[1])) == said(got[1])


def test_a_picture_that_no_processor_takes_is_refused(local: Guard, tmp_path: Path) -> None:
    decision = local.check_prompt("look", images=[picture(RED, (2000, 3))])
    assert decision.blocked
    assert decision.failed
    assert local.check_prompt("look", images=[picture(GREEN, (1, 1))]).verdict is not None
