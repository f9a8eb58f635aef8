"""CPU of one check's way through RemoteEngine, beside its HTTP client alone with the same bytes.

The server is `measure.py`'s, in another process, on another core where there is one. Rounds take turns; each figure is
the least of its rounds.

    pip install -e . uvloop && python benchmarks/http_client/engine.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import measure

from guardrail_vl.engines._http import Request, Target
from guardrail_vl.engines._http_async import AsyncTransport
from guardrail_vl.engines._http_sync import SyncTransport
from guardrail_vl.engines.base import Deadline
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptMessage, PromptText

PROMPT = Prompt((PromptMessage("user", (PromptText("x" * 2330),)),), max_tokens=8)
Row = tuple[float, float]


def timed(work: Callable[[], None], count: int) -> Row:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return (time.process_time() - cpu) / count * 1e3, (time.perf_counter() - wall) / count * 1e3


async def atimed(work: Callable[[], Awaitable[object]], count: int) -> Row:
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return (time.process_time() - cpu) / count * 1e3, (time.perf_counter() - wall) / count * 1e3


def engine_sync(url: str, count: int) -> Row:
    engine = RemoteEngine(url, model="guard")

    def work() -> None:
        for _ in range(count):
            assert isinstance(engine.generate([PROMPT], deadline=Deadline.after(10))[0], Completion)

    work()
    row = timed(work, count)
    engine.close()
    return row


def transport_sync(url: str, count: int) -> Row:
    transport = SyncTransport(Target(None, measure.HEADERS, 100))
    request = Request("POST", f"{url}/chat/completions", measure.BODY)

    def work() -> None:
        for _ in range(count):
            transport.send(request, 10)

    work()
    row = timed(work, count)
    transport.close()
    return row


async def engine_async(url: str, count: int, concurrency: int) -> Row:
    engine = RemoteEngine(url, model="guard")

    async def one(n: int) -> None:
        for _ in range(n):
            assert isinstance((await engine.agenerate([PROMPT], deadline=Deadline.after(10)))[0], Completion)

    async def work() -> None:
        await asyncio.gather(*(one(count // concurrency) for _ in range(concurrency)))

    await work()
    row = await atimed(work, count // concurrency * concurrency)
    await engine.aclose()
    return row


async def transport_async(url: str, count: int) -> Row:
    transport = AsyncTransport(Target(None, measure.HEADERS, 100))
    request = Request("POST", f"{url}/chat/completions", measure.BODY)

    async def work() -> None:
        for _ in range(count):
            await transport.send(request, 10)

    await work()
    row = await atimed(work, count)
    await transport.aclose()
    return row


async def client_async(url: str, count: int) -> Row:
    rows: list[Row] = []

    async def run(post: measure.AsyncPost) -> None:
        async def work() -> None:
            for _ in range(count):
                await post()

        await work()
        rows.append(await atimed(work, count))

    await measure.aiohttp_async(f"{url}/chat/completions", run)
    return rows[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) > 1:
        os.sched_setaffinity(server.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})
    n = args.count
    rows: dict[str, Callable[[], Row]] = {
        "aiohttp alone": lambda: asyncio.run(client_async(url, n)),
        "AsyncTransport": lambda: asyncio.run(transport_async(url, n)),
        "RemoteEngine.agenerate": lambda: asyncio.run(engine_async(url, n, 1)),
        "RemoteEngine.agenerate, 64 at a time": lambda: asyncio.run(engine_async(url, n, 64)),
        "SyncTransport (httpcore)": lambda: transport_sync(url, n),
        "RemoteEngine.generate": lambda: engine_sync(url, n),
    }
    found: dict[str, list[Row]] = {name: [] for name in rows}
    try:
        for _ in range(args.rounds):
            for name, row in rows.items():
                found[name].append(row())
    finally:
        server.kill()
        server.wait()
    print(f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds of {n}")
    print("| path | CPU ms, min | wall ms, min |\n|---|---|---|")
    for name, times in found.items():
        print(f"| {name} | {min(t[0] for t in times):.3f} | {min(t[1] for t in times):.3f} |")


if __name__ == "__main__":
    main()
