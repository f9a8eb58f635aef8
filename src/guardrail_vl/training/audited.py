"""From an audit log to labelled turns: what people said of turns becomes what the next guard is trained on.

One decision is one turn: the exchange that its verdict is about. An exchange that a table of labelled turns can't hold
whole (tool calls, pictures in a response, instructions) is left out and counted, never simplified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guardrail_vl.audit.archive import Archive, Entry
from guardrail_vl.audit.records import AuditRecord, Query
from guardrail_vl.parts import ImagePart, Message, TextPart
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.turn import Exchange, Turn
from guardrail_vl.verdict import Label

SOURCE = "audit"
"""Where these turns say that they come from."""


@dataclass(frozen=True, slots=True)
class Audited:
    """Turns from a log, and what could not be one."""

    turns: tuple[LabeledTurn, ...]
    """Oldest first; each content once."""
    without_content: int = 0
    """Decisions whose content was not stored, was purged or can't be read."""
    without_label: int = 0
    """Decisions of which neither a person nor a model said anything."""
    unfit: int = 0
    """Decisions whose exchange is more than one text and pictures, and perhaps a text in response; and those whose
    labels rest on what came before, which a row can't hold."""
    repeated: int = 0
    """Decisions about a content that another one is about: what people said counts first, then the newest."""


def labelled(archive: Archive, *, reviewed_only: bool = False) -> Audited:
    """Turns with the labels that people gave, else the model's own.

    Args:
        archive: Of a log that keeps content.
        reviewed_only: Leave out what nobody reviewed: what the model says itself teaches it little.

    Raises:
        AuditError: The log can't be read.
    """
    chosen: dict[str, tuple[LabeledTurn, bool]] = {}
    lost = {"without_content": 0, "without_label": 0, "unfit": 0, "repeated": 0}
    for entry in archive.entries(Query(reviewed=True if reviewed_only else None)):
        turn = _turn(entry)
        if isinstance(turn, str):
            lost[turn] += 1
            continue
        digest, reviewed = turn.content_digest, entry.correction is not None
        lost["repeated"] += digest in chosen
        if digest not in chosen or (reviewed and not chosen[digest][1]):
            chosen[digest] = turn, reviewed
    return Audited(tuple(turn for turn, _ in reversed(chosen.values())), **lost)


def _turn(entry: Entry) -> LabeledTurn | str:
    """The labelled turn, or why there is none."""
    if entry.content is None:
        return "without_content"
    shown = None if entry.record.in_context else _shown(_exchange(entry.record, entry.content.turn))
    if shown is None:
        return "unfit"
    prompt, images, response = shown
    record, said = entry.record, entry.correction
    labels = {"prompt": record.prompt, "response": record.response}
    # A person who says nothing of a side leaves it open: the model's word is not theirs.
    given = labels if said is None else {"prompt": said.prompt, "response": said.response}
    if response is None:
        given["response"] = labels["response"] = None
    if prompt is None and not images:
        given["prompt"] = labels["prompt"] = None
    if given["prompt"] is None and given["response"] is None:
        return "without_label"
    return LabeledTurn(
        id=record.id,
        prompt=prompt,
        images=images,
        response=response,
        prompt_label=given["prompt"],
        response_label=given["response"],
        reasoning=_reasoning(entry, given, labels),
        category=record.categories[0] if len(record.categories) == 1 else "",
        source=SOURCE,
    )


def _reasoning(entry: Entry, given: dict[str, Label | None], labels: dict[str, Label | None]) -> str | None:
    # Reasoning that leads elsewhere than the label would teach a contradiction.
    text = entry.content.reasoning if entry.content is not None else None
    agrees = all(label is None or label == labels[side] for side, label in given.items())
    return text if agrees and text and text.strip() and "<think>" not in text and "<result>" not in text else None


def _exchange(record: AuditRecord, turn: Turn) -> Exchange:
    exchanges = turn.exchanges()
    return next((one for one in exchanges if one.first == record.first and one.last == record.last), exchanges[-1])


def _shown(exchange: Exchange) -> tuple[str | None, tuple[bytes, ...], str | None] | None:
    """The prompt, its pictures and the response. None: there is more in it."""
    parts = [part for message in exchange.request for part in message.content]
    if not _is_plain(exchange.request, "user") or not _is_plain(exchange.response, "assistant"):
        return None
    if any(message.images for message in exchange.response):
        return None
    prompt = "\n".join(_texts(exchange.request))
    response = "\n".join(_texts(exchange.response))
    images = tuple(part.data for part in parts if isinstance(part, ImagePart))
    return prompt if prompt.strip() else None, images, response if response.strip() else None


def _is_plain(messages: tuple[Message, ...], role: str) -> bool:
    return all(
        message.role == role and all(isinstance(part, TextPart | ImagePart) for part in message.content)
        for message in messages
    )


def _texts(messages: tuple[Message, ...]) -> Iterator[str]:
    for message in messages:
        yield from (part.text for part in message.content if isinstance(part, TextPart) and part.text.strip())


__all__ = ["SOURCE", "Audited", "labelled"]
