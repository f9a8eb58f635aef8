"""What the model said (`Verdict`), and what we do about it (`Decision`). Frozen; knows no engine and no policy rule."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from guardrail_vl._value import Value
from guardrail_vl.errors import BlockedError, GuardrailError


class Label(StrEnum):
    """The model's own words."""

    HARMFUL = "harmful"
    UNHARMFUL = "unharmful"


class Stage(StrEnum):
    """What is being judged."""

    PROMPT = "prompt"
    RESPONSE = "response"


class Action(StrEnum):
    """What happens to the turn. Ordered: `allow < annotate < block`."""

    ALLOW = "allow"
    ANNOTATE = "annotate"
    BLOCK = "block"

    @property
    def rank(self) -> int:
        """0, 1 or 2."""
        return _RANK[self]

    def __lt__(self, other: str) -> bool:
        return self.rank < Action(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Action(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Action(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Action(other).rank


_RANK = {Action.ALLOW: 0, Action.ANNOTATE: 1, Action.BLOCK: 2}


@dataclass(frozen=True, slots=True)
class Usage(Value):
    """Tokens that one judgement took; 0 where the engine does not count them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True, slots=True)
class Verdict(Value):
    """What the guard model said of one exchange."""

    prompt: Label | None
    """The request's label. None: not judged, or not all of it could be (see `unjudged`)."""
    response: Label | None = None
    """The response's label. None: there was none, or not all of it could be judged."""
    prompt_score: float | None = None
    """Probability in [0, 1] that the request is harmful. None: this engine gives no scores."""
    response_score: float | None = None
    """Probability in [0, 1] that the response is harmful; None likewise."""
    categories: tuple[str, ...] = ()
    """Names of the categories that the model named; empty for models that name none."""
    unjudged: tuple[str, ...] = ()
    """What this model could not judge, in words that hold no content; empty when it judged everything."""
    reasoning: str | None = field(default=None, repr=False)
    """The model's reasoning. None: it did not reason. May quote the content."""
    model: str = ""
    """Which model spoke, as the engine names it."""
    format: str = ""
    """Id of the prompt format it was asked in."""
    speed: str = ""
    """`reason` or `fast`."""
    usage: Usage = field(default=Usage(), repr=False)
    """Of every asking that led to it, where a guard asks twice."""
    latency: float = field(default=0.0, repr=False)
    """Seconds the engine took, of every asking together; of the first judgement when the verdict was remembered."""

    @property
    def score(self) -> float | None:
        """The score of what was judged last: the response if there is one, else the request."""
        return self.prompt_score if self.response_score is None else self.response_score

    def label(self, stage: Stage) -> Label | None:
        """The label of a stage."""
        return self.prompt if stage == Stage.PROMPT else self.response

    def score_of(self, stage: Stage) -> float | None:
        """The score of a stage."""
        return self.prompt_score if stage == Stage.PROMPT else self.response_score


def _error_to_json(error: GuardrailError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint, "retryable": error.retryable}


# An error goes out as JSON; it does not come back in: nobody should rebuild exceptions from text.
ErrorField = Annotated[
    GuardrailError | None,
    PlainValidator(lambda value: value if value is None or isinstance(value, GuardrailError) else None),
    PlainSerializer(_error_to_json),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string"},
                        "message": {"type": "string"},
                        "hint": {"type": "string"},
                        "retryable": {"type": "boolean"},
                    },
                },
            ]
        }
    ),
]


@dataclass(frozen=True, slots=True)
class Judgement(Value):
    """One exchange of the turn, what was said of it, and the action that follows. A decision is made of these."""

    first: int
    """Index in the turn of the first message judged."""
    last: int
    """Index of the last one."""
    action: Action
    reason: str
    """Why, in words that hold no content."""
    verdict: Verdict | None = None
    error: ErrorField = None
    in_context: bool = False
    """Whether what came before was shown to the model too."""
    remembered: bool = False
    """Whether the verdict came from the cache."""


def new_id() -> str:
    """A random id of 24 characters."""
    return "gd_" + os.urandom(10).hex()


@dataclass(frozen=True, slots=True)
class Decision(Value):
    """What to do with the turn: the strictest of its judgements, with the verdict *or* the error behind it."""

    action: Action
    stage: Stage
    reason: str
    """Why, in one sentence that holds no content."""
    verdict: Verdict | None = None
    """What the model said. None exactly when `error` is set."""
    error: ErrorField = None
    """Why there is no verdict. The action then follows the policy's fail mode."""
    policy: str = ""
    """Hash of the policy that decided: its version."""
    id: str = field(default_factory=new_id, compare=False)
    judgements: tuple[Judgement, ...] = field(default=(), repr=False)
    """Everything that was judged, oldest first; the newest exchange in its context last."""

    @property
    def blocked(self) -> bool:
        """Whether the turn must not pass."""
        return self.action is Action.BLOCK

    @property
    def failed(self) -> bool:
        """Whether there is no verdict. A failed decision is never a plain `allow`."""
        return self.error is not None

    @property
    def reasoning(self) -> str | None:
        """The model's reasoning, if it gave one. May quote the content."""
        return None if self.verdict is None else self.verdict.reasoning

    def raise_if_blocked(self) -> None:
        """Raise `BlockedError` if the action is block.

        Raises:
            BlockedError: Carries this decision; its cause is `error` where there is one.
        """
        if self.blocked:
            raise BlockedError(self) from self.error
