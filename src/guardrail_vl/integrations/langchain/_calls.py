"""One call of a guarded chat model, written once: what is judged, and what follows from it. Performs nothing.

The methods that judge are generators: they ask for decisions (`Judge`) and are sent them. `_models` drives them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from guardrail_vl.blocking import REFUSAL, OnBlock, checked_on_block, outcome
from guardrail_vl.errors import ConfigurationError, ContentError, GuardrailError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations._annotation import Annotation
from guardrail_vl.integrations.langchain._failures import told
from guardrail_vl.integrations.langchain._messages import ChunkReader, read_reply, read_request
from guardrail_vl.integrations.langchain._pictures import pinned
from guardrail_vl.media import ImageSource
from guardrail_vl.parts import ImageLoader, ImagePart, Message, TextPart, blank_picture
from guardrail_vl.streaming import HoldBack, Piece, Streaming, Unreadable
from guardrail_vl.turn import Making, Turn, is_blank
from guardrail_vl.verdict import Action, Decision, Stage
from guardrail_vl.wire.base import Reading

T = TypeVar("T")
NOTE: Final = "guardrail"
"""Where decisions are found: the key in a message's `response_metadata`, and the name of the callback event."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a guarded model or runnable does with decisions.

    Raises:
        ConfigurationError: A value that is none of the known ones.
    """

    guard: Guard = field(repr=False)
    on_block: OnBlock = "raise"
    streaming: Streaming = field(default_factory=Streaming)
    refusal: str = REFUSAL
    allow: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.guard, Guard):
            raise ConfigurationError(f"guard must be a Guard, not {type(self.guard).__name__}.")
        checked_on_block(self.on_block)
        if isinstance(self.allow, str):
            raise ConfigurationError("allow_unguarded takes a set of names.", hint=f"Write {{{self.allow!r}}}.")
        if not isinstance(self.refusal, str) or not self.refusal.strip():
            raise ConfigurationError("refusal must be a sentence.")
        self.hold(())  # says now what it would say of every stream

    @property
    def enforce(self) -> bool:
        """Whether a block stops anything."""
        return self.on_block != "annotate"

    def hold(self, request: Sequence[Message]) -> HoldBack[Any]:
        """The state of one stream that answers these messages."""
        return HoldBack(request, self.streaming, enforce=self.enforce)

    def call(self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, settings: Mapping[str, Any]) -> Call:
        """One call of the model."""
        return Call(self, messages, stop, settings)


@dataclass(frozen=True, slots=True)
class Judge:
    """Judge these. Result: a decision each."""

    contents: tuple[Making | Unreadable, ...]
    stage: Stage


Judging = Generator[Judge, list[Decision], T]


class Call:
    """One call, from the messages to the reply.

    Args:
        rules: What is done with decisions.
        messages: What the model is sent.
        stop: Stop words.
        settings: The other keyword arguments of the call.
    """

    def __init__(
        self, rules: Rules, messages: Sequence[BaseMessage], stop: Sequence[str] | None, settings: Mapping[str, Any]
    ) -> None:
        self.rules = rules
        self.trail: list[Decision] = []
        self._messages = list(messages)
        self._fetched: dict[str, ImagePart] = {}
        self.asked = Making(lambda load: Turn(read_request(self._messages, stop, settings, self._reading(load))))
        self._hold: HoldBack[Any] | None = None
        self._reader = ChunkReader(self._reading(functools.partial(ImagePart.load, limits=rules.guard.limits)))
        self._last: AIMessageChunk | None = None
        self._inner: Any = None  # the note of a guard further in

    def _reading(self, load: ImageLoader) -> Reading:
        def note(source: ImageSource) -> ImagePart:
            part = load(source)
            if isinstance(source, str) and source.startswith(("http:", "https:")):
                self._fetched[source] = part
            return part

        return Reading(note, frozenset(self.rules.allow))

    # ---- the prompt -----------------------------------------------------------------------------------------------

    def opening(self) -> Judging[AIMessage | None]:
        """Judge the prompt. None: the model may be called; else what is given instead.

        Raises:
            BlockedError: The policy said block, and that raises.
            GuardrailError: There was no verdict.
        """
        (decision,) = yield Judge((self.asked,), Stage.PROMPT)
        self.trail.append(decision)
        return (yield from self.refused_prompt(decision))

    def refused_prompt(self, decision: Decision) -> Judging[AIMessage | None]:
        """What is given instead of a call; None: nothing, the call is made."""
        yield from ()
        return self.refusal() if outcome([decision], self.rules.on_block) == "refuse" else None

    @property
    def messages(self) -> list[BaseMessage]:
        """What is sent: with the very bytes that were judged in place of the URLs that they were fetched from."""
        return [pinned(message, self._fetched) for message in self._messages] if self._fetched else self._messages

    @property
    def request(self) -> tuple[Message, ...]:
        """What was judged of the prompt; empty where it could not be read, and the policy let it pass."""
        return () if self.asked.turn is None else self.asked.turn.messages

    # ---- a whole reply --------------------------------------------------------------------------------------------

    def closing(self, result: ChatResult) -> Judging[ChatResult]:
        """Judge every generation of a reply, each by itself; gives the reply as it may be seen.

        Raises:
            BlockedError: The policy said block, and that raises.
            GuardrailError: There was no verdict.
        """
        contents = tuple(self._answer(one, result.llm_output) for one in result.generations)
        judged = [at for at, one in enumerate(contents) if one is not None]
        asked = tuple(one for one in contents if one is not None)
        decisions = (yield Judge(asked, Stage.RESPONSE)) if asked else []
        self.trail += decisions
        found = dict(zip(judged, decisions, strict=True))
        opening = self.trail[: len(self.trail) - len(decisions)]
        outcome(decisions, self.rules.on_block)
        generations: list[ChatGeneration] = []
        for at, generation in enumerate(result.generations):
            decision = found.get(at)
            if decision is not None and outcome([decision], self.rules.on_block) == "refuse":
                given = yield from self.refused_reply(decision, _message_of(generation))
                generations.append(ChatGeneration(message=given))
            else:
                made = [*opening, *([] if decision is None else [decision])]
                generations.append(noted(generation, made))
        refused = any(d.blocked for d in decisions) and self.rules.enforce
        return ChatResult(generations=generations, llm_output=None if refused else result.llm_output)

    def refused_reply(self, decision: Decision, withheld: AIMessage) -> Judging[AIMessage]:
        """What is given instead of a reply."""
        yield from ()
        return self.refusal(withheld)

    def _answer(self, generation: ChatGeneration, aside: Mapping[str, Any] | None) -> Making | Unreadable | None:
        """Makes the turn of one reply; None: there is nothing in it that could be judged."""
        message = generation.message
        beside = {**(aside or {}), **(generation.generation_info or {})}

        def read(load: ImageLoader) -> tuple[Message, ...]:
            return read_reply(message, self._reading(load), aside=beside)

        try:
            # Only to see what is in it: pictures are looked at when it is judged.
            if is_blank(read(lambda _: blank_picture())):
                return None
        except ContentError as problem:
            return Unreadable(problem)
        return Making(lambda load: Turn((*self.request, *read(load))))

    def failing(self, error: Exception) -> Judging[Decision | None]:
        """Judge what an error from below says, since it may quote an answer. None: it may be raised as it is.

        Raises:
            BlockedError: The policy said block, and that raises.
            GuardrailError: There was no verdict.
        """
        if self._hold is not None:
            self.trail += self._hold.decisions.values()
        text = "" if isinstance(error, GuardrailError) else "\n".join(dict.fromkeys(told(error)))
        if not text:
            return None
        said = Making(lambda load: Turn((*self.request, Message("assistant", (TextPart(text),)))))
        (decision,) = yield Judge((said,), Stage.RESPONSE)
        self.trail.append(decision)
        return decision if outcome([decision], self.rules.on_block) == "refuse" else None

    def failed(self, error: Exception) -> Judging[AIMessage]:
        """What is given instead of an error from below.

        Raises:
            Exception: The error, if what it says may be seen.
            BlockedError: The policy said block, and that raises.
            GuardrailError: There was no verdict.
        """
        decision = yield from self.failing(error)
        if decision is None:
            raise error
        return (yield from self.refused_reply(decision, AIMessage(content="")))

    def refusal(self, withheld: AIMessage | None = None) -> AIMessage:
        """The refusal, with the decisions so far."""
        return AIMessage(
            content=self.rules.refusal,
            additional_kwargs={"refusal": self.rules.refusal},
            response_metadata={"finish_reason": "content_filter", NOTE: note(self.trail)},
            id=None if withheld is None else withheld.id,
            usage_metadata=None if withheld is None else withheld.usage_metadata,
        )

    # ---- a streamed reply -----------------------------------------------------------------------------------------

    @property
    def hold(self) -> HoldBack[Any]:
        """The state of this call's stream."""
        if self._hold is None:
            self._hold = self.rules.hold(self.request)
        return self._hold

    def read(self, chunk: ChatGenerationChunk) -> Sequence[Piece]:
        """The content that a chunk adds.

        Raises:
            ContentError: It can't be told.
        """
        return self._reader.read(chunk)

    def out(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A released chunk, as it goes out. The one that carries the decisions comes last, so none before it is."""
        message = chunk.message
        if not isinstance(message, AIMessageChunk):
            return chunk
        self._last = message
        if message.chunk_position != "last" and NOTE not in message.response_metadata:
            return chunk
        metadata = dict(message.response_metadata)
        self._inner = metadata.pop(NOTE, self._inner)
        changes = {"chunk_position": None, "response_metadata": metadata}
        return chunk.model_copy(update={"message": message.model_copy(update=changes)})

    def ending(self) -> Judging[ChatGenerationChunk]:
        """What comes after the released chunks: the decisions, or the end of a blocked stream.

        Raises:
            BlockedError: The stream was blocked, and that raises.
            GuardrailError: It was stopped because there was no verdict.
        """
        hold = self.hold
        self.trail += hold.decisions.values()
        if hold.stopped is not None and outcome([hold.stopped], self.rules.on_block) == "refuse":
            return (yield from self.refused_stream(hold.stopped))
        metadata = {NOTE: note(self.trail, self._inner)}
        return _chunk(AIMessageChunk(content=self._like(""), response_metadata=metadata), self._last)

    def refused_stream(self, decision: Decision) -> Judging[ChatGenerationChunk]:
        """The end of a blocked stream."""
        yield from ()
        return self.refusal_chunk(self.refusal())

    def failed_stream(self, error: Exception) -> Judging[ChatGenerationChunk]:
        """The end of a stream that failed; raises as `failed` does."""
        return self.refusal_chunk((yield from self.failed(error)))

    def refusal_chunk(self, message: AIMessage) -> ChatGenerationChunk:
        """A message given instead, as a chunk after what was released."""
        before = "" if self._last is None else "\n\n"
        chunk = AIMessageChunk(
            content=self._like(before + message.text),
            additional_kwargs=message.additional_kwargs,
            response_metadata=message.response_metadata,
        )
        return _chunk(chunk, self._last)

    def _like(self, text: str) -> Any:
        """Text in the shape of the content so far, or the two could not be joined."""
        if self._last is None or isinstance(self._last.content, str):
            return text
        return [{"type": "text", "text": text}] if text else []


def note(decisions: Sequence[Decision], before: Any = None) -> dict[str, Any]:
    """Decisions as plain JSON, which every checkpointer and tracer can write.

    Args:
        decisions: The new ones.
        before: The note of a guard further in.
    """
    made: dict[str, Any] = json.loads(json.dumps(Annotation(decisions)))
    if not isinstance(before, Mapping) or "decisions" not in before:
        return made
    worst = max(before["action"], made["action"], key=lambda action: Action(action).rank)
    return {**before, "action": worst, "decisions": [*before["decisions"], *made["decisions"]]}


def noted(generation: ChatGeneration, decisions: Sequence[Decision]) -> ChatGeneration:
    """The generation with the decisions on it."""
    message = generation.message
    metadata = {**message.response_metadata, NOTE: note(decisions, message.response_metadata.get(NOTE))}
    return generation.model_copy(update={"message": message.model_copy(update={"response_metadata": metadata})})


def _message_of(generation: ChatGeneration) -> AIMessage:
    message = generation.message
    return message if isinstance(message, AIMessage) else AIMessage(content=message.content, id=message.id)


def _chunk(message: AIMessageChunk, last: AIMessageChunk | None) -> ChatGenerationChunk:
    message.chunk_position = "last"
    message.id = None if last is None else last.id
    return ChatGenerationChunk(message=message)
