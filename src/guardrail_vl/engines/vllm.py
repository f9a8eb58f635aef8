"""The engine that runs a checkpoint in this process with vLLM. Knows nothing of labels or verdicts.

One thread owns one `vllm.LLM` and steps it: prompts of all callers, sync and async, join the running batch as they
come, and those that nobody waits for any more are aborted. Not `AsyncLLM`: its core always runs in a second process, so
the in-process form (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) is not to be had, and sync callers would need a loop of ours.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from guardrail_vl.engines._batching import Job, Worker, agather, closed, gather
from guardrail_vl.engines._chat import Chat
from guardrail_vl.engines._checkpoint import TrainedFormat, model_name, read_guard_json
from guardrail_vl.engines._decode import Transcript, piece
from guardrail_vl.engines._hardware import ask_for_amx, cpu_has_bfloat16
from guardrail_vl.engines.base import Deadline, Engine, Outcome, late
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineUnavailableError,
    GuardrailError,
    MissingDependencyError,
)
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.verdict import Usage

MAX_IMAGES = 10
"""Pictures in one prompt unless `limit_mm_per_prompt` says otherwise."""


def vllm_device() -> tuple[str, str]:
    """The kind of device that vLLM would run on here, and why, in a sentence. Loads no model; takes seconds.

    An import is not enough: the wheel for GPUs imports everywhere, and fails when it is given a model.

    Returns:
        (`cuda`, `rocm`, `cpu`, …, or empty where it can't run; the sentence)
    """
    if find_spec("vllm") is None:
        return "", "vLLM is not installed"
    try:
        from vllm.platforms import current_platform
    except Exception as error:  # a broken installation fails in its own ways
        return "", f"vLLM is installed, but can't be imported ({type(error).__name__})"
    device: str = current_platform.device_type
    if not device:
        return "", "vLLM is installed, but finds no device that it was built for"
    return device, f"vLLM is installed and runs on this machine's {device}"


def vllm_available() -> tuple[bool, str]:
    """Whether vLLM can run on this machine, and why or why not; see `vllm_device`."""
    device, why = vllm_device()
    return bool(device), why


@dataclass(frozen=True, slots=True)
class _Settings:
    model: str
    revision: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class _Loaded:
    llm: Any
    chat: Chat
    tokenizer: Any
    ends: frozenset[int]
    max_length: int
    pid: int


class VLLMEngine(Engine):
    """Completes prompts with vLLM: prefix caching (the instruction is shared), pictures, enforced patterns.

    The weights are loaded when the engine is made. After `close`, and in the process that unpickles it, they are loaded
    by the first prompt, which may then be late; `load` does it beforehand.

    Args:
        model: A checkpoint folder or hub id.
        revision: Commit, tag or branch of the hub id.
        options: Any other argument of `vllm.LLM`, such as `tensor_parallel_size` or `gpu_memory_utilization`.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ConfigurationError: It finds no device, or can't load the checkpoint.
    """

    format: ClassVar[str] = "guardreasoner-vl/1"

    def __init__(self, model: str | Path, *, revision: str | None = None, **options: Any) -> None:
        self._set_up(_Settings(str(model), revision, options))
        self.load()

    def _set_up(self, settings: _Settings) -> None:
        self._settings = settings
        self.model = model_name(settings.model, settings.revision)
        self.trained_format: TrainedFormat | None = read_guard_json(settings.model)
        self._loaded: _Loaded | None = None
        self._worker = Worker(self._work, name="guardrail-vl-vllm")
        self._ids = count()

    def __reduce__(self) -> tuple[Callable[[_Settings], VLLMEngine], tuple[_Settings]]:
        return _from_settings, (self._settings,)

    def __repr__(self) -> str:
        return f"VLLMEngine({self.model!r})"

    def load(self) -> None:
        """Load the weights now, unless they are.

        Raises:
            MissingDependencyError: vLLM is not installed.
            ConfigurationError: It finds no device, or can't load the checkpoint.
            EngineUnavailableError: This is a forked process, and its parent has them.
        """
        if self._loaded is None:
            self._loaded = _load(self._settings, self.model)
        elif self._loaded.pid != os.getpid():
            raise EngineUnavailableError(
                "A forked process can't use its parent's vLLM.", hint="Start processes with the spawn method."
            )

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.generate`."""
        return gather(self._worker.submit(prompts, deadline), deadline)

    async def agenerate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.agenerate`. Uses no thread per call; cancelling it aborts the prompts."""
        return await agather(self._worker.submit(prompts, deadline), deadline)

    def close(self) -> None:
        """End the thread and shut vLLM down. The next prompt starts it again."""
        self._worker.close()
        loaded, self._loaded = self._loaded, None
        if loaded is not None and loaded.pid == os.getpid():
            loaded.llm.llm_engine.engine_core.shutdown()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self, stopping: threading.Event) -> None:
        """Step the engine until nobody waits for anything."""
        running: dict[str, Job] = {}
        failure: GuardrailError = closed()
        try:
            self.load()
            loaded = self._loaded
            while loaded is not None and not stopping.is_set():
                self._admit(loaded, running)
                self._abort(loaded, running)
                if not running:
                    return
                for output in loaded.llm.llm_engine.step():
                    job = running.get(output.request_id)
                    if job is not None and output.finished:
                        del running[output.request_id]
                        job.settle(self._completion(output, job, loaded))
            if loaded is not None:
                loaded.llm.llm_engine.abort_request(list(running))
        except GuardrailError as error:
            failure = error
        except Exception as error:
            failure = EngineUnavailableError(f"vLLM failed: {type(error).__name__}.", hint="See vLLM's own log.")
            self._loaded = None
        self._fail(running, failure, queued=not stopping.is_set())

    def _fail(self, running: Mapping[str, Job], failure: GuardrailError, *, queued: bool) -> None:
        left: list[Job] = []
        if queued:
            with self._worker.changed:
                left, self._worker.queue = self._worker.queue, []
        for job in (*running.values(), *left):
            job.settle(failure.with_traceback(None))

    def _admit(self, loaded: _Loaded, running: dict[str, Job]) -> None:
        with self._worker.changed:
            new, self._worker.queue = self._worker.queue, []
        for job in new:
            if job.over:
                job.settle(late())
                continue
            name = f"guardrail-vl-{next(self._ids)}"
            try:
                loaded.llm.llm_engine.add_request(name, self._input(job.prompt, loaded), _parameters(job.prompt))
                running[name] = job
            except Exception as error:
                job.settle(_refused(error, loaded))

    def _abort(self, loaded: _Loaded, running: dict[str, Job]) -> None:
        over = [name for name, job in running.items() if job.over]
        if over:
            loaded.llm.llm_engine.abort_request(over)
            for name in over:
                running.pop(name).settle(late())

    def _input(self, prompt: Prompt, loaded: _Loaded) -> dict[str, Any]:
        ids = loaded.chat.ids(prompt)
        if len(ids) >= loaded.max_length:
            raise ContentError(
                f"The prompt takes {len(ids)} tokens; the guard model reads at most {loaded.max_length - 1}."
            )
        given: dict[str, Any] = {"prompt_token_ids": ids}
        if prompt.images:
            # One placeholder id for each picture; vLLM makes room for its visual tokens.
            given["multi_modal_data"] = {"image": [image.pixels() for image in prompt.images]}
        return given

    def _completion(self, output: Any, job: Job, loaded: _Loaded) -> Completion:
        (answer,) = output.outputs
        transcript = Transcript(loaded.tokenizer, job.prompt.stop)
        for i, token in enumerate(answer.token_ids):
            if token in loaded.ends:
                break
            transcript.add(token, *_scored(answer.logprobs, i, token, job.prompt.top_logprobs, loaded.tokenizer))
        return Completion(
            text=transcript.text,
            finish="length" if answer.finish_reason == "length" else "stop",
            tokens=tuple(transcript.tokens),
            model=self.model,
            usage=Usage(len(output.prompt_token_ids or ()), len(answer.token_ids)),
            latency=time.monotonic() - job.since,
        )


def _from_settings(settings: _Settings) -> VLLMEngine:
    engine = VLLMEngine.__new__(VLLMEngine)
    engine._set_up(settings)
    return engine


def _load(settings: _Settings, name: str) -> _Loaded:
    usable, why = vllm_available()
    if not usable:
        if find_spec("vllm") is None:
            raise MissingDependencyError("vllm", extra="vllm", needed_for="VLLMEngine")
        raise ConfigurationError(f"{why}.", hint="Use the transformers engine, or a machine with a GPU.")
    from transformers import AutoConfig, AutoTokenizer
    from vllm import LLM
    from vllm.platforms import current_platform

    options = {"enable_prefix_caching": True, **settings.options}
    try:
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision)
        tokenizer = AutoTokenizer.from_pretrained(settings.model, revision=settings.revision)
        sees = hasattr(config, "vision_config")
        if sees:
            options.setdefault("limit_mm_per_prompt", {"image": MAX_IMAGES, "video": 0})
        if current_platform.device_type == "cpu":
            if not cpu_has_bfloat16():
                # vLLM's `auto` would take bfloat16, which this CPU emulates.
                options.setdefault("dtype", "float32")
            ask_for_amx()
        llm = LLM(settings.model, revision=settings.revision, **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"vLLM can't run the checkpoint {name}: {error}") from error
    # The first answer takes seconds longer than the next ones; better here than within somebody's deadline.
    warm = {"prompt_token_ids": tokenizer.encode("warm", add_special_tokens=False)}
    llm.generate([warm], _parameters(Prompt((), max_tokens=2, top_logprobs=20, pattern="a+")), use_tqdm=False)
    model_config = llm.llm_engine.model_config
    ends = {tokenizer.eos_token_id, *_as_list(model_config.try_get_generation_config().get("eos_token_id"))}
    return _Loaded(
        llm=llm,
        chat=Chat(tokenizer, images=sees),
        tokenizer=tokenizer,
        ends=frozenset(i for i in ends if i is not None),
        max_length=model_config.max_model_len,
        pid=os.getpid(),
    )


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _parameters(prompt: Prompt) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        temperature=0,
        max_tokens=prompt.max_tokens,
        stop=list(prompt.stop),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=prompt.top_logprobs or None,
        structured_outputs=StructuredOutputsParams(regex=prompt.pattern) if prompt.pattern else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _scored(logprobs: Any, i: int, token: int, many: int, tokenizer: Any) -> tuple[Any, ...]:
    """Arguments for `Transcript.add`: nothing, or the token's log-probability and its alternatives."""
    if not many or not logprobs:
        return ()
    here = logprobs[i]
    best = sorted(here.items(), key=lambda item: -item[1].logprob)[:many]
    return here[token].logprob, [(piece(tokenizer, t), told.logprob) for t, told in best]


def _refused(error: Exception, loaded: _Loaded) -> GuardrailError:
    """The error for a prompt that vLLM did not take. Without its cause, which may quote the prompt."""
    if isinstance(error, GuardrailError):
        return error.with_traceback(None)
    text = f"{error} {error.__cause__}".lower()
    if "context length" in text or "max_model_len" in text or "maximum model length" in text:
        return ContentError(f"The prompt takes more tokens than the guard model reads ({loaded.max_length - 1}).")
    if "absolute aspect ratio" in text:
        return ContentError("A picture can't be prepared for the guard model: its sides are too unequal.")
    if "encoder cache size" in text:
        return ContentError(
            "A picture takes more tokens than vLLM has set aside.", hint="Raise max_num_batched_tokens."
        )
    return EngineError(f"vLLM did not take the prompt: {type(error).__name__}.")
