"""What the server costs: `/v1/guard` with an engine of a fixed delay, beside a bare FastAPI echo with the same delay.

    python benchmarks/server/load.py [--delay 0.05] [--seconds 5] [--rounds 3] [--output benchmarks/server/load]

Both servers run at once, each in a process of its own, and are asked in turn, so that a noisy machine is noisy for both.
Ours runs as `guardrail-vl serve` runs it, the echo as uvicorn does by itself.
Every request has a text of its own: nothing is remembered. The client is a third process's worth of work on the same
cores, so at high concurrency both are slower than they would be alone.

    python benchmarks/server/load.py --soak 1800        # moderate load, and the server's memory as time goes by
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONCURRENCY = (1, 32, 256)
KINDS = ("echo", "guard")
HEAD = "| callers | echo, /s | guard, /s | ratio | echo p99, ms | guard p99, ms |\n|---|---|---|---|---|---|"


# ---- the servers -----------------------------------------------------------------------------------------------------


def serve(kind: str, delay: float) -> None:
    """Run one server until it is killed; prints its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(port, flush=True)
    if kind == "echo":
        import uvicorn
        from fastapi import FastAPI, Request

        app = FastAPI()

        async def echo(request: Request) -> Any:
            asked = await request.json()
            await asyncio.sleep(delay)
            return asked

        # The module's annotations are text, and `Request` is no name of it.
        echo.__annotations__["request"] = Request
        app.post("/v1/guard")(echo)
        uvicorn.run(app, port=port, log_config=None, access_log=False)
    else:
        from guardrail_vl import Guard
        from guardrail_vl.prompt_format.base import Completion
        from guardrail_vl.server import Settings, create_app, run
        from guardrail_vl.testing import ScriptedEngine

        text = "<think>\nA fixed answer.\n</think>\n\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>"
        engine = ScriptedEngine(lambda prompt: Completion(text, model="fixed"), delay=delay)
        engine.prompts = _Forgetful()
        run(create_app(Guard(engine=engine), Settings(canaries=False, max_in_flight=1024)), port=port)


class _Forgetful(list[Any]):
    """The scripted engine keeps every prompt, for tests; here that would be a leak."""

    def extend(self, items: Any) -> None:
        pass


# ---- the client ------------------------------------------------------------------------------------------------------


async def ask(url: str, concurrency: int, seconds: float) -> dict[str, float]:
    """Closed loop: so many callers, each asking again as soon as it has its answer."""
    import aiohttp

    taken: list[float] = []
    failed = 0
    run = time.time_ns()
    end = time.perf_counter() + seconds

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def caller(number: int) -> None:
            nonlocal failed
            count = 0
            while time.perf_counter() < end:
                count += 1
                begun = time.perf_counter()
                async with session.post(
                    url, json={"prompt": f"Run {run}: caller {number} asks for the {count}th time. " * 4}
                ) as reply:
                    await reply.read()
                    failed += reply.status != 200
                taken.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(concurrency)))
        spent = time.perf_counter() - begun
    assert not failed, f"{failed} requests failed"
    taken.sort()
    return {"throughput": len(taken) / spent, "p50": taken[len(taken) // 2], "p99": taken[int(len(taken) * 0.99)]}


def compare(delay: float, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Both servers in turn, at every concurrency; the median of the rounds."""
    with Servers(KINDS, delay) as urls:
        for url in urls.values():
            asyncio.run(ask(url, 32, 1.0))
        rows = []
        for concurrency in CONCURRENCY:
            runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
            for _ in range(rounds):
                for kind in KINDS:
                    runs[kind].append(asyncio.run(ask(urls[kind], concurrency, seconds)))
            pairs = zip(runs["guard"], runs["echo"], strict=True)
            row: dict[str, Any] = {
                "concurrency": concurrency,
                "ratio": statistics.median(g["throughput"] / e["throughput"] for g, e in pairs),
            }
            for kind in KINDS:
                row[kind] = {name: statistics.median(run[name] for run in runs[kind]) for name in runs[kind][0]}
            rows.append(row)
            print(line(row), flush=True)
    return rows


def soak(delay: float, seconds: float, concurrency: int = 16) -> list[dict[str, float]]:
    """Moderate load for a while, and the server's resident memory as it goes."""
    rows = []
    with Servers(("guard",), delay) as urls:
        begun = time.monotonic()
        step = max(10.0, seconds / 30)
        while time.monotonic() - begun < seconds:
            got = asyncio.run(ask(urls["guard"], concurrency, step))
            status = Path(f"/proc/{urls.pids['guard']}/status").read_text()
            resident = int(next(one for one in status.splitlines() if one.startswith("VmRSS")).split()[1]) / 1024
            rows.append({"seconds": time.monotonic() - begun, "MiB": resident, **got})
            print(f"{rows[-1]['seconds']:7.0f} s  {resident:7.1f} MiB  {got['throughput']:7.0f}/s", flush=True)
    return rows


class Servers(dict[str, str]):
    """The servers' URLs, while they run."""

    def __init__(self, kinds: tuple[str, ...], delay: float) -> None:
        super().__init__()
        self._kinds, self._delay = kinds, delay
        self._processes: list[subprocess.Popen[str]] = []
        self.pids: dict[str, int] = {}

    def __enter__(self) -> Servers:
        for kind in self._kinds:
            process = subprocess.Popen(
                [sys.executable, __file__, "--serve", kind, "--delay", str(self._delay)],
                stdout=subprocess.PIPE,
                text=True,
            )
            self._processes.append(process)
            assert process.stdout is not None
            port = int(process.stdout.readline())
            self[kind] = f"http://127.0.0.1:{port}/v1/guard"
            self.pids[kind] = process.pid
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()


def line(row: dict[str, Any]) -> str:
    guard, echo = row["guard"], row["echo"]
    return (
        f"| {row['concurrency']} | {echo['throughput']:.0f} | {guard['throughput']:.0f} | {row['ratio']:.2f} | "
        f"{echo['p99'] * 1000:.0f} | {guard['p99'] * 1000:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=KINDS)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.delay)
        return
    if options.soak:
        found: list[Any] = soak(options.delay, options.soak)
    else:
        print(HEAD)
        found = compare(options.delay, options.seconds, options.rounds)
    if options.output and not options.soak:
        options.output.with_suffix(".md").write_text("\n".join([HEAD, *map(line, found)]) + "\n")
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
