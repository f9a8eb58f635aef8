"""The thread that keeps vLLM at work: prompts in, completions out, weights loaded, slept and started again.

One thread owns one core (see `_vllm_core`) and takes what it gives: prompts of all callers, sync and async, join the
running batch as they come, and those that nobody waits for any more are aborted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from guardrail_vl.engines._adapters import Adapter, check_room, room
from guardrail_vl.engines._batching import Job, Worker, closed
from guardrail_vl.engines._chat import Chat
from guardrail_vl.engines._decode import Transcript, piece
from guardrail_vl.engines._hardware import ask_for_amx, cpu_has_bfloat16
from guardrail_vl.engines.base import Deadline, late
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineUnavailableError,
    GuardrailError,
    MissingDependencyError,
)
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptImage, PromptMessage, PromptText
from guardrail_vl.turn import ImagePart
from guardrail_vl.verdict import Usage

if TYPE_CHECKING:
    from guardrail_vl.engines._vllm_core import Core

LOG: Final = logging.getLogger("guardrail_vl.engines")

MAX_IMAGES: Final = 10
"""Pictures in one prompt unless `limit_mm_per_prompt` says otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is made of: all that is pickled."""

    model: str
    revision: str | None
    name: str
    """That a person recognises."""
    adapters: tuple[Adapter, ...]
    options: Mapping[str, Any]

    def named(self, adapter: Adapter | None) -> str:
        """The name of the weights with this adapter."""
        return self.name if adapter is None else f"{self.name}+{adapter.name}"


@dataclass(frozen=True)
class Loaded:
    """Weights in memory, and what belongs to them."""

    core: Core
    chat: Chat
    tokenizer: Any
    ends: frozenset[int]
    """Ids of the tokens that end an answer."""
    max_length: int
    """Tokens of prompt and answer together."""
    room: Mapping[str, Any]
    """For adapters; see `_adapters.room`."""
    cpu: bool
    """Whether it runs on one."""
    pid: int

    def given(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt as vLLM takes it.

        Raises:
            ContentError: It is too long, holds control tokens, or pictures that the model does not take.
        """
        ids = self.chat.ids(prompt)
        if len(ids) >= self.max_length:
            raise ContentError(
                f"The prompt takes {len(ids)} tokens; the guard model reads at most {self.max_length - 1}."
            )
        given: dict[str, Any] = {"prompt_token_ids": ids}
        if prompt.images:
            # One placeholder id for each picture; vLLM makes room for its visual tokens.
            given["multi_modal_data"] = {"image": [image.pixels() for image in prompt.images]}
        return given

    def refused(self, error: Exception) -> GuardrailError:
        """The error for a prompt that vLLM did not take. Without its cause, which may quote the prompt."""
        if isinstance(error, GuardrailError):
            return error.with_traceback(None)
        text = f"{error} {error.__cause__}".lower()
        if "context length" in text or "max_model_len" in text or "maximum model length" in text:
            return ContentError(f"The prompt takes more tokens than the guard model reads ({self.max_length - 1}).")
        if "absolute aspect ratio" in text:
            return ContentError("A picture can't be prepared for the guard model: its sides are too unequal.")
        if "encoder cache size" in text:
            return ContentError(
                "A picture takes more tokens than vLLM has set aside.", hint="Raise max_num_batched_tokens."
            )
        return EngineError(f"vLLM did not take the prompt: {type(error).__name__}.")


@dataclass(slots=True)
class _Running:
    job: Job
    transcript: Transcript
    count: int = 0
    """Tokens of the answer so far."""
    ended: bool = False
    """Whether its end token came."""


class Work:
    """What engines on the same weights share: the weights, and the thread.

    Args:
        settings: Which weights, and how.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.worker = Worker(self._work, name="guardrail-vl-vllm")
        self._loaded: Loaded | None = None
        self._asleep = False
        self._core_lock = threading.RLock()
        """Held by whoever uses the core, all the time that prompts are under way."""
        self._names = count(1)

    # --- weights ------------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """The weights, loaded now unless they are. Raises as `VLLMEngine.load`."""
        if self._is_the_parents:
            raise _forked()
        loaded = self._loaded
        if loaded is None:
            with self._core_lock:
                loaded = self._loaded = self._loaded or load(self.settings)
        return loaded

    @property
    def _is_the_parents(self) -> bool:
        """Whether this is a forked process, and what is loaded is not its own."""
        return self._loaded is not None and self._loaded.pid != os.getpid()

    def close(self) -> None:
        """End the thread, and let the weights go."""
        self.worker.close()
        self._let_go()

    def _let_go(self) -> None:
        own = None if self._is_the_parents else self._loaded
        self._loaded, self._asleep = None, False
        if own is not None:
            with contextlib.suppress(Exception):  # a dead one may complain
                own.core.close()

    def sleep(self, timeout: float) -> None:
        """See `VLLMEngine.sleep`."""
        if not self.settings.options.get("enable_sleep_mode"):
            raise ConfigurationError("This vLLM can't sleep.", hint="Make the engine with enable_sleep_mode=True.")
        if not self._core_lock.acquire(timeout=timeout):
            raise EngineUnavailableError("vLLM can't sleep: prompts are under way.")
        try:
            if self._loaded is not None and not self._asleep:
                self._loaded.core.sleep()
                self._asleep = True
        finally:
            self._core_lock.release()

    def wake(self) -> None:
        """See `VLLMEngine.wake`."""
        with self._core_lock:
            if self._loaded is not None and self._asleep:
                self._loaded.core.wake()
                self._asleep = False

    # --- adapters -----------------------------------------------------------------------------------------------------

    def adapter(self, name: str) -> Adapter:
        """The adapter of this name.

        Raises:
            ConfigurationError: There is none.
        """
        for adapter in self.settings.adapters:
            if adapter.name == name:
                return adapter
        known = ", ".join(adapter.name for adapter in self.settings.adapters) or "none"
        raise ConfigurationError(f"There is no adapter {name!r}; known: {known}.", hint="VLLMEngine(adapters={…}).")

    def add_adapter(self, adapter: Adapter) -> None:
        """See `VLLMEngine.add_adapter`."""
        known = self.settings.adapters
        if any(adapter.name == other.name for other in known):
            raise ConfigurationError(f"There is an adapter {adapter.name!r} already.")
        loaded = self.load()
        check_room((*known, adapter), loaded.room, cpu=loaded.cpu)
        self.settings = replace(self.settings, adapters=(*known, adapter))

    def _lora(self, adapter: Adapter | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        # Their order is their number; names are never given twice.
        return LoRARequest(adapter.name, self.settings.adapters.index(adapter) + 1, adapter.folder)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self, stopping: threading.Event) -> None:
        """Take what the core gives until nobody waits for anything."""
        running: dict[str, _Running] = {}
        failure: GuardrailError = closed()
        if self._is_the_parents:
            self._fail(running, _forked(), queued=True)  # the lock may be held for ever: by a thread of the parent
            return
        with self._core_lock:
            try:
                if self._loaded is not None and self._loaded.core.dead:
                    self._let_go()
                loaded = self.load()
                self.wake()
                while not stopping.is_set():
                    self._admit(loaded, running)
                    self._abort(loaded, running)
                    if not running:
                        return
                    for name, what in loaded.core.outputs():
                        if name in running and self._take(loaded, running[name], what):
                            del running[name]
                loaded.core.abort(list(running))
            except GuardrailError as error:
                failure = error
            except Exception as error:
                failure = EngineUnavailableError(
                    f"vLLM failed: {type(error).__name__}. It is being started again.", hint="See vLLM's own log."
                )
                self._fail(running, failure, queued=False)
                self._start_again(stopping)
                return
            self._fail(running, failure, queued=not stopping.is_set())

    def _start_again(self, stopping: threading.Event) -> None:
        """Load the weights anew. Where that fails, the next prompt tries again, and says why if it fails too."""
        LOG.warning("vLLM failed and is started again.")
        self._let_go()
        if stopping.is_set():
            return
        try:
            self.load()
        except GuardrailError as error:
            LOG.error("vLLM could not be started again: %s", error.message)
            self._fail({}, error, queued=True)
        else:
            LOG.warning("vLLM is there again.")
            if stopping.is_set():
                self._let_go()

    def _fail(self, running: Mapping[str, _Running], failure: GuardrailError, *, queued: bool) -> None:
        left: list[Job] = []
        if queued:
            with self.worker.changed:
                left, self.worker.queue = self.worker.queue, []
        for job in (*(one.job for one in running.values()), *left):
            job.settle(failure.with_traceback(None))

    def _admit(self, loaded: Loaded, running: dict[str, _Running]) -> None:
        with self.worker.changed:
            new, self.worker.queue = self.worker.queue, []
        for job in new:
            if job.over:
                job.settle(late())
                continue
            name = f"guardrail-vl-{next(self._names)}"
            try:
                loaded.core.add(name, loaded.given(job.prompt), _parameters(job), self._lora(job.adapter))
                running[name] = _Running(job, Transcript(loaded.tokenizer, job.prompt.stop))
            except Exception as error:
                if loaded.core.dead:
                    running[name] = _Running(job, Transcript(loaded.tokenizer, ()))  # fails with the others
                    raise
                job.settle(loaded.refused(error))

    def _abort(self, loaded: Loaded, running: dict[str, _Running]) -> None:
        over = [name for name, one in running.items() if one.job.over]
        if over:
            loaded.core.abort(over)
            for name in over:
                running.pop(name).job.settle(late())

    def _take(self, loaded: Loaded, one: _Running, what: Any) -> bool:
        """Take in what is new of a request; whether that was all."""
        if isinstance(what, Exception):
            one.job.settle(loaded.refused(what))
            return True
        (answer,) = what.outputs
        for i, token in enumerate(answer.token_ids):
            one.ended = one.ended or token in loaded.ends
            if not one.ended:
                scored = _scored(answer.logprobs, i, token, one.job.prompt.top_logprobs, loaded.tokenizer)
                one.transcript.add(token, *scored)
        one.count += len(answer.token_ids)
        if not what.finished:
            one.job.tell(one.transcript.text)
            return False
        if answer.finish_reason not in ("stop", "length"):
            one.job.settle(EngineUnavailableError("vLLM did not finish the answer.", hint="See vLLM's own log."))
            return True
        one.job.settle(
            Completion(
                text=one.transcript.text,
                finish=answer.finish_reason,
                tokens=tuple(one.transcript.tokens),
                model=self.settings.named(one.job.adapter),
                usage=Usage(len(what.prompt_token_ids or ()), one.count),
                latency=time.monotonic() - one.job.since,
            )
        )
        return True


def load(settings: Settings) -> Loaded:
    """Load the weights. Raises as `VLLMEngine.load`."""
    from guardrail_vl.engines.vllm import vllm_device

    device, why = vllm_device()
    if not device:
        if find_spec("vllm") is None:
            raise MissingDependencyError("vllm", extra="vllm", needed_for="VLLMEngine")
        raise ConfigurationError(f"{why}.", hint="Use the transformers engine, or a machine with a GPU.")
    from transformers import AutoConfig, AutoTokenizer

    from guardrail_vl.engines._vllm_core import start

    cpu = device == "cpu"
    made = room(settings.adapters, settings.options, cpu=cpu)
    options = {"enable_prefix_caching": True, **settings.options, **made}
    try:
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision)
        tokenizer = AutoTokenizer.from_pretrained(settings.model, revision=settings.revision)
        sees = hasattr(config, "vision_config")
        if sees:
            options.setdefault("limit_mm_per_prompt", {"image": MAX_IMAGES, "video": 0})
        if cpu:
            if not cpu_has_bfloat16():
                # vLLM's `auto` would take bfloat16, which this CPU emulates.
                options.setdefault("dtype", "float32")
            ask_for_amx()
        core = start(settings.model, {"revision": settings.revision, **options})
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"vLLM can't run the checkpoint {settings.name}: {error}") from error
    ends = {tokenizer.eos_token_id, *_as_list(core.model_config.try_get_generation_config().get("eos_token_id"))}
    loaded = Loaded(
        core=core,
        chat=Chat(tokenizer, images=sees),
        tokenizer=tokenizer,
        ends=frozenset(i for i in ends if i is not None),
        max_length=core.model_config.max_model_len,
        room=made,
        cpu=cpu,
        pid=os.getpid(),
    )
    _warm_up(loaded, images=sees and bool(options["limit_mm_per_prompt"].get("image", 1)))
    return loaded


def _warm_up(loaded: Loaded, *, images: bool) -> None:
    """Answer once: the first answer of each kind takes seconds longer than the next, better now than in a deadline."""
    picture = [PromptImage(ImagePart.load(Image.new("RGB", (224, 224))))] if images else []
    prompt = Prompt(
        (PromptMessage("user", (*picture, PromptText("warm"))),), max_tokens=2, top_logprobs=20, pattern="a+"
    )
    try:
        loaded.core.complete([(loaded.given(prompt), _parameters(Job(prompt, Deadline.after(0))))])
    except Exception as error:
        loaded.core.close()
        raise ConfigurationError(
            f"vLLM answers nothing: {type(error).__name__}.", hint="See vLLM's own log."
        ) from error


def _forked() -> EngineUnavailableError:
    return EngineUnavailableError(
        "A forked process can't use its parent's vLLM.", hint="Start processes with the spawn method."
    )


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _parameters(job: Job) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    prompt = job.prompt
    return SamplingParams(
        temperature=0,
        max_tokens=prompt.max_tokens,
        stop=list(prompt.stop),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=prompt.top_logprobs or None,
        structured_outputs=StructuredOutputsParams(regex=prompt.pattern) if prompt.pattern else None,
        output_kind=RequestOutputKind.DELTA if job.watched else RequestOutputKind.FINAL_ONLY,
    )


def _scored(logprobs: Any, i: int, token: int, many: int, tokenizer: Any) -> tuple[Any, ...]:
    """Arguments for `Transcript.add`: nothing, or the token's log-probability and its alternatives."""
    if not many or not logprobs:
        return ()
    here = logprobs[i]
    best = sorted(here.items(), key=lambda item: -item[1].logprob)[:many]
    return here[token].logprob, [(piece(tokenizer, t), told.logprob) for t, told in best]
