"""The shared cache, against a real Redis: shared, authenticated, and never wrong, whatever Redis does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_vl import Guard
from guardrail_vl.cache import MemoryCache
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Label, Usage, Verdict

redis = pytest.importorskip("redis")
from guardrail_vl.cache.redis import MAX_BYTES, RedisCache

SERVER = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="redis-server is not installed")

SECRET = "a secret that all servers have"
PATIENT = 5.0
"""A timeout for tests that are not about time, on machines that are busy with others."""

VERDICT = Verdict(
    prompt=Label.HARMFUL,
    prompt_score=0.97,
    categories=("weapons",),
    model="scripted",
    format="guardreasoner-vl/1",
    speed="reason",
    usage=Usage(10, 20),
    latency=0.25,
)


class Server:
    """One Redis of our own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self.start()

    def start(self) -> None:
        assert SERVER is not None
        self._process = subprocess.Popen(
            [SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            assert time.monotonic() < until
            time.sleep(0.05)

    def client(self) -> Any:
        return redis.Redis.from_url(self.url)

    def hang(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(shared_server: Server) -> Server:
    with shared_server.client() as client:
        client.flushall()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"


def cache_of(server: Server, **settings: Any) -> RedisCache:
    return RedisCache(server.url, **{"timeout": PATIENT, "memory": False, **settings})


def script(prompt: Prompt) -> Completion:
    answer = by_keyword("crowbar")(prompt)
    assert isinstance(answer, Completion)
    return answer


def guard_of(cache: RedisCache) -> tuple[Guard, ScriptedEngine]:
    engine = ScriptedEngine(script)
    return Guard(engine=engine, cache=cache), engine


def only_name(server: Server) -> str:
    with server.client() as client:
        (name,) = client.keys("*")
    return str(name.decode())


# ---- what it remembers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, SECRET, SECRET.encode()])
def test_round_trip(server: Server, key: bytes | str | None) -> None:
    other = replace(VERDICT, prompt=None, response=Label.UNHARMFUL, unjudged=("pictures",), prompt_score=None)
    with cache_of(server, key=key) as one, cache_of(server, key=key) as two:
        one.put([(b"a", VERDICT), (b"b", other)])
        assert two.get([b"b", b"?", b"a", b"b"]) == [other, None, VERDICT, other]
        assert asyncio.run(two.aget([b"a", b"?"])) == [VERDICT, None]
        asyncio.run(two.aput([(b"c", VERDICT)]))
        assert one.get([b"c"]) == [VERDICT]


def test_memory_comes_first_and_redis_is_asked_only_for_the_rest(server: Server) -> None:
    with cache_of(server, memory=True) as cache, cache_of(server) as bare, server.client() as client:
        cache.put([(b"a", VERDICT)])
        bare.put([(b"b", VERDICT)])
        assert cache.get([b"a", b"b"]) == [VERDICT, VERDICT]
        client.flushall()
        assert cache.get([b"a", b"b", b"c"]) == [VERDICT, VERDICT, None]
        assert bare.get([b"a", b"b"]) == [None, None]


def test_one_command_reads_many(server: Server) -> None:
    with cache_of(server) as cache, server.client() as client:
        cache.get([b"0"])
        client.config_resetstat()
        cache.get([bytes([i]) for i in range(20)])
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1


def test_many_checks_in_step_look_up_once(server: Server) -> None:
    with cache_of(server) as cache, server.client() as client:
        guard, engine = guard_of(cache)
        texts = [f"Hello {i}" for i in range(10)]
        assert not any(decision.blocked for decision in guard.check_many(texts))
        client.config_resetstat()
        assert all(decision.judgements[0].remembered for decision in guard.check_many(texts))
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1
        assert engine.calls == 1


def test_nothing_outlives_its_time(server: Server) -> None:
    with cache_of(server, ttl=1) as cache, server.client() as client:
        cache.put([(b"a", VERDICT)])
        assert 0 < client.pttl(only_name(server)) <= 1000
        time.sleep(1.1)
        assert cache.get([b"a"]) == [None]
        assert client.keys("*") == []


def test_memory_keeps_what_it_read_for_no_longer_than_redis(server: Server) -> None:
    with cache_of(server, ttl=2) as writer, cache_of(server, memory=MemoryCache(ttl=3600), ttl=3600) as reader:
        writer.put([(b"a", VERDICT)])
        time.sleep(1)
        assert reader.get([b"a"]) == [VERDICT]
        time.sleep(1.05)
        assert reader.get([b"a"]) == [None]
        # The memory is what forgot it: it does not even look there for what it wrote itself.
        assert reader.memory is not None
        assert reader.memory.get([b"a"]) == [None]


def test_what_it_wrote_itself_leaves_the_memory_in_time_too(server: Server) -> None:
    with cache_of(server, memory=MemoryCache(ttl=3600), ttl=0.3) as cache:
        cache.put([(b"a", VERDICT)])
        time.sleep(0.35)
        assert cache.get([b"a"]) == [None]


@pytest.mark.parametrize("command", ["persist", "expire"])
def test_a_key_whose_end_was_moved_ends_when_it_was_meant_to(server: Server, command: str) -> None:
    with cache_of(server, ttl=1, key=SECRET) as cache, server.client() as client:
        cache.put([(b"a", VERDICT)])
        name = only_name(server)
        client.persist(name) if command == "persist" else client.expire(name, 3600)
        time.sleep(1.05)
        assert client.exists(name)
        assert cache.get([b"a"]) == [None]


def test_reasoning_stays_here_unless_asked_for(server: Server) -> None:
    told = replace(VERDICT, reasoning="He asks for a crowbar.")
    with cache_of(server, memory=True) as cache, cache_of(server) as other, server.client() as client:
        cache.put([(b"a", told)])
        assert b"crowbar" not in client.get(only_name(server))
        assert cache.get([b"a"]) == [told]
        assert other.get([b"a"]) == [VERDICT]
    with cache_of(server, reasoning=True) as cache:
        cache.put([(b"a", told)])
        assert cache.get([b"a"]) == [told]


def test_names_hold_no_content_and_with_a_secret_no_hash_of_it(server: Server) -> None:
    with cache_of(server, prefix="app") as plain:
        plain.put([(b"a", VERDICT)])
        assert only_name(server) == "app:1:61"
    with cache_of(server, prefix="app", key=SECRET) as keyed, server.client() as client:
        client.flushall()
        keyed.put([(b"a", VERDICT)])
        assert only_name(server).rpartition(":")[2] != "61"
        assert len(only_name(server)) == len("app:1:") + 64


# ---- guards that share --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_one_guard_judged_another_knows(server: Server, asynchronous: bool) -> None:
    with cache_of(server, memory=True) as one, cache_of(server, memory=True) as two:
        (first, engine), (second, silent) = guard_of(one), guard_of(two)
        said = [first.check_prompt(text) for text in ("Hello", "Sell me a crowbar")]
        if asynchronous:
            again = [asyncio.run(second.acheck_prompt(text)) for text in ("Hello", "Sell me a crowbar")]
        else:
            again = list(second.check_many(["Hello", "Sell me a crowbar"]))
        assert [d.action for d in again] == [d.action for d in said] == ["allow", "block"]
        assert all(judgement.remembered for d in again for judgement in d.judgements)
        assert (engine.calls, silent.calls) == (2, 0)


def test_a_guard_with_a_shared_cache_is_picklable(server: Server) -> None:
    with cache_of(server, key=SECRET, ttl=100, prefix="p", memory=MemoryCache(size=3)) as cache:
        guard, _ = guard_of(cache)
        guard.check_prompt("Hello")
        copy = pickle.loads(pickle.dumps(guard))
        assert copy.check_prompt("Hello").judgements[0].remembered
        assert copy.engine.calls == 0
        again = pickle.loads(pickle.dumps(cache))
        assert repr(again) == repr(cache) == "RedisCache(prefix='p', ttl=100, authenticated=True)"
        assert again.memory.size == 3
        assert pickle.loads(pickle.dumps(cache_of(server))).memory is None
        copy._settings["cache"].close()


def _in_child(cache: RedisCache, answers: Any) -> None:
    answers.put(cache.get([b"a"]))
    cache.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_it_works_after_a_fork(server: Server) -> None:
    with cache_of(server) as cache:
        cache.put([(b"a", VERDICT)])
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()
        child = fork.Process(target=_in_child, args=(cache, answers))
        child.start()
        assert answers.get(timeout=60) == [VERDICT]
        child.join()
        assert cache.get([b"a"]) == [VERDICT]
        answers.close()
        answers.join_thread()


def test_threads(server: Server) -> None:
    verdicts = [replace(VERDICT, model=str(i)) for i in range(20)]
    failures: list[object] = []
    with cache_of(server, memory=MemoryCache(size=4)) as cache:

        def work(seed: int) -> None:
            for i in range(40):
                at = (seed * 7 + i) % 20
                cache.put([(bytes([at]), verdicts[at])])
                (got,) = cache.get([bytes([at])])
                if got not in (None, verdicts[at]):
                    failures.append(got)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert cache.get([bytes([i]) for i in range(20)]) == verdicts


def test_closed_it_opens_again(server: Server) -> None:
    cache = cache_of(server)
    cache.put([(b"a", VERDICT)])
    cache.close()
    cache.close()
    assert cache.get([b"a"]) == [VERDICT]
    cache.close()


# ---- Redis fails --------------------------------------------------------------------------------------------------


def test_killed_and_back_again(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "guardrail_vl.cache")
    with cache_of(own_server, cool_down=0.2) as cache:
        guard, engine = guard_of(cache)
        assert guard.check_prompt("Sell me a crowbar").blocked
        own_server.kill()
        for _ in range(5):
            assert guard.check_prompt("Sell me a crowbar").blocked
            assert not asyncio.run(guard.acheck_prompt("Hello")).blocked
        assert engine.calls == 11
        own_server.start()
        time.sleep(0.3)
        assert guard.check_prompt("Sell me a crowbar").blocked
        assert engine.calls == 12
        assert guard.check_prompt("Sell me a crowbar").judgements[0].remembered
        assert engine.calls == 12
    told = [record for record in caplog.records if record.name == "guardrail_vl.cache"]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    assert "127.0.0.1" not in caplog.text


def test_a_server_that_accepts_and_never_answers_costs_one_timeout() -> None:
    with hanging() as url, RedisCache(url, timeout=0.5, cool_down=60) as cache:
        guard, engine = guard_of(cache)
        guard.replace(cache=False).check_prompt("warm up")
        started = time.perf_counter()
        assert guard.check_prompt("Sell me a crowbar").blocked
        first = time.perf_counter() - started
        assert 0.5 <= first < 0.95  # once, not twice
        started = time.perf_counter()
        for i in range(10):
            guard.check_prompt(f"Hello {i}")
        assert time.perf_counter() - started < 0.45
        assert engine.calls == 12
        assert guard.check_prompt("Hello 1").judgements[0].remembered  # in memory


def test_a_stopped_server_costs_one_timeout_and_is_used_again(own_server: Server) -> None:
    with cache_of(own_server, timeout=0.5, cool_down=2) as cache:
        guard, engine = guard_of(cache)
        guard.check_prompt("Hello")
        own_server.hang()
        started = time.perf_counter()
        assert not guard.check_prompt("Hello").blocked
        assert 0.5 <= time.perf_counter() - started < 0.95
        started = time.perf_counter()
        assert not guard.check_prompt("Hello").blocked
        assert time.perf_counter() - started < 0.45
        own_server.go_on()
        time.sleep(2.5)
        guard.check_prompt("Hello")
        assert guard.check_prompt("Hello").judgements[0].remembered
        assert engine.calls <= 4


def test_only_one_check_tries_a_server_that_failed() -> None:
    with hanging() as url, RedisCache(url, timeout=0.3, cool_down=1) as cache:
        cache.get([b"a"])
        time.sleep(1.25)
        times = []

        def ask() -> None:
            started = time.perf_counter()
            cache.get([b"a"])
            times.append(time.perf_counter() - started)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(seconds >= 0.29 for seconds in times) == 1


def test_a_server_that_drips_is_not_waited_for() -> None:
    # Each byte comes in time; the whole does not.
    stop = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):  # who has waited long enough is gone
            while not stop.wait(0.02):
                connection.sendall(b"$")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        cache = RedisCache(f"redis://127.0.0.1:{listening.getsockname()[1]}", timeout=0.5, cool_down=60)
        started = time.perf_counter()
        assert cache.get([b"a"]) == [None]
        assert time.perf_counter() - started < 0.95
        stop.set()
        thread.join()
        cache.close()


@pytest.mark.parametrize(
    "nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*x\r\n", b"$-9\r\n\xff", b"%1\r\n+a\r\n", b""]
)
def test_a_server_that_is_no_redis_looks_empty(nonsense: bytes) -> None:
    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                connection.sendall(nonsense)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}"
        with RedisCache(url, timeout=0.5, cool_down=60, memory=False) as cache:
            cache.put([(b"a", VERDICT)])
            assert cache.get([b"a"]) == [None]
        thread.join()


def test_what_redis_refuses_does_not_close_it_to_what_it_takes(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with cache_of(own_server, cool_down=60) as cache, own_server.client() as client:
        cache.put([(b"a", VERDICT)])
        client.config_set("maxmemory", 1)
        for _ in range(3):
            cache.put([(b"b", VERDICT)])
            assert cache.get([b"a", b"b"]) == [VERDICT, None]
    assert len(caplog.records) == 1


def test_too_many_at_once_is_no_failure_of_redis(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with cache_of(server, cool_down=60, timeout=0.5) as cache:
        cache.put([(b"a", VERDICT)])
        assert cache._pool is not None
        busy = [cache._pool.submit(time.sleep, 2) for _ in range(50)]
        assert cache.get([b"a"]) == [None]
        assert asyncio.run(cache.aget([b"a"])) == [None]
        for job in busy:
            job.cancel()
        wait(busy)
        assert cache.get([b"a"]) == [VERDICT]
    assert caplog.records == []


def test_without_the_password_it_looks_empty(own_server: Server) -> None:
    with own_server.client() as client:
        client.config_set("requirepass", "sesame")
    with cache_of(own_server) as cache:
        guard, _ = guard_of(cache)
        assert guard.check_prompt("Sell me a crowbar").blocked
    with RedisCache(own_server.url.replace("//", "//:sesame@"), timeout=PATIENT, memory=False) as cache:
        cache.put([(b"a", VERDICT)])
        assert cache.get([b"a"]) == [VERDICT]
        assert "sesame" not in repr(cache)


def test_the_event_loop_goes_on_while_redis_hangs() -> None:
    async def main(cache: RedisCache) -> float:
        guard, _ = guard_of(cache)
        longest, last, done = 0.0, time.perf_counter(), False

        async def beat() -> None:
            nonlocal longest, last
            while not done:
                await asyncio.sleep(0.005)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now

        beating = asyncio.ensure_future(beat())
        decisions = await asyncio.gather(*(guard.acheck_prompt(f"Hello {i}") for i in range(20)))
        done = True
        await beating
        assert not any(decision.blocked for decision in decisions)
        return longest

    with hanging() as url, RedisCache(url, timeout=1, cool_down=60) as cache:
        started = time.perf_counter()
        assert asyncio.run(main(cache)) < 0.5
        assert 0.9 < time.perf_counter() - started < 2


def test_a_cancelled_check_leaves_the_cache_as_it_was(server: Server) -> None:
    async def main(cache: RedisCache) -> None:
        server.hang()
        try:
            task = asyncio.ensure_future(cache.aget([b"a"]))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            server.go_on()
        assert await cache.aget([b"a"]) == [VERDICT]

    with cache_of(server) as cache:
        cache.put([(b"a", VERDICT)])
        asyncio.run(main(cache))


# ---- what stands in Redis is not believed -------------------------------------------------------------------------


def test_a_false_verdict_needs_the_secret(server: Server) -> None:
    with cache_of(server, key=SECRET) as ours, cache_of(server, key="another secret, as long") as theirs:
        guard, _ = guard_of(ours)
        assert guard.check_prompt("Sell me a crowbar").blocked
        name = only_name(server)
        liar = Verdict(prompt=Label.UNHARMFUL, model="scripted")
        with server.client() as client:
            for value in (
                theirs._value(b"a", liar, time.time() + 100),
                RedisCache(server.url)._value(b"a", liar, time.time() + 100),
                liar.to_json().encode(),
            ):
                client.set(name, value, ex=100)
                assert guard.check_prompt("Sell me a crowbar").blocked


def test_a_verdict_stands_for_nothing_but_its_own_key(server: Server) -> None:
    with cache_of(server, key=SECRET) as cache, server.client() as client:
        cache.put([(b"good", replace(VERDICT, prompt=Label.UNHARMFUL)), (b"bad", VERDICT)])
        client.copy(cache._name(b"good"), cache._name(b"bad"), replace=True)
        assert cache.get([b"bad", b"good"]) == [None, replace(VERDICT, prompt=Label.UNHARMFUL)]


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(prompt=None),
        replace(VERDICT, prompt_score=1.5),
        replace(VERDICT, response_score=-0.1),
        replace(VERDICT, model="x" * MAX_BYTES),
    ],
)
def test_what_no_guard_would_say_is_nothing(server: Server, verdict: Verdict) -> None:
    with cache_of(server) as cache:
        cache.put([(b"a", verdict)])
        assert cache.get([b"a"]) == [None]


def test_other_types_under_its_names_are_nothing(server: Server) -> None:
    with cache_of(server) as cache, server.client() as client:
        client.lpush(cache._name(b"a"), "1")
        assert cache.get([b"a"]) == [None]
        cache.put([(b"a", VERDICT)])
        assert cache.get([b"a"]) == [VERDICT]


labels = st.sampled_from([None, *Label])
shares = st.none() | st.floats(0, 1)
verdicts = st.builds(
    Verdict,
    prompt=st.sampled_from(list(Label)),
    response=labels,
    prompt_score=shares,
    response_score=shares,
    categories=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    model=st.text(max_size=8),
    usage=st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6)),
    latency=st.floats(0, 1e3),
)


@st.composite
def damages(draw: st.DrawFn, value: bytes) -> bytes:
    """The value with something done to it, or something else."""
    at = draw(st.integers(0, len(value) - 1))
    return draw(
        st.sampled_from(
            [
                value[:at] + bytes([draw(st.integers(0, 255))]) + value[at + 1 :],
                value[:at],
                value[:at] + draw(st.binary(max_size=5)) + value[at:],
                value.partition(b" ")[2],
                draw(st.binary(max_size=200)),
                draw(verdicts).to_json().encode(),
                b"0" * 64 + b" 9999999999.000 " + draw(verdicts).to_json().encode(),
                value,
            ]
        )
    )


@settings(max_examples=60)
@given(data=st.data(), verdict=verdicts)
def test_whatever_stands_in_redis_what_comes_back_is_what_was_put_or_nothing(
    shared_server: Server, shared_cache: RedisCache, data: st.DataObject, verdict: Verdict
) -> None:
    shared_cache.put([(b"a", verdict)])
    name = shared_cache._name(b"a")
    with shared_server.client() as client:
        value = client.get(name)
        damaged = data.draw(damages(value))
        client.set(name, damaged, ex=100)
    (found,) = shared_cache.get([b"a"])
    assert found == (verdict if damaged == value else None)


@settings(max_examples=60)
@given(data=st.data(), verdict=verdicts)
def test_without_a_secret_too_nothing_raises(
    shared_server: Server, plain_cache: RedisCache, data: st.DataObject, verdict: Verdict
) -> None:
    plain_cache.put([(b"a", verdict)])
    name = plain_cache._name(b"a")
    with shared_server.client() as client:
        client.set(name, data.draw(damages(client.get(name))), ex=100)
    assert plain_cache.get([b"a"]) in ([verdict], [None])


@pytest.fixture(scope="module")
def shared_cache(shared_server: Server) -> Iterator[RedisCache]:
    with cache_of(shared_server, key=SECRET) as cache:
        yield cache


@pytest.fixture(scope="module")
def plain_cache(shared_server: Server) -> Iterator[RedisCache]:
    with cache_of(shared_server) as cache:
        yield cache


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "http://localhost"},
        {"url": "localhost:6379"},
        {"url": "redis://localhost:many"},
        {"url": "redis://localhost?no_such_setting=1"},
        {"url": None},
        {"ttl": 0},
        {"ttl": float("inf")},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"cool_down": -1},
        {"key": "short"},
        {"key": b""},
    ],
)
def test_senseless_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisCache(**{"url": "redis://:sesame@localhost", **arguments})
    assert "sesame" not in str(caught.value)


def test_without_the_package_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['redis'] = None; import guardrail_vl.cache; import guardrail_vl.cache.redis"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "pip install 'guardrail-vl[redis]'" in done.stderr


def test_importing_the_guard_does_not_import_it() -> None:
    code = "import sys, guardrail_vl.guard; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
