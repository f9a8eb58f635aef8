"""The gate: never more holders than places, no place lost, threads and loops alike."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from guardrail_vl._gate import Gate
from guardrail_vl.engines.base import Deadline
from guardrail_vl.errors import EngineUnavailableError


def test_threads_and_a_loop_share_the_places() -> None:
    gate, lock = Gate(3), threading.Lock()
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1

    def work() -> None:
        for _ in range(30):
            gate.acquire(Deadline.after(30))
            enter()
            time.sleep(0.0005)
            leave()
            gate.release()

    async def one() -> None:
        for _ in range(10):
            await gate.aacquire(Deadline.after(30))
            enter()
            await asyncio.sleep(0.0005)
            leave()
            gate.release()

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(8)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(many())
    for thread in threads:
        thread.join()
    assert most == 3
    assert gate._free == 3


def test_waiting_ends_at_the_deadline_and_loses_no_place() -> None:
    gate = Gate(1)
    gate.acquire(Deadline.after(1))
    start = time.monotonic()
    with pytest.raises(EngineUnavailableError):
        gate.acquire(Deadline.after(0.05))
    with pytest.raises(EngineUnavailableError):
        asyncio.run(gate.aacquire(Deadline.after(0.05)))
    assert time.monotonic() - start < 2
    gate.release()
    gate.acquire(Deadline.after(0.05))


def test_a_cancelled_wait_loses_no_place() -> None:
    gate = Gate(1)

    async def scenario() -> None:
        await gate.aacquire(Deadline.after(1))
        waiter = asyncio.ensure_future(gate.aacquire(Deadline.after(5)))
        await asyncio.sleep(0)
        waiter.cancel()
        gate.release()  # may be given to the cancelled one
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await gate.aacquire(Deadline.after(0.1))

    asyncio.run(scenario())
