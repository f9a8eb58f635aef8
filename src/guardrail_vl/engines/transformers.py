"""The engine that runs a checkpoint in this process, with torch: GuardReasoner-VL, Qwen2.5-VL, causal text models.

Callers' prompts are batched together as they come. Needs no torchvision. Knows nothing of labels or verdicts.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from guardrail_vl.engines._bars import without_bars
from guardrail_vl.engines._batching import Job, MicroBatcher, agather, gather, on_loop
from guardrail_vl.engines._checkpoint import GUARD_JSON, TrainedFormat, model_name, read_guard_json
from guardrail_vl.engines._generation import Generator, Row
from guardrail_vl.engines._hardware import cpu_has_bfloat16
from guardrail_vl.engines._inputs import Reader, hf, load_reader
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import (
    ConfigurationError,
    EngineError,
    EngineUnavailableError,
    GuardrailError,
    MissingDependencyError,
)
from guardrail_vl.prompt_format.base import Prompt

try:
    import torch
    from transformers.utils.hub import cached_file
except ImportError as error:  # pragma: no cover - the test environment has them
    raise MissingDependencyError(
        error.name or "transformers", extra="local", needed_for="TransformersEngine"
    ) from error

_E = TypeVar("_E", bound=BaseException)

SHORT: Final = 32
"""Answers of at most this many tokens are batched with each other, and don't wait for longer ones."""
PADDED_TOKENS: Final = 32_768
"""Prompt tokens in one batch, padding included; longer prompts run in smaller batches."""


@dataclass(frozen=True, slots=True)
class _Settings:
    model: str
    device: str | None
    dtype: str | None
    max_batch: int
    max_wait: float
    revision: str | None


@dataclass(frozen=True)
class _Loaded(Reader):
    generator: Generator


class TransformersEngine(Engine):
    """Completes prompts with a checkpoint that this process loads.

    The weights are loaded when the engine is made, so a wrong path fails there. After `close`, and in the process that
    unpickles it, they are loaded by the first prompt, which may then be late; `load` does it beforehand.

    Args:
        model: A checkpoint folder or hub id: Qwen2-VL, Qwen2.5-VL and models built like them, or a causal text model.
        device: `cuda`, `cuda:1`, `mps`, `cpu`, …; None: the first of those that is there.
        dtype: `bfloat16`, `float16` or `float32`; None: bfloat16 where the device computes in it, else float32.
        max_batch: Prompts in one batch at most.
        max_wait: Seconds that a prompt waits for others to share its batch.
        revision: Commit, tag or branch of the hub id.

    Raises:
        ConfigurationError: The checkpoint can't be loaded, or is of a kind that this engine can't run.
        EngineUnavailableError: It does not fit into memory.
    """

    format: ClassVar[str] = "guardreasoner-vl/1"

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_batch: int = 8,
        max_wait: float = 0.004,
        revision: str | None = None,
    ) -> None:
        if max_batch < 1 or max_wait < 0:
            raise ConfigurationError("max_batch must be at least 1, and max_wait not negative.")
        if dtype not in (None, "bfloat16", "float16", "float32"):
            raise ConfigurationError(f"Unknown dtype {dtype!r}; known: bfloat16, float16, float32.")
        self._set_up(_Settings(str(model), device, dtype, max_batch, max_wait, revision))
        self.load()

    def _set_up(self, settings: _Settings) -> None:
        self._settings = settings
        self.model = model_name(settings.model, settings.revision)
        self.trained_format: TrainedFormat | None = _trained_format(settings)
        self._loaded: _Loaded | None = None
        self._batcher = MicroBatcher(
            self._run, group=_is_short, max_batch=settings.max_batch, max_wait=settings.max_wait, name="guardrail-vl"
        )

    def __reduce__(self) -> tuple[Callable[[_Settings], TransformersEngine], tuple[_Settings]]:
        return _from_settings, (self._settings,)

    def __repr__(self) -> str:
        return f"TransformersEngine({self.model!r})"

    def load(self) -> None:
        """Load the weights now, unless they are.

        Raises:
            ConfigurationError: They can't be loaded.
            EngineUnavailableError: They don't fit into memory.
        """
        if self._loaded is None:
            try:
                self._loaded = _load(self._settings, self.model)
            except GuardrailError:
                raise
            except Exception as error:
                raise _translated(error, "load") from error

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.generate`."""
        return gather(self._batcher.submit(prompts, deadline), deadline)

    async def agenerate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.agenerate`. Uses no thread per call; cancelling it drops the prompts."""
        return await agather(self._batcher.submit(prompts, deadline), deadline)

    async def astream(self, prompt: Prompt, *, deadline: Deadline, on_text: Callable[[str], None]) -> Outcome:
        """See `Engine.astream`."""
        jobs = self._batcher.submit([prompt], deadline, on_text=on_loop(on_text))
        return (await agather(jobs, deadline))[0]

    def close(self) -> None:
        """End the thread and let the weights go. The next prompt loads them again."""
        self._batcher.close()
        self._loaded = None

    def _run(self, jobs: Sequence[Job], stopping: threading.Event) -> None:
        try:
            self.load()
        except GuardrailError as error:
            for job in jobs:
                job.settle(_without_frames(error))
            return
        loaded = self._loaded
        if loaded is None:  # closed meanwhile
            return
        rows = [row for job in jobs if (row := _row(job, loaded)) is not None]
        for batch in _split(rows, PADDED_TOKENS):
            _complete(batch, loaded.generator, stopping)


def _from_settings(settings: _Settings) -> TransformersEngine:
    engine = TransformersEngine.__new__(TransformersEngine)
    engine._set_up(settings)
    return engine


def _is_short(prompt: Prompt) -> bool:
    return prompt.max_tokens <= SHORT


# --- loading ---------------------------------------------------------------------------------------------------------


def _trained_format(settings: _Settings) -> TrainedFormat | None:
    if Path(settings.model).is_dir():
        return read_guard_json(settings.model)
    try:
        file = cached_file(
            settings.model,
            GUARD_JSON,
            revision=settings.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None  # the model itself can't be found either, and loading it says so better
    return None if file is None else read_guard_json(file)


def _load(settings: _Settings, name: str) -> _Loaded:
    where = {"revision": settings.revision} if settings.revision else {}
    try:
        reader = load_reader(settings.model, name, settings.revision)
        device = settings.device or best_device()
        kind = hf.AutoModelForImageTextToText if reader.pictures is not None else hf.AutoModelForCausalLM
        dtype = getattr(torch, settings.dtype) if settings.dtype else best_dtype(device)
        with without_bars():
            model = kind.from_pretrained(settings.model, dtype=dtype, **where)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The checkpoint {name} can't be loaded: {error}", hint="Give a checkpoint folder or a hub id."
        ) from error
    model = model.to(device).eval()
    tokenizer = reader.tokenizer
    ends = _ends(model, tokenizer)
    # Sampling settings and penalties that came with the checkpoint would change what is decoded.
    model.generation_config = hf.GenerationConfig()
    generator = Generator(
        model=model,
        tokenizer=tokenizer,
        name=name,
        ends=ends,
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends),
        takes_token_types="mm_token_type_ids" in inspect.signature(model.forward).parameters,
    )
    return _Loaded(**vars(reader), generator=generator)


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    told = model.generation_config.eos_token_id
    ends = set(told if isinstance(told, list) else [told]) | {tokenizer.eos_token_id}
    return frozenset(i for i in ends if i is not None)


def best_device() -> str:
    """Where models run on this machine, unless another device is named."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: str) -> torch.dtype:
    """What a device computes in, whatever the checkpoint says.

    A CPU without bfloat16 instructions emulates it, several times slower.
    """
    if device.startswith("cuda") or (device == "cpu" and cpu_has_bfloat16()):
        return torch.bfloat16
    return torch.float32


# --- a batch ---------------------------------------------------------------------------------------------------------


def _row(job: Job, loaded: _Loaded) -> Row | None:
    """The job's prompt as the model takes it; None if that can't be, and then the job is settled with the reason."""
    try:
        read = loaded.read(job.prompt)
    except Exception as error:
        # Without its cause, which may quote the prompt.
        job.settle(_translated(error, "read the prompt", keep=False))
        return None
    limit = min(job.prompt.max_tokens, loaded.max_positions - len(read.ids))
    return Row(job, read.ids, limit, loaded.image_token, read.pixels, read.grid)


def _split(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Batches of rows of like length, each of at most `budget` tokens with its padding, or of one row."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batches and (len(batches[-1]) + 1) * len(row.ids) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _complete(rows: Sequence[Row], generator: Generator, stopping: threading.Event) -> None:
    """Run the rows and settle their jobs. Out of memory: again in two halves, down to single rows."""
    rows = [row for row in rows if not row.job.over]
    if not rows or stopping.is_set():
        return
    try:
        generator.run(rows, stopping)
        return
    except Exception as error:
        smaller = _is_out_of_memory(error) and len(rows) > 1
        if not smaller:
            for row in rows:
                row.job.settle(_translated(error, "complete the prompt"))
    # Outside of the handler, where the error no longer holds the tensors that did not fit.
    if smaller:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(rows) // 2
        _complete(rows[:middle], generator, stopping)
        _complete(rows[middle:], generator, stopping)


# --- the door for foreign errors -------------------------------------------------------------------------------------


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _translated(error: Exception, doing: str, *, keep: bool = True) -> GuardrailError:
    """The error of ours that stands for a foreign one. Its message holds nothing that torch may have quoted."""
    if isinstance(error, GuardrailError):
        return _without_frames(error)
    ours: GuardrailError
    if _is_out_of_memory(error):
        ours = EngineUnavailableError(
            f"There is not enough memory to {doing}.",
            hint="Use a smaller model, shorter content or a smaller max_batch.",
        )
    elif "forked subprocess" in str(error):
        ours = EngineUnavailableError(
            "A forked process can't use its parent's GPU.", hint="Start processes with the spawn method."
        )
    else:
        ours = EngineError(f"The model failed to {doing}: {type(error).__name__}.")
    ours.__cause__ = _without_frames(error) if keep else None
    return ours


def _without_frames(error: _E) -> _E:
    """The error without its traceback, whose frames would keep a batch's tensors and texts alive."""
    error.__context__ = None
    return error.with_traceback(None)
