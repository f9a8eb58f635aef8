"""One model call of a guarded agent: what is done with what is blocked, place by place. Performs nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from guardrail_vl.blocking import outcome
from guardrail_vl.errors import BlockedError, ContentError
from guardrail_vl.hygiene import guilty
from guardrail_vl.integrations.langchain._calls import NOTE, Call, Judge, Judging, Rules, note
from guardrail_vl.integrations.langchain._messages import read_reply, read_request
from guardrail_vl.media import ImageSource
from guardrail_vl.parts import ImagePart
from guardrail_vl.streaming import Piece
from guardrail_vl.turn import Making, Turn, is_blank
from guardrail_vl.verdict import Decision, Stage

OnPrompt = Literal["end", "replace", "raise"]
OnResponse = Literal["end", "replace", "raise"]
OnToolCall = Literal["explain_to_model", "end", "raise"]
OnToolResult = Literal["withhold", "end", "raise"]

WITHHELD: Final = "This was withheld by the guard."
MAX_EXPLAINED: Final = 3
"""Blocked tool calls in a row that are explained to the model; then the run ends."""
_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True)
class Choices:
    """What follows a block, place by place."""

    prompt: OnPrompt = "end"
    response: OnResponse = "end"
    tool_call: OnToolCall = "explain_to_model"
    tool_result: OnToolResult = "withhold"
    withheld: str = WITHHELD
    """Stands in the state, and before the model, where something was blocked."""


@dataclass(frozen=True, slots=True)
class AgentRules(Rules):
    """The rules of an agent's model."""

    choices: Choices = field(default_factory=Choices)
    tools: Collection[str] = frozenset()
    """Names of the tools that the model may call."""
    explained: int = 0
    """Blocked tool calls that were explained to the model just before."""
    calls: list[AgentCall] = field(default_factory=list, repr=False, compare=False)
    """Collects the calls that are made."""

    def call(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, settings: Mapping[str, Any]
    ) -> AgentCall:
        """One call of the model."""
        made = AgentCall(self, messages, stop, settings)
        self.calls.append(made)
        return made


class AgentCall(Call):
    """One call, which knows what the agent's state should hold instead of what was blocked."""

    rules: AgentRules

    def __init__(
        self,
        rules: AgentRules,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__(rules, messages, stop, settings)
        self.replaced: list[BaseMessage] = []
        """Messages of the prompt as they should be from now on; their ids are the old ones'."""
        self.instead: list[BaseMessage] | None = None
        """What goes into the state in place of the reply. None: the reply itself."""
        self.approved: list[Any] = []
        """Tool calls that were judged, and may run as they are."""
        self._read: list[ChatGenerationChunk] = []
        self._released = ""
        self._said: tuple[str, list[Any]] | None = None

    def approve(self, message: BaseMessage) -> None:
        """This answer was judged, and not blocked."""
        calls = list(message.tool_calls) if isinstance(message, AIMessage) else []
        self._said = str(message.text), calls
        self.approved = calls

    def made(self, answer: AIMessage) -> bool:
        """Whether this call gave the answer, as it is."""
        if self.instead is not None:
            return NOTE in answer.response_metadata
        return self._said == (str(answer.text), list(answer.tool_calls))

    def ending_refusal(self) -> AIMessage:
        """A refusal that ends the run."""
        return self._ending(self.refusal())

    # ---- the prompt -----------------------------------------------------------------------------------------------

    def refused_prompt(self, decision: Decision) -> Judging[AIMessage | None]:
        """Clean the messages; then go on with them, or refuse."""
        if not decision.blocked:
            return None
        if decision.error is not None and not isinstance(decision.error, ContentError):
            raise decision.error
        if self.rules.choices.prompt == "raise":
            outcome([decision], "raise")
        clean = yield from self._clean(decision)
        if clean and self.rules.choices.prompt == "replace":
            return None
        return self._ending(self.refusal())

    def _clean(self, decision: Decision) -> Judging[bool]:
        """Replace what is blocked; whether nothing is blocked then."""
        done: set[int] = set()
        for _ in range(_ROUNDS):
            touched = [at for at in self._blamed(decision) if at not in done]
            if not touched:
                return False
            for at in touched:
                self._messages[at] = replaced(self._messages[at], self.rules.choices.withheld)
            done.update(touched)
            self.replaced = [self._messages[at] for at in sorted(done)]
            (decision,) = yield Judge((self.asked,), Stage.PROMPT)
            if not decision.blocked:
                return True
            if decision.error is not None and not isinstance(decision.error, ContentError):
                raise decision.error
        return False

    def _blamed(self, decision: Decision) -> list[int]:
        """Places of the messages to replace now."""
        if decision.error is not None and self.asked.turn is None:
            return [at for at, message in enumerate(self._messages) if not self._readable(message)]
        before = len(self.request) - len(self._messages)  # the definitions of tools, which come first
        blamed = [one for one in decision.judgements if isinstance(one.error, ContentError)] or guilty(decision)
        return [at - before for one in blamed for at in range(one.first, one.last + 1) if at >= before]

    def _readable(self, message: BaseMessage) -> bool:
        try:
            read_request([message], None, {}, self._reading(functools.partial(_load, self.rules)))
        except ContentError:
            return False
        return True

    # ---- the reply ------------------------------------------------------------------------------------------------

    def closing(self, result: ChatResult) -> Judging[ChatResult]:
        """Judge a whole reply."""
        given = yield from super().closing(result)
        if self.instead is None and given.generations:
            self.approve(given.generations[0].message)
        return given

    def ending(self) -> Judging[ChatGenerationChunk]:
        """What comes after the released chunks."""
        chunk = yield from super().ending()
        if self.instead is None and self._read:
            self.approve(generate_from_stream(iter(self._read)).generations[0].message)
        return chunk

    def refused_reply(self, decision: Decision, withheld: AIMessage) -> Judging[AIMessage]:
        """The refusal; or, where only tool calls are to blame, the message without their arguments."""
        calls = len(withheld.tool_calls) + len(withheld.invalid_tool_calls)
        words = AIMessage(content=_words(withheld), id=withheld.id, usage_metadata=withheld.usage_metadata)
        if not calls or (yield from self._blocks(words)):
            if self.rules.choices.response == "raise":
                raise BlockedError(decision)
            ends = self.rules.choices.response == "end"
            return self._ending(self.refusal(withheld)) if ends else self._given(self.refusal(withheld))
        if self.rules.choices.tool_call == "raise":
            raise BlockedError(decision)
        if self.rules.choices.tool_call == "end" or self.rules.explained >= MAX_EXPLAINED:
            return self._ending(self.refusal(withheld))
        blamed = []
        for call in withheld.tool_calls:
            if (yield from self._blocks(words.model_copy(update={"tool_calls": [call]}))):
                blamed.append(call["id"])
        if not blamed:  # each by itself is harmless
            blamed = [call["id"] for call in withheld.tool_calls]
        return self._explained(words, withheld, blamed)

    def _blocks(self, message: AIMessage) -> Judging[bool]:
        """Whether a part of the reply is blocked by itself."""
        contents = Making(lambda load: Turn((*self.request, *read_reply(message, self._reading(load)))))
        if is_blank(read_reply(message, self._reading(functools.partial(_load, self.rules)))):
            return False
        (decision,) = yield Judge((contents,), Stage.RESPONSE)
        return outcome([decision], "refuse") == "refuse"

    def _explained(self, words: AIMessage, withheld: AIMessage, blamed: Collection[Any]) -> AIMessage:
        """The message with the arguments of blocked calls gone, and an answer to each that says so."""
        calls = []
        answers: list[BaseMessage] = []
        for call in withheld.tool_calls:
            name = call["name"] if call["name"] in self.rules.tools else "withheld"
            if call["id"] in blamed:
                calls.append({**call, "name": name, "args": {}})
                answers.append(explanation(call, name, self.rules.choices.withheld, self.rules.explained + 1))
            else:
                calls.append({**call})
        message = words.model_copy(
            update={"tool_calls": calls, "response_metadata": {"finish_reason": "tool_calls", NOTE: note(self.trail)}}
        )
        self.instead = [message, *answers]
        self.approved = [call for call in withheld.tool_calls if call["id"] not in blamed]
        return message

    def _given(self, message: AIMessage) -> AIMessage:
        self.instead = [message]
        return message

    def _ending(self, message: AIMessage) -> AIMessage:
        message.response_metadata[NOTE]["end"] = True
        return self._given(message)

    # ---- a streamed reply -----------------------------------------------------------------------------------------

    def read(self, chunk: ChatGenerationChunk) -> Sequence[Piece]:
        """The content that a chunk adds; kept for when the reply is blocked."""
        self._read.append(chunk.model_copy(update={"message": chunk.message.model_copy()}))
        return super().read(chunk)

    def out(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A released chunk, as it goes out."""
        self._released += chunk.text
        return super().out(chunk)

    def refused_stream(self, decision: Decision) -> Judging[ChatGenerationChunk]:
        """The end of a blocked stream: the refusal, or what may be said of the message."""
        withheld = generate_from_stream(iter(self._read)).generations[0].message
        assert isinstance(withheld, AIMessage)
        given = yield from self.refused_reply(decision, withheld)
        if not given.tool_calls:
            return self.refusal_chunk(given)
        text = str(given.text)
        left = text[len(self._released) :] if text.startswith(self._released) else ""
        chunks = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=at)
            for at, call in enumerate(given.tool_calls)
        ]
        message = AIMessageChunk(content=self._like(left), tool_call_chunks=chunks)
        message.response_metadata = given.response_metadata
        message.chunk_position = "last"
        message.id = None if self._last is None else self._last.id
        return ChatGenerationChunk(message=message)


# ---- messages in place of others ----------------------------------------------------------------------------------


def replaced(message: BaseMessage, sentence: str) -> BaseMessage:
    """A message of the same kind and id that says only this."""
    if isinstance(message, AIMessage):
        calls = [{**call, "args": {}} for call in message.tool_calls]
        return AIMessage(content=sentence, id=message.id, tool_calls=calls)
    if isinstance(message, ToolMessage):
        return ToolMessage(content=sentence, id=message.id, tool_call_id=message.tool_call_id, name=message.name)
    if isinstance(message, HumanMessage):
        return HumanMessage(content=sentence, id=message.id)
    return message.model_copy(update={"content": sentence, "additional_kwargs": {}, "name": None})


def explanation(call: Mapping[str, Any], name: str, sentence: str, number: int) -> ToolMessage:
    """What the model is told in place of a tool's result; the number says how often in a row."""
    text = f"{sentence} The tool was not run. Do not try the same again."
    marks = {"response_metadata": {NOTE: {"not_run": number}}}
    return ToolMessage(content=text, tool_call_id=call["id"] or "", name=name, status="error", **marks)


def _words(message: AIMessage) -> Any:
    """The content without what repeats the tool calls."""
    if isinstance(message.content, str):
        return message.content
    called = ("tool_use", "tool_call", "function_call", "custom_tool_call", "tool_call_chunk", "input_json_delta")
    return [one for one in message.content if not (isinstance(one, dict) and one.get("type") in called)]


def _load(rules: Rules, source: ImageSource) -> ImagePart:
    return ImagePart.load(source, limits=rules.guard.limits)
