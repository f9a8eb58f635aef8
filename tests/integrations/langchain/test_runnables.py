"""Guarded runnables: real chains on LangChain's own scripted model. Nothing of what runs inside is heard unjudged."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypedDict

import pytest

pytest.importorskip("langgraph")
import langsmith
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.runnables.utils import AddableDict
from langchain_core.tracers.context import collect_runs
from langchain_core.tracers.langchain import wait_for_all_tracers
from langgraph.config import get_store, get_stream_writer
from langgraph.graph import StateGraph
from langgraph.store.memory import InMemoryStore
from pydantic import BaseModel

from guardrail_vl import BlockedError, Guard
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.integrations import langchain as integration
from guardrail_vl.integrations.langchain import decisions
from guardrail_vl.integrations.langchain._runs import Run, asking
from guardrail_vl.parts import ImagePart
from guardrail_vl.testing import ScriptedEngine
from tests.integrations.langchain.apps import BAD, make_guard
from tests.integrations.langchain.test_models import Heard

SAFE = "The door is open. Come in, and close it behind you."
SPOILED = f"The door is open. Come in. SECRETPLAN it is, and now {BAD} to all of you."
ASK = ChatPromptTemplate.from_messages([("system", "Be kind."), ("user", "{question}")])
ENDS = {"question": "May I?"}
WAYS = ["invoke", "ainvoke", "stream", "astream", "transform", "atransform", "batch", "abatch"]


def guarded(target: Any, guard: Guard, **settings: Any) -> Any:
    return integration.guarded(target, guard, **settings)


def model(*texts: str) -> GenericFakeChatModel:
    """Says these, word by word in a stream."""
    return GenericFakeChatModel(messages=iter(texts))


def chain(*texts: str) -> Any:
    return ASK | model(*texts) | StrOutputParser()


async def items(target: Runnable[Any, Any], way: str, value: Any, config: RunnableConfig | None = None) -> list[Any]:
    """What comes out, in one of the ways to ask."""

    async def alone() -> AsyncIterator[Any]:
        yield value

    match way:
        case "invoke":
            return [target.invoke(value, config)]
        case "ainvoke":
            return [await target.ainvoke(value, config)]
        case "batch":
            return target.batch([value], config)
        case "abatch":
            return await target.abatch([value], config)
        case "stream":
            return list(target.stream(value, config))
        case "transform":
            return list(target.transform(iter([value]), config))
        case "astream":
            return [item async for item in target.astream(value, config)]
        case _:
            return [item async for item in target.atransform(alone(), config)]


def ask(target: Any, way: str, value: Any, config: RunnableConfig | None = None) -> list[Any]:
    return asyncio.run(items(target, way, value, config))


# ---- judged, every way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_is_harmless_comes_out_as_it_is(way: str) -> None:
    assert "".join(ask(guarded(chain(SAFE), make_guard()), way, ENDS)) == SAFE


@pytest.mark.parametrize("way", WAYS)
def test_a_harmful_prompt_is_blocked_before_anything_runs(way: str) -> None:
    ran: list[Any] = []
    target = guarded(RunnableLambda(ran.append), make_guard())
    with pytest.raises(BlockedError) as caught:
        ask(target, way, {"question": BAD})
    assert str(caught.value.decision.stage) == "prompt"
    assert ran == []


@pytest.mark.parametrize("way", WAYS)
def test_a_harmful_answer_is_blocked_and_nobody_hears_of_it(way: str) -> None:
    heard = Heard()
    with collect_runs() as runs, pytest.raises(BlockedError):
        ask(guarded(chain(SPOILED), make_guard()), way, ENDS, {"callbacks": [heard]})
    assert heard.all
    traced = [str((run.inputs, run.outputs, run.error, run.events, run.child_runs)) for run in runs.traced_runs]
    assert traced
    for told in (*heard.all, *traced):
        assert "SECRETPLAN" not in told
        assert BAD not in told


@pytest.mark.parametrize("way", WAYS)
def test_of_what_runs_inside_nothing_is_heard_but_the_run_itself(way: str) -> None:
    heard = Heard()
    with collect_runs() as runs:
        ask(guarded(chain(SAFE), make_guard()), way, ENDS, {"callbacks": [heard]})
    assert [(run.run_type, len(run.child_runs)) for run in runs.traced_runs] == [("chain", 0)]
    assert {told.split("'")[1] for told in heard.all} == {"on_chain_start", "on_custom_event", "on_chain_end"}


class Collecting(langsmith.Client):
    """Keeps what it would send."""

    def __init__(self) -> None:
        super().__init__(api_url="http://127.0.0.1:9", api_key="k", auto_batch_tracing=False)
        self.sent: list[str] = []

    def create_run(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(repr((args, kwargs)))

    def update_run(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(repr((args, kwargs)))


@pytest.mark.parametrize("way", WAYS)
def test_a_trace_holds_the_run_itself_and_nothing_of_what_runs_inside(way: str) -> None:
    for text in (SAFE, SPOILED):
        client = Collecting()
        with langsmith.tracing_context(enabled=True, client=client), contextlib.suppress(BlockedError):
            ask(guarded(chain(text), make_guard()), way, ENDS)
        wait_for_all_tracers()
        assert len(client.sent) == 2
        assert "SECRETPLAN" not in str(client.sent)
        assert "GenericFakeChatModel" not in str(client.sent)


@pytest.mark.filterwarnings("ignore:astream_events version='v1'")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_event_streams_show_what_was_judged(version: Any) -> None:
    async def events(text: str) -> tuple[list[Any], BlockedError | None]:
        seen = []
        target = ASK | guarded(model(text) | StrOutputParser(), make_guard())
        try:
            async for event in target.astream_events(ENDS, version=version):
                seen.append(event)
        except BlockedError as error:
            return seen, error
        return seen, None

    seen, error = asyncio.run(events(SAFE))
    assert error is None
    assert not [event for event in seen if "chat_model" in event["event"] or "parser" in event["event"]]
    spoken = [e for e in seen if e["event"] == "on_chain_stream" and isinstance(e["data"]["chunk"], str)]
    assert "".join(e["data"]["chunk"] for e in spoken if e["run_id"] == spoken[0]["run_id"]) == SAFE
    told = [event["data"] for event in seen if event["name"] == "guardrail"]
    if version == "v2":  # version 1 has no events of one's own
        assert [one["stage"] for one in told] == ["prompt", "response"]

    seen, error = asyncio.run(events(SPOILED))
    assert error is not None
    assert "SECRETPLAN" not in str(seen)


def test_the_event_tells_of_what_was_blocked() -> None:
    heard = Heard()
    with pytest.raises(BlockedError):
        guarded(chain(SPOILED), make_guard()).invoke(ENDS, {"callbacks": [heard]})
    (told,) = [one for one in heard.all if "on_custom_event" in one and "'block'" in one]
    assert "'stage': 'response'" in told


def test_a_batch_judges_each_by_itself() -> None:
    target = guarded(RunnableLambda(lambda text: f"You said {text}."), make_guard())
    given = ["this", BAD, "that"]
    for got in (
        target.batch(given, return_exceptions=True),
        asyncio.run(target.abatch(given, return_exceptions=True)),
    ):
        assert [type(one) for one in got] == [str, BlockedError, str]
    with pytest.raises(BlockedError):
        target.batch(given)


def test_a_stream_comes_as_it_is_judged_and_not_at_its_end() -> None:
    written: list[int] = []

    def write(asked: Iterator[Any]) -> Iterator[str]:
        list(asked)
        for number in range(60):
            written.append(number)
            yield f"This is sentence {number}. "

    target = guarded(RunnableGenerator(write), make_guard())
    stream = target.stream("go on")
    next(stream)
    assert len(written) < 60
    stream.close()
    whole = guarded(RunnableGenerator(write), make_guard(), stream="full")
    written.clear()
    next(whole.stream("go on"))
    assert len(written) == 60


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_leaving_early_ends_what_runs_inside(way: str) -> None:
    ended: list[str] = []

    def write(asked: Iterator[Any]) -> Iterator[str]:
        try:
            for _ in range(10_000):
                yield "On and on it goes. "
        finally:
            ended.append("sync")

    async def awrite(asked: AsyncIterator[Any]) -> AsyncIterator[str]:
        try:
            for _ in range(10_000):
                yield "On and on it goes. "
        finally:
            ended.append("async")

    async def leave() -> None:
        stream = target.astream("x")
        await anext(stream)
        await stream.aclose()

    target = guarded(RunnableGenerator(write, awrite), make_guard())
    if way == "stream":
        stream = target.stream("x")
        next(stream)
        stream.close()
    else:
        asyncio.run(leave())
    assert ended == ["sync" if way == "stream" else "async"]


def test_an_input_that_streams_is_gathered_and_judged_whole() -> None:
    def words(_: Any) -> Iterator[str]:
        yield from ("BAD", "WORD", "!")

    def said(text: str) -> str:
        return f"{len(text)} characters"

    before = RunnableLambda(words)
    with pytest.raises(BlockedError):
        list((before | guarded(RunnableLambda(said), make_guard())).stream("x"))
    tame = guarded(RunnableLambda(said), make_guard(), on_block="annotate")
    assert list((before | tame).stream("x")) == ["8 characters"]
    assert list(tame.transform(iter([]))) == []
    assert list(tame.transform(iter([{"n": 1}, {"n": 2}]))) == ["1 characters"]  # what can't be added is the newest


# ---- composition --------------------------------------------------------------------------------------------------


def test_it_composes_and_can_be_retried_replaced_and_configured() -> None:
    tries: list[int] = []

    def flaky(text: str) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return text

    guard = make_guard()
    retried = guarded(RunnableLambda(flaky), guard).with_retry(
        retry_if_exception_type=(ValueError,), wait_exponential_jitter=False
    )
    assert (retried | StrOutputParser()).invoke("fine") == "fine"

    replaced = guarded(chain(SPOILED), guard).with_fallbacks([chain(SAFE)], exceptions_to_handle=(BlockedError,))
    assert replaced.invoke(ENDS) == SAFE

    heard = Heard()
    configured = guarded(chain(SAFE), guard).with_config(callbacks=[heard], run_name="mine", tags=["t"])
    assert configured.invoke(ENDS) == SAFE
    assert any("mine" in one for one in heard.all)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_settings_and_context_of_the_app_reach_the_inside(way: str) -> None:
    seen: dict[str, Any] = {}
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine")

    def look(text: str, config: RunnableConfig) -> str:
        seen.update(config, mine=mine.get())
        return text

    async def alook(text: str, config: RunnableConfig) -> str:
        return look(text, config)

    mine.set("set")
    config: RunnableConfig = {
        "configurable": {"user": "u"},
        "tags": ["t"],
        "metadata": {"m": 1},
        "recursion_limit": 7,
        "max_concurrency": 3,
        "run_name": "outer",
    }
    ask(guarded(RunnableLambda(look, alook), make_guard()), way, "x", config)
    assert seen["mine"] == "set"
    assert seen["configurable"] == {"user": "u"}
    assert seen["metadata"]["m"] == 1
    assert (seen["recursion_limit"], seen["max_concurrency"], seen["tags"]) == (7, 3, ["t"])


def test_what_is_bound_stays_bound_and_is_judged() -> None:
    def say(text: str, **settings: Any) -> str:
        return f"{text} {settings['suffix']}"

    target = guarded(RunnableLambda(say).bind(suffix="!"), make_guard())
    assert target.invoke("hi") == "hi !"
    with pytest.raises(BlockedError):
        target.bind(suffix=BAD).invoke("hi")
    mine = guarded(RunnableLambda(say), make_guard(), prompt=lambda text: text, response=lambda text: None)
    assert mine.invoke("hi", suffix=BAD) == f"hi {BAD}"


def test_it_says_of_itself_what_its_target_says() -> None:
    bare = chain(SAFE)
    target = guarded(bare, make_guard())
    assert target.get_name() == bare.get_name()
    assert target.OutputType is str
    assert target.InputType == bare.InputType
    assert target.get_input_schema().model_json_schema() == bare.get_input_schema().model_json_schema()
    assert target.get_output_schema().model_json_schema() == bare.get_output_schema().model_json_schema()
    assert target.config_specs == bare.config_specs
    assert "Be kind" in repr(target)
    assert len(target.get_graph().nodes) == 3


def test_it_can_be_pickled() -> None:
    target = guarded(RunnableLambda(str.upper), Guard(engine=ScriptedEngine(_harmless)))
    assert pickle.loads(pickle.dumps(target)).invoke("hi") == "HI"


def _harmless(prompt: Any) -> str:
    return "<think>Fine.</think>\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>"


# ---- what follows a block -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_text_refuses_in_text(way: str) -> None:
    target = guarded(chain(SPOILED), make_guard(), on_block="refuse", refusal="No.")
    got = "".join(ask(target, way, ENDS))
    assert got.endswith("No.")
    assert "SECRETPLAN" not in got
    assert ask(guarded(chain(SAFE), make_guard(), on_block="refuse", refusal="No."), way, {"question": BAD}) == ["No."]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", ["May I?", BAD])
def test_messages_refuse_in_messages(way: str, question: str) -> None:
    target = guarded(ASK | model(SPOILED), make_guard(), on_block="refuse", refusal="No.")
    got = ask(target, way, {"question": question})
    assert all(isinstance(one, AIMessageChunk if "stream" in way or "transform" in way else AIMessage) for one in got)
    whole = sum(got[1:], got[0])
    assert whole.text.endswith("No.")
    assert "SECRETPLAN" not in str(got)
    assert whole.additional_kwargs["refusal"] == "No."
    assert whole.response_metadata["finish_reason"] == "content_filter"
    assert decisions(whole)[-1].blocked


@pytest.mark.parametrize("way", WAYS)
def test_what_is_neither_is_raised(way: str) -> None:
    target = guarded(RunnableLambda(lambda _: {"answer": BAD}), make_guard(), on_block="refuse")
    with pytest.raises(BlockedError):
        ask(target, way, "hi")


def test_what_can_never_refuse_in_words_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="neither text nor a message"):
        guarded(RunnableParallel(a=RunnablePassthrough()), make_guard(), on_block="refuse")


@pytest.mark.parametrize("way", WAYS)
def test_annotate_stops_nothing_and_says_so_on_messages(way: str) -> None:
    target = guarded(ASK | model(SPOILED), make_guard(), on_block="annotate", stream="observe")
    got = ask(target, way, ENDS)
    whole = sum(got[1:], got[0])
    assert whole.text == SPOILED
    assert [str(one.action) for one in decisions(whole)] == ["allow", "block"]


@pytest.mark.parametrize("way", WAYS)
def test_every_message_says_what_was_decided_also_by_a_guard_inside(way: str) -> None:
    for inside in (model(SAFE), guarded(model(SAFE), make_guard())):
        got = ask(guarded(ASK | inside, make_guard()), way, ENDS)
        whole = sum(got[1:], got[0])
        assert whole.text == SAFE
        assert whole.response_metadata["guardrail"]["action"] == "allow"
        assert len(decisions(whole)) == (
            2 if isinstance(inside, GenericFakeChatModel) and type(inside) is type(model()) else 4
        )


def test_a_whole_message_in_a_stream_carries_its_decisions() -> None:
    target = guarded(RunnableLambda(lambda _: AIMessage(SAFE)), make_guard())
    (got,) = target.stream("hi")
    assert type(got) is AIMessage
    assert len(decisions(got)) == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on_block", ["raise", "refuse"])
def test_without_a_verdict_the_guards_error_is_raised(way: str, on_block: Any) -> None:
    down = Guard(engine=ScriptedEngine(lambda _: EngineUnavailableError("down")))
    with pytest.raises(EngineUnavailableError):
        ask(guarded(chain(SAFE), down, on_block=on_block), way, ENDS)


# ---- what an error says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_an_error_that_quotes_the_answer_is_judged(way: str) -> None:
    heard = Heard()
    target = guarded(ASK | model(SPOILED) | JsonOutputParser(), make_guard())
    if way in ("stream", "astream", "transform", "atransform"):  # there, what is no JSON is left out
        assert ask(target, way, ENDS) == []
        return
    with pytest.raises(BlockedError) as caught:
        ask(target, way, ENDS, {"callbacks": [heard]})
    assert "SECRETPLAN" not in str(heard.all)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def fails(text: str) -> Runnable[Any, Any]:
    def fail(_: Any) -> str:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise OutputParserException("not understood", llm_output=text) from error

    return RunnableLambda(fail)


@pytest.mark.parametrize("way", WAYS)
def test_errors_pass_if_they_may(way: str) -> None:
    with pytest.raises(OutputParserException):
        ask(guarded(fails("fine"), make_guard()), way, "hi")
    with pytest.raises(OutputParserException):
        ask(guarded(fails(BAD), make_guard(), on_block="annotate"), way, "hi")
    with pytest.raises(BlockedError):
        ask(guarded(fails(BAD), make_guard()), way, "hi")
    assert ask(guarded(fails(BAD), make_guard(), on_block="refuse", refusal="No."), way, "hi") == ["No."]


def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_judged() -> None:
    def write(asked: Iterator[Any]) -> Iterator[str]:
        yield "The door is open. "
        raise ValueError("it broke")

    heard = Heard()
    got = []
    with pytest.raises(ValueError, match="it broke"):
        for item in guarded(RunnableGenerator(write), make_guard()).stream("x", {"callbacks": [heard]}):
            got.append(item)
    assert got == ["The door is open. "]
    assert len([one for one in heard.all if "on_custom_event" in one]) == 3


def test_an_error_of_a_guard_inside_is_not_judged_again() -> None:
    guard = make_guard()
    with pytest.raises(BlockedError):
        guarded(ASK | guarded(model(SPOILED), make_guard()) | StrOutputParser(), guard).invoke(ENDS)
    assert guard.engine.calls == 1  # type: ignore[attr-defined]


# ---- what is judged -----------------------------------------------------------------------------------------------


class Answer(BaseModel):
    text: str


def echo(value: Any) -> Runnable[Any, Any]:
    return RunnableLambda(lambda _: value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value",
    [
        {"a": ["x", {"b": BAD}]},
        {f"to {BAD}": 1},
        Answer(text=BAD),
        [Document(page_content="x", metadata={"source": BAD})],
        ChatPromptValue(messages=[HumanMessage(BAD)]),
        [AIMessage("x"), HumanMessage(BAD), AIMessage("y")],
        AddableDict(a=BAD),
        AIMessage("", tool_calls=[{"name": "run", "args": {"x": BAD}, "id": "1"}]),
        ToolMessage(BAD, tool_call_id="1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outputs_of_every_type_are_judged(way: str, value: Any) -> None:
    with pytest.raises(BlockedError) as caught:
        ask(guarded(echo(value), make_guard()), way, "hi")
    assert str(caught.value.decision.stage) == "response"


CALL = AIMessage("", tool_calls=[{"name": "run", "args": {"x": BAD}, "id": "1"}])


@pytest.mark.parametrize(
    "value",
    [
        {"q": BAD},
        ("user", BAD),
        [("user", BAD)],
        [HumanMessage(BAD)],
        Answer(text=BAD),
        AIMessage(BAD),
        [SystemMessage("x"), AIMessage(BAD)],
        CALL,
        AIMessage("", additional_kwargs={"refusal": BAD}),
        [HumanMessage("x"), AIMessage(BAD)],
        [HumanMessage(BAD), AIMessage("x"), HumanMessage(" ")],
        [Document(page_content=BAD)],
    ],
)
def test_inputs_of_every_type_are_judged(value: Any) -> None:
    with pytest.raises(BlockedError) as caught:
        guarded(echo("x"), make_guard()).invoke(value)
    assert str(caught.value.decision.stage) == "prompt"


@pytest.mark.parametrize("way", WAYS)
def test_what_says_nothing_needs_no_verdict(way: str) -> None:
    guard = make_guard()
    assert ask(guarded(RunnableLambda(lambda n: n["n"] + 1), guard), way, {"n": 3, "text": " "}) == [4]
    assert guard.engine.calls == 0  # type: ignore[attr-defined]


def test_what_cannot_be_read_is_named() -> None:
    class Odd:
        pass

    with pytest.raises(ConfigurationError, match="A value of type 'Odd' can't be read"):
        guarded(echo("x"), make_guard()).invoke(Odd())
    with pytest.raises(ConfigurationError, match="A value of type 'Odd' can't be read"):
        guarded(echo(Odd()), make_guard()).invoke("x")
    with pytest.raises(ContentError, match="A value of type 'Odd' can't be read"):
        list(guarded(echo(Odd()), make_guard()).stream("x"))


@pytest.mark.parametrize("way", WAYS)
def test_the_app_says_what_is_judged(way: str) -> None:
    target = guarded(
        RunnableLambda(lambda value: {"seen": value["question"], "kept": BAD}),
        make_guard(),
        prompt=lambda value: value["question"],
        response=lambda value: value["seen"],
    )
    assert ask(target, way, {"question": "May I?", "secret": BAD}) == [{"seen": "May I?", "kept": BAD}]
    with pytest.raises(BlockedError):
        ask(target, way, {"question": BAD})

    def unreadable(value: Any) -> Any:
        raise ContentError("This can't be read.")

    with pytest.raises(ContentError, match="This can't be read"):
        ask(guarded(echo("x"), make_guard(), prompt=unreadable), way, "hi")
    with pytest.raises(ContentError, match="This can't be read"):
        ask(guarded(echo("x"), make_guard(), response=unreadable), way, "hi")


def test_the_answer_is_judged_with_what_was_asked() -> None:
    guard = make_guard()
    guarded(echo("That door."), guard).invoke("Which door?")
    assert "Which door?" in guard.engine.prompts[-1].messages[-1].text  # type: ignore[attr-defined]
    assert "That door." in guard.engine.prompts[-1].messages[-1].text  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_json_that_grows_is_judged_as_it_grows(way: str) -> None:
    grows = ASK | model('{"a": "The door", "b": "is open."}') | JsonOutputParser()
    got = ask(guarded(grows, make_guard()), way, ENDS)
    assert len(got) > 2
    assert got[-1] == {"a": "The door", "b": "is open."}
    spoiled = ASK | model('{"a": "The door BAD WORD", "b": "SECRETPLAN BADWORD"}') | JsonOutputParser()
    seen: list[Any] = []
    with pytest.raises(BlockedError):
        for item in guarded(spoiled, make_guard()).stream(ENDS):
            seen.append(item)
    assert BAD not in str(seen)


def test_a_text_model_is_a_runnable_like_any_other() -> None:
    class Texts(LLM):
        @property
        def _llm_type(self) -> str:
            return "texts"

        def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
            return SPOILED if "spoil" in prompt else SAFE

    target = guarded(Texts(), make_guard(), on_block="refuse")
    assert target.invoke("hi") == SAFE
    assert target.bind(stop=["x"]).invoke("spoil it") == "I can't help with that."


def test_pictures_are_sent_on_as_they_were_judged(red: ImagePart) -> None:
    block = {"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}}
    value: dict[str, Any] = {
        "history": [HumanMessage([block])],
        "new": [{"role": "user", "content": [block]}],
        "plain": "text",
    }
    run = Run(_rules(), asking(value, {}, None, ()))
    run.asked(lambda source: red)
    sent = run.sent(value)
    held = {"type": "image_url", "image_url": {"url": red.data_url}}
    assert sent["history"][0].content == [held]
    assert sent["new"] == [{"role": "user", "content": [held]}]
    assert sent["plain"] == "text"
    assert run.sent(ChatPromptValue(messages=[HumanMessage([block])])).messages[0].content == [held]
    assert value["history"][0].content == [block]


def _rules() -> Any:
    from guardrail_vl.integrations.langchain._calls import Rules

    return Rules(make_guard())


@pytest.fixture
def red() -> ImagePart:
    from guardrail_vl.leakcheck.content import BLUE, data_url

    return ImagePart.load(data_url(BLUE))


# ---- within a graph -----------------------------------------------------------------------------------------------


class State(TypedDict, total=False):
    question: str
    answer: str


def graph_of(target: Runnable[Any, Any], **settings: Any) -> Any:
    def node(state: State) -> State:
        return {"answer": target.invoke({"question": state["question"]})}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.set_entry_point("node")
    return builder.compile(**settings)


@pytest.mark.parametrize("text", [SAFE, SPOILED])
def test_no_stream_of_a_graph_shows_what_was_not_judged(text: str) -> None:
    def whisper(value: Any) -> Any:
        get_stream_writer()({"whisper": "SECRETPLAN"})
        return value

    graph = graph_of(guarded(RunnableLambda(whisper) | chain(text), make_guard(), on_block="refuse"))
    seen = list(graph.stream(ENDS, stream_mode=["messages", "custom", "updates", "values"]))
    assert "SECRETPLAN" not in str(seen)
    assert not [item for mode, item in seen if mode in ("messages", "custom")]
    assert seen[-1][1]["answer"] == (SAFE if text == SAFE else "I can't help with that.")


def test_a_graphs_store_is_there_inside() -> None:
    store = InMemoryStore()
    store.put(("doors",), "one", {"is": "open"})

    def find(_: Any) -> str:
        found = get_store().get(("doors",), "one")
        assert found is not None
        return str(found.value["is"])

    assert graph_of(guarded(RunnableLambda(find), make_guard()), store=store).invoke(ENDS)["answer"] == "open"


# ---- what can be gone around --------------------------------------------------------------------------------------


def listening() -> Any:
    return FakeListChatModel(responses=["x"], callbacks=[Heard()])


def agent() -> Any:
    return graph_of(echo("x"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (agent, "GuardMiddleware"),
        (lambda: RunnablePassthrough() | agent() | str, "GuardMiddleware"),
        (lambda: agent().with_retry(), "GuardMiddleware"),
        (lambda: RunnableLambda(str) | model(SAFE).with_config(callbacks=[Heard()]), "callbacks"),
        (lambda: RunnableParallel(a=RunnableLambda(str).with_listeners(on_end=print)), "listeners"),
        (lambda: RunnableLambda(str) | listening(), "callbacks"),
        (lambda: RunnableLambda(str).with_fallbacks([listening()]), "callbacks"),
        (lambda: 3, "takes a runnable, not int"),
    ],
)
def test_what_could_be_gone_around_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        guarded(make(), make_guard())


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory")
def test_a_history_is_guarded_inside() -> None:
    def history() -> Any:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="Guard what is inside"):
        guarded(RunnableWithMessageHistory(chain(SAFE), history), make_guard())


def test_callbacks_of_a_guarded_model_inside_hear_what_was_judged() -> None:
    inside = guarded(FakeListChatModel(responses=[SAFE], callbacks=[Heard()]), make_guard())
    assert guarded(ASK | inside | StrOutputParser(), make_guard()).invoke(ENDS) == SAFE


def test_wrong_arguments_are_named() -> None:
    async def later(value: Any) -> Any:
        return value

    for name in ("prompt", "response"):
        with pytest.raises(ConfigurationError, match=f"{name}= takes a plain function"):
            guarded(echo("x"), make_guard(), **{name: later})
        with pytest.raises(ConfigurationError, match="are for runnables"):
            guarded(model(SAFE), make_guard(), **{name: str})
