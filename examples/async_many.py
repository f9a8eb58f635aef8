"""Many checks at once: a batch, an event loop and threads share one guard. Needs the `embedded` extra."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from guardrail_vl import Decision, Guard

TEXTS = [
    f"{verb} {thing}, please."
    for verb in ("Describe", "Draw", "Explain how to build", "Sing about")
    for thing in ("a garden shed", "a pipe bomb", "a bicycle", "the moon")
]


def summary(what: str, seconds: float, decisions: list[Decision]) -> None:
    """Print how many were allowed and blocked, and how long it took here."""
    counts = Counter(decision.action.value for decision in decisions)
    print(f"{what:<8} {dict(counts)} in {seconds:.2f} s")


async def at_once(guard: Guard) -> list[Decision]:
    """All of them under way in one event loop."""
    return list(await asyncio.gather(*(guard.acheck_prompt(text) for text in TEXTS)))


def main() -> None:
    """The same texts three ways. Without a cache, so that each way judges all of them."""
    guard = Guard(cache=False)
    begun = time.perf_counter()
    batch = list(guard.check_many(TEXTS))
    summary("batch", time.perf_counter() - begun, batch)

    begun = time.perf_counter()
    tasks = asyncio.run(at_once(guard))
    summary("tasks", time.perf_counter() - begun, tasks)

    begun = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(guard.check_prompt, TEXTS))
    summary("threads", time.perf_counter() - begun, threads)

    same = [a.action for a in batch] == [b.action for b in tasks] == [c.action for c in threads]
    print("All three agree." if same else "They differ.")


if __name__ == "__main__":
    main()
