"""The hold-back law: what of a stream may be released, given what was judged. Pure: no I/O, no guard, no clock.

What is released is always a prefix of what was approved. An item (an event frame, a piece of text) goes out when every
piece of content in it, and in all items before it, is covered by an approved round. A round judges each choice that has
grown, whole, as far as it has come; rounds may be under way beside each other, and are approved in their order.
Drivers (`_pump`) read items, run checks and send out what is released.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar, get_args

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.turn import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    Turn,
)
from guardrail_vl.verdict import Decision

Item = TypeVar("Item")
Mode = Literal["window", "full", "observe"]
PieceKind = Literal["text", "reasoning", "refusal", "tool_call", "image"]

MAX_CHOICE: Final = 400_000
"""Characters that one choice of a stream may have; a longer one can't be judged (`ContentError`)."""

_SENTENCE_END: Final = re.compile(r"[.!?。！？\n]\s*$")


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a stream is judged while it is written.

    Raises:
        ConfigurationError: A value out of range.
    """

    mode: Mode = "window"
    """`window`: windows are judged while generation goes on, and released when approved; `full`: all is held back and
    judged once; `observe`: content is released at once and judged beside (only where nothing is to be blocked)."""
    window: int = 80
    """Characters after which a check is begun, if no sentence ended before."""
    in_flight: int = 4
    """Rounds of checks under way at a time."""
    patience: float = 0.25
    """Seconds after which a check is begun of whatever there is, if none is under way."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigurationError(f"The stream mode must be one of {', '.join(get_args(Mode))}.")
        if self.window < 1 or self.in_flight < 1 or not self.patience >= 0:
            raise ConfigurationError("window and in_flight must be at least 1, patience at least 0.")

    @classmethod
    def of(cls, value: Streaming | Mode) -> Streaming:
        """From settings, or the name of a mode.

        Raises:
            ConfigurationError: Neither.
        """
        return value if isinstance(value, Streaming) else cls(mode=value)


@dataclass(frozen=True, slots=True)
class Piece:
    """Content that one item of a stream adds to one choice."""

    kind: PieceKind
    text: str = field(default="", repr=False)
    """Text to append; a tool call's arguments."""
    choice: int = 0
    index: int = 0
    """Which of its kind: the number of the tool call, content part or summary."""
    name: str = ""
    """What to append to a tool call's name."""
    id: str = ""
    """A tool call's id."""
    image: ImagePart | None = None
    done: bool = False
    """The tool call is complete with this. A call is judged whole: nothing of it goes out before."""


@dataclass(frozen=True, slots=True)
class Check:
    """One choice to judge, as far as it has come."""

    ticket: int
    choice: int
    turn: Callable[..., Turn]
    """Makes the turn (`load=` is ignored); raises ContentError where it can't be judged."""


@dataclass(slots=True)
class _Text:
    kind: PieceKind
    pieces: list[str] = field(default_factory=list)

    def part(self) -> Part:
        text = "".join(self.pieces)
        if len(self.pieces) > 1:
            self.pieces[:] = [text]
        if self.kind == "reasoning":
            return ReasoningPart(text)
        return RefusalPart(text) if self.kind == "refusal" else TextPart(text)


@dataclass(slots=True)
class _Call:
    name: str = ""
    id: str = ""
    pieces: list[str] = field(default_factory=list)
    done: bool = False

    def part(self) -> Part:
        return ToolCallPart(self.name, "".join(self.pieces), self.id[:256])


@dataclass(slots=True)
class _Picture:
    image: ImagePart

    def part(self) -> Part:
        return self.image


def _judgeable(part: _Text | _Call | _Picture) -> bool:
    """Whether it alone makes a turn: a call that is not complete is left out of turns."""
    if isinstance(part, _Call):
        return part.done
    return isinstance(part, _Picture) or any(map(str.strip, part.pieces))


@dataclass(slots=True)
class _Choice:
    """One choice, as far as it was read."""

    parts: dict[tuple[str, int], _Text | _Call | _Picture] = field(default_factory=dict)
    uncovered: list[int] = field(default_factory=list)
    """Positions of the items with content of this choice that no round covers yet."""
    size: int = 0
    error: ContentError | None = None

    def add(self, piece: Piece) -> None:
        self.size += len(piece.text) + len(piece.name)
        if self.size > MAX_CHOICE:
            self.fail(ContentError(f"The stream has more than {MAX_CHOICE} characters, which can't be judged at once."))
            return
        if piece.image is not None:
            self.parts["image", len(self.parts)] = _Picture(piece.image)
        elif piece.kind == "tool_call":
            call = self.parts.setdefault((piece.kind, piece.index), _Call())
            assert isinstance(call, _Call)
            call.name += piece.name
            call.id = call.id or piece.id
            call.pieces.append(piece.text)
            call.done = call.done or piece.done
        else:
            text = self.parts.setdefault((piece.kind, piece.index), _Text(piece.kind))
            assert isinstance(text, _Text)
            text.pieces.append(piece.text)

    def fail(self, error: ContentError) -> None:
        self.error = self.error or error
        self.parts.clear()

    @property
    def waiting(self) -> bool:
        """Whether a tool call is not complete."""
        return any(isinstance(part, _Call) and not part.done for part in self.parts.values())

    @property
    def blank(self) -> bool:
        """Whether there is nothing yet that could be judged."""
        return self.error is None and not any(map(_judgeable, self.parts.values()))

    def close_calls(self) -> None:
        for part in self.parts.values():
            if isinstance(part, _Call):
                part.done = True

    def turn(self, request: tuple[Message, ...]) -> Callable[..., Turn]:
        """Makes the turn as it is now."""
        try:
            if self.error is not None:
                raise self.error
            parts = tuple(p.part() for p in self.parts.values() if not (isinstance(p, _Call) and not p.done))
        except ContentError as problem:
            return Unreadable(problem)
        return lambda load=None: Turn((*request, Message("assistant", parts)))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands where a turn is made, and raises why none can be: the policy's fail mode then decides."""

    error: ContentError

    def __call__(self, load: object = None) -> Turn:
        """Raises the error."""
        raise self.error


@dataclass(slots=True)
class _Round:
    upto: int
    """The items that it covers, counted from the first of the stream."""
    waiting: set[int]
    """Tickets that are not settled."""


class HoldBack(Generic[Item]):
    """The state of one stream. Not thread-safe: one driver owns it.

    Args:
        request: The messages that the stream answers.
        settings: How it is judged.
        enforce: Whether a decision to block stops the stream; False: it is only noted.

    Raises:
        ConfigurationError: `observe` can't enforce.
    """

    def __init__(self, request: Sequence[Message], settings: Streaming, *, enforce: bool = True) -> None:
        if settings.mode == "observe" and enforce:
            raise ConfigurationError(
                "stream='observe' shows everything before it is judged, so it can't block.",
                hint="Use it with on_block='annotate', or use 'window'.",
            )
        self._request = tuple(request)
        self._settings = settings
        self._enforce = enforce
        self._choices: dict[int, _Choice] = {}
        self._items: deque[tuple[Item, bool]] = deque()  # read, not released; and whether it has content
        self._read = 0
        self._released = 0
        self._coverable = 0  # items that a round begun now would cover
        self._unapproved: deque[int] = deque()  # positions of items with content that no approved round covers
        self._rounds: deque[_Round] = deque()
        self._tickets: dict[int, tuple[_Round, int]] = {}
        self._issued = 0
        self._fresh = 0  # characters read since a round was last begun
        self._since: float | None = None  # when the oldest of them was read
        self._boundary = False
        self._ended = False
        self.stopped: Decision | None = None
        """The decision that ended the stream; None: none did."""
        self.decisions: dict[int, Decision] = {}
        """The strictest decision on each choice so far, the newest among equals."""

    # ---- what the driver tells -------------------------------------------------------------------------------------

    def feed(self, item: Item, pieces: Sequence[Piece] | ContentError, now: float) -> None:
        """An item was read.

        Args:
            item: What will be released.
            pieces: The content that it adds; or why that can't be told: then the policy's fail mode decides on it.
            now: Seconds, of any monotonic clock.
        """
        self._read += 1
        if isinstance(pieces, ContentError):
            self._choice(0).fail(pieces)
            self._fresh += self._settings.window  # it has no characters, and must count: see `hungry`
            self._boundary = True
        else:
            pieces = [piece for piece in pieces if piece.text or piece.name or piece.done or piece.image is not None]
        for piece in () if isinstance(pieces, ContentError) else pieces:
            self._choice(piece.choice).add(piece)
            self._fresh += len(piece.text) + len(piece.name) + (self._settings.window if piece.image else 0)
            sentence = self._fresh >= self._settings.window // 4 and _SENTENCE_END.search(piece.text)
            if piece.done or piece.image is not None or sentence:
                self._boundary = True
        self._items.append((item, bool(pieces)))
        if pieces:
            self._unapproved.append(self._read)
            self._since = now if self._since is None else self._since
        if not any(choice.waiting for choice in self._choices.values()):
            self._coverable = self._read

    def end(self) -> None:
        """Nothing more will be read."""
        for choice in self._choices.values():
            choice.close_calls()
        self._coverable = self._read
        self._ended = True

    def settle(self, ticket: int, decision: Decision) -> None:
        """A check ended in this decision."""
        covering, number = self._tickets.pop(ticket)
        covering.waiting.discard(ticket)
        before = self.decisions.get(number)
        if before is None or decision.action >= before.action:
            self.decisions[number] = decision
        if decision.blocked and self._enforce and self.stopped is None:
            self.stopped = decision
        self._approve()

    def _approve(self) -> None:
        while self._rounds and not self._rounds[0].waiting:
            upto = self._rounds.popleft().upto
            while self._unapproved and self._unapproved[0] <= upto:
                self._unapproved.popleft()

    # ---- what the driver asks --------------------------------------------------------------------------------------

    def checks(self, now: float) -> list[Check]:
        """The checks to begin now; each must be settled."""
        if self.stopped is not None or not self._wants_round(now):
            return []
        covering = _Round(self._coverable, set())
        begun = []
        for number, choice in self._choices.items():
            if choice.uncovered and choice.uncovered[0] <= covering.upto:
                choice.uncovered = [at for at in choice.uncovered if at > covering.upto]
                if choice.blank:
                    continue
                begun.append(Check(self._issued, number, choice.turn(self._request)))
                covering.waiting.add(self._issued)
                self._tickets[self._issued] = (covering, number)
                self._issued += 1
        self._rounds.append(covering)
        self._fresh, self._since, self._boundary = 0, None, False
        self._approve()
        return begun

    def _wants_round(self, now: float) -> bool:
        if not self._would_cover:
            return False
        if self._ended:
            return True
        if self._settings.mode == "full":  # what can't be judged is told at once; but once, if the policy lets it pass
            return not self._issued and any(choice.error for choice in self._choices.values())
        if len(self._rounds) >= self._settings.in_flight:
            return False
        if self._boundary or self._fresh >= self._settings.window or not self._issued:
            return True
        return not self._rounds and self._since is not None and now - self._since >= self._settings.patience

    @property
    def _would_cover(self) -> bool:
        return any(c.uncovered and c.uncovered[0] <= self._coverable for c in self._choices.values())

    def due(self, now: float) -> float | None:
        """Seconds after which `checks` should be asked again though nothing happened; None: never."""
        if self._since is None or self._rounds or self._ended or self._settings.mode == "full":
            return None
        if not self._would_cover:  # a tool call is being written: time alone changes nothing
            return None
        return max(0.0, self._since + self._settings.patience - now)

    def release(self) -> list[Item]:
        """The items that may go out now, in order. Once stopped: none, for ever."""
        if self.stopped is not None:
            self._items.clear()
            return []
        out = []
        while self._items and self._may_go(self._items[0][1]):
            out.append(self._items.popleft()[0])
            self._released += 1
        return out

    def _may_go(self, content: bool) -> bool:
        if self._settings.mode == "observe" and content:
            return True
        # Without content, such as the frame that ends a stream: it waits for what stands before it, so that whoever
        # has seen the end has all decisions.
        return not self._unapproved or self._unapproved[0] > self._released + 1

    @property
    def hungry(self) -> bool:
        """Whether more should be read now; False while as many rounds as may be are under way, and more waits."""
        busy = len(self._rounds) >= self._settings.in_flight and self._fresh >= self._settings.window
        return not self._ended and self.stopped is None and not busy

    @property
    def done(self) -> bool:
        """Whether everything was released, or the stream was stopped."""
        return self.stopped is not None or (self._ended and not self._rounds and self._released == self._read)

    def _choice(self, number: int) -> _Choice:
        choice = self._choices.setdefault(number, _Choice())
        if not choice.uncovered or choice.uncovered[-1] != self._read:
            choice.uncovered.append(self._read)
        return choice
