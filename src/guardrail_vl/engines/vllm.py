"""The engine that runs a checkpoint on this machine with vLLM. Knows nothing of labels or verdicts.

What is alive, and the thread that works, is in `_vllm_work`; here are the settings and the face. Engines that differ in
the adapter alone share both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

from guardrail_vl.engines._adapters import Adapter
from guardrail_vl.engines._batching import Job, agather, gather, on_loop
from guardrail_vl.engines._checkpoint import TrainedFormat, model_name, read_guard_json
from guardrail_vl.engines._vllm_work import Settings, Work
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.prompt_format.base import Prompt


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


class VLLMEngine(Engine):
    """Completes prompts with vLLM: prefix caching (the instruction is shared), pictures, enforced patterns, adapters.

    The weights are loaded when the engine is made. After `close`, and in the process that unpickles it, they are loaded
    by the first prompt, which may then be late; `load` does it beforehand. When vLLM dies, what is under way fails and
    it is started again at once; prompts that come meanwhile wait for it, no longer than their deadlines.

    Args:
        model: A checkpoint folder or hub id.
        revision: Commit, tag or branch of the hub id.
        adapters: LoRA adapters of the checkpoint by name, each the folder that peft writes; see `adapted`.
        options: Any other argument of `vllm.LLM`, such as `tensor_parallel_size` or `gpu_memory_utilization`, and
            `data_parallel_size`: copies of the weights that share the prompts.

    Raises:
        MissingDependencyError: vLLM is not installed.
        ConfigurationError: It finds no device, or can't load the checkpoint; an adapter's folder holds none.
    """

    format: ClassVar[str] = "guardreasoner-vl/1"

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        **options: Any,
    ) -> None:
        found = tuple(Adapter.read(name, folder) for name, folder in (adapters or {}).items())
        self._set_up(Work(Settings(str(model), revision, model_name(model, revision), found, options)), None)
        self.load()

    @classmethod
    def _on(cls, work: Work, adapter: str | None) -> Self:
        """An engine on these weights, which it may share with others."""
        engine = cls.__new__(cls)
        engine._set_up(work, adapter)
        return engine

    def _set_up(self, work: Work, adapter: str | None) -> None:
        self._work, settings = work, work.settings
        self._adapter = None if adapter is None else work.adapter(adapter)
        self.model = settings.named(self._adapter)
        trained = None if self._adapter is None else read_guard_json(self._adapter.folder)
        self.trained_format: TrainedFormat | None = trained or read_guard_json(settings.model)

    def __reduce__(self) -> tuple[Callable[..., VLLMEngine], tuple[Settings, str | None]]:
        return _from_settings, (self._work.settings, None if self._adapter is None else self._adapter.name)

    def __repr__(self) -> str:
        return f"VLLMEngine({self.model!r})"

    def adapted(self, adapter: str | None) -> Self:
        """See `Engine.adapted`. Both engines have the same weights in memory, and closing one closes the other.

        Raises:
            ConfigurationError: There is no adapter of this name.
        """
        return self._on(self._work, adapter)

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Make one more adapter known, without loading anything anew. Engines made before know it too.

        Args:
            name: One that is not taken: what was judged by an adapter is remembered by its name.
            folder: As peft writes it.

        Raises:
            ConfigurationError: The name is taken, the folder holds no adapter, or the engine was made without adapters
                or for smaller ones.
        """
        self._work.add_adapter(Adapter.read(name, folder))

    def load(self) -> None:
        """Load the weights now, unless they are.

        Raises:
            MissingDependencyError: vLLM is not installed.
            ConfigurationError: It finds no device, or can't load the checkpoint.
            EngineUnavailableError: This is a forked process, and its parent has them.
        """
        self._work.load()

    def sleep(self, *, timeout: float = 30.0) -> None:
        """Free the GPU: the weights move to the CPU's memory. The next prompt wakes it; `wake` does it beforehand.

        Args:
            timeout: Seconds to wait for the prompts under way.

        Raises:
            ConfigurationError: The engine was made without `enable_sleep_mode=True`.
            EngineUnavailableError: Prompts were under way all the time.
        """
        self._work.sleep(timeout)

    def wake(self) -> None:
        """Undo `sleep`. Takes seconds."""
        self._work.wake()

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.generate`."""
        return gather(self._submit(prompts, deadline), deadline)

    async def agenerate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.agenerate`. Uses no thread per call; cancelling it aborts the prompts."""
        return await agather(self._submit(prompts, deadline), deadline)

    async def astream(self, prompt: Prompt, *, deadline: Deadline, on_text: Callable[[str], None]) -> Outcome:
        """See `Engine.astream`."""
        return (await agather(self._submit([prompt], deadline, on_loop(on_text)), deadline))[0]

    def close(self) -> None:
        """End the thread and shut vLLM down. The next prompt starts it again."""
        self._work.close()

    def _submit(
        self, prompts: Sequence[Prompt], deadline: Deadline, on_text: Callable[[str], None] | None = None
    ) -> list[Job]:
        return self._work.worker.submit(prompts, deadline, on_text=on_text, adapter=self._adapter)


def _from_settings(settings: Settings, adapter: str | None) -> VLLMEngine:
    return VLLMEngine._on(Work(settings), adapter)
