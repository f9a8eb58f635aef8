"""Guarded chat models: the real ChatOpenAI on a real server. The leak probes are in tests/leakcheck."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

from guardrail_vl import BlockedError, ImagePart
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.leakcheck.content import BLUE, data_url
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.integrations.langchain.apps import BAD, chat, make_guard, tool_call
from tests.integrations.llm import Answer, Llm, completion, stream

pytest.importorskip("langchain_core")
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tracers.context import collect_runs
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from guardrail_vl import Guard
from guardrail_vl.integrations.langchain import decisions, guarded
from guardrail_vl.integrations.langchain._pictures import pinned
from guardrail_vl.prompt_format.base import Completion, Prompt

SAFE = "The door is open. Come in, and close it behind you."
SPOILED = f"The door is open. Come in. And now {BAD} to all of you."
THOUGHT = "<think>SECRETTHOUGHT</think>\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>"
Make = Callable[..., Llm]


class Heard(BaseCallbackHandler):
    """Everything that a callback handler hears."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *args, **kwargs: self.all.append(repr((name, args, kwargs)))
        return super().__getattribute__(name)


# ---- what it is ---------------------------------------------------------------------------------------------------


def test_it_is_of_the_same_class_and_the_original_stays_as_it_was(serve: Make) -> None:
    model = chat(serve(SAFE))
    safe = guarded(model, make_guard())
    assert isinstance(safe, ChatOpenAI)
    assert safe.model_name == "m"
    assert type(model) is ChatOpenAI
    assert model.invoke(BAD).content == SAFE
    with pytest.raises(BlockedError):
        safe.invoke(BAD)


def test_a_blocked_prompt_is_never_sent(serve: Make) -> None:
    llm = serve(SAFE)
    safe = guarded(chat(llm), make_guard())
    for call in (
        safe.invoke,
        lambda prompt: list(safe.stream(prompt)),
        lambda prompt: asyncio.run(safe.ainvoke(prompt)),
    ):
        with pytest.raises(BlockedError):
            call(f"Say {BAD}.")
    assert llm.requests == []


def ways(model: Any) -> dict[str, Callable[[], Any]]:
    async def astream() -> Any:
        return [chunk async for chunk in model.astream("hi")]

    async def events() -> Any:
        return [event async for event in model.astream_events("hi", version="v2")]

    return {
        "invoke": lambda: model.invoke("hi"),
        "ainvoke": lambda: asyncio.run(model.ainvoke("hi")),
        "stream": lambda: list(model.stream("hi")),
        "astream": lambda: asyncio.run(astream()),
        "batch": lambda: model.batch(["hi"]),
        "abatch": lambda: asyncio.run(model.abatch(["hi"])),
        "generate": lambda: model.generate([[HumanMessage("hi")]]),
        "events": lambda: asyncio.run(events()),
    }


@pytest.mark.parametrize("way", list(ways(None)))
def test_a_blocked_reply_is_seen_by_nobody(serve: Make, way: str) -> None:
    heard = Heard()
    safe = guarded(chat(serve(SPOILED), callbacks=[heard]), make_guard())
    with collect_runs() as collector, pytest.raises(BlockedError):
        ways(safe)[way]()
    assert heard.all
    assert BAD not in repr(heard.all)
    assert BAD not in repr([run.model_dump() for run in collector.traced_runs])


@pytest.mark.parametrize("way", list(ways(None)))
def test_a_refusal_stands_in_its_place(serve: Make, way: str) -> None:
    heard = Heard()
    safe = guarded(chat(serve(SPOILED), callbacks=[heard]), make_guard(), on_block="refuse", refusal="Not that.")
    got = ways(safe)[way]()
    assert "Not that." in repr(got)
    assert "Not that." in repr(heard.all)
    assert BAD not in repr((got, heard.all))


@pytest.mark.parametrize("way", list(ways(None)))
def test_annotating_stops_nothing_and_says_so(serve: Make, way: str) -> None:
    safe = guarded(chat(serve(SPOILED)), make_guard(), on_block="annotate")
    got = repr(ways(safe)[way]())
    assert "'action': 'block'" in got
    assert BAD in got or way != "invoke"


def test_the_whole_text_arrives_and_the_decisions_with_it(serve: Make) -> None:
    safe = guarded(chat(serve(SAFE)), make_guard())
    chunks = list(safe.stream("hi"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.content == SAFE
    assert [d.stage for d in decisions(whole)] == ["prompt", "response"]
    assert [chunk.chunk_position for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].chunk_position == "last"
    assert len({chunk.id for chunk in chunks}) == 1
    answer = safe.invoke("hi")
    assert answer.content == SAFE
    assert [d.action for d in decisions(answer)] == ["allow", "allow"]
    assert answer.usage_metadata is None or answer.usage_metadata["total_tokens"] >= 0


def test_a_refused_reply_says_so_in_the_library_own_ways(serve: Make) -> None:
    answer = guarded(chat(serve(SPOILED)), make_guard(), on_block="refuse").invoke("hi")
    assert answer.additional_kwargs["refusal"] == answer.content
    assert answer.response_metadata["finish_reason"] == "content_filter"
    assert [d.action for d in decisions(answer)] == ["allow", "block"]


def test_each_of_several_answers_is_judged_by_itself(serve: Make) -> None:
    llm = serve(lambda body: completion(SAFE, SPOILED))
    safe = guarded(chat(llm, n=2), make_guard(), on_block="refuse", refusal="No.")
    first, second = safe.generate([[HumanMessage("hi")]]).generations[0]
    assert (first.text, second.text) == (SAFE, "No.")
    with pytest.raises(BlockedError):
        guarded(chat(llm, n=2), make_guard()).generate([[HumanMessage("hi")]])


# ---- it stays a chat model ----------------------------------------------------------------------------------------


class Answered(BaseModel):
    """An answer."""

    text: str


TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}


def test_bound_tools_keep_the_guard(serve: Make) -> None:
    llm = serve([tool_call({"command": f"echo {BAD}"})])
    bound = guarded(chat(llm), make_guard()).bind_tools([TOOL])
    outside = guarded(chat(llm).bind_tools([TOOL]), make_guard())
    for model in (bound, outside, bound.with_config(tags=["x"]), bound.with_retry(stop_after_attempt=1)):
        with pytest.raises(BlockedError):
            model.invoke("hi")
        with pytest.raises(BlockedError):
            list(model.stream("hi"))
    assert llm.requests[0]["tools"] == [TOOL]


def test_a_tool_call_arrives_whole(serve: Make) -> None:
    model = guarded(chat(serve([tool_call({"command": "ls -l /"})])), make_guard()).bind_tools([TOOL])
    whole: Any = None
    for chunk in model.stream("hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls == model.invoke("hi").tool_calls
    assert whole.tool_calls[0]["args"] == {"command": "ls -l /"}


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_structured_output_keeps_the_guard(serve: Make, method: Any) -> None:
    def answer(text: str) -> Any:
        call = tool_call({"text": text}, name="Answered")
        return [call] if method == "function_calling" else Answered(text=text).model_dump_json()

    good = guarded(chat(serve(answer(SAFE))), make_guard()).with_structured_output(Answered, method=method)
    bad = guarded(chat(serve(answer(SPOILED))), make_guard()).with_structured_output(Answered, method=method)
    assert good.invoke("hi") == Answered(text=SAFE)
    with pytest.raises(BlockedError):
        bad.invoke("hi")
    with pytest.raises(BlockedError):
        good.invoke(BAD)


def test_the_definition_of_a_tool_is_judged(serve: Make) -> None:
    llm = serve(SAFE)
    evil = {"type": "function", "function": {"name": "run", "description": BAD, "parameters": {}}}
    with pytest.raises(BlockedError):
        guarded(chat(llm), make_guard()).bind_tools([evil]).invoke("hi")
    assert llm.requests == []


def test_fields_that_are_configured_later_keep_the_guard(serve: Make) -> None:
    llm = serve(SPOILED)
    safe = guarded(chat(llm), make_guard()).configurable_fields(temperature=ConfigurableField(id="t"))
    with pytest.raises(BlockedError):
        safe.with_config(configurable={"t": 0.5}).invoke("hi")
    assert llm.requests[0]["temperature"] == 0.5
    with pytest.raises(BlockedError):
        guarded(chat(llm), make_guard()).model_copy(update={"temperature": 0.1}).invoke("hi")


def test_it_composes(serve: Make) -> None:
    safe = guarded(chat(serve(SAFE)), make_guard())
    chain = ChatPromptTemplate.from_messages([("human", "Say {what}")]) | safe | StrOutputParser()
    assert chain.invoke({"what": "it"}) == SAFE
    assert "".join(chain.stream({"what": "it"})) == SAFE
    with pytest.raises(BlockedError):
        chain.invoke({"what": BAD})
    fallback = guarded(chat(serve(SPOILED)), make_guard()).with_fallbacks([safe])
    assert fallback.invoke("hi").content == SAFE


def test_decisions_are_events_of_a_chain(serve: Make) -> None:
    chain = guarded(chat(serve(SAFE)), make_guard()) | StrOutputParser()

    async def events() -> list[Any]:
        return [event async for event in chain.astream_events("hi", version="v2")]

    told = [event["data"] for event in asyncio.run(events()) if event["event"] == "on_custom_event"]
    assert [(one["stage"], one["action"]) for one in told] == [("prompt", "allow"), ("response", "allow")]


def test_two_guards(serve: Make) -> None:
    other = Guard(engine=ScriptedEngine(by_keyword("OTHERWORD")))
    safe = guarded(guarded(chat(serve(SPOILED)), make_guard()), other)
    with pytest.raises(BlockedError):
        safe.invoke("hi")
    with pytest.raises(BlockedError):
        guarded(guarded(chat(serve("OTHERWORD")), make_guard()), other).invoke("hi")
    assert isinstance(safe, ChatOpenAI)
    both = guarded(guarded(chat(serve(SAFE)), make_guard()), other)
    whole: Any = None
    for chunk in both.stream("hi"):
        whole = chunk if whole is None else whole + chunk
    for reply in (whole, both.invoke("hi")):
        assert [one.stage for one in decisions(reply)] == ["prompt", "response"] * 2
        assert reply.response_metadata["guardrail"]["action"] == "allow"
        assert reply.content == SAFE


def test_it_travels_to_other_processes() -> None:
    safe = guarded(FakeListChatModel(responses=[SPOILED]), Guard())
    again = pickle.loads(pickle.dumps(safe))
    assert isinstance(again, FakeListChatModel)
    assert [rules.guard.policy.hash for rules in again.guardrail] == [safe.guardrail[0].guard.policy.hash]  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")  # the library calls its `load` a beta
def test_what_is_dumped_is_no_model_without_its_guard(serve: Make) -> None:
    from langchain_core.load import dumpd, load

    safe = guarded(chat(serve(SAFE)), make_guard())
    with pytest.raises(Exception, match="GuardedChatOpenAI"):
        load(dumpd(safe), secrets_map={"OPENAI_API_KEY": "k"}, valid_namespaces=["guardrail_vl"])


# ---- caches -------------------------------------------------------------------------------------------------------


def test_a_cache_gives_nothing_that_this_policy_did_not_judge(serve: Make) -> None:
    cache = InMemoryCache()
    llm = serve(SPOILED)
    assert chat(llm, cache=cache).invoke("hi").content == SPOILED
    with pytest.raises(BlockedError):
        guarded(chat(llm, cache=cache), make_guard()).invoke("hi")
    lax = guarded(chat(llm, cache=cache), make_guard(policy={"response": {"action": "annotate"}}))
    assert lax.invoke("hi").content == SPOILED
    with pytest.raises(BlockedError):
        guarded(chat(llm, cache=cache), make_guard()).invoke("hi")
    good = serve(SAFE)
    safe = guarded(chat(good, cache=cache), make_guard())
    assert safe.invoke("hi").content == safe.invoke("hi").content == SAFE
    assert len(good.requests) == 1


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_is_judged_while_it_is_written(serve: Make) -> None:
    words = [f"word{i} " for i in range(60)]
    llm = serve(lambda body: stream(words, pause=0.02))
    safe = guarded(chat(llm), make_guard(delay=0.02))
    began = time.monotonic()
    first = 0.0
    for chunk in safe.stream("hi"):
        if chunk.content and not first:
            first = time.monotonic() - began
    assert 0 < first < 0.7 * (time.monotonic() - began)


def test_who_walks_away_ends_the_call(serve: Make) -> None:
    llm = serve(lambda body: stream((f"word{i} " for i in range(10_000)), pause=0.01))
    safe = guarded(chat(llm), make_guard())
    chunks: Any = safe.stream("hi")
    next(chunks)
    chunks.close()

    async def leave() -> None:
        async for _ in safe.astream("hi"):
            break

    asyncio.run(leave())
    end = time.monotonic() + 5
    while llm.left < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert llm.left == 2


def test_a_block_ends_the_call(serve: Make) -> None:
    words = ["fine. "] * 20 + [BAD + " "] + ["more. "] * 10_000
    llm = serve(lambda body: stream(words, pause=0.005))
    with pytest.raises(BlockedError):
        list(guarded(chat(llm), make_guard()).stream("hi"))
    end = time.monotonic() + 5
    while not llm.left and time.monotonic() < end:
        time.sleep(0.02)
    assert llm.left == 1


def test_a_refusal_follows_what_was_approved(serve: Make) -> None:
    said = "All is well here today. " * 12 + BAD
    safe = guarded(chat(serve(said)), make_guard(), on_block="refuse", refusal="No more.")
    text = "".join(str(chunk.content) for chunk in safe.stream("hi"))
    assert text.endswith("\n\nNo more.") or text == "No more."
    assert said.startswith(text.removesuffix("No more.").rstrip("\n"))


def test_what_came_before_an_error_is_judged_first(serve: Make) -> None:
    llm = serve(lambda body: stream(["fine. "] * 5, cut=True))
    with pytest.raises(Exception) as caught:
        list(guarded(chat(llm), make_guard()).stream("hi"))
    assert not isinstance(caught.value, BlockedError)


@pytest.mark.parametrize("way", list(ways(None)))
def test_an_error_that_quotes_the_model_is_judged(serve: Make, way: str) -> None:
    def fails(text: str) -> Llm:
        body = json.dumps({"error": {"message": text, "type": "invalid_request_error", "code": None}}).encode()
        return serve(lambda _: Answer(body, status=400))

    with pytest.raises(BlockedError) as caught:
        ways(guarded(chat(fails(f"Said {BAD}.")), make_guard()))[way]()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    with pytest.raises(Exception, match="Said nothing") as other:  # as it is
        ways(guarded(chat(fails("Said nothing.")), make_guard()))[way]()
    assert not isinstance(other.value, BlockedError)
    got = ways(guarded(chat(fails(f"Said {BAD}.")), make_guard(), on_block="refuse", refusal="No."))[way]()
    assert "No." in repr(got)
    assert BAD not in repr(got)


def test_what_the_model_was_made_to_send_is_judged(serve: Make) -> None:
    for settings in ({"model_kwargs": {"prediction": {"type": "content", "content": BAD}}}, {"extra_body": {"x": BAD}}):
        llm = serve(SAFE)
        with pytest.raises(BlockedError):
            guarded(chat(llm, **settings), make_guard()).invoke("hi")
        assert llm.requests == []


# ---- no verdict ---------------------------------------------------------------------------------------------------


def test_no_verdict_is_never_a_pass_nor_a_refusal(serve: Make) -> None:
    def broken(prompt: Any) -> Any:
        return EngineUnavailableError("The guard is away.")

    guard = Guard(engine=ScriptedEngine(broken))
    for on_block in ("raise", "refuse"):
        safe = guarded(chat(serve(SAFE)), guard, on_block=on_block)
        for way in ways(safe).values():
            with pytest.raises(EngineUnavailableError):
                way()


def test_an_open_guard_says_that_it_failed(serve: Make) -> None:
    def broken(prompt: Any) -> Any:
        return EngineUnavailableError("The guard is away.")

    answer = guarded(chat(serve(SAFE)), Guard(engine=ScriptedEngine(broken), fail="open")).invoke("hi")
    assert answer.content == SAFE
    assert {one["error"] for one in answer.response_metadata["guardrail"]["decisions"]} == {"EngineUnavailableError"}


def test_unknown_content_is_refused_by_name(serve: Make) -> None:
    llm = serve(SAFE)
    safe = guarded(chat(llm), make_guard())
    message = HumanMessage([{"type": "hologram", "data": "x"}])
    with pytest.raises(ContentError, match="hologram"):
        safe.invoke([message])
    assert llm.requests == []


# ---- pictures -----------------------------------------------------------------------------------------------------


def test_pictures_go_to_the_guard_and_on(serve: Make) -> None:
    seen: list[int] = []

    def look(prompt: Any) -> Any:
        seen.append(len(prompt.images))
        return by_keyword(BAD)(prompt)

    llm = serve(SAFE)
    safe = guarded(chat(llm), Guard(engine=ScriptedEngine(look)))
    part = ImagePart(BLUE)
    blocks: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(BLUE)}},
        {"type": "image", "base64": part.data_url.partition(",")[2], "mime_type": "image/png"},
    ]
    safe.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, *blocks])])
    assert max(seen) == 2
    urls = [one["image_url"]["url"] for one in llm.requests[0]["messages"][0]["content"] if one["type"] == "image_url"]
    assert urls == [data_url(BLUE)] * 2


def test_a_picture_behind_a_url_is_refused_or_fetched_once(serve: Make) -> None:
    llm = serve(SAFE)
    where = Llm(lambda body: Answer(BLUE, media_type="image/png"))
    block = {"type": "image_url", "image_url": {"url": where.url + "/door.png"}}
    try:
        with pytest.raises(ContentError):
            guarded(chat(llm), make_guard()).invoke([HumanMessage([block])])
        assert where.paths == []
        guard = make_guard(fetch_images=True)
        with pytest.raises(ContentError):  # an address of this machine: never fetched
            guarded(chat(llm), guard).invoke([HumanMessage([block])])
    finally:
        where.close()


def test_what_was_fetched_is_what_is_sent() -> None:
    part = ImagePart(BLUE)
    fetched = {"https://a.test/x.png": part}
    base64 = part.data_url.partition(",")[2]
    message = HumanMessage(
        [
            {"type": "image_url", "image_url": {"url": "https://a.test/x.png", "detail": "low"}},
            {"type": "image", "url": "https://a.test/x.png"},
            {"type": "image", "source_type": "url", "url": "https://a.test/x.png"},
            {"type": "image", "source": {"type": "url", "url": "https://a.test/x.png"}},
            {"type": "tool_result", "content": [{"type": "input_image", "image_url": "https://a.test/x.png"}]},
            {
                "type": "custom_tool_call_output",
                "output": [{"type": "input_image", "image_url": "https://a.test/x.png"}],
            },
            {"type": "non_standard", "value": {"type": "image", "url": "https://a.test/x.png"}},
        ]
    )
    sent = pinned(message, fetched).content
    assert "https://a.test" not in repr(sent)
    assert sent == [
        {"type": "image_url", "image_url": {"url": part.data_url, "detail": "low"}},
        {"type": "image", "base64": base64, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": base64, "mime_type": "image/png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64}},
        {"type": "tool_result", "content": [{"type": "input_image", "image_url": part.data_url}]},
        {"type": "custom_tool_call_output", "output": [{"type": "input_image", "image_url": part.data_url}]},
        {"type": "non_standard", "value": {"type": "image", "base64": base64, "mime_type": "image/png"}},
    ]
    assert "https://a.test" in repr(message.content)


# ---- the guard's own work -----------------------------------------------------------------------------------------


def test_a_guard_made_of_a_chat_model_is_not_heard(serve: Make) -> None:
    inner = GenericFakeChatModel(messages=(AIMessage(THOUGHT) for _ in range(99)))

    def ask(prompt: Prompt) -> Completion:
        return Completion(str(inner.invoke("judge").content), model="chat")

    heard = Heard()
    safe = guarded(chat(serve(SAFE)), Guard(engine=ScriptedEngine(ask)))
    chain = RunnableLambda(safe.invoke) | StrOutputParser()

    async def events() -> list[Any]:
        return [event async for event in chain.astream_events("hi", {"callbacks": [heard]}, version="v2")]

    got = asyncio.run(events())
    assert SAFE in repr(got)
    assert "SECRETTHOUGHT" not in repr((got, heard.all))


# ---- what can't be guarded ----------------------------------------------------------------------------------------


class OwnWay(BaseChatModel):
    """A model that answers in a way of its own."""

    @property
    def _llm_type(self) -> str:
        return "own"

    def invoke(self, *args: Any, **kwargs: Any) -> AIMessage:
        return AIMessage(BAD)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("x"))])


def test_a_model_that_could_go_around_the_guard_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="its own invoke"):
        guarded(OwnWay(), make_guard())


@pytest.mark.parametrize(
    "settings",
    [{"on_block": "maybe"}, {"stream": "sideways"}, {"stream": "observe"}, {"refusal": " "}, {"allow_unguarded": "x"}],
)
def test_wrong_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        guarded(FakeListChatModel(responses=["x"]), make_guard(), **settings)


def test_only_a_guard_guards() -> None:
    with pytest.raises(ConfigurationError, match="guard must be a Guard"):
        guarded(FakeListChatModel(responses=["x"]), "guard")  # type: ignore[arg-type]


def test_a_reply_of_nobody_has_no_decisions() -> None:
    nothing: list[Any] = [AIMessage("x"), AIMessageChunk(content="x"), [], {"messages": []}, "text"]
    for value in nothing:
        with pytest.raises(ConfigurationError):
            decisions(value)


def test_a_guarded_class_without_a_guard_answers_nothing() -> None:
    kind = type(guarded(FakeListChatModel(responses=[SAFE]), make_guard()))
    with pytest.raises(ConfigurationError, match="made without a guard"):
        kind(responses=[SAFE]).invoke("hi")


def test_models_without_streams_have_none() -> None:
    safe = guarded(NoStream(), make_guard())
    assert [chunk.content for chunk in safe.stream("hi")] == [SAFE]


class NoStream(BaseChatModel):
    """A model that can't stream."""

    @property
    def _llm_type(self) -> str:
        return "none"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(SAFE))])
