"""One run of a guarded runnable, or of a step, written once: what is judged, and what follows. Performs nothing.

Adds to `_calls` whatever is no chat model's: inputs and outputs of any type. The methods that judge are generators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompt_values import ChatPromptValue

from guardrail_vl.blocking import outcome
from guardrail_vl.errors import BlockedError, ContentError
from guardrail_vl.integrations.langchain._calls import NOTE, Call, Judge, Judging, Rules, note
from guardrail_vl.integrations.langchain._pictures import pinned
from guardrail_vl.integrations.langchain._values import ValueReader, value_messages
from guardrail_vl.parts import (
    ImageLoader,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    blank_picture,
)
from guardrail_vl.streaming import Piece, Unreadable
from guardrail_vl.turn import Making, Turn, is_blank
from guardrail_vl.verdict import Decision, Stage
from guardrail_vl.wire.base import Reading

Select = Callable[[Any], Any]
"""Gives what of a value is judged."""
Saying = Literal["text", "message", "other"]
"""What a runnable gives: the shape that a refusal has."""
_Read = Callable[[ImageLoader], tuple[Message, ...]]
_NOTHING: Final = object()


class Run(Call):
    """One run, from the input to the output.

    Args:
        rules: What is done with decisions.
        given: The input as it is judged; see `asking`.
        role: Whose the input is: the assistant's is what a step judges as an answer.
        response: What of an output, or of an item of a stream, is judged. None: everything found in it.
        saying: What the runnable gives, as far as that is known before it does.
        streams: Whether it is asked for a stream.
    """

    def __init__(
        self,
        rules: Rules,
        given: Any = None,
        *,
        role: Literal["user", "assistant"] = "user",
        response: Select | None = None,
        saying: Saying = "text",
        streams: bool = False,
    ) -> None:
        super().__init__(rules, [], None, {})
        self._response = response
        self._saying = saying
        self._streams = streams
        self._inner: Mapping[str, Any] | None = None
        self._released = False
        self._values = ValueReader(self._reading(functools.partial(ImagePart.load, limits=rules.guard.limits)))
        made = content(lambda load: self._question(given, role, load))
        self.asks = made is not None
        """Whether there is anything in the input that could be judged."""
        self.asked = made if made is not None else Making(lambda load: Turn(()))

    def _question(self, given: Any, role: Role, load: ImageLoader) -> tuple[Message, ...]:
        """What is asked, less what says nothing at the end of it."""
        messages = read_given(given, role, self._reading(load))
        while messages and is_blank(messages[-1:]):
            messages = messages[:-1]
        return messages if role == "assistant" else _as_asked(messages)

    def begin(self) -> Judging[list[Any] | None]:
        """Judge the input, if there is anything in it. None: the runnable may run; else what is given instead.

        Raises:
            BlockedError: The policy said block, and that raises, or a refusal can't be said in words.
            GuardrailError: There was no verdict.
        """
        refusal = (yield from self.opening()) if self.asks else None
        return None if refusal is None else [self.instead(refusal)]

    def end(self, failure: Exception | None, output: Any = None) -> Judging[list[Any]]:
        """Judge how it ended. Gives the output, or what comes after the items of a stream.

        Raises:
            BlockedError: The policy said block, and that raises, or a refusal can't be said in words.
            GuardrailError: There was no verdict.
            Exception: The failure of the runnable, if what it says may be seen.
        """
        if failure is None:
            return (yield from self.tail()) if self._streams else [(yield from self.answer(output))]
        refused = yield from self.failure(failure)
        if refused is None:
            raise failure
        return [refused]

    def sent(self, value: Any) -> Any:
        """The input as it is passed on: with the very pictures that were judged instead of their URLs."""
        return _pinned(value, self._fetched) if self._fetched else value

    # ---- a whole output -------------------------------------------------------------------------------------------

    def answer(self, output: Any) -> Judging[Any]:
        """Judge an output; gives it as it may be seen.

        Raises:
            BlockedError: The policy said block, and that raises, or the output is neither text nor a message.
            GuardrailError: There was no verdict.
        """
        decision = yield from self._response_to(lambda load: self._said(output, load))
        if decision is not None and outcome([decision], self.rules.on_block) == "refuse":
            withheld = output if isinstance(output, AIMessage) else None
            return self.instead(self.refusal(withheld), saying(output), decision)
        return noted(output, self.trail)

    def failure(self, error: Exception) -> Judging[Any]:
        """Judge what an error of the runnable says, since it may quote the output. None: it may be raised.

        Raises:
            BlockedError: The policy said block, and that raises.
            GuardrailError: There was no verdict.
        """
        decision = yield from self.failing(error)
        return None if decision is None else self.instead(self.refusal(), self._saying, decision)

    def _response_to(self, read: _Read) -> Judging[Decision | None]:
        made = content(read, lambda: self.request)
        if made is None:
            return None
        (decision,) = yield Judge((made,), Stage.RESPONSE)
        self.trail.append(decision)
        return decision

    def _said(self, output: Any, load: ImageLoader) -> tuple[Message, ...]:
        given = output if self._response is None else self._response(output)
        return read_given(given, "assistant", self._reading(load))

    def instead(self, refusal: AIMessage, shape: Saying | None = None, decision: Decision | None = None) -> Any:
        """A refusal in the shape of the output.

        Raises:
            BlockedError: It can't be said in words.
        """
        match shape or self._saying:
            case "text":
                return ("\n\n" if self._released else "") + refusal.text
            case "message":
                return self.refusal_chunk(refusal).message if self._streams else refusal
            case _:
                raise BlockedError(decision or self.trail[-1])

    # ---- a streamed output ----------------------------------------------------------------------------------------

    def read_item(self, item: Any) -> Sequence[Piece]:
        """The content that an item adds.

        Raises:
            ContentError: It can't be told.
        """
        self._saying = saying(item)
        return self._values.read(item if self._response is None else self._response(item))

    def item(self, item: Any) -> Any:
        """A released item, as it goes out. Decisions come last; a whole message carries those on itself."""
        self._released = True
        if isinstance(item, AIMessageChunk):
            before = item.response_metadata.get(NOTE)
            if before is not None:
                self._inner = before
                rest = {name: value for name, value in item.response_metadata.items() if name != NOTE}
                item = item.model_copy(update={"response_metadata": rest})
            return self.out(ChatGenerationChunk(message=item)).message
        return noted(item, [*self.trail, *self.hold.decisions.values()])

    def tail(self) -> Judging[list[Any]]:
        """What comes after the released items: the decisions, or the end of a blocked stream.

        Raises:
            BlockedError: The stream was blocked, and that raises, or it is neither text nor messages.
            GuardrailError: It was stopped because there was no verdict.
        """
        message = (yield from self.ending()).message
        stopped = self.hold.stopped
        if stopped is not None and self._saying != "message":
            return [self.instead(self.refusal(), decision=stopped)]
        if stopped is None and self._last is None:
            return []
        metadata = {**message.response_metadata, NOTE: note(self.trail, self._inner)}
        return [message.model_copy(update={"response_metadata": metadata})]


# ---- what is judged -----------------------------------------------------------------------------------------------


def asking(value: Any, settings: Mapping[str, Any], prompt: Select | None, allow: Collection[str]) -> Any:
    """What of an input is judged: what the app says, or all of it and of the keyword arguments that come with it."""
    if prompt is not None:
        try:
            return prompt(value)
        except ContentError as problem:
            return problem
    spoken = {name: given for name, given in settings.items() if name != "stop" and name not in allow}
    return _Asked(spoken, value) if spoken else value


class _Asked:
    """An input, and the keyword arguments of the call."""

    def __init__(self, settings: Mapping[str, Any], value: Any) -> None:
        self.settings = settings
        self.value = value


def read_given(given: Any, role: Role, reading: Reading) -> tuple[Message, ...]:
    """What is judged of an input, as messages. The user's documents are content from outside: what a tool gave back.

    Raises:
        ContentError: Something in it can't be judged.
        ConfigurationError: It holds a value of a type that can't be read; named.
    """
    if isinstance(given, ContentError):
        raise given
    if isinstance(given, _Asked):
        return (*value_messages(given.settings, role, reading), *read_given(given.value, role, reading))
    if role == "assistant":
        return as_said(value_messages(given, role, reading))
    if documents(given):
        listed = [given] if isinstance(given, Document) else given
        return tuple(Message("tool", (_result(value_messages(one, role, reading)),)) for one in listed)
    return value_messages(given, role, reading)


def documents(value: Any) -> bool:
    """Whether it is a document, or a list of them."""
    listed = isinstance(value, list | tuple) and bool(value)
    return isinstance(value, Document) or (listed and all(isinstance(one, Document) for one in value))


def _result(messages: Sequence[Message]) -> ToolResultPart:
    return ToolResultPart(tuple(p for one in messages for p in one.content if isinstance(p, TextPart | ImagePart)))


def as_said(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same content as the assistant's: whoever is said to have written it, nobody has judged it."""
    return tuple(Message("assistant", tuple(flat(one.content)), one.name) for one in messages)


def _as_asked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """An assistant's words that answer nobody are what is asked: one model's answer may be another's prompt."""
    if any(one.role in ("user", "tool") and not is_blank([one]) for one in messages):
        return messages
    return tuple(
        Message("user", tuple(map(_plainly, one.content)), one.name) if one.role == "assistant" else one
        for one in messages
    )


def _plainly(part: Part) -> Part:
    match part:
        case ToolCallPart():
            return TextPart(f"{part.name} {part.arguments}")
        case ReasoningPart() | RefusalPart():
            return TextPart(part.text)
        case _:
            return part


def flat(parts: Sequence[Part]) -> Iterator[Part]:
    """Parts, with those of tool results among them."""
    for part in parts:
        if isinstance(part, ToolResultPart):
            yield from part.content
        else:
            yield part


def content(read: _Read, before: Callable[[], tuple[Message, ...]] = tuple) -> Making | None:
    """Makes the turn of what is read; None: there is nothing in it that could be judged.

    Raises:
        ConfigurationError: It holds a value of a type that can't be read; named.
    """
    try:
        # Only to see what is in it: pictures are looked at when it is judged.
        if is_blank(read(lambda _: blank_picture())):
            return None
    except ContentError as problem:
        return Making(Unreadable(problem))
    return Making(lambda load: Turn((*before(), *read(load))))


def added(total: Any, item: Any) -> Any:
    """A stream so far with one more item, as LangChain adds items up. Begins with `NO_INPUT`."""
    if total is _NOTHING:
        return item
    try:
        return total + item
    except TypeError:
        return item


NO_INPUT: Final = _NOTHING


# ---- what is given ------------------------------------------------------------------------------------------------


def saying(value: Any) -> Saying:
    """The shape that a refusal has where this was to be given."""
    if isinstance(value, str):
        return "text"
    return "message" if isinstance(value, AIMessage) else "other"


def noted(value: Any, decisions: Sequence[Decision]) -> Any:
    """The value, or a copy with the decisions on it if it is a message, or a list that ends in one."""
    if isinstance(value, BaseMessage) and decisions:
        metadata = {**value.response_metadata, NOTE: note(decisions, value.response_metadata.get(NOTE))}
        return value.model_copy(update={"response_metadata": metadata})
    if type(value) in (list, tuple) and value and isinstance(value[-1], BaseMessage):
        return type(value)((*value[:-1], noted(value[-1], decisions)))
    return value


def labelled(document: Document, decision: Decision) -> Document:
    """A copy of a document that says what was decided on it."""
    metadata = {**document.metadata, NOTE: {"action": str(decision.action)}}
    return document.model_copy(update={"metadata": metadata})


def _pinned(value: Any, fetched: Mapping[str, ImagePart]) -> Any:
    match value:
        case BaseMessage():
            return pinned(value, fetched)
        case ChatPromptValue():
            return value.model_copy(update={"messages": _pinned(value.messages, fetched)})
        case dict() if "role" in value and "content" in value:
            held = pinned(BaseMessage(content=value["content"], type="any"), fetched)
            return {**value, "content": held.content}
        case dict():
            return {key: _pinned(inner, fetched) for key, inner in value.items()}
        case list() | tuple() if type(value) in (list, tuple):
            return type(value)(_pinned(inner, fetched) for inner in value)
        case _:
            return value
