"""Moderations: a request of `moderations` to turns, decisions to its reply. Pure functions, for a server.

Knows OpenAI's categories, and which of other models' categories say the same. Decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import ImagePart, Message, TextPart
from guardrail_vl.reading import read_content
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Action, Decision, Label, new_id
from guardrail_vl.wire.base import Json, Reading
from guardrail_vl.wire.jsons import check_fields, text_of

_TEXT: Final = ("text",)
_BOTH: Final = ("text", "image")

CATEGORIES: Final[Mapping[str, Collection[str]]] = {
    "harassment": _TEXT,
    "harassment/threatening": _TEXT,
    "hate": _TEXT,
    "hate/threatening": _TEXT,
    "illicit": _TEXT,
    "illicit/violent": _TEXT,
    "self-harm": _BOTH,
    "self-harm/instructions": _BOTH,
    "self-harm/intent": _BOTH,
    "sexual": _BOTH,
    "sexual/minors": _TEXT,
    "violence": _BOTH,
    "violence/graphic": _BOTH,
}
"""OpenAI's categories, each with the kinds of input that its reply may name for it."""

HARMFUL: Final = "harmful"
"""A category of our own that every reply has: the label itself, for models that name no categories."""

_SAME: Final[Mapping[str, str]] = {
    "violent": "violence",
    "violent crimes": "illicit/violent",
    "non violent illegal acts": "illicit",
    "non violent crimes": "illicit",
    "illegal acts": "illicit",
    "weapons": "illicit/violent",
    "suicide self harm": "self-harm",
    "suicide and self harm": "self-harm",
    "suicide": "self-harm",
    "sexual content": "sexual",
    "sexual content or sexual acts": "sexual",
    "child sexual exploitation": "sexual/minors",
    "child sexual abuse material": "sexual/minors",
    "hate speech": "hate",
    "gore": "violence/graphic",
    "graphic violence": "violence/graphic",
    "bullying": "harassment",
}
"""Other names, in plain lower-case words, that say what one of OpenAI's says. Any other keeps its own name."""


def read_request(request: Json, reading: Reading) -> tuple[Turn, ...]:
    """A turn for each input: a text is one, each of a list of texts is one, a list of parts is one together.

    Raises:
        ContentError: An unknown field or part, named; or content that can't be judged.
    """
    check_fields(request, {"input", "model"}, "the request", reading.allow)
    given = request.get("input")
    if isinstance(given, str):
        return (_turn((TextPart(text_of(given, "input")),)),)
    if not isinstance(given, list) or not given:
        raise ContentError("The input must be text, or a list of texts or of parts, and not empty.")
    if all(isinstance(one, str) for one in given):
        return tuple(_turn((TextPart(text_of(one, "input")),)) for one in given)
    if any(not isinstance(one, Mapping) for one in given):
        raise ContentError("The input must be a list of texts or a list of parts, not of both or anything else.")
    return (_turn(read_content(given, reading.load, reading.allow)),)


def _turn(parts: Sequence[Any]) -> Turn:
    return Turn((Message("user", tuple(parts)),))


def write_reply(turns: Sequence[Turn], decisions: Sequence[Decision], *, model: str) -> dict[str, Any]:
    """The reply: a result for each turn, in order.

    `flagged` is what the policy made of an input, the categories are what the model said of it. A decision without a
    verdict is flagged if it blocks, and says so in its `guardrail` field; a server that would rather
    answer with an error looks at `failed` first.

    Args:
        turns: What `read_request` gave.
        decisions: One for each.
        model: The model's name for the reply.
    """
    results = [_result(turn, decision) for turn, decision in zip(turns, decisions, strict=True)]
    return {"id": f"modr-{new_id()}", "model": model, "results": results}


def _result(turn: Turn, decision: Decision) -> dict[str, Any]:
    parts = [part for message in turn.messages for part in message.content]
    kinds = [
        kind for kind, made in (("text", TextPart), ("image", ImagePart)) if any(isinstance(p, made) for p in parts)
    ]
    verdict = decision.verdict
    harmful = verdict is not None and verdict.label(decision.stage) is Label.HARMFUL
    score = None if verdict is None else verdict.score_of(decision.stage)
    if score is None:
        score = float(harmful)
    named = {_theirs(name) for name in (() if verdict is None else verdict.categories)}
    names = [*CATEGORIES, HARMFUL, *sorted(named - set(CATEGORIES) - {HARMFUL})]
    said = named | ({HARMFUL} if harmful else set())
    return {
        "flagged": decision.blocked if verdict is None else decision.action is not Action.ALLOW,
        "categories": {name: name in said for name in names},
        # The one score is the label's: of a category, the model says only that it is the reason.
        "category_scores": {name: score if name in said or name == HARMFUL else 0.0 for name in names},
        "category_applied_input_types": {
            name: [kind for kind in kinds if kind in CATEGORIES.get(name, _BOTH)] for name in names
        },
        "guardrail": {
            "id": decision.id,
            "action": decision.action.value,
            "reason": decision.reason,
            "failed": decision.failed,
            "policy": decision.policy,
        },
    }


def _theirs(name: str) -> str:
    """OpenAI's name for a category; its own where OpenAI has none."""
    if name in CATEGORIES:
        return name
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    return _SAME.get(words) or next((own for own in CATEGORIES if re.sub(r"\W", " ", own) == words), name)
