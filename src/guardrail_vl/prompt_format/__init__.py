"""Prompt formats by id. A format is the only home of a guard family's words."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.base import PromptFormat
from guardrail_vl.prompt_format.embedded import EmbeddedFormat
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
from guardrail_vl.prompt_format.qwen3guard import Qwen3Guard

FORMATS: dict[str, Callable[[], PromptFormat]] = {
    kind.id: kind for kind in (GuardReasonerVL, Qwen3Guard, EmbeddedFormat)
}


def get_format(format_id: str) -> PromptFormat:
    """The format with this id.

    Raises:
        ConfigurationError: There is none.
    """
    if format_id not in FORMATS:
        close = difflib.get_close_matches(format_id, FORMATS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(FORMATS)}."
        raise ConfigurationError(f"There is no prompt format {format_id!r}.", hint=hint)
    return FORMATS[format_id]()


__all__ = ["FORMATS", "EmbeddedFormat", "GuardReasonerVL", "PromptFormat", "Qwen3Guard", "get_format"]
