"""RemoteEngine with many callers, event loops, processes, and lives."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from typing import Any

import pytest

from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.errors import (
    EngineUnavailableError,
)
from tests.engines.remotely import (
    MODES,
    Mode,
    ask,
    ask_many,
    fast,
    in_threads,
    no_keys,
    reason,
    running,
    server,
    text_of,
)
from tests.servers import MARK, STOP, FaultServer

__all__ = ["no_keys", "running", "server"]


# ---- many at a time -------------------------------------------------------------------------------------------------


def test_64_at_a_time_async(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="slow:0.3")

    async def go() -> list[Outcome]:
        asked = (engine.agenerate([reason(f"{i} {MARK * (i % 2)}")], deadline=Deadline.after(5)) for i in range(64))
        return [outcomes[0] for outcomes in await asyncio.gather(*asked)]

    began = time.perf_counter()
    outcomes = asyncio.run(go())
    assert time.perf_counter() - began < 2
    assert [" harmful" in text_of(outcome) for outcome in outcomes] == [bool(i % 2) for i in range(64)]
    assert server.stats()["most"] == 64


def test_64_threads(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="slow:0.3")
    outcomes: list[Outcome | None] = [None] * 64

    def one(i: int) -> None:
        outcomes[i] = ask(engine, reason(MARK * (i % 2)))

    in_threads(one, 64)
    assert [" harmful" in text_of(o) for o in outcomes if o is not None] == [bool(i % 2) for i in range(64)]
    assert server.stats()["most"] > 32
    engine.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_keeps_its_order_and_its_bound(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="slow:0.05", max_connections=4)
    outcomes = ask_many(engine, [reason(MARK * (i % 3 == 0)) for i in range(20)], mode)
    assert [" harmful" in text_of(outcome) for outcome in outcomes] == [i % 3 == 0 for i in range(20)]
    stats = server.stats()
    assert stats["most"] <= 4
    assert stats["connections"] <= 4
    assert ask_many(engine, [], mode) == []
    engine.close()


@pytest.mark.parametrize("mode", MODES)
def test_waiting_for_ones_own_connections_is_no_outage(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="slow:0.9", max_connections=1, trip_after=1)
    if mode == "sync":
        first = threading.Thread(target=ask, args=(engine,))
        first.start()
        time.sleep(0.1)
        late = ask(engine, seconds=0.6)
        first.join()
    else:

        async def both() -> Outcome:
            first = asyncio.ensure_future(engine.agenerate([reason()], deadline=Deadline.after(5)))
            await asyncio.sleep(0.1)
            late = (await engine.agenerate([reason()], deadline=Deadline.after(0.6)))[0]
            await first
            return late

        late = asyncio.run(both())
    assert type(late) is EngineUnavailableError
    assert "max_connections" in str(late)
    assert text_of(ask(engine)).endswith(STOP)
    engine.close()


def test_what_is_found_out_is_asked_once(server: FaultServer) -> None:
    engine = RemoteEngine(server.url)
    outcomes: list[Outcome] = []

    def one(i: int) -> None:
        if i % 2:
            outcomes.append(ask(engine, fast()))
        else:
            outcomes.extend(ask_many(engine, [fast(), fast()], "async"))

    in_threads(one, 16)
    assert [text_of(outcome) for outcome in outcomes] == [" unharmful"] * 24
    paths = [r["path"] for r in server.stats()["requests"]]
    assert paths.count("/v1/models") == 1
    assert paths.count("/v1/chat/completions") == 24 + 1
    engine.close()


# ---- loops, processes, lives ----------------------------------------------------------------------------------------


def test_one_loop_after_the_other_leaves_nothing_behind(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="ok")
    for _ in range(3):
        assert text_of(ask(engine, mode="async")).endswith(STOP)
    assert engine._live.async_http._loops == {}
    del engine
    gc.collect()  # an unclosed session would warn, and a warning is an error here


def test_a_loop_closed_without_ceremony(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="ok")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.agenerate([reason()], deadline=Deadline.after(5)))
    transports = [p.transport for own in engine._live.async_http._loops.values() for p in _pooled(own.session)]
    loop.close()
    assert text_of(ask(engine, mode="async")).endswith(STOP)
    assert engine._live.async_http._loops == {}
    for transport in transports:  # the loop's, not ours: a transport on a closed loop can't be closed in any other way
        transport._sock.close()
        transport._sock = None
    gc.collect()


def _pooled(session: Any) -> list[Any]:
    return [entry[0] for entries in session.connector._conns.values() for entry in entries]


def test_an_engine_that_is_let_go_unclosed(server: FaultServer) -> None:
    ask_many(RemoteEngine(server.url, model="ok"), [reason()] * 3)
    gc.collect()


def test_an_engine_that_is_let_go_inside_a_loop(server: FaultServer) -> None:
    async def go() -> None:
        await RemoteEngine(server.url, model="ok").agenerate([reason()], deadline=Deadline.after(5))
        gc.collect()
        await asyncio.sleep(0.05)

    asyncio.run(go())
    gc.collect()


def test_an_engine_that_is_let_go_in_a_cycle(server: FaultServer) -> None:
    async def go() -> None:
        cycle: list[Any] = [RemoteEngine(server.url, model="ok")]
        cycle.append(cycle)
        await cycle[0].agenerate([reason()], deadline=Deadline.after(5))
        cycle[0].generate([reason()], deadline=Deadline.after(5))
        del cycle
        gc.collect()
        await asyncio.sleep(0.05)

    asyncio.run(go())
    gc.collect()


def test_loops_in_several_threads(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="slow:0.1")
    outcomes: list[Outcome] = []
    in_threads(lambda i: outcomes.extend(ask_many(engine, [reason()] * 3, "async")), 8)
    assert [text_of(outcome)[-9:] for outcome in outcomes] == [STOP] * 24


def test_uvloop(server: FaultServer) -> None:
    uvloop = pytest.importorskip("uvloop")
    engine = RemoteEngine(server.url, model="ok")
    late = RemoteEngine(server.url, model="drip-body")

    async def go() -> list[Outcome]:
        first = await engine.agenerate([reason()] * 8, deadline=Deadline.after(5))
        return [*first, *await late.agenerate([reason()], deadline=Deadline.after(0.3))]

    for _ in range(2):
        *good, bad = uvloop.run(go())
        assert [text_of(outcome)[-9:] for outcome in good] == [STOP] * 8
        assert type(bad) is EngineUnavailableError
    gc.collect()


@pytest.mark.parametrize("mode", MODES)
def test_closed_and_used_again(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="ok")

    async def go() -> list[Outcome]:
        outcomes = []
        for _ in range(2):
            outcomes += await engine.agenerate([reason()] * 2, deadline=Deadline.after(5))
            await engine.aclose()
        return outcomes

    if mode == "async":
        outcomes = asyncio.run(go())
    else:
        outcomes = []
        for _ in range(2):
            outcomes += ask_many(engine, [reason()] * 2)
            engine.close()
    assert [text_of(outcome)[-9:] for outcome in outcomes] == [STOP] * 4


def test_closing_from_another_thread_reaches_a_running_loop(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="ok")

    async def go() -> None:
        await engine.agenerate([reason()], deadline=Deadline.after(5))
        await asyncio.to_thread(engine.close)
        await asyncio.sleep(0.05)
        assert engine._live.async_http._loops == {}
        assert text_of((await engine.agenerate([reason()], deadline=Deadline.after(5)))[0]).endswith(STOP)

    asyncio.run(go())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_its_own_connections(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="ok")

    async def go() -> None:
        assert text_of((await engine.agenerate([reason()], deadline=Deadline.after(5)))[0]).endswith(STOP)
        ask_many(engine, [reason()] * 2)
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:  # pragma: no cover - another process
            said = b"?"
            try:
                found: list[Outcome] = []
                worker = threading.Thread(target=lambda: found.extend(ask_many(engine, [reason()] * 2, "async")))
                worker.start()
                worker.join()
                found += ask_many(engine, [reason()] * 2)
                said = b"".join(type(o).__name__.encode() for o in found)
                engine.close()
            finally:
                os.write(writing, said)
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert await asyncio.to_thread(pipe.read) == b"Completion" * 4
        await asyncio.to_thread(os.waitpid, child, 0)
        before = server.stats()["connections"]
        assert text_of((await engine.agenerate([reason()], deadline=Deadline.after(5)))[0]).endswith(STOP)
        ask_many(engine, [reason()])
        assert server.stats()["connections"] == before  # the parent's are as they were

    asyncio.run(go())
    engine.close()
