"""By how much a check exceeds its deadline when the server hangs, drips or fails, retries included.

The server is `tests/servers.py`, in another process. Each figure is over `--rounds` checks, in milliseconds.

    pip install -e . && python benchmarks/http_client/deadline.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.servers import start

from guardrail_vl.engines.base import Deadline
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.prompt_format.base import Prompt, PromptMessage, PromptText

PROMPT = Prompt((PromptMessage("user", (PromptText("x" * 2330),)),), max_tokens=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--deadline", type=float, default=0.3)
    args = parser.parse_args()

    async def late(url: str, behaviour: str) -> list[float]:
        engine = RemoteEngine(url, model=behaviour, attempts=1000, trip_after=10**9)
        over = []
        for _ in range(args.rounds):
            began = time.perf_counter()
            outcomes = await engine.agenerate([PROMPT], deadline=Deadline.after(args.deadline))
            over.append((time.perf_counter() - began - args.deadline) * 1e3)
            assert isinstance(outcomes[0], EngineUnavailableError)
        await engine.aclose()
        return over

    def late_sync(url: str, behaviour: str) -> list[float]:
        engine = RemoteEngine(url, model=behaviour, attempts=1000, trip_after=10**9)
        over = []
        for _ in range(args.rounds):
            began = time.perf_counter()
            outcomes = engine.generate([PROMPT], deadline=Deadline.after(args.deadline))
            over.append((time.perf_counter() - began - args.deadline) * 1e3)
            assert isinstance(outcomes[0], EngineUnavailableError)
        engine.close()
        return over

    print("| server | sync p50 | sync max | async p50 | async max |\n|---|---|---|---|---|")
    with start() as server:
        for behaviour in ("hang", "hang-body", "drip", "drip-body", "status:503"):
            rows = [late_sync(server.url, behaviour), asyncio.run(late(server.url, behaviour))]
            shown = " | ".join(f"{statistics.median(row):.1f} | {max(row):.1f}" for row in rows)
            print(f"| {behaviour} | {shown} |", flush=True)
    print(f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}, deadline {args.deadline} s")


if __name__ == "__main__":
    main()
