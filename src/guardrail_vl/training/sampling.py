"""Several answers to each turn, drawn with temperature: `Sampler`. It asks what serving asks, and judges nothing.

Three kinds: transformers in this process, vLLM in this process, any OpenAI-compatible server. In this process every
sample has random numbers of its own, made from the seed, the turn's id and the sample's number: what is drawn for a
turn does not depend on which turns are sampled beside it, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from guardrail_vl.engines import choose
from guardrail_vl.engines.base import Deadline
from guardrail_vl.errors import ConfigurationError, ContentError, GuardrailError
from guardrail_vl.prompt_format import PromptFormat, get_format
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.training.turns import LabeledTurn

Kind = Literal["auto", "transformers", "vllm"]

MAX_TEMPERATURE: Final = 2.0
"""What vLLM takes, and servers like it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer that was drawn."""

    text: str = field(repr=False)
    tokens: int
    """How many it took, the end token included."""
    finish: Literal["stop", "length"] = "stop"
    """`length`: the token limit ended it."""


class Sampler(ABC):
    """Draws answers. A context manager, which closes it."""

    name: ClassVar[str]
    """Which kind."""
    format: PromptFormat

    @abstractmethod
    def sample(
        self,
        turns: Sequence[LabeledTurn],
        *,
        count: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> list[list[Sample]]:
        """Answers to each turn.

        Args:
            turns: With ids that differ: equal ids draw the same random numbers.
            count: Answers to a turn.
            temperature: Logits are divided by it; at most 2. 0: always the likeliest token, as in serving.
            top_p: Only the likeliest tokens that together have at least this probability, in (0, 1].
            top_k: Only so many of the likeliest tokens. 0: all.
            max_tokens: Of an answer, at most.
            seed: The same one draws the same answers, as far as the arithmetic is the same: another batch or another
                device rounds differently, which may change a token now and then. A server may not keep to it at all.

        Returns:
            `count` samples a turn, in the turns' order.

        Raises:
            ConfigurationError: A setting is out of its range.
            ContentError: A turn can't be judged (names it); none was sampled then, unless a server said so.
            EngineError: The model failed, or does not fit into memory.
        """

    def close(self) -> None:  # noqa: B027 - nothing to free is possible
        """Free what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kind_for(model: str | Path, engine: Kind = "auto") -> Literal["transformers", "vllm"]:
    """Which kind of sampler runs a model on this machine: vLLM where `Guard` would take it, else transformers."""
    if engine != "auto":
        return engine
    return "vllm" if choose(str(model)).kind == "vllm" else "transformers"


def open_sampler(
    model: str | Path,
    *,
    format: str = "guardreasoner-vl/1",
    engine: Kind = "auto",
    tensor_parallel: int = 1,
    **options: Any,
) -> Sampler:
    """Load a model to sample from.

    Args:
        model: A checkpoint folder or hub id.
        format: Id of the prompt format.
        engine: `auto`: see `kind_for`.
        tensor_parallel: GPUs that share the model, with vLLM.
        options: Of `TransformersSampler` or `VLLMSampler`.

    Raises:
        MissingDependencyError: What it needs is not installed.
        ConfigurationError: The checkpoint can't be loaded, the format asks for no reasoning, or several GPUs are wanted
            of transformers.
        EngineUnavailableError: It does not fit into memory.
    """
    from guardrail_vl.training import _local_sampling as local

    kind = kind_for(model, engine)
    if tensor_parallel > 1:
        if kind != "vllm":
            raise ConfigurationError(
                f"tensor_parallel is {tensor_parallel}, and transformers runs the model on one device.",
                hint="Leave it out, or take vLLM.",
            )
        options["tensor_parallel_size"] = tensor_parallel
    if kind == "vllm":
        return local.VLLMSampler(model, format=format, **options)
    return local.TransformersSampler(model, format=format, **options)


class ServerSampler(Sampler):
    """Samples from an OpenAI-compatible server: a request for each sample, all at once.

    The seed is sent with each request, a different one for each of a turn's samples. Whether the server keeps to it is
    the server's affair, and `top_k` is sent only where it is not 0: it is no field of OpenAI's.

    Args:
        url: As for `RemoteEngine`.
        format: Id of the prompt format.
        deadline: Seconds for all samples of one call.
        options: Of `RemoteEngine`.
    """

    name: ClassVar[str] = "server"

    def __init__(
        self, url: str, *, format: str = "guardreasoner-vl/1", deadline: float = 3600.0, **options: Any
    ) -> None:
        self.format = reasoning_format(format)
        self._url = url
        self._deadline = deadline
        self._extra: dict[str, Any] = dict(options.pop("extra_body", None) or {})
        self._options = options

    def sample(
        self,
        turns: Sequence[LabeledTurn],
        *,
        count: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        check(count, temperature, top_p, top_k, max_tokens)
        prompts = [replace(prompt_of(self.format, turn), max_tokens=max_tokens, top_logprobs=0) for turn in turns]
        deadline = Deadline.after(self._deadline)
        settings = {"temperature": temperature, "top_p": top_p, **({"top_k": top_k} if top_k else {})}
        drawn = [
            self._ask(prompts, turns, {**settings, "seed": seed_of(seed, "", number) % 2**31}, deadline)
            for number in range(count)
        ]
        return [list(of_turn) for of_turn in zip(*drawn, strict=True)]

    def _ask(
        self, prompts: Sequence[Prompt], turns: Sequence[LabeledTurn], settings: dict[str, Any], deadline: Deadline
    ) -> list[Sample]:
        from guardrail_vl.engines.remote import RemoteEngine

        engine = RemoteEngine(self._url, extra_body={**self._extra, **settings}, **self._options)
        try:
            outcomes = engine.generate(prompts, deadline=deadline)
        finally:
            engine.close()
        out = []
        for turn, outcome in zip(turns, outcomes, strict=True):
            if not isinstance(outcome, Completion):
                raise named(outcome, turn)
            out.append(Sample(outcome.text, outcome.usage.completion_tokens, outcome.finish))
        return out


# --- what the kinds share --------------------------------------------------------------------------------------------


def reasoning_format(id: str) -> PromptFormat:
    """The format.

    Raises:
        ConfigurationError: There is none, or its models write no reasoning: they have nothing to draw.
    """
    format = get_format(id)
    if "reason" not in format.speeds:
        raise ConfigurationError(f"The prompt format {id!r} asks for no reasoning, so there is nothing to sample.")
    return format


def prompt_of(format: PromptFormat, turn: LabeledTurn) -> Prompt:
    """What serving asks about the turn, with reasoning.

    Raises:
        ContentError: The turn can't be judged; names it.
    """
    try:
        (prompt,) = format.render(turn.exchange(), turn.stage, speed="reason")
    except GuardrailError as error:
        raise named(error, turn) from None
    return prompt


def seed_of(seed: int, id: str, number: int) -> int:
    """63 bits that say where the random numbers of one sample of one turn begin."""
    told = f"{seed}\x1f{number}\x1f{id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()) >> 1


def named(error: GuardrailError, turn: LabeledTurn) -> GuardrailError:
    """The error, saying which turn it is about if it is about a turn."""
    if isinstance(error, ContentError):
        return ContentError(f"The turn {turn.id!r} can't be judged: {error.message}", hint=error.hint)
    return error


def check(count: int, temperature: float, top_p: float, top_k: int, max_tokens: int) -> None:
    """See that the settings are in their ranges.

    Raises:
        ConfigurationError: One isn't.
    """
    if count < 1 or max_tokens < 1 or top_k < 0:
        raise ConfigurationError("count and max_tokens must be at least 1, and top_k at least 0.")
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise ConfigurationError(f"The temperature must be from 0 to {MAX_TEMPERATURE:g}.")
    if not 0 < top_p <= 1:
        raise ConfigurationError("top_p must be above 0 and at most 1.")
