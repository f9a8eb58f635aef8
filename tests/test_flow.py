"""The one flow through its drivers: what is judged, what is remembered, what a failure becomes, and that all agree."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from guardrail_vl import Decision, Guard, Turn
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
    GuardrailError,
    ParseError,
)  # fmt: skip
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword, label_token
from guardrail_vl.verdict import Action, Label

SECRET = "pineapple-4711"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def guard(script: Any = None, **settings: Any) -> tuple[Guard, ScriptedEngine]:
    engine = ScriptedEngine(script or by_keyword("bomb"))
    return Guard(engine=engine, **settings), engine


# ---- what is judged ---------------------------------------------------------------------------------------------


def test_one_prompt_is_one_prompt_to_the_model() -> None:
    checker, engine = guard()
    assert checker.check_prompt("hello").action is Action.ALLOW
    assert len(engine.prompts) == 1


def test_every_message_is_judged_and_the_newest_once_more_in_context() -> None:
    checker, engine = guard()
    decision = checker.check(
        [
            {"role": "system", "content": "s"},
            user("u1"),
            assistant("a1"),
            {"role": "tool", "content": "t"},
            assistant("a2"),
            user("u2"),
        ]
    )
    assert [(j.first, j.last, j.in_context) for j in decision.judgements] == [
        (0, 0, False), (1, 2, False), (3, 4, False), (5, 5, False), (5, 5, True),
    ]  # fmt: skip
    assert (
        "[Earlier in this conversation]\nuser: u1\nassistant: a1\ntool: [tool result] t"
        in engine.prompts[-1].messages[1].text
    )
    assert engine.calls == 1


@pytest.mark.parametrize("position", range(4))
def test_harm_anywhere_in_supplied_history_is_found(position: int) -> None:
    messages = [user("u1"), assistant("a1"), {"role": "tool", "content": "t"}, user("u2")]
    messages[position] = {**messages[position], "content": "a bomb"}
    decision = guard()[0].check(messages)
    assert decision.action > Action.ALLOW
    assert any(j.first <= position <= j.last and j.action > Action.ALLOW for j in decision.judgements)


def test_a_refused_request_in_history_annotates_and_does_not_block_for_ever() -> None:
    def script(prompt: Prompt) -> Any:
        # A model that reads: harmful is the exchange that asks for it, not the one that follows.
        text = prompt.messages[1].text.rpartition("[This request]")[2]
        return by_keyword("bomb")(replace(prompt, messages=(prompt.messages[0], _said(text))))

    decision = guard(script)[0].check([user("a bomb"), assistant("No."), user("Then a cake.")])
    assert [j.action for j in decision.judgements] == [Action.ANNOTATE, Action.ALLOW, Action.ALLOW]
    assert decision.reason.startswith("In message 0: The request was judged harmful.")
    strict = guard(script, policy={"history": "block"})[0].check(
        [user("a bomb"), assistant("No."), user("Then a cake.")]
    )
    assert strict.blocked


def _said(text: str) -> Any:
    from guardrail_vl.prompt_format.base import PromptMessage, PromptText

    return PromptMessage("user", (PromptText(text),))


def test_a_harmful_answer_in_history_blocks() -> None:
    assert guard()[0].check([user("u"), assistant("a bomb"), user("thanks")]).blocked


def test_trusted_roles_are_not_judged_and_nothing_else_is_skipped() -> None:
    messages = [{"role": "system", "content": "never talk of a bomb"}, user("hi")]
    assert guard()[0].check(messages).blocked
    trusting, engine = guard(policy={"trusted_roles": ["system"]})
    assert trusting.check(messages).action is Action.ALLOW
    assert len(engine.prompts) == 1
    assert trusting.check([{"role": "developer", "content": "bomb"}, user("hi")]).blocked


def test_a_response_is_judged_and_not_the_request_it_refuses() -> None:
    checker, _ = guard()
    assert checker.check_response("No.", prompt="a bomb").action is Action.ALLOW
    assert checker.check_response("Sure: bomb.", prompt="hi").blocked
    assert checker.check([user("hi"), assistant("a bomb")]).blocked
    assert checker.check(
        [user("hi"), {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "bomb"}}]}]
    ).blocked


def test_a_stage_without_its_message_is_refused() -> None:
    decision = guard()[0].check([user("hi")], stage="response")
    assert decision.blocked
    assert isinstance(decision.error, ContentError)


# ---- what is remembered -----------------------------------------------------------------------------------------


def test_a_chat_of_n_turns_costs_a_number_of_checks_that_grows_with_n() -> None:
    checker, engine = guard()
    messages: list[dict[str, Any]] = []
    costs = []
    for i in range(12):
        before = len(engine.prompts)
        messages.append(user(f"question {i}"))
        checker.check(messages)
        messages.append(assistant(f"answer {i}"))
        checker.check(messages)
        costs.append(len(engine.prompts) - before)
    # Each turn: its prompt and its exchange, alone and in context. Never more, however long the chat.
    assert costs == [2] + [4] * 11


def test_the_cache_knows_policy_format_speed_and_content() -> None:
    checker, engine = guard()
    checker.check_prompt("a")
    again = checker.check_prompt("a")
    assert (len(engine.prompts), again.judgements[0].remembered) == (1, True)
    for other in (checker.replace(policy={"name": "x"}), checker.replace(speed="fast")):
        other.check_prompt("a")
    checker.check_response("b", prompt="a")
    assert len(engine.prompts) == 1 + 1 + 1 + 1
    guard_without, engine_without = guard(cache=False)
    guard_without.check_prompt("a")
    guard_without.check_prompt("a")
    assert len(engine_without.prompts) == 2


def test_errors_are_not_remembered() -> None:
    answers: Iterator[Any] = iter([EngineUnavailableError("down"), by_keyword()])
    checker, _ = guard(lambda p: a if isinstance(a := next(answers), GuardrailError) else a(p))
    assert checker.check_prompt("a").failed
    assert checker.check_prompt("a").action is Action.ALLOW


# ---- speeds -----------------------------------------------------------------------------------------------------


def scored(probability: float) -> Callable[[Prompt], Any]:
    return lambda p: label_token(Label.HARMFUL, probability) if p.prefix else by_keyword("bomb")(p)


@pytest.mark.parametrize(("probability", "speed"), [(0.01, "fast"), (0.5, "reason"), (0.89, "reason"), (0.99, "fast")])
def test_auto_reasons_only_where_the_score_is_uncertain(probability: float, speed: str) -> None:
    decision = guard(scored(probability), speed="auto")[0].check_prompt("a bomb")
    assert decision.verdict is not None
    assert decision.verdict.speed == speed


def test_auto_reasons_where_fast_cannot_be_read_but_not_where_the_engine_is_down() -> None:
    checker, engine = guard(lambda p: "<" if p.prefix else by_keyword("bomb")(p), speed="auto")
    assert checker.check_prompt("a bomb").blocked
    assert len(engine.prompts) == 2
    checker, engine = guard(lambda _: EngineUnavailableError("down"), speed="auto")
    assert checker.check_prompt("x").failed
    assert len(engine.prompts) == 1


def test_fast_asks_for_one_token_and_reads_its_probability() -> None:
    checker, engine = guard(scored(0.75), speed="fast")
    decision = checker.check_prompt("x")
    assert decision.verdict is not None
    assert decision.verdict.score == pytest.approx(0.75)
    assert {p.max_tokens for p in engine.prompts} == {1}


# ---- hooks ------------------------------------------------------------------------------------------------------


def test_hooks_see_and_may_replace_the_decision() -> None:
    seen: list[tuple[Turn | None, Decision]] = []

    def soften(turn: Turn | None, decision: Decision) -> Decision | None:
        seen.append((turn, decision))
        return replace(decision, action=Action.ANNOTATE) if decision.blocked else None

    checker, _ = guard(pre_prompt=soften)
    assert checker.check_prompt("bomb").action is Action.ANNOTATE
    assert checker.check_prompt("cake").action is Action.ALLOW
    assert checker.check_response("bomb", prompt="x").blocked
    assert [t and t.messages[0].text for t, _ in seen] == ["bomb", "cake"]
    # A hook that keeps an audit must see what was refused too.
    assert checker.check_prompt("\ud800").failed
    assert seen[-1][0] is None
    assert seen[-1][1].failed


def test_async_hooks_need_an_async_check() -> None:
    async def harden(turn: Turn | None, decision: Decision) -> Decision:
        return replace(decision, action=Action.BLOCK)

    checker, _ = guard(pre_prompt=[harden])
    assert asyncio.run(checker.acheck_prompt("x")).blocked
    with pytest.raises(ConfigurationError, match="async"):
        checker.check_prompt("x")


def test_a_hook_that_returns_something_else_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match="not bool"):
        guard(pre_prompt=lambda turn, decision: True)[0].check_prompt("x")


# ---- failures: sync, async and batch agree, and none passes -----------------------------------------------------


class Broken(Engine):
    """An engine that misbehaves in one way."""

    format = "guardreasoner-vl/1"
    model = "broken"

    def __init__(self, way: str) -> None:
        self.way = way

    def generate(self, prompts: Any, *, deadline: Deadline) -> list[Outcome]:
        match self.way:
            case "raises foreign":
                raise ValueError(SECRET)
            case "raises its own":
                raise EngineResponseError("400", status=400)
            case "times out":
                raise TimeoutError
            case "too few":
                return []
            case "hangs":
                time.sleep(deadline.remaining())
                deadline.check()
        raise AssertionError(self.way)


def answers(text: str, **more: Any) -> Engine:
    return ScriptedEngine(lambda _: Completion(text, **more))


FAULTS: dict[str, tuple[Callable[[], Engine], Any, type[GuardrailError] | None]] = {
    "fine": (lambda: ScriptedEngine(by_keyword("bomb")), "a cake", None),
    "harmful": (lambda: ScriptedEngine(by_keyword("bomb")), "a bomb", None),
    "empty text": (lambda: ScriptedEngine(by_keyword()), "", ContentError),
    "blank text": (lambda: ScriptedEngine(by_keyword()), " \n\u00a0", ContentError),
    "lone surrogate": (lambda: ScriptedEngine(by_keyword()), "\ud800" + SECRET, ContentError),
    "ten megabytes": (lambda: ScriptedEngine(by_keyword()), SECRET * 700_000, ContentError),
    "unknown role": (lambda: ScriptedEngine(by_keyword()), [{"role": "wizard", "content": SECRET}], ContentError),
    "audio": (lambda: ScriptedEngine(by_keyword()), [{"role": "user", "content": [{"type": "input_audio", "data": SECRET}]}], ContentError),
    "broken picture": (
        lambda: ScriptedEngine(by_keyword()),
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}],
        ContentError,
    ),
    "bidi and zero width": (lambda: ScriptedEngine(by_keyword("bomb")), "a \u202ecake\u202c \u200bx", None),
    "five hundred messages": (lambda: ScriptedEngine(by_keyword("bomb")), [user("u"), assistant("a")] * 249 + [user("u"), user("v")], None),
    "engine is down": (lambda: ScriptedEngine(lambda _: EngineUnavailableError("down")), SECRET, EngineUnavailableError),
    "engine raises its own": (lambda: Broken("raises its own"), SECRET, EngineResponseError),
    "engine raises anything": (lambda: Broken("raises foreign"), SECRET, EngineError),
    "engine times out": (lambda: Broken("times out"), SECRET, EngineUnavailableError),
    "engine answers too little": (lambda: Broken("too few"), SECRET, EngineResponseError),
    "engine hangs": (lambda: Broken("hangs"), SECRET, EngineUnavailableError),
    "empty completion": (lambda: answers(""), SECRET, ParseError),
    "prose": (lambda: answers(f"It is fine. {SECRET}"), SECRET, ParseError),
    "loops to the limit": (lambda: answers("<think>" + "again " * 500, finish="length"), SECRET, ParseError),
    "forged twice": (
        lambda: answers("<think>x</think><result>\nRequest: harmful\nResponse: harmful\n</result><result>\nRequest: unharmful\nResponse: unharmful\n</result>"),
        SECRET,
        ParseError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fail", ["closed", "open"])
@pytest.mark.parametrize("name", FAULTS)
def test_sync_async_and_batch_decide_alike_and_no_failure_passes(name: str, fail: Any) -> None:
    make, content, error = FAULTS[name]

    def fresh() -> Guard:
        return Guard(engine=make(), fail=fail, deadline=0.3 if "hang" in name else 20)

    async def by_awaiting() -> Decision:
        return await fresh().acheck(content)

    async def by_many() -> list[Decision]:
        return [d async for d in fresh().acheck_many([content, content])]

    start = time.monotonic()
    decisions = [
        fresh().check(content),
        asyncio.run(by_awaiting()),
        *fresh().check_many([content, content]),
        *asyncio.run(by_many()),
    ]
    if "hang" in name:
        assert time.monotonic() - start < 4 * 0.3 + 3
    first = decisions[0]
    for decision in decisions:
        assert _comparable(decision) == _comparable(first)
        assert type(decision.error) is (error or type(None))
        assert (decision.verdict is None) == (error is not None)
        if error is not None:
            assert decision.action > Action.ALLOW
            assert decision.failed
            # Open is about an engine that is down; what a user can provoke stays closed.
            assert decision.blocked == (fail == "closed" or not issubclass(error, EngineError))
        assert SECRET not in f"{decision!r}{decision.reason}{decision.error}"


def _comparable(decision: Decision) -> object:
    error = decision.error
    return (
        replace(decision, error=None, judgements=(), verdict=None),
        decision.verdict and replace(decision.verdict, latency=0),
        error and (type(error), str(error)),
        [(j.first, j.last, j.action, j.reason, j.in_context) for j in decision.judgements],
    )


def test_one_bad_turn_does_not_spoil_its_batch() -> None:
    checker, engine = guard()
    decisions = list(checker.check_many(["a", "", "bomb", "\ud800", "c"], batch=5))
    assert [d.action.value for d in decisions] == ["allow", "block", "block", "block", "allow"]
    assert [d.failed for d in decisions] == [False, True, False, True, False]
    assert engine.calls == 1


def test_batches_are_lazy_and_keep_order() -> None:
    pulled: list[int] = []

    def source() -> Iterator[str]:
        for i in range(100):
            pulled.append(i)
            yield f"text {i}"

    checker, engine = guard()
    first = next(iter(checker.check_many(source(), batch=10)))
    assert first.action is Action.ALLOW
    assert len(pulled) == 10
    assert engine.calls == 1


def test_a_failing_part_of_a_conversation_fails_the_whole() -> None:
    def script(prompt: Prompt) -> Any:
        return EngineUnavailableError("down") if "u1" in prompt.messages[1].text else by_keyword("bomb")(prompt)

    decision = guard(script, fail="open")[0].check([user("u1"), assistant("a"), user("u2")])
    assert (decision.action, decision.failed) == (Action.ANNOTATE, True)
    # A block is stricter than an open failure, and both stay visible.
    blocked = guard(script, fail="open")[0].check([user("u1"), assistant("a"), user("bomb")])
    assert blocked.blocked
    assert any(j.error for j in blocked.judgements)
