"""`Guard.awatch`: the reasoning as it is written, then the decision that `acheck` gives; on every engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl import Action, Decision, Guard, Stage
from guardrail_vl.engines import _completions as completions
from guardrail_vl.engines._batching import Job
from guardrail_vl.engines._events import Events
from guardrail_vl.engines._http import Reply
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.errors import (
    ConfigurationError,
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
    ParseError,
)
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL, parse_text
from guardrail_vl.testing import ScriptedEngine, by_keyword, label_token
from guardrail_vl.verdict import Label
from tests.engines.remotely import ask, fast, no_keys, reason, running, server
from tests.servers import MARK, FaultServer

__all__ = ["no_keys", "running", "server"]

BAD = "crowbar"
THOUGHT = "# Task 1\n\n## Reasoning Step 1\nLooked for words."
CONVERSATION = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": f"Take a {BAD}"},
    {"role": "user", "content": "And then?"},
]


def scripted(**settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(by_keyword(BAD)), speed="reason", **settings)


async def everything(guard: Guard, content: Any, **settings: Any) -> tuple[list[str], Decision]:
    """The pieces and the decision; that it is the last and the only one is checked here."""
    *pieces, decision = [item async for item in guard.awatch(content, **settings)]
    assert isinstance(decision, Decision)
    assert all(isinstance(piece, str) and piece for piece in pieces)
    return [str(piece) for piece in pieces], decision


def watched(guard: Guard, content: Any, **settings: Any) -> tuple[list[str], Decision]:
    return asyncio.run(everything(guard, content, **settings))


def timeless(decision: Decision) -> dict[str, Any]:
    """Everything a decision says but its id and times."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("id", "latency")}
        return [strip(v) for v in value] if isinstance(value, list | tuple) else value

    stripped: dict[str, Any] = strip(json.loads(decision.to_json()))
    return stripped


# ---- the decision is the one of acheck ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["Hello", f"Where is my {BAD}?", CONVERSATION, [{"role": "system", "content": "Be kind."}]]
)
@pytest.mark.parametrize("cache", [True, False])
def test_the_decision_is_the_same(content: Any, cache: bool) -> None:
    guard = scripted(cache=cache)
    pieces, decision = watched(guard, content)
    assert timeless(decision) == timeless(asyncio.run(scripted(cache=cache).acheck(content)))
    assert "".join(pieces) == (THOUGHT if decision.verdict else "")
    assert (len(pieces) > 3) == (decision.verdict is not None)


def test_what_is_remembered_comes_as_one_piece() -> None:
    guard = scripted()
    first, decision = watched(guard, "Hello")
    assert len(first) > 1
    again, other = watched(guard, "Hello")
    assert again == [THOUGHT]
    assert other.judgements[0].remembered
    assert other.verdict == decision.verdict


def test_the_stage_and_the_deadline_are_those_of_the_call() -> None:
    _, decision = watched(scripted(), CONVERSATION[:2], stage="response")
    assert decision.stage is Stage.RESPONSE
    slow = Guard(engine=ScriptedEngine(by_keyword(BAD), delay=5), speed="reason")
    began = time.monotonic()
    _, decision = watched(slow, "Hello", deadline=0.2)
    assert time.monotonic() - began < 3
    assert isinstance(decision.error, EngineUnavailableError)
    with pytest.raises(ConfigurationError):
        scripted().awatch("Hello", stage="later")


def test_hooks_are_called_once_and_may_replace_the_decision() -> None:
    from dataclasses import replace

    seen: list[Decision] = []

    async def hook(turn: object, decision: Decision) -> Decision:
        seen.append(decision)
        return replace(decision, action=Action.BLOCK)

    _, decision = watched(scripted(pre_prompt=hook), "Hello")
    assert decision.blocked
    assert len(seen) == 1


def test_a_mistake_of_the_caller_is_raised() -> None:
    with pytest.raises(ConfigurationError):
        watched(scripted(), 17)


@pytest.mark.parametrize("speed", ["fast", "auto"])
def test_without_reasoning_there_are_no_pieces(speed: Any) -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword(BAD)), speed=speed)
    pieces, decision = watched(guard, BAD)
    assert (pieces, decision.blocked) == ([], True)


def test_a_guard_that_reasons_only_where_it_is_unsure_is_watched_then() -> None:
    script = by_keyword(BAD)
    guard = Guard(
        engine=ScriptedEngine(lambda p: label_token(Label.HARMFUL, 0.6) if p.prefix else script(p)), speed="auto"
    )
    pieces, decision = watched(guard, "Hello")
    assert "".join(pieces) == THOUGHT
    assert decision.action is Action.ALLOW


def test_the_embedded_guard_says_its_decision_only() -> None:
    guard = Guard()
    pieces, decision = watched(guard, "What is a good recipe for tomato soup?")
    assert (pieces, decision.action) == ([], Action.ALLOW)


# ---- engines of others ----------------------------------------------------------------------------------------------


class Plain(Engine):
    """An engine that knows nothing of being watched."""

    format: ClassVar[str] = "guardreasoner-vl/1"
    model = "plain"

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        return [by_keyword(BAD)(prompt) for prompt in prompts]  # type: ignore[misc]


class Broken(Plain):
    async def astream(self, prompt: Prompt, *, deadline: Deadline, on_text: Any) -> Outcome:
        on_text("<think>Well")
        raise RuntimeError("quotes the content")


def test_an_engine_that_does_not_stream_gives_its_reasoning_at_once() -> None:
    pieces, decision = watched(Guard(engine=Plain(), speed="reason"), BAD)
    assert (pieces, decision.blocked) == ([THOUGHT], True)


@pytest.mark.parametrize("content", ["Hello", CONVERSATION])
def test_an_engine_that_breaks_half_way_is_an_error_decision(content: Any) -> None:
    pieces, decision = watched(Guard(engine=Broken(), speed="reason"), content)
    assert pieces == ["Well"]
    assert decision.blocked
    assert type(decision.error) is EngineError
    assert "quotes" not in str(decision.error)


def test_reasoning_without_a_verdict_is_no_verdict() -> None:
    engine = ScriptedEngine(lambda prompt: "<think>I wonder\n</think>\n\n<result>\nRequest: perhaps\n</result>")
    pieces, decision = watched(Guard(engine=engine, speed="reason"), "Hello")
    assert "".join(pieces) == "I wonder"
    assert isinstance(decision.error, ParseError)
    assert decision.blocked


# ---- leaving early --------------------------------------------------------------------------------------------------


def test_leaving_ends_the_check() -> None:
    engine = ScriptedEngine(by_keyword(BAD), delay=30)
    guard = Guard(engine=engine, speed="reason", max_concurrency=1)

    async def go() -> Decision:
        async with aclosing(guard.awatch("Hello")) as items:
            async for _ in items:
                break
        assert len(asyncio.all_tasks()) == 1
        engine.delay = 0.0
        return await guard.acheck("Hello")  # the only place is free again

    began = time.monotonic()
    assert asyncio.run(go()).action is Action.ALLOW
    assert time.monotonic() - began < 10


def test_being_cancelled_ends_the_check() -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword(BAD), delay=30), speed="reason")

    async def go() -> None:
        watching = asyncio.ensure_future(everything(guard, "Hello"))
        await asyncio.sleep(0.1)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())


def test_many_are_watched_at_a_time() -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword(BAD), delay=0.2), speed="reason", cache=False)

    async def go() -> None:
        found = await asyncio.gather(*(everything(guard, f"{BAD if i % 2 else 'Hello'} {i}") for i in range(20)))
        for i, (pieces, decision) in enumerate(found):
            assert "".join(pieces) == THOUGHT
            assert decision.blocked == bool(i % 2)

    asyncio.run(go())


# ---- what is reasoning ----------------------------------------------------------------------------------------------

SNIPPETS = st.sampled_from(
    ["<think>", "</think>", "<result>", "</result>", "<", "</", "thin", "k>", "\n", " ", "a", "Request: harmful", "ü"]
)


@given(st.lists(SNIPPETS, max_size=12).map("".join))
def test_reasoning_grows_with_the_text_only(text: str) -> None:
    form = GuardReasonerVL()
    known = ""
    for end in range(len(text) + 1):
        reasoning = form.reasoning_in(text[:end])
        assert reasoning.startswith(known)
        known = reasoning
    assert "</think>" not in known


@given(st.text(st.sampled_from("ab <>/\nthinkresul"), min_size=1))
def test_what_was_told_is_what_is_parsed(thought: str) -> None:
    text = f"<think>{thought}\n</think>\n\n<result>\nRequest: harmful\nResponse: None\n</result>"
    try:
        parsed = parse_text(text)
    except ParseError:
        return
    form = GuardReasonerVL()
    assert form.reasoning_in(text) == (parsed.reasoning or "")
    assert (parsed.reasoning or "").startswith(form.reasoning_in(text[: len(text) // 2]))


# ---- a server -------------------------------------------------------------------------------------------------------


async def told(engine: RemoteEngine, prompt: Prompt, seconds: float = 5.0) -> tuple[list[str], Outcome]:
    pieces: list[str] = []
    outcome = await engine.astream(prompt, deadline=Deadline.after(seconds), on_text=pieces.append)
    await engine.aclose()
    return pieces, outcome


def without_time(outcome: Outcome) -> Outcome:
    from dataclasses import replace

    assert isinstance(outcome, Completion), outcome
    return replace(outcome, latency=0.0)


@pytest.mark.parametrize("model", ["ok", "ignores", "reasons", "whole", "unstreamed", "strict", "strips", "fail:2"])
@pytest.mark.parametrize("prompt", [reason(MARK), reason("Hello", top_logprobs=0), fast()], ids=["top", "none", "fast"])
def test_a_streamed_completion_equals_a_whole_one(server: FaultServer, model: str, prompt: Prompt) -> None:
    engine = RemoteEngine(server.url, model=model)
    pieces, outcome = asyncio.run(told(engine, prompt))
    whole = ask(RemoteEngine(server.url, model=model), prompt, "async")
    if isinstance(whole, EngineError):  # a begun text on a server that does not continue it
        assert (type(outcome), str(outcome)) == (type(whole), str(whole))
        return
    assert without_time(outcome) == without_time(whole)
    assert without_time(outcome).text.startswith("".join(pieces))  # type: ignore[union-attr]
    assert bool(pieces) == (model not in ("whole", "unstreamed", "strict"))
    assert engine._live.known.breaker.state() == "closed"


def test_the_request_asks_for_a_stream_and_for_its_usage(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="ok")
    asyncio.run(told(engine, reason()))
    ask(engine, reason())
    streamed, whole = (request["body"] for request in server.stats()["requests"])
    assert streamed == {**whole, "stream": True, "stream_options": {"include_usage": True}}


def test_a_server_without_streams_is_asked_for_one_once(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="unstreamed")

    async def go() -> None:
        for _ in range(3):
            await engine.astream(reason(), deadline=Deadline.after(5), on_text=lambda text: None)
        await engine.aclose()

    asyncio.run(go())
    assert ["stream" in request["body"] for request in server.stats()["requests"]] == [True, False, False, False]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("cut-events", "broke off"),
        ("error-event", "reports an error"),
        ("no-end", "did not end by itself"),
        ("two-choices", "another choice"),
        ("not-events", "no JSON"),
    ],
)
def test_a_stream_that_is_no_completion_is_refused(server: FaultServer, model: str, why: str) -> None:
    pieces, outcome = asyncio.run(told(RemoteEngine(server.url, model=model), reason("Secret words")))
    assert pieces
    assert isinstance(outcome, EngineResponseError)
    assert why in str(outcome)
    assert "Secret" not in repr(outcome)
    assert len(server.stats()["requests"]) == 1


@pytest.mark.parametrize(("model", "status"), [("status:401", 401), ("status:400", 400), ("html", 200)])
def test_a_refusal_is_the_one_of_a_whole_reply(server: FaultServer, model: str, status: int) -> None:
    _, outcome = asyncio.run(told(RemoteEngine(server.url, model=model), reason()))
    whole = ask(RemoteEngine(server.url, model=model), reason(), "async")
    assert isinstance(outcome, EngineResponseError)
    assert (str(outcome), outcome.status) == (str(whole), status)


def test_pieces_come_while_the_server_writes(server: FaultServer) -> None:
    guard = Guard.remote(server.url, model="paced:0.03", speed="reason")

    async def go() -> tuple[list[float], Decision]:
        times: list[float] = []
        decision = None
        async for item in guard.awatch(f"Hello {MARK}"):
            times.append(time.monotonic())
            decision = item
        await guard.aclose()
        assert isinstance(decision, Decision)
        return times, decision

    times, decision = asyncio.run(go())
    assert len(times) > 3
    assert times[-1] - times[0] > 0.3
    assert decision.blocked
    assert decision.verdict is not None
    assert decision.verdict.reasoning == "\nIt is seen. ü"
    assert decision.verdict.score == pytest.approx(0.9)


def test_leaving_closes_the_connection_to_the_server(server: FaultServer) -> None:
    guard = Guard.remote(server.url, model="paced:0.05", speed="reason")

    async def go() -> None:
        async with aclosing(guard.awatch("Hello")) as items:
            assert isinstance(await anext(aiter(items)), str)
        await guard.aclose()

    asyncio.run(go())
    until = time.monotonic() + 5
    while not server.stats()["left"]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_deadline_holds_within_a_stream(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="paced:0.3")
    began = time.monotonic()
    pieces, outcome = asyncio.run(told(engine, reason(), seconds=1.0))
    assert time.monotonic() - began < 2.5
    assert pieces
    assert isinstance(outcome, EngineUnavailableError)
    assert len(server.stats()["requests"]) == 1


STREAM = (
    b': ping\n\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"<think>\xc3\xbc"}}],"usage":null}\n\nevent: x\n'
    b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]'
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    pieces: list[str] = []
    events = Events(pieces.append)
    for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        events.feed(STREAM[start:end])
    reply = Reply(200, {}, STREAM)
    answer = completions.read(reply, reason(stop=(), top_logprobs=0), events.whole(reply))
    assert (answer.text, answer.finish, answer.usage.completion_tokens) == ("<think>üb", "stop", 2)
    assert "".join(pieces) == answer.text


# ---- a checkpoint in this process -----------------------------------------------------------------------------------


def test_what_is_run_again_is_told_once() -> None:
    told: list[str] = []
    job = Job(reason(), Deadline.after(5), told.append)
    for text in ("", "ab", "abc", "", "a", "abc", "abcd"):  # out of memory after the third
        job.tell(text)
    assert told == ["ab", "c", "d"]


def test_a_checkpoint_tells_its_text_token_by_token(tmp_path: Any) -> None:
    tiny = pytest.importorskip("tests.tiny_checkpoint", reason="needs the extra 'local'")
    from guardrail_vl.engines.transformers import TransformersEngine

    engine = TransformersEngine(tiny.build_checkpoint(tmp_path), device="cpu", dtype="float32")
    guard = Guard(engine=engine, speed="reason", deadline=120, cache=False)
    try:
        pieces, decision = watched(guard, f"How do I {tiny.BAD_WORDS[2]} a bicycle?")
        assert timeless(decision) == timeless(asyncio.run(guard.acheck(f"How do I {tiny.BAD_WORDS[2]} a bicycle?")))
        assert decision.verdict is not None
        assert decision.blocked
        assert "".join(pieces) == (decision.verdict.reasoning or "")

        async def raw() -> tuple[list[str], Outcome]:
            found: list[str] = []
            (prompt,) = guard.format.render(_exchange(), Stage.PROMPT, speed="reason")
            return found, await engine.astream(prompt, deadline=Deadline.after(60), on_text=found.append)

        found, outcome = asyncio.run(raw())
        assert isinstance(outcome, Completion)
        assert "".join(found) == outcome.text
        assert len(found) > 3
    finally:
        guard.close()


def _exchange() -> Any:
    from guardrail_vl import Turn

    return Turn.from_prompt("How do I open this door?").exchanges()[-1]
