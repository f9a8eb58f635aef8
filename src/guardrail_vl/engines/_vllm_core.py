"""vLLM's own engines behind one face: what the thread of `VLLMEngine` needs of them. Imports vLLM; knows no prompt.

Two forms, since vLLM has two. `Beside` is `AsyncLLM`, what `vllm serve` runs on: the model in processes beside this
one, copies of it too (data parallelism), whose death is noticed; it needs an event loop, which runs in a thread of its
own. `InProcess` is `vllm.LLM`, where `VLLM_ENABLE_V1_MULTIPROCESSING=0` asks for it; with processes beside this one it
would wait for ever for one that was killed.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from vllm import LLM, envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from guardrail_vl.errors import ConfigurationError

_PATIENCE: Final = 0.05
"""Seconds for which `Beside.outputs` waits: how late an abort may come."""
_CALL: Final = 60.0
"""Seconds that a call into the loop's thread may take."""

News = list[tuple[str, Any]]
"""Of which request, and what: vLLM's `RequestOutput`, or the exception with which it refused the request."""


class Core(ABC):
    """Loaded weights that complete requests. Not for two threads at a time."""

    model_config: Any
    dead: bool
    """Whether it is known to have died."""

    @abstractmethod
    def add(self, name: str, given: Mapping[str, Any], parameters: Any, adapter: Any) -> None:
        """Take a request in. What is wrong with it is raised, or comes with `outputs`."""

    @abstractmethod
    def outputs(self) -> News:
        """What is new, after a while at most. Raises whatever vLLM raises when it has died."""

    @abstractmethod
    def abort(self, names: Sequence[str]) -> None:
        """Forget these requests."""

    def complete(self, asked: Sequence[tuple[Mapping[str, Any], Any]]) -> list[Any]:
        """Run requests, with nothing else under way, to their ends; vLLM's last `RequestOutput` of each, in order.

        Raises:
            Exception: Whatever vLLM raises for the first that it does not take.
        """
        last: dict[str, Any] = {}
        for i, (given, parameters) in enumerate(asked):
            self.add(str(i), given, parameters, None)
        waited_for = {str(i) for i in range(len(asked))}
        try:
            while waited_for:
                for name, what in self.outputs():
                    if isinstance(what, Exception):
                        raise what
                    last[name] = what
                    if what.finished:
                        waited_for.discard(name)
        finally:
            self.abort(sorted(waited_for))
        return [last[str(i)] for i in range(len(asked))]

    @abstractmethod
    def sleep(self) -> None:
        """Move the weights to the CPU's memory and free the rest."""

    @abstractmethod
    def wake(self) -> None:
        """Take them back."""

    @abstractmethod
    def close(self) -> None:
        """Let everything go, processes included."""


def start(model: str, options: Mapping[str, Any]) -> Core:
    """Load the weights.

    Raises:
        ConfigurationError: Several copies, and all in this process.
    """
    if envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return Beside(model, options)
    if options.get("data_parallel_size", 1) > 1:
        raise ConfigurationError(
            "Copies of the weights need processes of their own.", hint="Unset VLLM_ENABLE_V1_MULTIPROCESSING."
        )
    return InProcess(model, options)


class InProcess(Core):
    """See the module."""

    dead = False

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._engine: Any = LLM(model, **options).llm_engine
        self.model_config = self._engine.model_config

    def add(self, name: str, given: Mapping[str, Any], parameters: Any, adapter: Any) -> None:
        self._engine.add_request(name, given, parameters, lora_request=adapter)

    def outputs(self) -> News:
        return [(output.request_id, output) for output in self._engine.step()]

    def abort(self, names: Sequence[str]) -> None:
        self._engine.abort_request(list(names))

    def sleep(self) -> None:
        self._engine.sleep()

    def wake(self) -> None:
        self._engine.wake_up()

    def close(self) -> None:
        self._engine.engine_core.shutdown()


class Beside(Core):
    """See the module."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self._engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(model, **{"disable_log_stats": True, **options}))
        self.model_config = self._engine.model_config
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="guardrail-vl-vllm-loop", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:  # type: ignore[override]
        return self._engine is None or bool(self._engine.errored)

    def add(self, name: str, given: Mapping[str, Any], parameters: Any, adapter: Any) -> None:
        self._loop.call_soon_threadsafe(self._follow, name, given, parameters, adapter)

    def _follow(self, name: str, given: Mapping[str, Any], parameters: Any, adapter: Any) -> None:
        task = self._loop.create_task(self._complete(name, given, parameters, adapter))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _complete(self, name: str, given: Mapping[str, Any], parameters: Any, adapter: Any) -> None:
        try:
            async for output in self._engine.generate(given, parameters, name, lora_request=adapter):
                self._news.put((name, output))
        except Exception as error:
            self._news.put((name, error))

    def outputs(self) -> News:
        news: News = []
        try:
            news.append(self._news.get(timeout=_PATIENCE))
            while True:
                news.append(self._news.get_nowait())
        except queue.Empty:
            pass
        if self.dead or any(isinstance(what, EngineDeadError) for _, what in news):
            raise EngineDeadError
        return news

    def abort(self, names: Sequence[str]) -> None:
        self._loop.call_soon_threadsafe(self._cancel, tuple(names))

    def _cancel(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._tasks:
                self._tasks[name].cancel()

    def sleep(self) -> None:
        self._run(self._engine.sleep())

    def wake(self) -> None:
        self._run(self._engine.wake_up())

    async def _end(self) -> None:
        """Cancel what still runs on the loop, vLLM's own tasks too, and wait for it."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, call: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(call, self._loop).result(_CALL)

    def close(self) -> None:
        self._engine.shutdown()
        self._engine = None  # it would be shut down once more while the interpreter goes away, and complain
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL)
        self._loop.close()
