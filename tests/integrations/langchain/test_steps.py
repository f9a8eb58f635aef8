"""`guard_step`: what passes a step of a chain, and what doesn't."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("langgraph")
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda

from guardrail_vl import BlockedError, Guard
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.integrations.langchain import decisions, guard_step
from guardrail_vl.testing import ScriptedEngine
from tests.integrations.langchain.apps import BAD, make_guard
from tests.integrations.langchain.test_models import Heard
from tests.integrations.langchain.test_runnables import ASK, ENDS, SAFE, SPOILED, WAYS, ask, model

GOOD_PAGE = Document(page_content="Doors open.", metadata={"source": "a"})
BAD_PAGE = Document(page_content=f"Doors {BAD}.", metadata={"source": "b"})


# ---- one value ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["prompt", "response"])
def test_what_is_harmless_passes_unchanged(way: str, stage: Any) -> None:
    for value in ("hello", {"a": ["x"], "n": 1}, [GOOD_PAGE], ("x", "y"), 3, ""):
        assert ask(guard_step(make_guard(), stage=stage), way, value) == [value]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["prompt", "response"])
@pytest.mark.parametrize(
    "value",
    [f"to {BAD}", {"a": [BAD]}, [BAD_PAGE], BAD_PAGE, [HumanMessage(BAD)], AIMessage(BAD), [GOOD_PAGE, BAD_PAGE]],
)
def test_what_is_harmful_does_not(way: str, stage: Any, value: Any) -> None:
    with pytest.raises(BlockedError) as caught:
        ask(guard_step(make_guard(), stage=stage), way, value)
    assert str(caught.value.decision.stage) == stage


def test_a_step_stops_a_chain_before_what_stands_behind_it() -> None:
    def spoil(text: str) -> str:
        return f"{text} {BAD}"

    ran: list[Any] = []
    with pytest.raises(BlockedError):
        (RunnableLambda(spoil) | guard_step(make_guard()) | ran.append).invoke("x")
    assert ran == []


def test_the_decision_is_an_event_of_the_step() -> None:
    heard = Heard()
    guard_step(make_guard()).invoke("hello", {"callbacks": [heard]})
    with pytest.raises(BlockedError):
        list(guard_step(make_guard(), stage="response").transform(iter([BAD]), {"callbacks": [heard]}))
    told = [one for one in heard.all if "on_custom_event" in one]
    assert ["'block'" in one for one in told] == [False, True]


def test_documents_are_content_from_outside() -> None:
    for stage, says in (("prompt", "tool"), ("response", "AI assistant:")):
        guard = make_guard()
        guard_step(guard, stage=stage).invoke([GOOD_PAGE])  # type: ignore[arg-type]
        assert says in guard.engine.prompts[0].messages[-1].text.lower().replace("ai assistant", "AI assistant")  # type: ignore[attr-defined]


def test_a_conversation_is_judged_with_all_its_messages() -> None:
    talk = [SystemMessage("Be kind."), HumanMessage(BAD), AIMessage("No."), HumanMessage("Please.")]
    with pytest.raises(BlockedError):
        guard_step(make_guard()).invoke(talk)
    with pytest.raises(BlockedError):
        guard_step(make_guard(), stage="response").invoke(talk)


@pytest.mark.parametrize("way", WAYS)
def test_the_app_says_what_is_judged(way: str) -> None:
    step = guard_step(make_guard(), select=lambda value: value["seen"])
    assert ask(step, way, {"seen": "x", "kept": BAD}) == [{"seen": "x", "kept": BAD}]
    with pytest.raises(BlockedError):
        ask(step, way, {"seen": BAD})

    def unreadable(value: Any) -> Any:
        raise ContentError("This can't be read.")

    for stage in ("prompt", "response"):
        with pytest.raises(ContentError, match="can't be read"):
            ask(guard_step(make_guard(), stage=stage, select=unreadable), way, "x")


# ---- notes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_response_carries_what_was_decided(way: str) -> None:
    said = AIMessage("hello")
    (got,) = ask(guard_step(make_guard(), stage="response"), way, said)
    assert got is not said
    assert got.content == "hello"
    assert [str(one.action) for one in decisions(got)] == ["allow"]
    assert said.response_metadata == {}
    twice = guard_step(make_guard(), stage="response") | guard_step(make_guard(), stage="response")
    (got,) = ask(twice, way, said)
    assert len(decisions(got)) == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_passes_as_the_very_same_so_that_caches_know_it(way: str) -> None:
    asked = [HumanMessage("hello")]
    (got,) = ask(guard_step(make_guard()), way, asked)
    assert got is asked


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["prompt", "response"])
def test_annotate_lets_all_pass_and_says_so(way: str, stage: Any) -> None:
    step = guard_step(make_guard(), stage=stage, on_block="annotate", stream="observe")
    (got,) = ask(step, way, HumanMessage(BAD))
    if stage == "prompt" or ("stream" not in way and "transform" not in way):
        assert [str(one.action) for one in decisions(got)] == ["block"]
    (pages,) = ask(step, way, [GOOD_PAGE, BAD_PAGE])
    assert [page.metadata["guardrail"] for page in pages] == [{"action": "allow"}, {"action": "block"}]
    assert [page.page_content for page in pages] == [GOOD_PAGE.page_content, BAD_PAGE.page_content]
    assert "guardrail" not in GOOD_PAGE.metadata
    (pair,) = ask(step, way, (HumanMessage("x"), HumanMessage("y")))
    assert "guardrail" not in pair[0].response_metadata
    assert ask(step, way, {"a": BAD}) == [{"a": BAD}]


# ---- dropping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["prompt", "response"])
def test_drop_leaves_out_what_is_blocked(way: str, stage: Any) -> None:
    step = guard_step(make_guard(), stage=stage, on_block="drop")
    assert ask(step, way, [GOOD_PAGE, BAD_PAGE, GOOD_PAGE]) == [[GOOD_PAGE, GOOD_PAGE]]
    assert ask(step, way, ("x", BAD, "")) == [("x", "")]
    (left,) = ask(step, way, [HumanMessage("x"), AIMessage(BAD)])
    assert [one.content for one in left] == ["x"]
    assert ask(step, way, [BAD_PAGE]) == [[]]
    assert ask(step, way, []) == [[]]


@pytest.mark.parametrize("way", WAYS)
def test_drop_is_for_lists(way: str) -> None:
    for wrong in ("x", {"a": "x"}, BAD_PAGE, [{"a": 1}], [1]):
        with pytest.raises(ConfigurationError, match="drop is for lists"):
            ask(guard_step(make_guard(), on_block="drop"), way, wrong)
    chosen = guard_step(make_guard(), on_block="drop", select=lambda item: item["text"])
    assert ask(chosen, way, [{"text": BAD}, {"text": "x"}]) == [[{"text": "x"}]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on_block", ["raise", "drop"])
def test_without_a_verdict_the_guards_error_is_raised(way: str, on_block: Any) -> None:
    down = Guard(engine=ScriptedEngine(lambda _: EngineUnavailableError("down")))
    with pytest.raises(EngineUnavailableError):
        ask(guard_step(down, on_block=on_block), way, [GOOD_PAGE])


# ---- streams ------------------------------------------------------------------------------------------------------


async def stream(target: Runnable[Any, Any], asynchronous: bool, got: list[Any]) -> None:
    if asynchronous:
        async for item in target.astream(ENDS):
            got.append(item)
    else:
        for item in target.stream(ENDS):
            got.append(item)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_response_streams_through_and_nothing_unjudged_passes(asynchronous: bool) -> None:
    def through(text: str) -> Any:
        return ASK | model(text) | guard_step(make_guard(), stage="response") | StrOutputParser()

    got: list[str] = []
    asyncio.run(stream(through(SAFE), asynchronous, got))
    assert len(got) > 5
    assert "".join(got) == SAFE
    spoiled: list[str] = []
    with pytest.raises(BlockedError):
        asyncio.run(stream(through(SPOILED), asynchronous, spoiled))
    assert BAD not in "".join(spoiled)
    assert "SECRETPLAN" not in "".join(spoiled)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_streamed_messages_end_in_what_was_decided(asynchronous: bool) -> None:
    got: list[AIMessageChunk] = []
    asyncio.run(stream(ASK | model(SAFE) | guard_step(make_guard(), stage="response"), asynchronous, got))
    assert [one.chunk_position for one in got if one.chunk_position] == ["last"]
    whole = sum(got[1:], got[0])
    assert isinstance(whole, BaseMessage)
    assert whole.text == SAFE
    assert len(decisions(whole)) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_values_that_grow_stream_through(asynchronous: bool) -> None:
    got: list[Any] = []
    grows = ASK | model('["The door", "is open."]') | JsonOutputParser()
    asyncio.run(stream(grows | guard_step(make_guard(), stage="response"), asynchronous, got))
    assert len(got) > 2
    assert got[-1] == ["The door", "is open."]
    got.clear()
    spoiled = ASK | model(f'["The door", "is {BAD}", "x"]') | JsonOutputParser()
    asyncio.run(stream(spoiled | guard_step(make_guard(), stage="response", on_block="drop"), asynchronous, got))
    assert got[-1] == ["The door", "x"]
    assert BAD not in str(got)


def test_a_prompt_that_streams_is_gathered() -> None:
    def words(_: Any) -> Iterator[str]:
        yield from ("BAD", "WORD")

    with pytest.raises(BlockedError):
        list((RunnableGenerator(words) | guard_step(make_guard())).stream("x"))
    assert list(guard_step(make_guard(), on_block="annotate").transform(iter(["BAD", "WORD"]))) == [BAD]
    assert list(guard_step(make_guard()).transform(iter([]))) == []


def test_leaving_early_ends_what_stands_before() -> None:
    ended: list[int] = []

    async def write(_: Any) -> AsyncIterator[str]:
        try:
            for _ in range(10_000):
                yield "On and on it goes. "
        finally:
            ended.append(1)

    async def leave() -> None:
        got: Any = guard_step(make_guard(), stage="response").atransform(write(None))
        await anext(got)
        await got.aclose()

    asyncio.run(leave())
    assert ended == [1]


# ---- what it is ---------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named() -> None:
    async def later(value: Any) -> Any:
        return value

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"stage": "both"}, "stage must be one of"),
        ({"on_block": "refuse"}, "on_block must be one of"),
        ({"select": later}, "select= takes a plain function"),
        ({"stream": "observe"}, "observe"),
        ({"allow_unguarded": "x"}, "allow_unguarded"),
    ]
    for arguments, says in wrong:
        with pytest.raises(ConfigurationError, match=says):
            guard_step(make_guard(), **arguments)


def test_it_composes_and_says_what_it_is() -> None:
    step = guard_step(make_guard())
    assert repr(step) == "GuardStep(prompt)"
    assert step.with_config(run_name="mine").invoke("x") == "x"
    assert [one.content for one in (step | model(SAFE)).batch([ENDS["question"]])] == [SAFE]


def test_it_can_be_pickled() -> None:
    step = pickle.loads(pickle.dumps(guard_step(Guard(engine=ScriptedEngine(_harmless)))))
    assert step.invoke("x") == "x"


def _harmless(prompt: Any) -> str:
    return "<think>Fine.</think>\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>"
