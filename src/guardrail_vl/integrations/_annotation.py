"""What a host's reply carries of its decisions: plain JSON that holds no content. The same for every host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from guardrail_vl.verdict import Action, Decision


class Annotation(dict[str, Any]):
    """What a reply carries in its field `guardrail`: plain JSON, with the decisions themselves as an attribute."""

    def __init__(self, decisions: Iterable[Decision]) -> None:
        self.decisions = tuple(decisions)
        worst = max((d.action for d in self.decisions), key=lambda a: a.rank, default=Action.ALLOW)
        super().__init__(action=str(worst), decisions=[summary(d) for d in self.decisions])


def summary(decision: Decision) -> dict[str, Any]:
    """A decision as plain JSON, without the reasoning: it may quote the content, so it stays out of what is logged."""
    verdict = decision.verdict
    return {
        "id": decision.id,
        "stage": str(decision.stage),
        "action": str(decision.action),
        "reason": decision.reason,
        "policy": decision.policy,
        "error": None if decision.error is None else type(decision.error).__name__,
        "verdict": None if verdict is None else {**_plain(verdict), "usage": _plain(verdict.usage)},
    }


def _plain(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value) if one.name != "reasoning"}
