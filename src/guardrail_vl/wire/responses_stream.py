"""Event streams of the Responses API: what each event adds. Knows no request and no item's shape.

The API says everything more than once: in deltas, when a part is done, when its item is, and in the whole response.
What was streamed is remembered by its place, so that it is judged once; what is said otherwise the second time is new.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from guardrail_vl.parts import ReasoningPart, RefusalPart, TextPart, ToolCallPart, shown
from guardrail_vl.streaming import Piece, PieceKind
from guardrail_vl.wire.base import Json, Reading, StreamReader
from guardrail_vl.wire.jsons import check_fields, index_of, loads, mapping_of, refuse, text_of
from guardrail_vl.wire.responses_items import (
    HOSTED,
    Leaf,
    Picture,
    Place,
    annotation_leaves,
    error_text,
    item_leaves,
    part_leaves,
    text_of_image,
)
from guardrail_vl.wire.responses_refusal import (
    CALL_EVENTS,
    LIFECYCLE,
    PART_EVENTS,
    TEXT_EVENTS,
    Event,
    Released,
    kept,
)
from guardrail_vl.wire.sse import Frame

_COUNTS: Final = {
    "sequence_number", "output_index", "content_index", "summary_index", "annotation_index", "partial_image_index",
}  # fmt: skip
_COMMON: Final = _COUNTS | {"type", "item_id", "obfuscation"}
_QUIET: Final = {
    "keepalive", "response.image_generation_call.in_progress", "response.image_generation_call.generating",
    "response.image_generation_call.completed",
}  # fmt: skip
_PARTIAL_IMAGE: Final = "response.image_generation_call.partial_image"
_ANNOTATION: Final = "response.output_text.annotation.added"


@dataclass(slots=True)
class _Said:
    """What stands at one place."""

    index: int
    pieces: list[str] = field(default_factory=list, repr=False)
    other: set[str] = field(default_factory=set, repr=False)
    """What was said there otherwise."""

    def text(self) -> str:
        self.pieces[:] = ["".join(self.pieces)]
        return self.pieces[0]


@dataclass(slots=True)
class _Call(_Said):
    name: str = ""
    done: bool = False


class _Seen:
    """What was read so far, by place."""

    def __init__(self, reading: Reading) -> None:
        self._load = reading.load
        self._said: dict[tuple[PieceKind, Place], _Said] = {}
        self._calls: dict[Place, _Call] = {}
        self._images: set[bytes] = set()
        self._next = 0

    def _index(self) -> int:
        self._next += 1
        return self._next - 1

    def more(self, kind: PieceKind, place: Place, text: str) -> Iterator[Piece]:
        """Text to append."""
        said = self._said.setdefault((kind, place), _Said(-1))
        if said.index < 0:
            said.index = self._index()
        said.pieces.append(text)
        if text:
            yield Piece(kind, text, index=said.index)

    def whole(self, kind: PieceKind, place: Place, text: str) -> Iterator[Piece]:
        """All the text of a place, which may have been streamed."""
        said = self._said.get((kind, place))
        streamed = said.text() if said is not None else ""
        if said is None or text.startswith(streamed):
            yield from self.more(kind, place, text.removeprefix(streamed))
        elif text and text not in said.other:
            said.other.add(text)
            yield Piece(kind, text, index=self._index())

    def more_call(self, place: Place, arguments: str) -> Iterator[Piece]:
        """Arguments to append to a call."""
        call = self._calls.get(place)
        if call is None or call.done:  # done was done: what comes after it is another call
            call = self._calls[place] = _Call(self._index())
        call.pieces.append(arguments)
        if arguments:
            yield Piece("tool_call", arguments, index=call.index)

    def whole_call(self, place: Place, said: ToolCallPart, *, done: bool) -> Iterator[Piece]:
        """A whole call, which may have been streamed."""
        call = self._calls.get(place)
        if call is None:
            call = self._calls[place] = _Call(self._index())
        # An event may name a call without its namespace.
        name = call.name if not said.name or call.name.endswith(f".{said.name}") else said.name
        arguments = said.arguments
        streamed = call.text()
        rest, new_name = arguments.removeprefix(streamed), name if not call.name else ""
        if call.name in ("", name) and arguments.startswith(streamed) and not (call.done and (rest or new_name)):
            call.name = name
            call.pieces.append(rest)
            ends = done and not call.done
            call.done = call.done or done
            if rest or new_name or ends:
                yield Piece("tool_call", rest, index=call.index, name=new_name, id=said.id, done=ends)
            return
        if done and not call.done:
            call.done = True
            yield Piece("tool_call", index=call.index, done=True)
        if (arguments or name != call.name) and f"{name}\0{arguments}" not in call.other:
            call.other.add(f"{name}\0{arguments}")
            yield Piece("tool_call", arguments, index=self._index(), name=name, id=said.id, done=True)

    def picture(self, picture: Picture) -> Iterator[Piece]:
        """A picture; once, wherever it stands."""
        digest = hashlib.sha256(picture.source.encode("utf-8", "surrogatepass")).digest()
        if digest not in self._images:
            image = self._load(picture.source)
            self._images.add(digest)
            yield Piece("image", index=self._index(), image=image)

    def leaf(self, place: Place, content: object, *, done: bool) -> Iterator[Piece]:
        """A leaf of a part, an item or a response."""
        match content:
            case Picture():
                yield from self.picture(content)
            case ToolCallPart():
                yield from self.whole_call(place[:-1], content, done=done)
            case ReasoningPart():
                yield from self.whole("reasoning", place, content.text)
            case RefusalPart():
                yield from self.whole("refusal", place, content.text)
            case TextPart():
                yield from self.whole("text", place, content.text)
            case _:
                refuse(f"Content of type {type(content).__name__} in an event stream")


_KINDS: Final[dict[str, PieceKind]] = {
    "output_text": "text",
    "refusal": "refusal",
    "reasoning_text": "reasoning",
    "summary_text": "reasoning",
}


class ResponsesReader(StreamReader):
    """Reads the event stream of one response.

    Args:
        leaves: What a whole response says; raises ContentError.
        reading: How content is read.
        base: The fields of a response that is made up, should a stream be refused before it began.
    """

    def __init__(self, leaves: Callable[[Json], Iterator[Leaf]], reading: Reading, base: Json) -> None:
        self._leaves = leaves
        self._allow = reading.allow
        self._base = dict(base)
        self._seen = _Seen(reading)
        self._unreleased: deque[Event | None] = deque()
        self._released = Released()

    def read(self, frame: Frame) -> Sequence[Piece]:
        """See `StreamReader.read`."""
        self._unreleased.append(None)
        if frame.data is None or frame.data.strip() == "[DONE]":
            return ()
        event = loads(frame.data)
        if "type" not in event:
            event["type"] = frame.event or ("error" if "error" in event else "")
        pieces = tuple(self._pieces(event))
        self._unreleased[-1] = event
        return pieces

    def released(self, frame: Frame) -> None:
        """See `StreamReader.released`."""
        event = self._unreleased.popleft()
        if event is not None:
            self._released.add(event)
            if event["type"] == "response.completed":
                reply_id = event["response"].get("id")
                self.reply_id = reply_id if isinstance(reply_id, str) else None

    def refuse(self, text: str) -> bytes:
        """See `StreamReader.refuse`. Empty where the stream's last event has gone out: there is nothing to end."""
        return self._released.end(text, self._base)

    def _pieces(self, event: Event) -> Iterator[Piece]:
        kind = event.get("type")
        if not isinstance(kind, str) or not kind:
            refuse("An event without a type")
        for name in _COUNTS:
            index_of(event.get(name), name)
        at = index_of(event.get("output_index"), "output_index")
        start, _, end = kind.rpartition(".")
        if start == "response" and end in LIFECYCLE:
            yield from self._lifecycle(event, end)
        elif start == "response.output_item" and end in ("added", "done"):
            self._check(event, "item")
            for place, content in item_leaves(event.get("item"), self._allow, reply=True):
                yield from self._seen.leaf((at, *place), content, done=end == "done")
        elif start in PART_EVENTS and end in ("added", "done"):
            yield from self._part(event, at, start)
        elif start in TEXT_EVENTS and end in ("delta", "done"):
            yield from self._text(event, at, start, end)
        elif start in CALL_EVENTS and end in ("delta", "done"):
            yield from self._call(event, at, start, end)
        else:
            yield from self._rest(event, kind, at)

    def _check(self, event: Event, *fields: str) -> None:
        check_fields(event, _COMMON.union(fields), "an event", self._allow)

    def _lifecycle(self, event: Event, end: str) -> Iterator[Piece]:
        self._check(event, "response")
        reply = mapping_of(event.get("response"), "response")
        self._base |= kept(reply)
        for place, content in self._leaves(reply):
            yield from self._seen.leaf(place, content, done=end not in ("created", "queued", "in_progress"))

    def _part(self, event: Event, at: int, start: str) -> Iterator[Piece]:
        self._check(event, "part", "status")
        name, index = PART_EVENTS[start]
        position = index_of(event.get(index), index)
        for place, content in part_leaves(event.get("part"), (at, name, position), self._allow):
            yield from self._seen.leaf(place, content, done=True)

    def _text(self, event: Event, at: int, start: str, end: str) -> Iterator[Piece]:
        name, index, part_type, text = TEXT_EVENTS[start]
        said = "delta" if end == "delta" else text
        self._check(event, said)
        place = (at, name, index_of(event.get(index), index), part_type)
        add = self._seen.more if end == "delta" else self._seen.whole
        yield from add(_KINDS[part_type], place, text_of(event.get(said), said))

    def _call(self, event: Event, at: int, start: str, end: str) -> Iterator[Piece]:
        said = "delta" if end == "delta" else CALL_EVENTS[start]
        text = text_of(event.get(said), said)
        if end == "delta":
            self._check(event, said)
            yield from self._seen.more_call((at,), text)
        else:
            self._check(event, said, "name", "call_id")
            name = text_of(event.get("name"), "tool name")
            yield from self._seen.whole_call((at,), ToolCallPart(name, text), done=True)

    def _rest(self, event: Event, kind: str, at: int) -> Iterator[Piece]:
        if kind == "error":
            yield from self._seen.whole(
                "text", ("error",), error_text({name: value for name, value in event.items() if name != "type"}).text
            )
        elif kind == _ANNOTATION:
            self._check(event, "annotation")
            if event.get("annotation") is not None:
                position, number = (index_of(event.get(n), n) for n in ("content_index", "annotation_index"))
                place = (at, "content", position, "annotations", number)
                for where, content in annotation_leaves(event["annotation"], place, self._allow):
                    yield from self._seen.leaf(where, content, done=True)
        elif kind == _PARTIAL_IMAGE:
            self._check(event, "partial_image_b64", "background", "output_format", "quality", "size")
            if picture := text_of_image(event.get("partial_image_b64")):
                yield from self._seen.picture(picture)
        elif kind in _QUIET:
            self._check(event)
        else:
            self._check_hosted(kind)

    def _check_hosted(self, kind: str) -> None:
        """Refuse an event, unless the app lets it pass: by its name, or by the hosted tool's that it is of."""
        short = kind.removeprefix("response.")
        middle = short.partition(".")[0]
        hosted = [item for item in HOSTED if middle.startswith(item) and item != "image_generation_call"]
        names = (kind, short, middle, *hosted, *(tool for item in hosted for tool in HOSTED[item]))
        if not any(name in self._allow for name in names):
            refuse(f"Event {shown(short)} of an unknown type", names[-1] if hosted else short)
