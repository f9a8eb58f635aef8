"""Runs one adapter in its own virtual environment: a command as JSON on each line of stdin, an answer on each of stdout."""

import asyncio
import importlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "adapters"))
PROMPT = "Tell me something nice about the sea, in about twenty words please."
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints goes to stderr
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def timed(adapter, prompt, latencies):
    start = time.perf_counter()
    adapter.call(prompt)
    latencies.append((time.perf_counter() - start) * 1e3)


async def atimed(adapter, prompt, latencies):
    start = time.perf_counter()
    await adapter.call(prompt)
    latencies.append((time.perf_counter() - start) * 1e3)


def calls(adapter, runner, count, concurrency):
    """Latencies of so many calls, so many at a time."""
    latencies = []
    prompts = [f"{PROMPT} {i}" for i in range(count)]
    if not adapter.asynchronous:
        if concurrency == 1:
            for prompt in prompts:
                timed(adapter, prompt, latencies)
        else:
            with ThreadPoolExecutor(concurrency) as pool:
                list(pool.map(lambda prompt: timed(adapter, prompt, latencies), prompts))
        return latencies

    async def work():
        gate = asyncio.Semaphore(concurrency)

        async def one(prompt):
            async with gate:
                await atimed(adapter, prompt, latencies)

        if concurrency == 1:
            for prompt in prompts:
                await atimed(adapter, prompt, latencies)
        else:
            await asyncio.gather(*map(one, prompts))

    runner.run(work())
    return latencies


def stream(adapter, runner):
    """What was shown when, in seconds, and how it ended."""
    shown = []
    start = time.perf_counter()
    try:
        if adapter.asynchronous:

            async def work():
                async for text in adapter.stream(PROMPT):
                    if text:
                        shown.append((time.perf_counter() - start, text))

            runner.run(work())
        else:
            for text in adapter.stream(PROMPT):
                if text:
                    shown.append((time.perf_counter() - start, text))
        outcome = "ended"
    except Exception as error:
        outcome = type(error).__name__
    return {"shown": shown, "total_s": time.perf_counter() - start, "outcome": outcome}


def run(adapter, runner, command):
    cpu, wall = time.process_time(), time.perf_counter()
    if command["run"] == "stream":
        answer = stream(adapter, runner)
    else:
        answer = {"ms": calls(adapter, runner, command["count"], command["concurrency"])}
    count = len(answer.get("ms", "1"))
    return {**answer, "wall_s": time.perf_counter() - wall, "cpu_ms": (time.process_time() - cpu) * 1e3 / count}


def main():
    adapter = None
    with asyncio.Runner() as runner:

        def wait(result):
            return runner.run(result) if asyncio.iscoroutine(result) else result

        for line in sys.stdin:
            command = json.loads(line)
            if command["run"] == "setup":
                if adapter:
                    wait(adapter.close())
                adapter = importlib.import_module(command["module"]).Adapter()
                wait(adapter.setup(command["base"], command["guard"], command["llm"], **command["options"]))
                answer = {}
            else:
                answer = run(adapter, runner, command)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        if adapter:
            wait(adapter.close())


main()
