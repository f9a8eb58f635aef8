"""What an audit log keeps: frozen values. Knows no file and no database.

An `AuditRecord` has no field that could hold content. `StoredContent` is nothing but content, and lies apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from guardrail_vl._value import Value
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Action, Decision, Judgement, Label, Stage, Usage

FLAGGED: Final = (Action.BLOCK, Action.ANNOTATE)
"""Actions of a turn that somebody should look at."""


@dataclass(frozen=True, slots=True)
class AuditRecord(Value):
    """One decision, without the content it is about."""

    id: str
    """The decision's."""
    time: datetime
    """When it was made, in UTC."""
    app: str
    """Whose turn it was; empty where nobody said."""
    stage: Stage
    action: Action
    reason: str
    """Why, in one sentence that holds no content."""
    prompt: Label | None = None
    """What the model said of the request. None: nothing."""
    response: Label | None = None
    """What it said of the response. None: nothing."""
    prompt_score: float | None = None
    response_score: float | None = None
    categories: tuple[str, ...] = ()
    error: str | None = None
    """Type of the error that stood in for a verdict. None: there is a verdict."""
    error_message: str | None = None
    """Its message, which holds no content."""
    policy: str = ""
    """Hash of the policy that decided."""
    model: str = ""
    format: str = ""
    speed: str = ""
    latency: float = 0.0
    """Seconds the engine took for the slowest judgement; 0 where all verdicts were remembered."""
    prompt_tokens: int = 0
    """Of every judgement that was not remembered."""
    completion_tokens: int = 0
    first: int | None = None
    """Index in the turn of the first message that the verdict is about. None: not known."""
    last: int | None = None
    """Index of the last one."""
    in_context: bool = False
    """Whether the labels rest on what came before: alone, these messages were judged otherwise."""


@dataclass(frozen=True, slots=True)
class StoredContent(Value):
    """What was judged, and what the model thought of it, which may quote it."""

    turn: Turn = field(repr=False)
    reasoning: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Correction(Value):
    """What a person says of a decision's turn. The newest one of a decision counts."""

    id: str
    """The decision's."""
    reviewer: str
    time: datetime
    """When it was said, in UTC."""
    prompt: Label | None = None
    """None: nothing was said of the request."""
    response: Label | None = None
    """None: nothing was said of the response."""
    note: str = field(default="", repr=False)
    """A remark. May quote the content, so it goes when the content is purged."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which records, newest first."""

    actions: tuple[Action, ...] = tuple(Action)
    stage: Stage | None = None
    """None: both."""
    app: str | None = None
    """None: every app's."""
    reviewed: bool | None = None
    """Whether somebody said something of it. None: either."""
    after: str | None = None
    """Id of the record that the list goes on after. None: from the newest."""
    limit: int = 50
    """Records at most."""

    def takes(self, record: AuditRecord, reviewed: bool) -> bool:
        """Whether a record is meant, wherever in the list it is."""
        return (
            record.action in self.actions
            and self.stage in (None, record.stage)
            and self.app in (None, record.app)
            and self.reviewed in (None, reviewed)
        )


@dataclass(frozen=True, slots=True)
class Purged(Value):
    """How much was deleted."""

    records: int
    contents: int


def record_of(decision: Decision, *, app: str, time: datetime) -> AuditRecord:
    """A decision as a record."""
    verdict, error = decision.verdict, decision.error
    made = [one.verdict for one in decision.judgements if one.verdict is not None and not one.remembered]
    if verdict is not None and not decision.judgements:
        made = [verdict]
    usage = sum((one.usage for one in made), Usage())
    # Among equals the newest was chosen; see `_flow`. A hook may have put another verdict in.
    behind = [one for one in decision.judgements if one.verdict is verdict and one.error is error]
    return AuditRecord(
        id=decision.id,
        time=time,
        app=app,
        stage=decision.stage,
        action=decision.action,
        reason=decision.reason,
        prompt=verdict.prompt if verdict else None,
        response=verdict.response if verdict else None,
        prompt_score=verdict.prompt_score if verdict else None,
        response_score=verdict.response_score if verdict else None,
        categories=verdict.categories if verdict else (),
        error=type(error).__name__ if error else None,
        error_message=error.message if error else None,
        policy=decision.policy,
        model=verdict.model if verdict else "",
        format=verdict.format if verdict else "",
        speed=verdict.speed if verdict else "",
        latency=max((one.latency for one in made), default=0.0),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        first=behind[-1].first if behind else None,
        last=behind[-1].last if behind else None,
        in_context=bool(behind) and _in_context(behind[-1], decision.judgements),
    )


def _in_context(chosen: Judgement, judgements: Sequence[Judgement]) -> bool:
    return chosen.in_context and not any(
        (one.first, one.last) == (chosen.first, chosen.last) and _labels(one) == _labels(chosen)
        for one in judgements
        if not one.in_context
    )


def _labels(judgement: Judgement) -> tuple[Label | None, Label | None] | None:
    return None if judgement.verdict is None else (judgement.verdict.prompt, judgement.verdict.response)


__all__ = ["FLAGGED", "AuditRecord", "Correction", "Purged", "Query", "StoredContent", "record_of"]
