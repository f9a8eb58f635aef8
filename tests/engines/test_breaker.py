from __future__ import annotations

import contextlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.engines._breaker import Breaker, Ticket
from guardrail_vl.errors import EngineUnavailableError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, threshold: int = 3) -> Breaker:
    return Breaker(threshold=threshold, cool_down=10, clock=clock, jitter=lambda low, high: 1.0)


def fail(b: Breaker, times: int) -> None:
    for _ in range(times):
        b.enter().failure()


def test_opens_after_failures_in_a_row_and_says_for_how_long() -> None:
    clock = Clock()
    b = breaker(clock)
    fail(b, 2)
    b.enter().success()
    fail(b, 2)
    assert b.state() == "closed"
    fail(b, 1)
    assert b.state() == "open"
    clock.now += 4
    with pytest.raises(EngineUnavailableError, match="3 times in a row") as caught:
        b.enter()
    assert caught.value.retry_after == 6


def test_half_open_lets_one_through_and_its_success_closes() -> None:
    clock = Clock()
    b = breaker(clock)
    fail(b, 3)
    clock.now += 10
    assert b.state() == "half-open"
    probe = b.enter()
    assert probe.probe
    with pytest.raises(EngineUnavailableError):
        b.enter()
    probe.success()
    assert b.state() == "closed"
    assert not b.enter().probe


def test_a_failed_probe_opens_again_and_an_abandoned_one_lets_the_next_probe() -> None:
    clock = Clock()
    b = breaker(clock)
    fail(b, 3)
    clock.now += 10
    b.enter().failure()
    assert b.state() == "open"
    clock.now += 10
    b.enter().unknown()
    assert b.enter().probe


def test_stragglers_from_before_it_opened_change_nothing() -> None:
    clock = Clock()
    b = breaker(clock)
    early = [b.enter() for _ in range(5)]
    fail(b, 3)
    clock.now += 5
    early[0].success()
    early[1].failure()
    assert b.state() == "open"
    clock.now += 5
    assert b.state() == "half-open"


def test_the_cool_down_is_drawn_anew() -> None:
    clock = Clock()
    drawn = iter([0.8, 1.2])
    b = Breaker(threshold=1, cool_down=10, clock=clock, jitter=lambda low, high: max(low, min(high, next(drawn))))
    fail(b, 1)
    clock.now += 8
    b.enter().failure()
    clock.now += 11
    assert b.state() == "open"
    clock.now += 1.001
    assert b.state() == "half-open"


def test_many_threads_one_probe() -> None:
    clock = Clock()
    b = breaker(clock)
    fail(b, 3)
    clock.now += 10
    probes: list[Ticket] = []
    start = threading.Barrier(16)

    def try_it() -> None:
        start.wait()
        with contextlib.suppress(EngineUnavailableError):
            probes.append(b.enter())

    threads = [threading.Thread(target=try_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(probes) == 1


@given(st.lists(st.sampled_from(["enter", "success", "failure", "unknown", "wait"]), max_size=60))
def test_whatever_happens_it_lets_calls_through_again(events: list[str]) -> None:
    clock = Clock()
    b = breaker(clock)
    held: list[Ticket] = []
    for event in events:
        if event == "enter":
            if b.state() == "open":
                with pytest.raises(EngineUnavailableError) as caught:
                    b.enter()
                assert caught.value.retry_after is not None
                assert 0 < caught.value.retry_after <= 10
            else:
                with contextlib.suppress(EngineUnavailableError):
                    held.append(b.enter())
        elif event == "wait":
            clock.now += 3
        elif held:
            getattr(held.pop(0), event)()
    for ticket in held:
        ticket.unknown()
    clock.now += 10
    b.enter().success()
    assert b.state() == "closed"
