"""RemoteEngine against a real server process that misbehaves on request: every fault, the deadline, the breaker."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import traceback

import pytest

from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.errors import (
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
)
from guardrail_vl.prompt_format.base import Completion
from tests.engines.remotely import (
    KEY,
    MODES,
    SLACK,
    Mode,
    ask,
    no_keys,
    reason,
    running,
    server,
    text_of,
)
from tests.servers import STOP, FaultServer

__all__ = ["no_keys", "running", "server"]


# ---- faults ---------------------------------------------------------------------------------------------------------

Down, Bad = EngineUnavailableError, EngineResponseError
FAULTS: list[tuple[str, type[EngineError], int, str]] = [
    # behaviour, error, requests seen with attempts=3, words
    ("status:500", Down, 3, "status 500, some_code"),
    ("status:503", Down, 3, "status 503"),
    ("status:408", Down, 3, "status 408"),
    ("status:409", Down, 3, "status 409"),
    ("busy", Down, 3, "busy"),
    ("reset", Down, 4, "closed the connection"),  # one more: the first could have been a connection gone stale
    ("status:400", Bad, 1, "status 400, some_code"),
    ("status:401", Bad, 1, "API key"),
    ("status:403", Bad, 1, "API key"),
    ("status:404", Bad, 1, "URL"),
    ("status:413", Bad, 1, "larger"),
    ("status:422", Bad, 1, "status 422"),
    ("redirect", Bad, 1, "redirects are not followed"),
    ("html", Bad, 1, "HTML"),
    ("cut", Bad, 1, "broke off"),
    ("not-json", Bad, 1, "no JSON object"),
    ("not-object", Bad, 1, "no JSON object"),
    ("nested", Bad, 1, "no JSON object"),
    ("error-200", Bad, 1, "reports an error"),
    ("no-choices", Bad, 1, "no choices"),
    ("no-message", Bad, 1, "no message"),
    ("no-content", Bad, 1, "no text"),
    ("no-finish", Bad, 1, "did not end"),
    ("surrogate", Bad, 1, "Unicode"),
    ("types:choices", Bad, 1, "no choices"),
    ("types:message", Bad, 1, "no message"),
    ("types:content", Bad, 1, "no text"),
    ("types:finish_reason", Bad, 1, "did not end"),
    ("types:logprobs", Bad, 1, "log-probabilities"),
    ("types:token", Bad, 1, "log-probabilities"),
    ("types:logprob", Bad, 1, "log-probabilities"),
    ("huge", Bad, 1, "too large"),
    ("huge:chunked", Bad, 1, "too large"),
    ("gzip", Bad, 1, "no JSON object"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("behaviour", "kind", "requests", "words"), FAULTS, ids=[f[0] for f in FAULTS])
def test_every_fault_is_its_named_error_and_tells_no_secret(
    server: FaultServer,
    caplog: pytest.LogCaptureFixture,
    behaviour: str,
    kind: type[EngineError],
    requests: int,
    words: str,
    mode: Mode,
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = RemoteEngine(server.url, model=behaviour, api_key=KEY, attempts=3)
    error = ask(engine, mode=mode)
    assert type(error) is kind
    assert words in str(error)
    assert len(server.stats()["requests"]) == requests
    if isinstance(error, EngineResponseError) and behaviour not in ("cut", "huge", "huge:chunked"):
        assert error.request_id == "req-77"
        assert error.status == int(behaviour.partition(":")[2] if "status" in behaviour else error.status or 0)
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(engine) + caplog.text
    assert "wörds" not in shown
    assert KEY not in shown
    assert error.__cause__ is None
    assert error.__context__ is None
    engine.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("behaviour", ["hang", "hang-body", "drip", "drip-body", "slow:3"])
def test_a_server_that_is_late_costs_the_deadline_and_no_more(server: FaultServer, behaviour: str, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model=behaviour)
    began = time.perf_counter()
    error = ask(engine, mode=mode, seconds=0.4)
    took = time.perf_counter() - began
    assert type(error) is EngineUnavailableError
    assert "deadline" in str(error)
    assert 0.39 < took < 0.4 + SLACK
    assert len(server.stats()["requests"]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_retries_end_with_the_deadline(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="status:503", attempts=1000)
    began = time.perf_counter()
    error = ask(engine, mode=mode, seconds=0.5)
    assert time.perf_counter() - began < 0.5 + SLACK
    assert "status 503" in str(error)
    assert 1 < len(server.stats()["requests"]) < 30


@pytest.mark.parametrize("mode", MODES)
def test_a_passing_failure_is_not_seen(server: FaultServer, mode: Mode) -> None:
    assert text_of(ask(RemoteEngine(server.url, model="fail:3"), mode=mode)).endswith(STOP)
    assert len(server.stats()["requests"]) == 4


@pytest.mark.parametrize("mode", MODES)
def test_retry_after_is_waited_for_if_there_is_time(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="busy:0.3", attempts=2)
    error = ask(engine, mode=mode)
    assert isinstance(error, EngineUnavailableError)
    assert error.retry_after == 0.3
    first, second = (r["at"] for r in server.stats()["requests"])
    assert 0.3 <= second - first < 0.4 + SLACK


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("behaviour", ["busy:60", "busy-date:60"])
def test_retry_after_beyond_the_deadline_fails_at_once(server: FaultServer, behaviour: str, mode: Mode) -> None:
    began = time.perf_counter()
    error = ask(RemoteEngine(server.url, model=behaviour), mode=mode)
    assert time.perf_counter() - began < 1
    assert isinstance(error, EngineUnavailableError)
    assert error.retry_after == pytest.approx(60, abs=2)
    assert len(server.stats()["requests"]) == 1


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_completion_is_passed_on(server: FaultServer, mode: Mode) -> None:
    assert text_of(ask(RemoteEngine(server.url, model="empty"), mode=mode)) == ""


@pytest.mark.parametrize("mode", MODES)
def test_the_token_limit_shows(server: FaultServer, mode: Mode) -> None:
    outcome = ask(RemoteEngine(server.url, model="loop"), mode=mode)
    assert isinstance(outcome, Completion)
    assert outcome.finish == "length"


@pytest.mark.parametrize("mode", MODES)
def test_a_stale_connection_is_no_failure(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="close", attempts=1, trip_after=1)

    async def three_times() -> list[Outcome]:
        return [(await engine.agenerate([reason()], deadline=Deadline.after(5)))[0] for _ in range(3)]

    outcomes = [ask(engine) for _ in range(3)] if mode == "sync" else asyncio.run(three_times())
    assert [text_of(outcome)[-9:] for outcome in outcomes] == [STOP] * 3
    assert server.stats()["connections"] == 3
    engine.close()


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_nobody_there(host: str, mode: Mode) -> None:
    engine = RemoteEngine(f"http://{host}:{unused_port()}", model="m", attempts=2)
    began = time.perf_counter()
    error = ask(engine, mode=mode, seconds=1)
    assert time.perf_counter() - began < 1 + SLACK
    assert type(error) is EngineUnavailableError
    assert "Can't connect" in str(error) or "deadline" in str(error)


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_does_not_accept_connections(mode: Mode) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(sock.getsockname())
        engine = RemoteEngine(f"http://127.0.0.1:{sock.getsockname()[1]}", model="m")
        began = time.perf_counter()
        error = ask(engine, mode=mode, seconds=0.4)
        took = time.perf_counter() - began
        for other in others:
            other.close()
    assert type(error) is EngineUnavailableError
    assert took < 0.4 + SLACK


# ---- the breaker ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_keeps_failing_is_left_alone(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="fail:3", attempts=1, trip_after=2, cool_down=0.3)
    assert ["status 503" in str(ask(engine, mode=mode)) for _ in range(2)] == [True, True]
    began = time.perf_counter()
    refused = ask(engine, mode=mode)
    assert time.perf_counter() - began < SLACK
    assert isinstance(refused, EngineUnavailableError)
    assert "2 times in a row" in str(refused)
    assert refused.retry_after is not None
    assert 0 < refused.retry_after <= 0.36
    assert len(server.stats()["requests"]) == 2
    time.sleep(0.4)
    assert "status 503" in str(ask(engine, mode=mode))  # the probe
    assert "in a row" in str(ask(engine, mode=mode))
    time.sleep(0.4)
    assert [text_of(ask(engine, mode=mode))[-9:] for _ in range(2)] == [STOP] * 2
    assert len(server.stats()["requests"]) == 5


@pytest.mark.parametrize("behaviour", ["busy", "status:400", "html", "cut", "hang"])
def test_what_is_no_outage_does_not_open_the_breaker(server: FaultServer, behaviour: str) -> None:
    # A hang counts only if the server had half a second: one caller's short deadlines must not cost the others.
    engine = RemoteEngine(server.url, model=behaviour, attempts=1, trip_after=1)
    errors = [str(ask(engine, seconds=0.2)) for _ in range(3)]
    assert not any("in a row" in error for error in errors)
    assert len(server.stats()["requests"]) == 3


def test_a_cancelled_probe_leaves_its_place(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="hang", attempts=1, trip_after=1, cool_down=0.2)

    async def go() -> tuple[str, str]:
        await engine.agenerate([reason()], deadline=Deadline.after(1.0))
        await asyncio.sleep(0.3)
        probe = asyncio.ensure_future(engine.agenerate([reason()], deadline=Deadline.after(5)))
        await asyncio.sleep(0.1)
        meanwhile = await engine.agenerate([reason()], deadline=Deadline.after(5))
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        return str(meanwhile[0]), str((await engine.agenerate([reason()], deadline=Deadline.after(0.3)))[0])

    meanwhile, after = asyncio.run(go())
    assert "in a row" in meanwhile
    assert "deadline" in after
