"""Guarded agents: `create_agent` with a real ChatOpenAI on a real server."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrail_vl import BlockedError, Guard
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.leakcheck.content import RED, base64_of, harmful_picture
from guardrail_vl.prompt_format.base import Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.integrations.langchain.apps import BAD, chat, make_guard, says, tool_call
from tests.integrations.llm import Llm

pytest.importorskip("langchain")
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, ModelResponse, hook_config
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pydantic import BaseModel

from guardrail_vl.integrations.langchain import GuardMiddleware, decisions

SAFE = "The door is open. Come in, and close it behind you."
SPOILED = f"The door is open. Come in. And now {BAD} to all of you."
REFUSED = "I can't help with that."
WITHHELD = "This was withheld by the guard."
Make = Callable[..., Llm]


class Tools:
    """Tools that remember what they were run with."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        ran = self.ran

        @tool
        def run(command: str) -> Any:
            """Runs a command."""
            ran.append(command)
            if command == "fail":
                raise ValueError(f"It failed: {BAD}")
            if command == "picture":
                return [{"type": "image", "base64": base64_of(RED), "mime_type": "image/png"}]
            return f"It says {BAD}." if command == "evil" else f"It says {command}."

        @tool(response_format="content_and_artifact")
        def find(what: str) -> tuple[str, Any]:
            """Finds things."""
            ran.append(what)
            return f"Found {BAD if what == 'evil' else what}.", {"source": BAD}

        self.run, self.find = run, find


def agent(llm: Llm, *tools: Any, guard: Guard | None = None, more: tuple[Any, ...] = (), **options: Any) -> Any:
    settings = {name: options.pop(name) for name in list(options) if name in _SETTINGS}
    middleware = [GuardMiddleware(guard or make_guard(), **settings), *more]
    return create_agent(chat(llm), list(tools), middleware=middleware, **options)


_SETTINGS = ("prompt", "response", "tool_call", "tool_result", "stream", "refusal", "withheld", "allow_unguarded")


def ask(made: Any, text: Any = "hi", thread: str = "t", **options: Any) -> list[Any]:
    config = {"configurable": {"thread_id": thread}}
    messages: list[Any] = made.invoke({"messages": [HumanMessage(text)]}, config, **options)["messages"]
    return messages


def surfaces(made: Any) -> dict[str, Callable[[], Any]]:
    """Every way to run an agent, and all that comes of it."""
    asked: Any = {"messages": [HumanMessage("hi")]}
    modes = ["messages", "updates", "values", "custom", "debug"]

    async def astream() -> Any:
        return [one async for one in made.astream(asked, stream_mode=modes)]

    async def events() -> Any:
        return [one async for one in made.astream_events(asked, version="v2")]

    return {
        "invoke": lambda: made.invoke(asked),
        "ainvoke": lambda: asyncio.run(made.ainvoke(asked)),
        "stream": lambda: list(made.stream(asked, stream_mode=modes)),
        "astream": lambda: asyncio.run(astream()),
        "events": lambda: asyncio.run(events()),
    }


WAYS = ("invoke", "ainvoke", "stream", "astream", "events")


# ---- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_harmless_answer_arrives(serve: Make, way: str) -> None:
    got = repr(surfaces(agent(serve(SAFE)))[way]())
    assert "close it behind you" in got or "behi" in got
    assert "'action': 'allow'" in got


@pytest.mark.parametrize("way", WAYS)
def test_a_blocked_answer_is_on_no_surface(serve: Make, way: str) -> None:
    got = repr(surfaces(agent(serve(SPOILED)))[way]())
    assert BAD not in got
    assert REFUSED in got or way == "messages"


@pytest.mark.parametrize("way", WAYS)
def test_a_blocked_answer_may_raise(serve: Make, way: str) -> None:
    with pytest.raises(BlockedError):
        surfaces(agent(serve(SPOILED), response="raise"))[way]()


def test_the_refusal_is_shown_once_and_under_the_id_that_was_streamed(serve: Make) -> None:
    text = "All is well in here today, I think. " * 10 + BAD
    made = agent(serve(text), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    shown = [one for one, _ in made.stream({"messages": [HumanMessage("hi")]}, config, stream_mode="messages")]
    last = made.get_state(config).values["messages"][-1]
    assert {one.id for one in shown} == {last.id}
    said = "".join(str(one.content) for one in shown)
    assert said.count(REFUSED) == 1
    assert text.startswith(said.removesuffix(REFUSED).rstrip("\n"))
    assert last.content == REFUSED


def test_decisions_are_on_messages_and_in_the_state(serve: Make) -> None:
    tools = Tools()
    made = agent(serve([tool_call({"command": "ls"})], SAFE), tools.run)
    state = made.invoke({"messages": [HumanMessage("hi")]})
    stages = [one.stage for one in decisions(state)]
    assert stages == ["prompt", "response", "prompt", "prompt", "response"]
    assert [one["stage"] for one in state["guardrail"]] == stages
    assert [one.action for one in decisions(state["messages"][-1])] == ["allow", "allow"]


# ---- prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_blocked_prompt_is_never_sent(serve: Make, way: str) -> None:
    llm = serve(SAFE)
    made = agent(llm)
    asked: Any = {"messages": [HumanMessage(f"Say {BAD}", id="1")]}
    if way == "invoke":
        messages = made.invoke(asked)["messages"]
    elif way == "ainvoke":
        messages = asyncio.run(made.ainvoke(asked))["messages"]
    else:
        messages = list(made.stream(asked, stream_mode="values"))[-1]["messages"]
    assert llm.requests == []
    assert [(type(one), one.content) for one in messages] == [(HumanMessage, WITHHELD), (AIMessage, REFUSED)]
    assert messages[0].id == "1"


def test_a_prompt_may_be_replaced(serve: Make) -> None:
    llm = serve(SAFE)
    messages = ask(agent(llm, prompt="replace"), f"Say {BAD}")
    assert [one.content for one in messages] == [WITHHELD, SAFE]
    assert BAD not in repr(llm.requests)
    assert WITHHELD in repr(llm.requests)


def test_a_prompt_may_raise(serve: Make) -> None:
    with pytest.raises(BlockedError):
        ask(agent(serve(SAFE), prompt="raise"), BAD)


def test_instructions_are_judged_too(serve: Make) -> None:
    llm = serve(SAFE)
    messages = ask(agent(llm, system_prompt=f"Be {BAD}"))
    assert messages[-1].content == REFUSED
    assert llm.requests == []


def test_a_picture_that_nobody_can_read_does_not_end_the_thread(serve: Make) -> None:
    llm = serve(SAFE)
    made = agent(llm, checkpointer=InMemorySaver())
    broken = [{"type": "image", "base64": "AAAA", "mime_type": "image/png"}]
    assert [one.content for one in ask(made, broken)] == [WITHHELD, REFUSED]
    assert ask(made, "hi")[-1].content == SAFE
    with pytest.raises(ContentError):
        ask(agent(llm, prompt="raise"), broken)


# ---- state --------------------------------------------------------------------------------------------------------


def test_no_checkpoint_holds_a_blocked_answer_and_the_next_turn_is_free(serve: Make, tmp_path: Path) -> None:
    llm = serve(SAFE, SPOILED, SAFE)
    path = tmp_path / "memory.sqlite"
    memory = InMemorySaver()
    with SqliteSaver.from_conn_string(str(path)) as disk:
        for saver, server in ((memory, llm), (disk, serve(SAFE, SPOILED, SAFE))):
            made = agent(server, checkpointer=saver)
            assert ask(made, "one")[-1].content == SAFE
            assert ask(made, "two")[-1].content == REFUSED
            assert ask(made, "three")[-1].content == SAFE
            assert BAD not in repr(server.requests)
    assert BAD not in repr((memory.storage, memory.blobs, memory.writes))
    for file in tmp_path.iterdir():
        assert BAD.encode() not in file.read_bytes()
    with sqlite3.connect(path) as database:
        assert database.execute("select count(*) from checkpoints").fetchone()[0] > 3
    database.close()


def test_a_blocked_prompt_leaves_the_state_and_the_next_turn_is_free(serve: Make) -> None:
    llm = serve(SAFE)
    made = agent(llm, checkpointer=InMemorySaver())
    assert ask(made, f"Say {BAD}")[-1].content == REFUSED
    assert ask(made, "And the wind?")[-1].content == SAFE
    assert BAD not in repr(llm.requests)
    assert BAD not in repr(made.get_state({"configurable": {"thread_id": "t"}}).values)


def test_with_durability_exit_a_blocked_prompt_is_in_no_checkpoint(serve: Make, tmp_path: Path) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "memory.sqlite")) as disk:
        made = agent(serve(SAFE), checkpointer=disk)
        assert ask(made, f"Say {BAD}", durability="exit")[-1].content == REFUSED
        assert ask(made, "And the wind?", durability="exit")[-1].content == SAFE
    assert list(tmp_path.iterdir())
    for file in tmp_path.iterdir():
        assert BAD.encode() not in file.read_bytes()


# ---- tool calls ---------------------------------------------------------------------------------------------------

CALL = [tool_call({"command": "ls"}), tool_call({"command": f"echo {BAD}"}, number=1)]


@pytest.mark.parametrize("way", WAYS)
def test_a_blocked_call_is_not_run_and_explained_to_the_model(serve: Make, way: str) -> None:
    tools = Tools()
    llm = serve(CALL[1:], SAFE)
    got = repr(surfaces(agent(llm, tools.run))[way]())
    assert tools.ran == []
    assert BAD not in got
    assert BAD not in repr(llm.requests)
    assert "The tool was not run" in repr(llm.requests[-1])
    assert len(llm.requests) == 2


@pytest.mark.parametrize("way", WAYS)
def test_of_two_calls_the_harmless_one_runs(serve: Make, way: str) -> None:
    tools = Tools()
    llm = serve(CALL, SAFE)
    got = repr(surfaces(agent(llm, tools.run))[way]())
    assert tools.ran == ["ls"]
    assert BAD not in got + repr(llm.requests)
    assert "It says ls." in repr(llm.requests[-1])


@pytest.mark.parametrize("way", WAYS)
def test_a_harmless_call_runs_once_and_as_it_was(serve: Make, way: str) -> None:
    tools = Tools()
    llm = serve(CALL[:1], SAFE)
    surfaces(agent(llm, tools.run))[way]()
    assert tools.ran == ["ls"]
    assert "It says ls." in repr(llm.requests[-1])


def test_a_blocked_call_may_end_or_raise(serve: Make) -> None:
    tools = Tools()
    messages = ask(agent(serve(CALL, SAFE), tools.run, tool_call="end"))
    assert [one.content for one in messages] == ["hi", REFUSED]
    with pytest.raises(BlockedError):
        ask(agent(serve(CALL, SAFE), tools.run, tool_call="raise"))
    assert tools.ran == []


def test_a_model_that_never_learns_is_stopped(serve: Make) -> None:
    llm = serve(CALL[1:])
    messages = ask(agent(llm, Tools().run))
    assert messages[-1].content == REFUSED
    assert len(llm.requests) == 4


def test_harmful_words_beside_a_call_are_an_answer(serve: Make) -> None:
    tools = Tools()

    def say(body: dict[str, Any]) -> Any:
        from tests.integrations.llm import completion

        return completion({"content": SPOILED, "tool_calls": CALL[:1]})

    assert [one.content for one in ask(agent(serve(say), tools.run))] == ["hi", REFUSED]
    assert tools.ran == []


# ---- tool results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["evil", "picture"])
def test_a_blocked_result_reaches_neither_model_nor_stream(serve: Make, way: str, command: str) -> None:
    def look(prompt: Prompt) -> Any:
        red = any(harmful_picture(image.pixels()) for image in prompt.images)
        return by_keyword(BAD)(prompt) if not red else by_keyword("")(prompt)

    llm = serve([tool_call({"command": command})], SAFE)
    tools = Tools()
    guard = Guard(engine=ScriptedEngine(look))
    got = repr(surfaces(agent(llm, tools.run, guard=guard))[way]())
    assert tools.ran == [command]
    for hidden in (BAD, base64_of(RED)):
        assert hidden not in got
        assert hidden not in repr(llm.requests)
    assert WITHHELD in repr(llm.requests[-1])


def test_a_blocked_result_may_end_or_raise(serve: Make) -> None:
    evil = [tool_call({"command": "evil"})]
    llm = serve(evil, SAFE)
    messages = ask(agent(llm, Tools().run, tool_result="end"))
    assert [one.content for one in messages[-2:]] == [WITHHELD, REFUSED]
    assert len(llm.requests) == 1
    with pytest.raises(BlockedError):
        ask(agent(serve(evil, SAFE), Tools().run, tool_result="raise"))


def test_an_artifact_goes_with_its_content(serve: Make) -> None:
    def result(what: str) -> ToolMessage:
        made = agent(serve([tool_call({"what": what}, name="find")], SAFE), Tools().find)
        return next(one for one in ask(made) if isinstance(one, ToolMessage))

    assert result("doors").content == "Found doors."
    assert result("doors").artifact == {"source": BAD}
    assert result("evil").content == WITHHELD
    assert result("evil").artifact is None


@pytest.mark.parametrize("way", WAYS)
def test_what_a_failing_tool_says_is_judged(serve: Make, way: str) -> None:
    made = agent(serve([tool_call({"command": "fail"})], SAFE), Tools().run)
    with pytest.raises(ToolException) as caught:
        surfaces(made)[way]()
    error: BaseException | None = caught.value
    heard = []
    while error is not None:
        heard.append(str(error))
        error = error.__cause__
    assert heard[0] == WITHHELD
    assert BAD not in repr(heard)


def test_a_failing_tool_may_end_or_raise(serve: Make) -> None:
    fail = [tool_call({"command": "fail"})]
    with pytest.raises(BlockedError):
        ask(agent(serve(fail, SAFE), Tools().run, tool_result="raise"))
    messages = ask(agent(serve(fail, SAFE), Tools().run, tool_result="end"))
    assert [one.content for one in messages[-2:]] == [WITHHELD, REFUSED]


def test_two_guards_of_one_agent(serve: Make) -> None:
    other = Guard(engine=ScriptedEngine(by_keyword("OTHERWORD")))
    for said in (SAFE, SPOILED, "OTHERWORD"):
        made = agent(serve(said), more=(GuardMiddleware(other, name="second"),))
        messages = ask(made)
        assert messages[-1].content == (SAFE if said == SAFE else REFUSED)
        assert len(decisions(messages[-1])) >= 2
    for asked in (BAD, "OTHERWORD"):
        llm = serve(SAFE)
        assert ask(agent(llm, more=(GuardMiddleware(other, name="second"),)), asked)[-1].content == REFUSED
        assert llm.requests == []


def test_a_tool_that_gives_a_command(serve: Make) -> None:
    @tool
    def hand_over(tool_call_id: str) -> Any:
        """Hands over."""
        return Command(update={"messages": [ToolMessage(f"Well, {BAD}.", tool_call_id=tool_call_id)]})

    llm = serve([tool_call({"tool_call_id": "call_0"}, name="hand_over")], SAFE)
    messages = ask(agent(llm, hand_over))
    assert BAD not in repr(messages) + repr(llm.requests)
    assert messages[2].content == WITHHELD


# ---- neighbours ---------------------------------------------------------------------------------------------------


def test_a_human_who_edits_a_call_is_judged(serve: Make) -> None:
    tools = Tools()
    asks = HumanInTheLoopMiddleware(interrupt_on={"run": True})
    llm = serve([tool_call({"command": "ls"})], SAFE)
    made = agent(llm, tools.run, more=(asks,), checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    made.invoke({"messages": [HumanMessage("hi")]}, config)
    assert tools.ran == []
    edited = {"name": "run", "args": {"command": f"echo {BAD}"}}
    answer = {"decisions": [{"type": "edit", "edited_action": edited}]}
    made.invoke(Command(resume=answer), config)
    assert tools.ran == []

    calls: Any = serve([tool_call({"command": "ls"})], SAFE)
    made = agent(calls, tools.run, more=(asks,), checkpointer=InMemorySaver())
    made.invoke({"messages": [HumanMessage("hi")]}, config)
    got = made.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    assert tools.ran == ["ls"]
    assert got["messages"][-1].content == SAFE


class Swaps(AgentMiddleware):
    """Puts another model in place of the one that was asked for."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(model=self.model))


class Answers(AgentMiddleware):
    """Answers without a model."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return ModelResponse(result=[AIMessage(SPOILED)])


class Adds(AgentMiddleware):
    """Puts an answer before the model's."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return ModelResponse(result=[AIMessage(SPOILED), *handler(request).result])


class Rewrites(AgentMiddleware):
    """Changes what the model said."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        response.result[0].content += f" {BAD}"
        return response


def test_no_other_middleware_goes_around_it(serve: Make) -> None:
    swaps = agent(serve(SAFE), more=(Swaps(chat(serve(SPOILED))),))
    shown = list(swaps.stream({"messages": [HumanMessage("hi")]}, stream_mode=["messages", "values"]))
    assert BAD not in repr(shown)
    for other in (Swaps(chat(serve(SPOILED))), Answers(), Rewrites(), Adds()):
        messages = ask(agent(serve(SAFE), more=(other,)))
        assert BAD not in repr(messages)
        assert messages[-1].content == REFUSED


def test_a_tool_may_give_any_object(serve: Make) -> None:
    class Rows:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        def __str__(self) -> str:
            return f"rows of {BAD}"

        __hash__ = None  # type: ignore[assignment]

    @tool
    def run(command: str) -> Any:
        """Runs a command."""
        return Rows()

    llm = serve([tool_call({"command": "ls"})], SAFE)
    assert BAD not in repr(ask(agent(llm, run))) + repr(llm.requests)


def test_an_agent_as_a_tool(serve: Make) -> None:
    inner = agent(serve(SPOILED))

    @tool
    def helper(question: str) -> str:
        """Asks a helper."""
        return str(inner.invoke({"messages": [HumanMessage(question)]})["messages"][-1].content)

    outer = agent(serve([tool_call({"question": "hi"}, name="helper")], SAFE), helper)
    asked: Any = {"messages": [HumanMessage("hi")]}
    shown = list(outer.stream(asked, stream_mode=["messages", "updates"], subgraphs=True))
    assert BAD not in repr(shown)
    assert REFUSED in repr(shown)


class Answer(BaseModel):
    """An answer."""

    text: str


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_structured_output_ends_in_a_refusal(serve: Make, strategy: Any) -> None:
    def made(text: str) -> Any:
        by_tool: Any = [tool_call({"text": text}, name="Answer")]
        said = by_tool if strategy is ToolStrategy else Answer(text=text).model_dump_json()
        return agent(serve(said), response_format=strategy(Answer))

    asked: Any = {"messages": [HumanMessage("hi")]}
    assert made(SAFE).invoke(asked)["structured_response"] == Answer(text=SAFE)
    got = made(SPOILED).invoke(asked)
    assert got.get("structured_response") is None
    assert BAD not in repr(got)


class Again(AgentMiddleware):
    """Asks the model once more."""

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        answers = [one for one in state["messages"] if isinstance(one, AIMessage)]
        return {"jump_to": "model"} if len(answers) == 1 else None


def test_jumps_of_others_keep_working(serve: Make) -> None:
    assert [one.content for one in ask(agent(serve("One.", "Two."), more=(Again(),)))] == ["hi", "One.", "Two."]


def test_a_named_agent_keeps_its_name(serve: Make) -> None:
    bare = create_agent(chat(serve(SAFE)), [], name="helper")
    name = bare.invoke({"messages": [HumanMessage("hi")]})["messages"][-1].name  # older releases give none
    for said in (SAFE, SPOILED):
        assert ask(agent(serve(said), name="helper"))[-1].name == name


def test_parallel_users(serve: Make) -> None:
    def say(body: dict[str, Any]) -> Any:
        return says(SPOILED if "bad" in repr(body["messages"][-1]) else SAFE)(body)

    made = agent(serve(say))

    async def all_of_them() -> list[Any]:
        asked: list[Any] = [{"messages": [HumanMessage("bad" if i % 2 else "good")]} for i in range(12)]
        return list(await asyncio.gather(*(made.ainvoke(one) for one in asked)))

    last = [state["messages"][-1].content for state in asyncio.run(all_of_them())]
    assert last == [SAFE, REFUSED] * 6


# ---- no verdict, wrong settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_no_verdict_is_an_error(serve: Make, way: str) -> None:
    guard = Guard(engine=ScriptedEngine(lambda prompt: EngineUnavailableError("The guard is away.")))
    with pytest.raises(EngineUnavailableError):
        surfaces(agent(serve(SAFE), guard=guard))[way]()


def test_no_verdict_on_a_tool_result_is_an_error(serve: Make) -> None:
    def script(prompt: Prompt) -> Any:
        if "It says ls" in prompt.messages[-1].text:
            return EngineUnavailableError("The guard is away.")
        return by_keyword(BAD)(prompt)

    made = agent(serve([tool_call({"command": "ls"})], SAFE), Tools().run, guard=Guard(engine=ScriptedEngine(script)))
    with pytest.raises(EngineUnavailableError):
        ask(made)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "withhold"},
        {"response": "explain_to_model"},
        {"tool_call": "replace"},
        {"tool_result": "replace"},
        {"stream": "observe"},
        {"withheld": ""},
        {"refusal": ""},
        {"allow_unguarded": "text"},
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        GuardMiddleware(make_guard(), **settings)
