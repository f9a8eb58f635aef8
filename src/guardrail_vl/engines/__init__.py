"""Engines, and which one a model's name asks for. Importing this imports none of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from typing import Any, Literal

from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import ConfigurationError

Kind = Literal["embedded", "vllm", "transformers"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine, and why, in a sentence."""

    kind: Kind
    why: str


def choose(model: str | None) -> Choice:
    """The engine that `Guard(model)` uses on this machine. Loads no weights."""
    if model is None:
        return Choice("embedded", "no model was named, so the guard that ships inside the package judges")
    if find_spec("vllm") is None:
        return Choice("transformers", "vLLM is not installed")
    from guardrail_vl.engines.vllm import vllm_device

    device, why = vllm_device()
    if device == "cpu":  # slower there than transformers for one prompt, and half a minute to start
        return Choice("transformers", "vLLM is installed, but there is no GPU for it")
    return Choice("vllm" if device else "transformers", why)


def load(model: str | None, **options: Any) -> Engine:
    """The engine for a model: its weights load now, or it raises.

    Raises:
        MissingDependencyError: What the engine needs is not installed.
        ConfigurationError: An option that this engine does not take, or no such model.
    """
    kind = choose(model).kind
    if kind == "embedded":
        from guardrail_vl.engines.embedded import EmbeddedEngine

        return _made(EmbeddedEngine, kind, **options)
    if kind == "vllm":
        from guardrail_vl.engines.vllm import VLLMEngine

        return _made(VLLMEngine, kind, model, **options)
    from guardrail_vl.engines.transformers import TransformersEngine

    return _made(TransformersEngine, kind, model, **options)


def _made(engine: type[Engine], kind: Kind, *model: Any, **options: Any) -> Engine:
    try:
        signature(engine).bind(*model, **options)
    except TypeError as error:
        raise ConfigurationError(f"The {kind} engine, which was chosen here, {error}.") from None
    return engine(*model, **options)


__all__ = ["Choice", "Deadline", "Engine", "Outcome", "choose", "load"]
