"""Whether a guard's settings fit together: what is wrong with them is said when it is made, not when it judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, get_args

from guardrail_vl._flow import Hook, SpeedChoice
from guardrail_vl.engines.base import Engine
from guardrail_vl.errors import ConfigurationError, FormatMismatchError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import PromptFormat
from guardrail_vl.verdict import Stage

DEFAULT_BAND: Final = (0.1, 0.9)
"""Scores between these make `speed="auto"` reason."""


def as_hooks(hooks: Sequence[Hook] | Hook) -> tuple[Hook, ...]:
    listed = (hooks,) if callable(hooks) else tuple(hooks)
    if not all(callable(hook) for hook in listed):
        raise ConfigurationError("A hook must be callable with (turn, decision).")
    return listed


def check_text(text: object, name: str) -> None:
    if text is not None and not isinstance(text, str):
        raise ConfigurationError(
            f"{name} must be text, not {type(text).__name__}.", hint="Use check() for messages and turns."
        )


def check_numbers(deadline: float | None, max_concurrency: int | None, band: tuple[float, float]) -> None:
    if deadline is not None and not 0 < deadline < float("inf"):
        raise ConfigurationError(f"deadline must be above 0 seconds and finite, not {deadline!r}.")
    if max_concurrency is not None and max_concurrency < 1:
        raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency!r}.")
    if not 0 <= band[0] <= band[1] <= 1:
        raise ConfigurationError(f"band must be two scores in order between 0 and 1, not {band!r}.")


def pick_speed(speed: SpeedChoice | None, chosen: PromptFormat, engine: Engine) -> SpeedChoice:
    if speed is None:
        return chosen.speeds[0]
    if speed not in get_args(SpeedChoice):
        raise ConfigurationError(f"speed must be one of {', '.join(get_args(SpeedChoice))}, not {speed!r}.")
    wanted = ("fast", "reason") if speed == "auto" else (speed,)
    for one in wanted:
        if one not in chosen.speeds:
            raise ConfigurationError(
                f"The format {chosen.id!r} has no speed {one!r}; it has {', '.join(chosen.speeds)}."
            )
    if "fast" in wanted and not engine.scores:
        raise ConfigurationError(f"speed={speed!r} needs scores, and this engine gives none.")
    return speed


def check_fit(chosen: PromptFormat, policy: Policy, engine: Engine) -> None:
    trained = engine.trained_format
    if trained is not None and trained.format != chosen.id:
        raise FormatMismatchError(
            f"These weights were trained with the prompt format {trained.format!r}, not {chosen.id!r}.",
            hint=f"Use Guard(…, format={trained.format!r}).",
        )
    if trained is not None and trained.golden != chosen.golden:
        raise FormatMismatchError(
            f"These weights were trained with other words than {chosen.id!r} has here: "
            f"golden hash {trained.golden}, not {chosen.golden}.",
            hint="Use the version of guardrail-vl that trained them.",
        )
    if policy.has_category_rules():
        if not chosen.categories:
            raise ConfigurationError(
                f"The policy sets actions or thresholds for categories, and the format {chosen.id!r} names none.",
                hint="Remove them (definitions and examples may stay), or use a model that names categories.",
            )
        unknown = [
            n
            for n, c in policy.categories.items()
            if (c.prompt or c.response or c.threshold) and n not in chosen.categories
        ]
        if unknown:
            raise ConfigurationError(
                f"The model never names {', '.join(unknown)}; it names {', '.join(chosen.categories)}."
            )
    needs_scores = [s for s in Stage if policy.rule(s).threshold is not None]
    if needs_scores and not engine.scores:
        raise ConfigurationError(f"The policy sets a threshold for {needs_scores[0]}, and this engine gives no scores.")
