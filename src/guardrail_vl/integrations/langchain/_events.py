"""Tells the app of decisions, as custom events of the run that they belong to. They hold no content."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables.config import var_child_runnable_config

from guardrail_vl.integrations._annotation import summary
from guardrail_vl.integrations.langchain._calls import NOTE
from guardrail_vl.verdict import Decision


def tell(decisions: Iterable[Decision]) -> None:
    """One event each. A model or step that is called by itself, in no chain or agent, has nobody to tell."""
    for decision in decisions if _anyone() else ():
        with contextlib.suppress(RuntimeError):
            dispatch_custom_event(NOTE, summary(decision))


async def atell(decisions: Iterable[Decision]) -> None:
    """The same for an event loop."""
    for decision in decisions if _anyone() else ():
        with contextlib.suppress(RuntimeError):
            await adispatch_custom_event(NOTE, summary(decision))


def _anyone() -> bool:
    """Whether anyone listens to the run that this is part of. Asked first: to make an event takes longer."""
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return bool(getattr(callbacks, "handlers", callbacks))
