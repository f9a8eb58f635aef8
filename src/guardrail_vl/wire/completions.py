"""Legacy completions: requests, replies and event streams of `completions`, one turn for each prompt.

Knows the shapes and which fields a model or a reader sees. Does not know who judges, nor what is done about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, ClassVar, Final

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import Message, ReasoningPart, TextPart
from guardrail_vl.streaming import Piece
from guardrail_vl.turn import Turn
from guardrail_vl.wire.base import Candidate, Endpoint, Json, Reading, StreamReader
from guardrail_vl.wire.chat import ChunkStream
from guardrail_vl.wire.chat_fields import (
    CONSTRAINTS,
    NO_USAGE,
    asked_for,
    check_choice,
    check_request,
    choices_of,
    constraints,
    head,
    shared_texts,
    withhold,
)
from guardrail_vl.wire.jsons import list_of, strings, text_of

# A small request may ask for very many answers: it need not be refused as often.
_MAX_REFUSALS: Final = 2_048
_REASONING: Final = ("reasoning", "reasoning_content")


class Completions(Endpoint):
    """`POST completions`."""

    name: ClassVar[str] = "completions"

    def prompts(self, request: Json) -> int:
        """One, or as many as are listed."""
        prompt = request.get("prompt")
        return max(1, len(prompt)) if isinstance(prompt, list) and _are_texts(prompt) else 1

    def read_request(self, request: Json, prompt: int, reading: Reading) -> Turn:
        """The prompt and, if the text is to be filled in, what follows it: both from the user."""
        check_request(request, reading.allow, {"prompt", "suffix", *CONSTRAINTS})
        held = tuple(TextPart(text) for text in constraints(request, reading.allow))
        parts = [TextPart(_prompt(request, prompt))]
        if request.get("suffix"):
            parts.append(TextPart(text_of(request["suffix"], "suffix")))
        before = (Message("developer", held),) if held else ()
        return Turn((*before, Message("user", tuple(parts))))

    def read_reply(self, reply: Json, request: Json, reading: Reading) -> tuple[Candidate, ...]:
        """A candidate for every choice (a choice's index counts through the prompts); one for an error instead."""
        shared = tuple(TextPart(text) for text in shared_texts(reply, reading.allow, "the reply", {"choices"}))
        n, last = asked_for(request), self.prompts(request) - 1
        out = []
        for index, choice in choices_of(reply):
            check_choice(choice, request, reading.allow, {"text", *_REASONING})
            thoughts = tuple(ReasoningPart(text_of(choice[key], key)) for key in _REASONING if choice.get(key))
            text = TextPart(text_of(choice.get("text"), "text"))
            beside = tuple(TextPart(text) for text in strings(choice.get("error")))
            message = Message("assistant", (*thoughts, text, *beside, *shared))
            out.append(Candidate((message,), index, min(index // n, last)))
        if not out and shared:
            out.append(Candidate((Message("assistant", shared),)))
        return tuple(out)

    def refuse(self, request: Json, text: str) -> dict[str, Any]:
        """As many refusals as choices were asked for, of all prompts."""
        choices = [_refusal(index, text) for index in range(_choices(self, request))]
        return {**head("cmpl", "text_completion", request), "choices": choices, "usage": NO_USAGE}

    def withhold(self, reply: Json, keys: Collection[int], text: str) -> dict[str, Any]:
        """The reply with these choices made anew; what was shown beside every answer goes too."""
        return withhold(reply, keys, "text_completion", lambda index: _refusal(index, text))

    def reader(self, request: Json, reading: Reading) -> StreamReader:
        """A reader for one stream of choices."""
        return CompletionStream(request, reading, _choices(self, request))


class CompletionStream(ChunkStream):
    """Chunks with a `text`."""

    def __init__(self, request: Json, reading: Reading, choices: int) -> None:
        super().__init__(request, reading)
        self._choices = choices

    def pieces(self, index: int, choice: Json) -> Iterator[Piece]:
        """Text and reasoning."""
        check_choice(choice, self._request, self._reading.allow, {"text", *_REASONING})
        for number, key in enumerate(_REASONING):
            yield Piece("reasoning", text_of(choice.get(key), key), index, number)
        yield Piece("text", text_of(choice.get("text"), "text"), index)

    def choices(self) -> int:
        """The choices of all prompts."""
        return self._choices

    def head(self) -> dict[str, Any]:
        """As a chunk of legacy completions begins."""
        return head("cmpl", "text_completion", self._request)

    def ending(self, index: int, text: str) -> Iterator[Json]:
        """The refusal and the end, at once."""
        yield _refusal(index, text)


def _are_texts(prompt: list[Any]) -> bool:
    return all(isinstance(one, str) for one in prompt)


def _prompt(request: Json, number: int) -> str:
    prompt = request.get("prompt")
    if isinstance(prompt, list):
        if not _are_texts(prompt):
            raise ContentError("A prompt given as token numbers can't be judged.", hint="Send it as text.")
        prompt = list_of(prompt, "prompt")[number] if prompt else ""
    return text_of(prompt, "prompt")


def _choices(endpoint: Completions, request: Json) -> int:
    return min(_MAX_REFUSALS, asked_for(request) * endpoint.prompts(request))


def _refusal(index: int, text: str) -> dict[str, Any]:
    # This shape has no place of its own for a refusal: the text says it, and `finish_reason` why.
    return {"index": index, "text": text, "finish_reason": "content_filter", "logprobs": None}
