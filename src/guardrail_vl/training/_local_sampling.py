"""Sampling from a checkpoint that this process loads: with transformers (`TransformersSampler`) or `VLLMSampler`.

Both read prompts, pictures and end tokens through the serving engine of their kind. The transformers kind draws by
itself within `generate`, one uniform number for each token of each sample: the library's own drawing has one generator
for a whole batch, so what it draws for a turn depends on the turn's neighbours. Knows no label, and no file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from guardrail_vl._settings import check_fit
from guardrail_vl.engines import transformers as local
from guardrail_vl.engines import vllm
from guardrail_vl.engines._decode import Transcript
from guardrail_vl.engines._inputs import Inputs, hf, padded
from guardrail_vl.engines.base import Engine
from guardrail_vl.errors import ConfigurationError, EngineError, GuardrailError, MissingDependencyError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format.base import Prompt, PromptFormat
from guardrail_vl.training.sampling import Sample, Sampler, check, named, prompt_of, reasoning_format, seed_of
from guardrail_vl.training.turns import LabeledTurn

try:
    import torch
except ImportError as error:
    raise MissingDependencyError("torch", extra="train", needed_for="guardrail_vl.training.sampling") from error

TOKENS: Final = local.PADDED_TOKENS
"""Prompt tokens in one batch at most, padding included; a longer prompt runs by itself."""


@dataclass(slots=True)
class _Row:
    """One sample of one turn."""

    turn: int
    """Place of its turn."""
    seed: int
    prompt: Inputs
    stops: tuple[str, ...]
    limit: int
    """New tokens at most."""
    sample: Sample | None = None
    """None: it is not drawn yet."""


@dataclass(frozen=True, slots=True)
class _Settings:
    temperature: float
    top_p: float
    top_k: int
    ends: frozenset[int]
    """Ids of the tokens that end an answer."""


class TransformersSampler(Sampler):
    """Samples with transformers, in batches of turns of like length.

    Args:
        model: A checkpoint folder or hub id.
        format: Id of the prompt format.
        device: As for `TransformersEngine`.
        dtype: As for `TransformersEngine`.
        max_batch: Samples in one batch at most; halved where memory does not suffice.
        revision: Commit, tag or branch of the hub id.

    Raises:
        ConfigurationError: The checkpoint can't be loaded, was trained in another format, or the format asks for no
            reasoning.
        EngineUnavailableError: It does not fit into memory.
    """

    name: ClassVar[str] = "transformers"

    def __init__(
        self,
        model: str | Path,
        *,
        format: str = "guardreasoner-vl/1",
        device: str | None = None,
        dtype: str | None = None,
        max_batch: int = 64,
        revision: str | None = None,
    ) -> None:
        if max_batch < 1:
            raise ConfigurationError("max_batch must be at least 1.")
        self.format = reasoning_format(format)
        self._max_batch = max_batch
        self._engine = local.TransformersEngine(model, device=device, dtype=dtype, revision=revision)
        _check_fit(self.format, self._engine)

    def close(self) -> None:
        """Let the weights go. The next call loads them again."""
        self._engine.close()

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
        self._engine.load()
        loaded = self._engine._loaded
        assert loaded is not None
        settings = _Settings(temperature, top_p, top_k, loaded.generator.ends)
        rows: list[_Row] = []
        for place, turn in enumerate(turns):
            prompt = prompt_of(self.format, turn)
            inputs = _read(loaded, prompt, turn)
            limit = min(max_tokens, loaded.max_positions - len(inputs.ids))
            seeds = [seed_of(seed, turn.id, number) for number in range(count)]
            rows += [_Row(place, one, inputs, prompt.stop, limit) for one in seeds]
        for batch in _batches(rows, self._max_batch):
            _run(batch, loaded, settings)
        return _by_turn(rows, len(turns))


def _check_fit(format: PromptFormat, engine: Engine) -> None:
    try:
        check_fit(format, Policy(), engine)
    except GuardrailError:
        engine.close()
        raise


def _read(loaded: Any, prompt: Prompt, turn: LabeledTurn) -> Inputs:
    try:
        inputs: Inputs = loaded.read(prompt)
    except GuardrailError as error:
        raise named(error, turn) from None
    return inputs


def _batches(rows: Sequence[_Row], most: int) -> list[list[_Row]]:
    """Rows of like length together: at most so many, and at most `TOKENS` with their padding."""
    batches: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: len(row.prompt.ids)):
        last = batches[-1] if batches else []
        if 0 < len(last) < most and (len(last) + 1) * len(row.prompt.ids) <= TOKENS:
            last.append(row)
        else:
            batches.append([row])
    return batches


def _by_turn(rows: Sequence[_Row], turns: int) -> list[list[Sample]]:
    out: list[list[Sample]] = [[] for _ in range(turns)]
    for row in rows:
        assert row.sample is not None
        out[row.turn].append(row.sample)
    return out


def _run(rows: Sequence[_Row], loaded: Any, settings: _Settings) -> None:
    """Draw for the rows. Out of memory: again in two halves, down to single rows."""
    try:
        _generate(rows, loaded, settings)
        return
    except Exception as error:
        # Which drops the traceback too, whose frames hold the tensors that did not fit.
        ours = local._translated(error, "sample", keep=False)
        if len(rows) == 1 or not local._is_out_of_memory(error):
            raise ours from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    _run(rows[:middle], loaded, settings)
    _run(rows[middle:], loaded, settings)


def _generate(rows: Sequence[_Row], loaded: Any, settings: _Settings) -> None:
    generator = loaded.generator
    model = generator.model
    # A row a sample, not num_return_sequences: how that repeats pictures differs between versions of transformers.
    batch = padded(
        [row.prompt for row in rows],
        pad=generator.pad,
        side="left",
        image_token=loaded.image_token,
        takes_token_types=generator.takes_token_types,
    )
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    drawing = _Drawing(rows, generator.tokenizer, settings)
    with torch.inference_mode():
        model.generate(
            **{name: tensor.to(model.device) for name, tensor in batch.items()},
            # do_sample=False: the drawing leaves one token to choose from.
            generation_config=hf.GenerationConfig(
                max_new_tokens=max(row.limit for row in rows),
                do_sample=False,
                eos_token_id=sorted(settings.ends),
                pad_token_id=generator.pad,
            ),
            logits_processor=hf.LogitsProcessorList([drawing.draw]),
            stopping_criteria=hf.StoppingCriteriaList([drawing.take]),
        )


@dataclass(slots=True)
class _Progress:
    transcript: Transcript
    chance: random.Random
    count: int = 0
    done: bool = False


class _Drawing:
    """Sees every step of a running batch: draws the next tokens, gathers text, says which rows are done."""

    def __init__(self, rows: Sequence[_Row], tokenizer: Any, settings: _Settings) -> None:
        self._rows = rows
        self._settings = settings
        self._progress = [_Progress(Transcript(tokenizer, row.stops), random.Random(row.seed)) for row in rows]
        self._warpers: list[Any] = []
        # In the order of transformers' own sampling, which is vLLM's too.
        if settings.temperature > 0:
            self._warpers.append(hf.TemperatureLogitsWarper(float(settings.temperature)))
            if settings.top_k:
                self._warpers.append(hf.TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self._warpers.append(hf.TopPLogitsWarper(settings.top_p))

    def draw(self, ids: Any, logits: Any) -> Any:
        """Logits (rows, vocabulary) that leave one token in each row: the one that was drawn."""
        chosen = logits.argmax(-1) if self._settings.temperature == 0 else self._drawn(ids, logits.float())
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def _drawn(self, ids: Any, logits: Any) -> Any:
        for warper in self._warpers:
            logits = warper(ids, logits)
        upto = logits.softmax(-1).cumsum(-1)
        whole = upto[:, -1:].contiguous()
        if not bool(whole.isfinite().all()):
            raise EngineError("The model's logits are not numbers: its weights are broken.")
        # Drawn on the CPU, so that they are the same on every device.
        points = torch.tensor([[0.0 if p.done else p.chance.random()] for p in self._progress])
        found = torch.searchsorted(upto, points.to(upto) * whole, right=True)
        # Rounding may put a point at the very end, behind the last token that has a probability at all.
        return torch.minimum(found, torch.searchsorted(upto, whole)).squeeze(1)

    def take(self, ids: Any, scores: Any, **_: object) -> Any:
        """Take in this step's tokens.

        Args:
            ids: Int tensor (rows, tokens so far).
            scores: Not used.

        Returns:
            Bool tensor (rows): whether the row is done.
        """
        for row, progress, token in zip(self._rows, self._progress, ids[:, -1].tolist(), strict=True):
            if not progress.done:
                self._step(row, progress, token)
        return torch.tensor([p.done for p in self._progress], device=ids.device)

    def _step(self, row: _Row, progress: _Progress, token: int) -> None:
        progress.count += 1
        finish: Literal["stop", "length"] = "stop"
        if token not in self._settings.ends and not progress.transcript.add(token):
            if progress.count < row.limit:
                return
            finish = "length"
        progress.done = True
        row.sample = Sample(progress.transcript.text, progress.count, finish)


# --- vLLM ------------------------------------------------------------------------------------------------------------


class VLLMSampler(Sampler):
    """Samples with vLLM: all of a call's turns at once, each prompt read once for all its samples.

    Args:
        model: A checkpoint folder or hub id.
        format: Id of the prompt format.
        options: Of `VLLMEngine`.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ConfigurationError: It finds no device, can't load the checkpoint, that was trained in another format, or the
            format asks for no reasoning.
    """

    name: ClassVar[str] = "vllm"

    def __init__(self, model: str | Path, *, format: str = "guardreasoner-vl/1", **options: Any) -> None:
        self.format = reasoning_format(format)
        if options.get("data_parallel_size", 1) > 1:
            raise ConfigurationError(
                "vLLM spreads no samples over copies.", hint="Sample from a server: ServerSampler."
            )
        self._engine = vllm.VLLMEngine(model, **options)
        _check_fit(self.format, self._engine)

    def close(self) -> None:
        """Shut vLLM down. The next call starts it again."""
        self._engine.close()

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
        loaded = self._engine._work.load()
        given, parameters, stops = [], [], []
        for turn in turns:
            prompt = prompt_of(self.format, turn)
            try:
                given.append(loaded.given(prompt))
            except GuardrailError as error:
                raise named(error, turn) from None
            stops.append(prompt.stop)
            # vLLM takes no several greedy samples, and they would all be the same.
            many = count if temperature > 0 else 1
            parameters.append(
                _parameters(prompt, many, temperature, top_p, top_k, max_tokens, seed_of(seed, turn.id, 0))
            )
        try:
            outputs = loaded.core.complete(list(zip(given, parameters, strict=True)))
        except Exception as error:
            raise loaded.refused(error) from None
        drawn = [_samples(output, stop, loaded) for output, stop in zip(outputs, stops, strict=True)]
        return [one * count if temperature == 0 else one for one in drawn]


def _parameters(
    prompt: Prompt, count: int, temperature: float, top_p: float, top_k: int, max_tokens: int, seed: int
) -> Any:
    """As the engine asks, with sampling. Every turn has its seed; vLLM adds the sample's number to it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=count,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        stop=list(prompt.stop),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _samples(output: Any, stops: tuple[str, ...], loaded: Any) -> list[Sample]:
    out = []
    for answer in sorted(output.outputs, key=lambda answer: answer.index):
        transcript = Transcript(loaded.tokenizer, stops)
        for token in answer.token_ids:
            if token in loaded.ends or transcript.add(token):
                break
        finish: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
        out.append(Sample(transcript.text, len(answer.token_ids), finish))
    return out
