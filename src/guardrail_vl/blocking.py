"""What follows from decisions, the same for every host: nothing, an error, or a refusal in the host's own shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from guardrail_vl.errors import BlockedError, ConfigurationError
from guardrail_vl.verdict import Decision

OnBlock = Literal["raise", "refuse", "annotate"]
"""What follows a block: an error, a refusal in the host's own shape, or nothing but the decision."""
REFUSAL: Final = "I can't help with that."
"""What a refused reply says, unless the app says otherwise."""


def checked_on_block(on_block: object) -> OnBlock:
    """The value, if it is one.

    Raises:
        ConfigurationError: It is none of the known ones.
    """
    if on_block not in get_args(OnBlock):
        raise ConfigurationError(f"on_block must be one of {', '.join(get_args(OnBlock))}, not {on_block!r}.")
    return on_block  # type: ignore[return-value]


def outcome(decisions: Iterable[Decision], on_block: OnBlock) -> Literal["pass", "refuse"]:
    """What follows from decisions.

    Raises:
        BlockedError: One says block, and that raises.
        GuardrailError: One blocks because there was no verdict: its error, which is never a refusal.
    """
    blocked = [d for d in decisions if d.blocked]
    if not blocked or on_block == "annotate":
        return "pass"
    for decision in blocked:
        if decision.error is not None:
            raise decision.error
    if on_block == "raise":
        raise BlockedError(blocked[0])
    return "refuse"
