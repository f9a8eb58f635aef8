"""Records and turns as the page is given them: JSON with text as text and pictures as `data:` URLs. Decides nothing."""

from __future__ import annotations

import json
from typing import Any

from guardrail_vl.audit import AuditRecord, Correction, StoredContent
from guardrail_vl.parts import ImagePart, Part, ToolCallPart, ToolResultPart


def as_row(record: AuditRecord, correction: Correction | None) -> dict[str, Any]:
    """A record and what was said of it."""
    return {**json.loads(record.to_json()), "correction": correction and json.loads(correction.to_json())}


def as_content(record: AuditRecord, content: StoredContent) -> dict[str, Any]:
    """The turn; `judged` marks the messages that the verdict is about."""
    messages = content.turn.messages
    known = record.first is not None and record.last is not None
    exchange = content.turn.exchanges()[-1]
    first, last = (record.first, record.last) if known else (exchange.first, exchange.last)
    assert first is not None
    assert last is not None
    return {
        "messages": [
            {
                "role": message.role,
                "name": message.name,
                "judged": first <= index <= last,
                "parts": [one for part in message.content for one in _parts(part)],
            }
            for index, message in enumerate(messages)
        ],
        "reasoning": content.reasoning,
        "answered": any(message.role == "assistant" for message in messages[first : last + 1]),
    }


def _parts(part: Part) -> list[dict[str, Any]]:
    match part:
        case ImagePart():
            return [{"type": "image", "url": part.data_url, "width": part.width, "height": part.height}]
        case ToolCallPart():
            return [{"type": "tool call", "text": f"{part.name}({part.arguments})"}]
        case ToolResultPart():
            return [one for inner in part.content for one in _parts(inner)]
        case _:
            return [{"type": part.type, "text": part.text}]
