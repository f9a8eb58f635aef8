"""Runs one adapter in its own virtual environment: a command as JSON on each line of stdin, an answer on each of stdout."""

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "adapters"))
PROMPT = "Tell me something nice about the sea, in about twenty words please."
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints goes to stderr


def rss_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


async def timed(adapter, prompt, latencies):
    start = time.perf_counter()
    await adapter.call(prompt)
    latencies.append((time.perf_counter() - start) * 1e3)


async def run(adapter, command):
    kind, count = command["run"], command.get("count", 0)
    latencies = []
    cpu, wall = time.process_time(), time.perf_counter()
    if kind == "seq":
        for i in range(count):
            await timed(adapter, f"{PROMPT} {i}", latencies)
    elif kind == "conc":
        gate = asyncio.Semaphore(command["concurrency"])

        async def one(i):
            async with gate:
                await timed(adapter, f"{PROMPT} {i}", latencies)

        await asyncio.gather(*(one(i) for i in range(count)))
    elif kind == "hang":
        try:
            await asyncio.wait_for(adapter.call(PROMPT), 12)
            outcome = "answered"
        except Exception as error:
            outcome = f"{type(error).__name__}: {getattr(getattr(error, 'decision', None), 'reason', '')}".strip(": ")
        return {"seconds": time.perf_counter() - wall, "outcome": outcome}
    return {
        "ms": latencies,
        "wall_s": time.perf_counter() - wall,
        "cpu_ms": (time.process_time() - cpu) * 1e3 / max(1, count),
        "rss_mb": rss_mb(),
    }


async def main():
    loop, adapter = asyncio.get_running_loop(), None
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command["run"] == "setup":
            if adapter:
                await adapter.close()
            module = importlib.import_module(command["adapter"])
            adapter = module.Adapter()
            guard = f"guard-{module.FORMAT}-{command['guard_ms']}"
            await adapter.setup(command["base"], guard, f"llm-{command['llm_ms']}", command["deadline"])
            answer = {"rss_mb": rss_mb(), "parallel": adapter.parallel}
        else:
            answer = await run(adapter, command)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if adapter:
        await adapter.close()


asyncio.run(main())
