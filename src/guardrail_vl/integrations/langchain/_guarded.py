"""`guarded`: a chat model or runnable whose every input and output is judged; `decisions`: what was decided."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase

from guardrail_vl.blocking import REFUSAL, OnBlock
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations.langchain._calls import NOTE, Rules
from guardrail_vl.integrations.langchain._models import guard_model
from guardrail_vl.streaming import Mode, Streaming
from guardrail_vl.verdict import Decision

Target = TypeVar("Target", bound=Runnable[Any, Any])


def guarded(
    target: Target,
    guard: Guard,
    *,
    on_block: OnBlock = "raise",
    stream: Mode | Streaming = "window",
    refusal: str = REFUSAL,
    allow_unguarded: Collection[str] = (),
) -> Target:
    """A chat model of the same class, or a runnable, whose every input and output is judged.

    Args:
        target: A chat model, with or without bound tools; it stays as it was, unguarded. Or any other runnable.
        guard: Judges.
        on_block: `raise` a `BlockedError`; `refuse` with a message that says so; or `annotate`: nothing is stopped,
            see `decisions`. Where there is no verdict, the guard's error is raised under `raise` and `refuse`.
        stream: How replies are judged while they are written: a `Streaming`, or its mode.
        refusal: What a refused reply says.
        allow_unguarded: Names of content blocks, fields and settings that may pass unjudged.

    Raises:
        ConfigurationError: A wrong argument, or a target that could be gone around.
    """
    rules = Rules(
        guard,
        on_block=on_block,
        streaming=Streaming.of(stream),
        refusal=refusal,
        allow=allow_unguarded if isinstance(allow_unguarded, str) else frozenset(allow_unguarded),
    )
    made: Target = _guarded(target, rules)
    return made


def _guarded(target: Any, rules: Rules) -> Any:
    if isinstance(target, BaseChatModel):
        return guard_model(target, rules)
    if isinstance(target, RunnableBindingBase) and isinstance(_innermost(target), BaseChatModel):
        return target.model_copy(update={"bound": _guarded(target.bound, rules)})
    raise ConfigurationError(f"guarded() takes a runnable, not {type(target).__name__}.")


def _innermost(target: Any) -> Any:
    while isinstance(target, RunnableBindingBase):
        target = target.bound
    return target


def decisions(value: Any) -> tuple[Decision, ...]:
    """The decisions behind what a guarded model, chain or agent gave.

    They are read from `response_metadata["guardrail"]` of messages, or from the agent's state; what stood in them of
    errors and of the model's reasoning is not kept there.

    Args:
        value: A message or chunk, a list of messages, or an agent's state.

    Raises:
        ConfigurationError: It carries no decisions.
    """
    found = list(_found(value))
    if not found:
        raise ConfigurationError("This comes from nothing that is guarded: it carries no decisions.")
    return tuple(Decision.from_json(json.dumps({**one, "error": None})) for one in found)


def _found(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, BaseMessage):
        note = value.response_metadata.get(NOTE)
        yield from note.get("decisions", ()) if isinstance(note, Mapping) else ()
    elif isinstance(value, Mapping):
        yield from value.get(NOTE) or _found(value.get("messages") or [])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for one in value:
            yield from _found(one)
