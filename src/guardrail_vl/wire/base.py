"""The seam between the JSON of a provider's HTTP API and turns. Pure: no I/O, no guard, no policy.

An `Endpoint` reads requests and replies of one generating endpoint and writes its refusals; a `StreamReader` does the
same for one event stream. What they don't know they refuse (`ContentError`) by name, unless the name is in `allow`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from guardrail_vl.parts import ImageLoader, Message
from guardrail_vl.streaming import Piece
from guardrail_vl.turn import Turn
from guardrail_vl.wire.sse import Frame

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """How content is read.

    Args:
        load: Makes a part of a picture's source.
        allow: Names of fields, content parts, tools and so on that may pass unjudged because the app said so.
    """

    load: ImageLoader
    allow: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer in a reply: what is judged, and withheld, by itself."""

    messages: tuple[Message, ...] = field(repr=False)
    """Assistant messages; never empty, but they may hold nothing that could be judged (`turn.is_blank`)."""
    key: int = 0
    """Which one it is, in the endpoint's own count (a choice's index)."""
    prompt: int = 0
    """Which of the request's prompts it answers."""


class Endpoint(ABC):
    """The JSON of one generating endpoint."""

    name: ClassVar[str]
    """The path below the API's base, such as `chat/completions`: also its name in `allow_unguarded`."""

    def prompts(self, request: Json) -> int:
        """How many prompts a request holds; 0: none. Never raises: what is odd is refused by `read_request`."""
        return 1

    def streams(self, request: Json) -> bool:
        """Whether the request asks for an event stream."""
        return bool(request.get("stream"))

    @abstractmethod
    def read_request(self, request: Json, prompt: int, reading: Reading) -> Turn:
        """The turn of one prompt, everything that the model will see in it.

        Raises:
            ContentError: An unknown field or part, named; or content that can't be judged.
        """

    @abstractmethod
    def read_reply(self, reply: Json, request: Json, reading: Reading) -> tuple[Candidate, ...]:
        """Every answer in a whole reply.

        Raises:
            ContentError: An unknown field or part, named; or content that can't be judged.
        """

    @abstractmethod
    def refuse(self, request: Json, text: str) -> dict[str, Any]:
        """A whole reply that refuses, in the provider's own shape: what a blocked prompt gets."""

    @abstractmethod
    def withhold(self, reply: Json, keys: Collection[int], text: str) -> dict[str, Any]:
        """The reply with these candidates replaced by refusals, nothing of what they said left, all else as it was."""

    @abstractmethod
    def reader(self, request: Json, reading: Reading) -> StreamReader:
        """A reader for one event stream that answers this request."""


class StreamReader(ABC):
    """Reads one event stream, frame by frame, in order. Knows what was released, to end it cleanly after a block."""

    reply_id: str | None = None
    """Id by which the whole reply can be gone on from. None: its end was not released, or there is no such id."""

    @abstractmethod
    def read(self, frame: Frame) -> Sequence[Piece]:
        """The content that a frame adds; empty for frames without content (roles, keep-alives, usage, `[DONE]`).

        Raises:
            ContentError: The frame can't be read, or holds what is unknown.
        """

    @abstractmethod
    def released(self, frame: Frame) -> None:
        """This frame, which was read before, has gone out."""

    @abstractmethod
    def refuse(self, text: str) -> bytes:
        """Frames that end the stream with a refusal, given what was released; a whole stream if nothing was.

        The provider's own client must read them without error, and see that content was withheld.
        """
