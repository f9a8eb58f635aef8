"""One guarded HTTP exchange, written once: a generator that says what to do next, and does none of it.

A driver (the client's transport, the server's proxy) performs an effect and sends its result in. The generator returns
what the caller gets, or raises: a `BlockedError`, the error behind a failed decision, or what upstream raised.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from guardrail_vl.blocking import REFUSAL, OnBlock, checked_on_block, outcome
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.media import ImageSource
from guardrail_vl.parts import ImageLoader, ImagePart, Message, TextPart, blank_picture
from guardrail_vl.streaming import HoldBack, Piece, Streaming, Unreadable
from guardrail_vl.turn import Turn, is_blank
from guardrail_vl.verdict import Decision, Stage
from guardrail_vl.wire import jsons
from guardrail_vl.wire.base import Candidate, Endpoint, Json, Reading, StreamReader
from guardrail_vl.wire.pictures import pin, remote_pictures
from guardrail_vl.wire.routes import Passed, Unguarded, route
from guardrail_vl.wire.sse import Frame

When = Literal["before", "beside"]

_REMEMBERED: Final = 10_000
_EVENTS: Final = frozenset(("", "message", "error", "ping", "done"))
"""Names of events that say nothing."""
_ASIDE: Final = -9
"""Index of the text that stands beside a stream's data; no reader uses it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a guarded client or server does with decisions.

    Raises:
        ConfigurationError: A value that is none of the known ones.
    """

    on_block: OnBlock = "raise"
    when: When = "before"
    streaming: Streaming = field(default_factory=Streaming)
    refusal: str = REFUSAL
    allow: Collection[str] = frozenset()
    load: ImageLoader = ImagePart.load
    """Makes a part of each picture that comes in a stream."""

    def __post_init__(self) -> None:
        checked_on_block(self.on_block)
        if self.when not in get_args(When):
            raise ConfigurationError(f"when must be one of {', '.join(get_args(When))}, not {self.when!r}.")
        if isinstance(self.allow, str):
            raise ConfigurationError("allow_unguarded takes a set of names.", hint=f"Write {{{self.allow!r}}}.")
        self.hold(())  # says now what it would say of every stream

    def hold(self, request: Sequence[Message]) -> HoldBack[Frame]:
        """The state of one stream that answers these messages."""
        return HoldBack(request, self.streaming, enforce=self.on_block != "annotate")


class Seen:
    """Ids of replies that were approved here, newest kept: what may be continued by id. Thread-safe."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, reply_id: object) -> None:
        """Remember an id."""
        if isinstance(reply_id, str) and reply_id:
            with self._lock:
                self._ids[reply_id] = None
                if len(self._ids) > _REMEMBERED:
                    self._ids.popitem(last=False)

    def __contains__(self, reply_id: object) -> bool:
        return reply_id in self._ids


@dataclass(slots=True)
class Trail:
    """The decisions behind one reply, as far as they were made."""

    made: list[Decision] = field(default_factory=list)
    hold: HoldBack[Frame] | None = None
    inner: Trail | None = None
    """Of a guard below this one."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The prompt's first, then each choice's strictest."""
        streamed = () if self.hold is None else tuple(self.hold.decisions.values())
        below = () if self.inner is None else self.inner.decisions
        return (*self.made, *streamed, *below)


# ---- effects -------------------------------------------------------------------------------------------------------


Content = Callable[..., Turn]


@dataclass(frozen=True, slots=True)
class Judge:
    """Judge these. Result: a decision each."""

    contents: tuple[Content, ...]
    stage: Stage


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of upstream's answer."""

    status: int
    media_type: str
    """Without parameters, in lower case."""


@dataclass(frozen=True, slots=True)
class Open:
    """Send the request upstream. Result: its `Head`. Upstream's errors are the driver's to raise."""

    body: bytes | None = field(default=None, repr=False)
    """Instead of the request's own; None: that one."""
    beside: Judge | None = None
    """Judge this meanwhile: the result is then (decisions, head), and where `stops` says so, the upstream call is ended
    as soon as it can be, and the head is None."""


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Read all of upstream's answer. Result: its bytes."""


Effect = Judge | Open | ReadBody


# ---- what the caller gets ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Untouched:
    """Upstream's answer as it comes: nothing in it is content."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole reply."""

    body: bytes = field(repr=False)
    status: int = 200
    media_type: str = "application/json"
    from_upstream: bool = False
    """Whether upstream's other headers belong to it."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """An event stream that is held back: pump its frames through `hold`, reading them with `reader`."""

    hold: HoldBack[Frame]
    reader: StreamReader

    def read(self, frame: Frame) -> Sequence[Piece]:
        """The content that a frame adds, what stands beside its data included.

        Raises:
            ContentError: It can't be told.
        """
        pieces = self.reader.read(frame)
        aside = frame.aside
        if frame.event not in _EVENTS and f'"{frame.event}"' not in (frame.data or ""):
            aside = f"{frame.event}\n{aside}"
        return [*pieces, Piece("text", aside, index=_ASIDE)] if aside else pieces


Answer = Untouched | Whole | Streamed


def exchange(
    method: str, path: str, body: bytes, rules: Rules, trail: Trail, seen: Seen
) -> Generator[Effect, Any, Answer]:
    """One request and its reply.

    Args:
        method: HTTP method.
        path: Path of the URL.
        body: The request's.
        rules: What is done with decisions.
        trail: Collects the decisions.
        seen: Replies that may be continued by id.

    Raises:
        BlockedError: The policy said block, and `on_block` is "raise".
        GuardrailError: There was no verdict, or the endpoint is not covered.
    """
    where = route(method, path)
    if isinstance(where, Unguarded) and where.name not in rules.allow:
        raise ConfigurationError(
            f"{where.name!r} is not covered by the guard: nothing that goes through it would be judged.",
            hint=f"To use it all the same: allow_unguarded={{{where.name!r}}}.",
        )
    if isinstance(where, Passed | Unguarded):
        yield Open()
        return Untouched()
    asked = _Asked(where, jsons.loads(body) if body else {}, rules, seen)
    judge = Judge(asked.contents(), Stage.PROMPT)
    head: Head | None = None
    if not judge.contents:
        decisions: list[Decision] = []
    elif rules.when == "beside" and not remote_pictures(asked.body):
        decisions, head = yield Open(beside=judge)
    else:
        decisions = yield judge
    trail.made += decisions
    if outcome(decisions, rules.on_block) == "refuse":
        return _refused(where, asked, rules)
    if head is None:
        head = yield Open(asked.pinned())
    return (yield from _reply(head, asked, rules, trail, seen))


def stops(decisions: Iterable[Decision], rules: Rules) -> bool:
    """Whether decisions keep the reply from the caller."""
    return rules.on_block != "annotate" and any(d.blocked for d in decisions)


def finish(answer: Streamed, rules: Rules) -> bytes:
    """What comes after the frames that a hold-back released: nothing, or the end of a blocked stream.

    Raises:
        BlockedError: The stream was blocked, and that raises.
        GuardrailError: It was stopped because there was no verdict.
    """
    stopped = answer.hold.stopped
    if stopped is None or outcome([stopped], rules.on_block) == "pass":
        return b""
    return answer.reader.refuse(rules.refusal)


# ---- the request ---------------------------------------------------------------------------------------------------


class _Asked:
    """A request on its way: read when it is judged, its fetched pictures pinned before it is sent."""

    def __init__(self, endpoint: Endpoint, body: Json, rules: Rules, seen: Seen) -> None:
        self.endpoint = endpoint
        self.body = body
        self.allow = frozenset(rules.allow)
        previous = body.get("previous_response_id")
        if isinstance(previous, str) and previous in seen:
            self.allow |= {"previous_response_id"}
        self._turns: dict[int, Turn] = {}
        self._fetched: dict[str, str] = {}

    def contents(self) -> tuple[Content, ...]:
        return tuple(functools.partial(self._read, i) for i in range(self.endpoint.prompts(self.body)))

    def _read(self, prompt: int, load: ImageLoader | None = None) -> Turn:
        turn = self.endpoint.read_request(self.body, prompt, self.reading(load))
        self._turns[prompt] = turn
        return turn

    def reading(self, load: ImageLoader | None) -> Reading:
        make = load or ImagePart.load

        def note(source: ImageSource) -> ImagePart:
            part = make(source)
            if isinstance(source, str) and source.startswith(("http:", "https:")):
                self._fetched[source] = part.data_url
            return part

        return Reading(note, self.allow)

    def messages(self, prompt: int) -> tuple[Message, ...]:
        """What was asked; empty where it could not be read, and the policy let it pass."""
        turn = self._turns.get(prompt)
        return () if turn is None else turn.messages

    def all_messages(self) -> tuple[Message, ...]:
        return tuple(m for prompt in sorted(self._turns) for m in self._turns[prompt].messages)

    def pinned(self) -> bytes | None:
        """The body with the very bytes that were judged in place of the URLs that they were fetched from."""
        return json.dumps(pin(self.body, self._fetched)).encode() if self._fetched else None

    def pin_reply(self, reply: Json) -> bytes | None:
        return json.dumps(pin(reply, self._fetched)).encode() if self._fetched else None


def _refused(endpoint: Endpoint, asked: _Asked, rules: Rules) -> Whole:
    if endpoint.streams(asked.body):
        ending = endpoint.reader(asked.body, asked.reading(_at_hand(rules.load))).refuse(rules.refusal)
        return Whole(ending, media_type="text/event-stream")
    return Whole(json.dumps(endpoint.refuse(asked.body, rules.refusal)).encode())


# ---- the reply -----------------------------------------------------------------------------------------------------


def _reply(head: Head, asked: _Asked, rules: Rules, trail: Trail, seen: Seen) -> Generator[Effect, Any, Answer]:
    endpoint = asked.endpoint
    if head.status < 300 and head.media_type == "text/event-stream":
        trail.hold = rules.hold(asked.all_messages())
        return Streamed(trail.hold, endpoint.reader(asked.body, asked.reading(_at_hand(rules.load))))
    body: bytes = yield ReadBody()
    if head.status >= 300:
        # An error may quote what a model wrote; and what a redirect says nobody needs.
        if head.status < 400 or not body.strip():
            return Whole(b"", head.status, head.media_type, from_upstream=True)
        decisions = yield Judge((functools.partial(_error_turn, body, asked.all_messages()),), Stage.RESPONSE)
        trail.made += decisions
        if outcome(decisions, rules.on_block) == "refuse":
            body = json.dumps(
                {"error": {"message": rules.refusal, "type": "guardrail", "code": "content_filter"}}
            ).encode()
        return Whole(body, head.status, head.media_type, from_upstream=True)
    reply, candidates, contents = _read_reply(body, asked)
    decisions = (yield Judge(contents, Stage.RESPONSE)) if contents else []
    trail.made += decisions
    if outcome(decisions, rules.on_block) == "refuse":
        keys = [c.key for c, d in zip(candidates, decisions, strict=True) if d.blocked]
        return Whole(
            json.dumps(endpoint.withhold(reply, keys, rules.refusal)).encode(), head.status, from_upstream=True
        )
    if not any(d.blocked for d in decisions):
        seen.add(reply.get("id"))
    return Whole(asked.pin_reply(reply) or body, head.status, head.media_type, from_upstream=True)


def _at_hand(load: ImageLoader) -> ImageLoader:
    def at_hand(source: ImageSource) -> ImagePart:
        if isinstance(source, str) and not source.startswith("data:"):
            raise ContentError(
                "A stream shows a picture by its URL: it can't be fetched while the stream is judged.",
                hint="Ask for a reply that is not streamed, or for pictures as data.",
            )
        return load(source)

    return at_hand


def _read_reply(body: bytes, asked: _Asked) -> tuple[Json, list[Candidate], tuple[Content, ...]]:
    """The reply, the candidates in it that hold something, and what makes a turn of each."""
    reply: Json = {}
    candidates: list[Candidate] = []

    # Each candidate is judged by itself, and the reply is read once for all of them.
    @functools.lru_cache(maxsize=1)
    def read(load: ImageLoader | None = None) -> list[Candidate]:
        found = asked.endpoint.read_reply(reply, asked.body, asked.reading(load))
        return [c for c in found if not is_blank(c.messages)]

    try:
        reply = jsons.loads(body)
        # Only to count them: pictures are looked at when each is judged.
        candidates = read(load=lambda _: blank_picture())
    except ContentError as error:
        return reply, [Candidate(())], (Unreadable(error),)

    def turn(number: int, load: ImageLoader | None = None) -> Turn:
        candidate = read(load)[number]
        return Turn((*asked.messages(candidate.prompt), *candidate.messages))

    return reply, candidates, tuple(functools.partial(turn, i) for i in range(len(candidates)))


def _error_turn(body: bytes, messages: Sequence[Message], load: object = None) -> Turn:
    try:
        text = "\n".join(_leaves(json.loads(body)))
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
    return Turn((*messages, Message("assistant", (TextPart(text or "(an error)"),))))


def _leaves(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from (key, *_leaves(one))
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
