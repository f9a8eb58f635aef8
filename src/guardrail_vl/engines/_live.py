"""What of a remote engine is alive: connections, threads, what was found out; and the two drivers of an exchange.

It belongs to one process: after a fork the child leaves it behind and makes its own. Nothing here decides anything, and
nothing here drives an event loop from synchronous code.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from guardrail_vl.engines._completions import Messages
from guardrail_vl.engines._exchange import Await, Compute, Known, Send, Sleep, Steps, T, complete
from guardrail_vl.engines._http import Target
from guardrail_vl.engines._http_async import AsyncTransport
from guardrail_vl.engines._http_sync import SyncTransport
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.errors import ContentError, EngineError, GuardrailError
from guardrail_vl.prompt_format.base import Prompt

THREADS: Final = 16
"""Threads in which one synchronous call's prompts run beside each other, at most."""

_left_behind: list[Live] = []


class Live:
    """An engine's life in one process: connections, threads, what was found out, and the two drivers.

    Args:
        known: What is known of the server.
        target: Where requests go.
    """

    def __init__(self, known: Known, target: Target) -> None:
        self.pid = os.getpid()
        self.known = known
        self.sync_http = SyncTransport(target)
        self.async_http = AsyncTransport(target)
        self.threads = Threads(min(THREADS, target.max_connections))

    def run(self, prompt: Prompt, messages: Messages, deadline: Deadline) -> Outcome:
        """One prompt by calling."""
        try:
            return self._drive(complete(self.known, prompt, messages, deadline))
        except Exception as error:
            return _outcome(error)

    async def arun(
        self,
        prompt: Prompt,
        messages: Messages,
        deadline: Deadline,
        on_text: Callable[[str], None] | None = None,
    ) -> Outcome:
        """One prompt by awaiting. `on_text`: see `complete`."""
        try:
            return await self._adrive(complete(self.known, prompt, messages, deadline, on_text))
        except Exception as error:
            return _outcome(error)

    def close(self) -> None:
        """Close the connections and end the threads; they come back when they are needed."""
        self.sync_http.close()
        self.async_http.close()
        self.threads.close()

    def leave_behind(self) -> None:
        """After a fork, in the child: locks may be held, and sockets are the parent's too; so nothing is closed."""
        _left_behind.append(self)

    def _drive(self, steps: Steps[T]) -> T:
        try:
            effect = next(steps)
            while True:
                result: Any = None
                try:
                    match effect:
                        case Send():
                            result = self.sync_http.send(effect.request, effect.timeout)
                        case Sleep():
                            time.sleep(effect.seconds)
                        case Await():
                            concurrent.futures.wait([effect.future], effect.timeout)
                        case Compute():
                            result = effect.work()
                except Exception as error:
                    effect = steps.throw(error)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            steps.close()

    async def _adrive(self, steps: Steps[T]) -> T:
        try:
            effect = next(steps)
            while True:
                result: Any = None
                try:
                    match effect:
                        case Send():
                            result = await self.async_http.send(effect.request, effect.timeout, effect.on_body)
                        case Sleep():
                            await asyncio.sleep(effect.seconds)
                        case Await():
                            await asyncio.wait([asyncio.wrap_future(effect.future)], timeout=effect.timeout)
                        case Compute():
                            result = await asyncio.to_thread(effect.work)
                except Exception as error:
                    effect = steps.throw(error)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            steps.close()


class Threads:
    """A thread pool that exists while it is needed.

    Args:
        size: Threads at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[..., Outcome], *args: Any) -> Future[Outcome]:
        """Call this in a thread."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._size, thread_name_prefix="guardrail-vl")
            return self._pool.submit(work, *args)

    def close(self) -> None:
        """End the threads once they have done what was submitted. The next submission starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


def _outcome(error: Exception) -> GuardrailError:
    """The error of ours for a prompt. Foreign ones may quote what was sent, so only their type is named."""
    ours = error
    if isinstance(error, UnicodeEncodeError):
        ours = ContentError("The content is not valid Unicode, so it can't be sent.")
    elif not isinstance(error, GuardrailError):
        ours = EngineError(f"The remote engine failed: {type(error).__name__}.")
    assert isinstance(ours, GuardrailError)
    # Neither the frames nor what happened before: both would keep prompts alive, for whoever logs errors.
    ours.__context__ = ours.__cause__ = None
    return ours.with_traceback(None)
