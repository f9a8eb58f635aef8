"""Refusals in the shape of the Responses API: whole replies, and the end of an event stream. Reads no content."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

LIFECYCLE: Final = {"created", "queued", "in_progress", "completed", "failed", "incomplete", "cancelled"}
"""What `response.…` events may be called that carry the response itself."""
_TERMINAL: Final = {"response.completed", "response.failed", "response.incomplete", "response.cancelled", "error"}

_KEPT: Final = {
    "id", "object", "created_at", "model", "usage", "parallel_tool_calls", "temperature", "top_p", "background",
    "conversation", "max_output_tokens", "max_tool_calls", "previous_response_id", "service_tier", "top_logprobs",
    "truncation", "prompt_cache_key", "safety_identifier", "user", "store",
}  # fmt: skip

# How the API calls an item that came to no end, where it is not "incomplete".
_UNFINISHED: Final = {"image_generation_call": "failed", "apply_patch_call": "in_progress"}

TEXT_EVENTS: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "response.output_text": ("content", "content_index", "output_text", "text"),
    "response.refusal": ("content", "content_index", "refusal", "refusal"),
    "response.reasoning_text": ("content", "content_index", "reasoning_text", "text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "summary_text", "text"),
}
"""By the start of an event's type: the item's list that it writes to, the event's field with the position there, the
part's type, and the part's field."""
PART_EVENTS: Final[Mapping[str, tuple[str, str]]] = {
    "response.content_part": ("content", "content_index"),
    "response.reasoning_part": ("content", "content_index"),
    "response.reasoning_summary_part": ("summary", "summary_index"),
}
CALL_EVENTS: Final[Mapping[str, str]] = {
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
}

Event = dict[str, Any]


def kept(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a response that carry no content."""
    return {name: value for name, value in reply.items() if name in _KEPT}


def message_item(text: str) -> dict[str, Any]:
    """An output item that refuses."""
    part = {"type": "refusal", "refusal": text}
    return {
        "type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant", "status": "incomplete",
        "content": [part],
    }  # fmt: skip


def response(base: Mapping[str, Any], status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """A response of this status and output, and all else as in `base`."""
    incomplete = status == "incomplete"
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": "",
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
        **{name: value for name, value in base.items() if name != "completed_at"},
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "content_filter"} if incomplete else None,
        "output": output,
    }


def refusal(base: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A whole response that refuses."""
    return response(base, "incomplete", [message_item(text)])


class Released:
    """What of an event stream has gone out, to end it in agreement with that."""

    def __init__(self) -> None:
        self._begun = False
        self._over = False
        self._sequence = -1
        self._response: Mapping[str, Any] | None = None
        self._items: dict[int, Event] = {}
        self._open: set[int] = set()
        self._closed_parts: set[tuple[int, str, int]] = set()
        # Deltas in lists: adding to a string over and over would cost the square of its length.
        self._deltas: dict[tuple[int, str, int], list[str]] = {}

    def add(self, event: Event) -> None:
        """An event went out that was read without error."""
        kind = event["type"]
        self._begun = True
        self._over = self._over or kind in _TERMINAL
        self._sequence = max(self._sequence, event.get("sequence_number") or 0)
        start, _, end = kind.rpartition(".")
        at = event.get("output_index") or 0
        if "response" in event:
            self._lifecycle(event["response"])
        elif start == "response.output_item":
            self._item(at, event["item"], open_=end == "added")
        elif start in PART_EVENTS:
            name, index = PART_EVENTS[start]
            self._part(at, name, event.get(index) or 0, event["part"], closed=end == "done")
        elif start in TEXT_EVENTS and end == "delta":
            name, index, part_type, text = TEXT_EVENTS[start]
            self._part(at, name, event.get(index) or 0, {"type": part_type, text: "", **_empty(part_type)}, known=False)
            self._deltas.setdefault((at, name, event.get(index) or 0), []).append(event.get("delta") or "")
        elif start in CALL_EVENTS and end == "delta":
            self._deltas.setdefault((at, CALL_EVENTS[start], 0), []).append(event.get("delta") or "")
        elif start in CALL_EVENTS and at in self._items:
            self._items[at][CALL_EVENTS[start]] = event.get(CALL_EVENTS[start]) or ""
            self._deltas.pop((at, CALL_EVENTS[start], 0), None)
        elif kind == "response.output_text.annotation.added" and at in self._items:
            parts = self._items[at].get("content") or []
            position = event.get("content_index") or 0
            if isinstance(parts, list) and position < len(parts) and event.get("annotation"):
                parts[position].setdefault("annotations", []).append(event["annotation"])

    def _lifecycle(self, reply: Mapping[str, Any]) -> None:
        if self._response is None:
            for position, item in enumerate(reply.get("output") or []):
                self._item(position, item, open_=item.get("status") == "in_progress")
        self._response = reply

    def _item(self, at: int, item: Mapping[str, Any], *, open_: bool) -> None:
        self._items[at] = dict(item)
        for name in ("content", "summary"):
            if isinstance(item.get(name), list):
                self._items[at][name] = list(item[name])
        self._open.discard(at)
        if open_:
            self._open.add(at)
        self._deltas = {key: value for key, value in self._deltas.items() if key[0] != at}

    def _part(
        self, at: int, name: str, position: int, part: Mapping[str, Any], *, closed: bool = False, known: bool = True
    ) -> None:
        """A part stands there now; if it is not `known`, then only where none did."""
        if at not in self._items:
            return
        parts = self._items[at].get(name)
        if not isinstance(parts, list):
            parts = self._items[at][name] = []
        if position == len(parts):
            parts.append(dict(part))
        elif known and position < len(parts):
            parts[position] = dict(part)
            self._deltas.pop((at, name, position), None)
        if closed:
            self._closed_parts.add((at, name, position))

    def end(self, text: str, base: Mapping[str, Any]) -> bytes:
        """Frames that end the stream with a refusal; none if it has ended.

        Args:
            text: What the refusal says.
            base: The fields of the response, where none has gone out.
        """
        if self._over:
            return b""
        whole = response(self._response or base, "in_progress", [])
        events = [] if self._begun else [_lifecycle_event("created", whole), _lifecycle_event("in_progress", whole)]
        self._fold()
        for at in sorted(self._open):
            events += self._close(at)
        events += _refusing(max(self._items, default=-1) + 1, item := message_item(text))
        output = [self._items[at] for at in sorted(self._items)]
        events.append(_lifecycle_event("incomplete", response(whole, "incomplete", [*output, item])))
        numbered = (event | {"sequence_number": number} for number, event in enumerate(events, self._sequence + 1))
        return b"".join(map(_frame, numbered))

    def _fold(self) -> None:
        for (at, name, position), deltas in self._deltas.items():
            item = self._items.get(at, {})
            if name in CALL_EVENTS.values():
                item[name] = (item.get(name) or "") + "".join(deltas)
            elif position < len(item.get(name) or ()):
                part = item[name][position]
                text = "refusal" if part.get("type") == "refusal" else "text"
                part[text] = (part.get(text) or "") + "".join(deltas)
        self._deltas.clear()

    def _close(self, at: int) -> Iterator[Event]:
        """Events that end an open item with what of it has gone out."""
        item = self._items[at]
        if item.get("type") in ("message", "reasoning"):
            for start, (name, index) in PART_EVENTS.items():
                if start == "response.reasoning_part":
                    continue
                for position, part in enumerate(item.get(name) or ()):
                    if (at, name, position) not in self._closed_parts:
                        place = {"item_id": item.get("id"), "output_index": at, index: position}
                        yield from _part_done(start, part, place)
        item["status"] = _UNFINISHED.get(item.get("type", ""), "incomplete")
        yield {"type": "response.output_item.done", "output_index": at, "item": item}


def _empty(part_type: str) -> Event:
    return {"annotations": []} if part_type == "output_text" else {}


def _part_done(start: str, part: Event, place: Event) -> Iterator[Event]:
    for event, (_, _, part_type, text) in TEXT_EVENTS.items():
        if part.get("type") == part_type:
            extra: Event = {"logprobs": []} if part_type == "output_text" else {}
            yield {"type": f"{event}.done", **place, text: part.get(text) or "", **extra}
    yield {"type": f"{start}.done", **place, "part": part}


def _refusing(at: int, item: Event) -> Iterator[Event]:
    (part,) = item["content"]
    place = {"item_id": item["id"], "output_index": at, "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": at, "item": begun}
    yield {"type": "response.content_part.added", **place, "part": {"type": "refusal", "refusal": ""}}
    yield {"type": "response.refusal.delta", **place, "delta": part["refusal"]}
    yield {"type": "response.refusal.done", **place, "refusal": part["refusal"]}
    yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}


def _lifecycle_event(name: str, reply: Event) -> Event:
    return {"type": f"response.{name}", "response": reply}


def _frame(event: Event) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
