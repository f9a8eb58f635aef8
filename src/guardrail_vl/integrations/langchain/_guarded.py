"""`guarded`: a chat model or runnable whose every input and output is judged; `decisions`: what was decided."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBinding, RunnableBindingBase

from guardrail_vl.blocking import REFUSAL, OnBlock
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations.langchain._calls import NOTE, Rules
from guardrail_vl.integrations.langchain._models import guard_model
from guardrail_vl.integrations.langchain._runnables import GuardedRunnable
from guardrail_vl.integrations.langchain._runs import Select
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
    prompt: Select | None = None,
    response: Select | None = None,
) -> Target:
    """A chat model of the same class, or a runnable, whose every input and output is judged.

    What runs inside a guarded runnable is heard by nobody: no callback, trace, usage counter or stream of a graph that
    it is part of. The app hears the run of the guarded runnable. Its errors are judged too: they may quote an output.
    `transform` and a stream that comes in are gathered, judged and then run. Decisions are events named `guardrail`,
    and lie in the `response_metadata` of messages that come out.

    Args:
        target: A chat model, with or without bound tools; it stays as it was, unguarded. Or any other runnable; but no
            LangGraph graph, and none that has callbacks of its own inside.
        guard: Judges.
        on_block: `raise` a `BlockedError`; `refuse` with a message or text that says so; or `annotate`: nothing is
            stopped, see `decisions`. Where there is no verdict, the guard's error is raised under `raise` and `refuse`.
            A runnable refuses with a message if it gives messages, and with text if it gives text, or does not say
            what it gives. A blocked output that is neither is raised.
        stream: How replies are judged while they are written: a `Streaming`, or its mode.
        refusal: What a refused reply says.
        allow_unguarded: Names of content blocks, fields and settings that may pass unjudged.
        prompt: For runnables only: a function of the input that gives what is judged. None: everything found in it,
            and in the keyword arguments of the call.
        response: For runnables only: a function of the output, and of each item of a stream, that gives what is
            judged. None: everything found in it.

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
    made: Any = _guarded(target, rules, prompt, response)
    return made  # type: ignore[no-any-return]


def _guarded(target: Any, rules: Rules, prompt: Select | None, response: Select | None) -> Any:
    if isinstance(target, BaseChatModel):
        if prompt is not None or response is not None:
            raise ConfigurationError(
                "prompt= and response= are for runnables: of a chat model everything is judged.",
                hint="Leave them out.",
            )
        return guard_model(target, rules)
    # What is bound comes in from outside of the guard; and callbacks that are bound hear what was judged.
    if type(target) is RunnableBinding or (
        isinstance(target, RunnableBindingBase) and isinstance(_innermost(target), BaseChatModel)
    ):
        return target.model_copy(update={"bound": _guarded(target.bound, rules, prompt, response)})
    if isinstance(target, Runnable):
        return GuardedRunnable(target, rules, prompt, response)
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
