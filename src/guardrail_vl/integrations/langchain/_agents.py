"""`GuardMiddleware`: an agent whose prompts, answers, tool calls and tool results are judged before anyone sees them.

The model is guarded inside of the model call, and tools inside of the tool call: so no stream, callback, state or
checkpoint holds what is blocked. What follows is decided in `_agent_calls` and here, once; the drivers are at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, get_args

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, hook_config
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.types import Command

from guardrail_vl.blocking import REFUSAL, outcome
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations.langchain._agent_calls import (
    WITHHELD,
    AgentCall,
    AgentRules,
    Choices,
    OnPrompt,
    OnResponse,
    OnToolCall,
    OnToolResult,
    explanation,
)
from guardrail_vl.integrations.langchain._agent_state import (
    Approved,
    GuardState,
    each_message,
    ended_by_tool,
    explained,
    last_answer,
    messages_of,
    new_decisions,
    note_of,
    noted_result,
)
from guardrail_vl.integrations.langchain._calls import NOTE, Judge, note
from guardrail_vl.integrations.langchain._events import atell, tell
from guardrail_vl.integrations.langchain._messages import read_reply, read_request, tool_output
from guardrail_vl.integrations.langchain._models import GuardedChatModel, ajudge_all, guard_model, judge_all
from guardrail_vl.integrations.langchain._tools import Watch, guarded_tool, sift
from guardrail_vl.parts import MAX_ID, ImageLoader, Message, ToolCallPart
from guardrail_vl.streaming import Mode, Streaming
from guardrail_vl.turn import Making, Turn
from guardrail_vl.verdict import Decision, Stage
from guardrail_vl.wire.base import Reading


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """Let it happen. Result: what came of it."""

    request: Any


@dataclasses.dataclass(frozen=True, slots=True)
class _Tell:
    """Tell the app of these. Result: None."""

    decisions: Sequence[Decision]


@dataclasses.dataclass(slots=True)
class _Case:
    """One tool call on its way."""

    call: Any
    history: Sequence[BaseMessage]
    refused: list[Decision] = dataclasses.field(default_factory=list)
    """On the call, whatever they say."""
    found: list[Decision] = dataclasses.field(default_factory=list)
    """On what the tool gave."""
    passed: list[Any] = dataclasses.field(default_factory=list)
    """Content that was judged and not blocked."""

    @property
    def answer(self) -> int:
        """Where in the history the answer stands that made the call."""
        return max((at for at, one in enumerate(self.history) if isinstance(one, AIMessage)), default=len(self.history))

    @property
    def told_before(self) -> int:
        """Blocked calls that were explained to the model just before."""
        return explained(self.history[: self.answer])


_Steps = Generator[_Run | _Tell | Judge, Any, Any]


class GuardMiddleware(AgentMiddleware[GuardState, Any]):
    """Guards an agent made by `create_agent`: put it first in `middleware`.

    Judged are: what is sent to the model, each time (instructions, history and tool results included); what the model
    answers, while it is streamed; the arguments of a tool call before the tool runs; what a tool gives back before the
    model, the state or any stream sees it. Pictures too. A blocked message is replaced in the state by its id.

    Args:
        guard: Judges.
        prompt: When what is sent is blocked: `end` the run with the refusal; `replace` what is blocked by a notice and
            call the model; or `raise` a `BlockedError`. The first two clean the state, so that the next turn is free.
        response: When an answer is blocked: `end` with the refusal; `replace` it, and let the agent go on as it would
            (it may ask the model again for structured output); or `raise`.
        tool_call: When only tool calls are to blame: `explain_to_model` that they were not run, up to three times in
            a row; `end`; or `raise`.
        tool_result: When what a tool gave is blocked: `withhold` it and tell the model so; `end`; or `raise`.
        stream: How answers are judged while they are written: a `Streaming`, or its mode (`window` or `full`).
        refusal: What a refused answer says.
        name: Of its steps in streams and graphs. Two guards of one agent need two names.
        withheld: What stands where something was blocked.
        allow_unguarded: Names of content blocks and fields that may pass unjudged.

    Raises:
        ConfigurationError: A wrong argument.
    """

    state_schema = GuardState

    def __init__(
        self,
        guard: Guard,
        *,
        prompt: OnPrompt = "end",
        response: OnResponse = "end",
        tool_call: OnToolCall = "explain_to_model",
        tool_result: OnToolResult = "withhold",
        stream: Streaming | Mode = "window",
        refusal: str = REFUSAL,
        withheld: str = WITHHELD,
        allow_unguarded: Collection[str] = (),
        name: str = "GuardMiddleware",
    ) -> None:
        super().__init__()
        self._name = name
        given = {"prompt": prompt, "response": response, "tool_call": tool_call, "tool_result": tool_result}
        for (name, value), known in zip(given.items(), (OnPrompt, OnResponse, OnToolCall, OnToolResult), strict=True):
            if value not in get_args(known):
                raise ConfigurationError(f"{name} must be one of {', '.join(get_args(known))}, not {value!r}.")
        if not isinstance(withheld, str) or not withheld.strip():
            raise ConfigurationError("withheld must be a sentence.")
        self._rules = AgentRules(
            guard,
            on_block="refuse",
            streaming=Streaming.of(stream),
            refusal=refusal,
            allow=allow_unguarded if isinstance(allow_unguarded, str) else frozenset(allow_unguarded),
            choices=Choices(prompt, response, tool_call, tool_result, withheld),
        )
        self._approved = Approved()

    @property
    def name(self) -> str:
        """Of its steps in streams and graphs."""
        return self._name

    # ---- the model ------------------------------------------------------------------------------------------------

    def _model_call(self, request: ModelRequest) -> _Steps:
        rules = dataclasses.replace(
            self._rules, tools=frozenset(_names(request.tools)), explained=explained(request.messages), calls=[]
        )
        if ended_by_tool(request.messages):
            return ModelResponse(result=[rules.call([], None, {}).ending_refusal()])
        try:
            response = yield _Run(_guarded_request(request, rules))
        except (StructuredOutputError, ValueError):  # the second in older releases
            if not rules.calls or rules.calls[-1].instead is None:
                raise
            response = ModelResponse(result=[])  # there is nothing to parse in a refusal
        call: AgentCall | None = rules.calls[-1] if rules.calls else None
        answer = last_answer(response.result)
        for one in [m for m in response.result if isinstance(m, AIMessage) and (call is None or not call.made(m))]:
            judged = rules.call(request.messages, None, {})
            response = yield from self._unseen(judged, one, response)
            call = judged if call is None or judged.instead is not None else call
            if judged.instead is not None:
                break
        if call is None:
            return response
        if call.instead is not None:
            response = ModelResponse(result=[_in_place_of(answer, one) for one in call.instead])
        self._approved.add(call.approved)
        kept = {message.id for message in messages_of(request.state) if message.id}
        changed = [message for message in call.replaced if message.id in kept]
        return dataclasses.replace(response, result=[*changed, *response.result]) if changed else response

    def _unseen(self, call: AgentCall, answer: AIMessage, response: ModelResponse) -> _Steps:
        """Judge an answer that another middleware gave, or changed."""
        asked = Making(lambda load: Turn((*call.asked(load).messages, *read_reply(answer, self._reading(load)))))
        (decision,) = yield Judge((asked,), Stage.RESPONSE)
        call.trail.append(decision)
        yield _Tell(call.trail)
        if outcome([decision], "refuse") == "refuse":
            yield from call.refused_reply(decision, answer)
            return response
        call.approve(answer)
        self._approved.add(call.approved)
        metadata = {**answer.response_metadata, NOTE: note(call.trail, answer.response_metadata.get(NOTE))}
        seen = answer.model_copy(update={"response_metadata": metadata})
        return dataclasses.replace(response, result=[seen if one is answer else one for one in response.result])

    # ---- tools ----------------------------------------------------------------------------------------------------

    def _tool_call(self, request: Any) -> _Steps:
        choices = self._rules.choices
        case = _Case(request.tool_call, messages_of(request.state))
        if case.call not in self._approved:  # it waited in a process that is gone, or another middleware made it
            decision = yield from self._judged_call(case, case.call["args"])
            case.refused.append(decision)
        if not any(one.blocked for one in case.refused):
            try:
                result = yield _Run(self._with_guarded_tool(request, case))
            except ToolException as error:
                if not case.found or choices.tool_result == "withhold":
                    yield _Tell((*case.refused, *case.found))
                    raise
                result = ToolMessage(str(error), tool_call_id=case.call["id"], name=case.call["name"], status="error")
            # Once more as it came out: another middleware may have given or changed it.
            sifting = sift(result, choices.withheld)
            try:
                content = next(sifting)
                while True:
                    content = sifting.send((yield from self._withholds(case, content)))
            except StopIteration as stop:
                result = stop.value
        yield _Tell((*case.refused, *case.found))
        refused = [one for one in case.refused if one.blocked]
        withheld = [one for one in case.found if one.blocked]
        for one in (*refused, *withheld):
            if one.error is not None and not isinstance(one.error, ContentError):
                raise one.error
        outcome(refused, "raise" if choices.tool_call == "raise" else "annotate")
        outcome(withheld, "raise" if choices.tool_result == "raise" else "annotate")
        if refused:
            told = self._told(case)
            return noted_result(told, case.refused, not_run=case.told_before + 1, end=choices.tool_call == "end")
        ends = bool(withheld) and choices.tool_result == "end"
        return each_message(result, lambda one: noted_result(one, [*case.refused, *case.found], end=ends))

    def _told(self, case: _Case) -> ToolMessage:
        return explanation(case.call, case.call["name"], self._rules.choices.withheld, case.told_before + 1)

    def _judged_call(self, case: _Case, arguments: Mapping[str, Any]) -> Generator[Judge, Any, Decision]:
        """The decision on a call as it is to be run."""
        text = json.dumps(arguments, ensure_ascii=False, default=str)
        part = ToolCallPart(case.call["name"], text, (case.call["id"] or "")[:MAX_ID])
        asked = Making(lambda load: Turn((*self._before(case, load, answer=False), Message("assistant", (part,)))))
        (decision,) = yield Judge((asked,), Stage.RESPONSE)
        return decision  # type: ignore[no-any-return]

    def _refuses(self, case: _Case, arguments: Mapping[str, Any]) -> Generator[Judge, Any, bool]:
        """Whether a call may not be run with these arguments."""
        if arguments == case.call["args"]:
            return False
        decision = yield from self._judged_call(case, arguments)
        case.refused.append(decision)
        return decision.blocked

    def _withholds(self, case: _Case, content: Any) -> Generator[Judge, Any, bool]:
        """Whether what a tool gave may not be seen."""
        if isinstance(content, str | list) and content in ("", self._rules.choices.withheld, *case.passed):
            return False

        def turn(load: ImageLoader) -> Turn:
            given = tool_output(content, case.call["id"] or "", self._reading(load), name=case.call["name"])
            return Turn((*self._before(case, load, answer=True), given))

        (decision,) = yield Judge((Making(turn),), Stage.PROMPT)
        case.found.append(decision)
        if not decision.blocked and isinstance(content, str | list):
            case.passed.append(content)
        return bool(decision.blocked)

    def _before(self, case: _Case, load: ImageLoader, *, answer: bool) -> tuple[Message, ...]:
        """What came before a call, or with the answer that made it, before its result."""
        return read_request(case.history[: case.answer + answer], None, {}, self._reading(load))

    def _reading(self, load: ImageLoader) -> Reading:
        return Reading(load, self._rules.allow)

    # ---- after the model ------------------------------------------------------------------------------------------

    def _after(self, state: Any) -> dict[str, Any] | None:
        """Write down what was decided, and end where that follows."""
        messages = messages_of(state)
        made = new_decisions(messages)
        last = last_answer(messages)
        ends = last is not None and note_of(last).get("end")
        return {**({NOTE: made} if made else {}), **({"jump_to": "end"} if ends else {})} or None

    # ---- what the agent calls: nothing is decided below -----------------------------------------------------------

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
        """Judge what is sent to the model, and what it answers."""
        response: ModelResponse = self._drive(self._model_call(request), handler)
        return response

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """The same without blocking the event loop."""
        response: ModelResponse = await self._adrive(self._model_call(request), handler)
        return response

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> ToolMessage | Command[Any]:
        """Judge a tool call that was not judged as it is, and what the tool gives back."""
        result: ToolMessage | Command[Any] = self._drive(self._tool_call(request), handler)
        return result

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """The same without blocking the event loop."""
        return await self._adrive(self._tool_call(request), handler)

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Write down what was decided."""
        return self._after(state)

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """The same."""
        return self._after(state)

    def _with_guarded_tool(self, request: Any, case: _Case) -> Any:
        if request.tool is None:
            return request

        async def arefuse(arguments: Mapping[str, Any]) -> bool:
            return bool(await self._adrive(self._refuses(case, arguments), None))

        async def awithhold(content: Any) -> bool:
            return bool(await self._adrive(self._withholds(case, content), None))

        watch = Watch(
            refuse=lambda arguments: bool(self._drive(self._refuses(case, arguments), None)),
            arefuse=arefuse,
            withhold=lambda content: bool(self._drive(self._withholds(case, content), None)),
            awithhold=awithhold,
            told=self._told(case),
            sentence=self._rules.choices.withheld,
        )
        return dataclasses.replace(request, tool=guarded_tool(request.tool, case.call["args"], watch))

    def _drive(self, steps: Generator[Any, Any, Any], run: Callable[[Any], Any] | None) -> Any:
        advance: Callable[[], Any] = functools.partial(next, steps)
        while True:
            try:
                step = advance()
            except StopIteration as stop:
                return stop.value
            try:
                advance = functools.partial(steps.send, self._perform(step, run))
            except Exception as error:
                advance = functools.partial(steps.throw, error)

    def _perform(self, step: _Run | _Tell | Judge, run: Callable[[Any], Any] | None) -> Any:
        match step:
            case Judge():
                return judge_all(self._rules.guard, step)
            case _Tell():
                tell(step.decisions)
            case _Run():
                assert run is not None
                return run(step.request)
        return None

    async def _adrive(self, steps: Generator[Any, Any, Any], run: Callable[[Any], Awaitable[Any]] | None) -> Any:
        advance: Callable[[], Any] = functools.partial(next, steps)
        while True:
            try:
                step = advance()
            except StopIteration as stop:
                return stop.value
            try:
                advance = functools.partial(steps.send, await self._aperform(step, run))
            except Exception as error:
                advance = functools.partial(steps.throw, error)

    async def _aperform(self, step: _Run | _Tell | Judge, run: Callable[[Any], Awaitable[Any]] | None) -> Any:
        match step:
            case Judge():
                return await ajudge_all(self._rules.guard, step)
            case _Tell():
                await atell(step.decisions)
            case _Run():
                assert run is not None
                return await run(step.request)
        return None


def _in_place_of(answer: AIMessage | None, message: BaseMessage) -> BaseMessage:
    """Under the id that streams have shown: whoever keeps messages by their ids then keeps this one."""
    if answer is None or not isinstance(message, AIMessage):
        return message
    return message.model_copy(update={"name": answer.name, "id": answer.id})


def _names(tools: Sequence[Any]) -> Iterator[str]:
    """The names that a model may call: of tools, and of a provider's tool definitions."""
    for tool in tools:
        name = tool.get("name") or (tool.get("function") or {}).get("name") if isinstance(tool, dict) else tool.name
        if isinstance(name, str):
            yield name


def _guarded_request(request: ModelRequest, rules: AgentRules) -> ModelRequest:
    """The request with a guarded model; whatever model another middleware puts there instead is guarded too."""

    class GuardedRequest(ModelRequest):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "model" and not (isinstance(value, GuardedChatModel) and rules in value.guardrail):
                if isinstance(inspect.getattr_static(value, "_serialized", None), functools.cached_property):
                    value._serialized  # noqa: B018 - made once, it goes along with every copy
                value = guard_model(value, rules)
            super().__setattr__(name, value)

    fields = {one.name: getattr(request, one.name) for one in dataclasses.fields(request)}
    return GuardedRequest(**fields)
