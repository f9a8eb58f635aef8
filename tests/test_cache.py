"""The memory cache: bounded, forgetful, thread-safe."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl import Guard
from guardrail_vl.cache import MemoryCache, VerdictCache
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Label, Verdict

VERDICTS = [Verdict(prompt=Label.HARMFUL, model=str(i)) for i in range(20)]


def test_least_recently_used_goes_first() -> None:
    cache = MemoryCache(size=2)
    cache.put([(b"a", VERDICTS[0]), (b"b", VERDICTS[1])])
    cache.get([b"a"])
    cache.put([(b"c", VERDICTS[2])])
    assert cache.get([b"a", b"b", b"c"]) == [VERDICTS[0], None, VERDICTS[2]]


def test_nothing_outlives_its_time() -> None:
    now = [0.0]
    cache = MemoryCache(ttl=10, clock=lambda: now[0])
    cache.put([(b"a", VERDICTS[0])])
    now[0] = 9.9
    assert cache.get([b"a"]) == [VERDICTS[0]]
    now[0] = 10.0
    assert cache.get([b"a"]) == [None]
    assert len(cache) == 0


def test_some_may_have_less_time_and_none_more() -> None:
    now = [0.0]
    cache = MemoryCache(ttl=10, clock=lambda: now[0])
    cache.put([(b"a", VERDICTS[0])], ttl=3)
    cache.put([(b"b", VERDICTS[1])], ttl=30)
    now[0] = 3.0
    assert cache.get([b"a", b"b"]) == [None, VERDICTS[1]]
    now[0] = 10.0
    assert cache.get([b"b"]) == [None]


class Plain(VerdictCache):
    """A cache with nothing but what it must have."""

    def __init__(self) -> None:
        self.items: dict[bytes, Verdict] = {}

    def get(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        return [self.items.get(key) for key in keys]

    def put(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        self.items.update(items)


class Waiting(Plain):
    """A cache that waits on the event loop."""

    async def aget(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        await asyncio.sleep(0)
        return Plain.get(self, keys)

    async def aput(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        await asyncio.sleep(0)
        Plain.put(self, items)

    def get(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        raise AssertionError("This would block the event loop.")

    def put(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        raise AssertionError("This would block the event loop.")


@pytest.mark.parametrize("kind", [Plain, Waiting])
def test_asynchronous_checks_use_the_asynchronous_verbs(kind: type[Plain]) -> None:
    engine = ScriptedEngine(by_keyword())
    guard = Guard(engine=engine, cache=kind())

    async def main() -> None:
        await guard.acheck_prompt("Hello")
        assert (await guard.acheck_prompt("Hello")).judgements[0].remembered

    asyncio.run(main())
    assert engine.calls == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.integers(1, 5))
def test_it_remembers_what_a_plain_model_of_it_remembers(steps: list[tuple[bool, int]], size: int) -> None:
    cache = MemoryCache(size=size)
    recent: list[int] = []
    for write, key in steps:
        raw = bytes([key])
        if write:
            cache.put([(raw, VERDICTS[key])])
        else:
            assert cache.get([raw]) == [VERDICTS[key] if key in recent else None]
        if write or key in recent:
            recent = [k for k in recent if k != key] + [key]
            recent = recent[-size:]
        assert len(cache) == len(recent)


def test_threads() -> None:
    cache = MemoryCache(size=8)
    failures: list[object] = []

    def work(seed: int) -> None:
        for i in range(500):
            key = (seed * 7 + i) % 20
            cache.put([(bytes([key]), VERDICTS[key])])
            (got,) = cache.get([bytes([key])])
            if got not in (None, VERDICTS[key]):
                failures.append(got)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(cache) == 8


def test_pickled_by_configuration() -> None:
    cache = MemoryCache(size=3, ttl=5)
    cache.put([(b"a", VERDICTS[0])])
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.size, copy.ttl, len(copy)) == (3, 5, 0)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"ttl": 0}])
def test_senseless_sizes_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        MemoryCache(**arguments)  # type: ignore[arg-type]
