"""Whether a guard's settings fit together: what is wrong with them is said when it is made, not when it judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, get_args

from guardrail_vl._flow import Band, Hook, Rung, SpeedChoice
from guardrail_vl.engines.base import Engine
from guardrail_vl.errors import ConfigurationError, FormatMismatchError
from guardrail_vl.observing import Observer
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import PromptFormat
from guardrail_vl.prompt_format.base import Speed
from guardrail_vl.verdict import Stage

DEFAULT_BAND: Final = Band(prompt=(0.1, 0.9), response=(0.1, 0.9))
"""Scores that are asked again, where neither the caller nor the engine says which."""

BandChoice = tuple[float, float] | Mapping[str, tuple[float, float]] | Band


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


def check_numbers(deadline: float | None, max_concurrency: int | None) -> None:
    if deadline is not None and not 0 < deadline < float("inf"):
        raise ConfigurationError(f"deadline must be above 0 seconds and finite, not {deadline!r}.")
    if max_concurrency is not None and max_concurrency < 1:
        raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency!r}.")


def check_observer(observer: object) -> None:
    if observer is not None and not isinstance(observer, Observer):
        raise ConfigurationError(
            f"observer must be an Observer, not {type(observer).__name__}.",
            hint="Such as guardrail_vl.telemetry.OpenTelemetry().",
        )


def as_band(band: BandChoice | None) -> Band | None:
    """The band in its one frozen form; None: nobody chose one."""
    if band is None:
        return None
    if isinstance(band, Band):
        return Band(_as_pair(band.prompt), _as_pair(band.response))
    if not isinstance(band, Mapping):
        pair = _as_pair(band)
        return Band(pair, pair)
    if set(band) != set(Stage):
        raise ConfigurationError(f"band needs 'prompt' and 'response', and nothing else: not {list(band)!r}.")
    return Band(_as_pair(band[Stage.PROMPT]), _as_pair(band[Stage.RESPONSE]))


def _as_pair(pair: Any) -> tuple[float, float]:
    try:
        low, high = pair
    except (TypeError, ValueError):
        low = high = None
    # NaN is in no order.
    if not (isinstance(low, int | float) and isinstance(high, int | float) and 0 <= low <= high <= 1):
        raise ConfigurationError(f"band must be two scores in order between 0 and 1, not {pair!r}.")
    return float(low), float(high)


def own_rungs(
    engine: Engine, chosen: PromptFormat, speed: SpeedChoice, band: Band | None, max_concurrency: int | None
) -> tuple[Rung, ...]:
    """What a guard with one engine asks it: once, or with `auto` fast and then perhaps with reasoning."""
    last: Speed = "reason" if speed == "auto" else speed
    rung = Rung(engine, chosen, last, max_concurrency=max_concurrency)
    return (replace(rung, speed="fast", band=_band_of(engine, band)), rung) if speed == "auto" else (rung,)


def with_adapter(rungs: tuple[Rung, ...], adapter: str | None) -> tuple[Rung, ...]:
    """The same rungs, their engines with this adapter. None: as they are."""
    return rungs if adapter is None else tuple(replace(r, engine=r.engine.adapted(adapter)) for r in rungs)


def cascade_rungs(first: Sequence[Rung], then: Sequence[Rung], band: Band | None, share: float) -> tuple[Rung, ...]:
    """The rungs of one guard, then those of another.

    Args:
        first: Of the guard that is asked first.
        then: Of the other.
        band: The scores that go on to it.
        share: Of the time, in (0, 1]: what the first guard may take.
    """
    engine = first[-1].engine
    if not engine.scores:
        raise ConfigurationError(
            f"The first guard of a cascade needs scores, and {engine.model} gives none: every turn would go on.",
            hint="Use then= alone.",
        )
    below = [replace(rung, share=rung.share * share) for rung in first]
    return (*below[:-1], replace(below[-1], band=_band_of(engine, band)), *then)


def _band_of(engine: Engine, band: Band | None) -> Band:
    return band or as_band(engine.calibrated_band) or DEFAULT_BAND


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
