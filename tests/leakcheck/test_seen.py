from __future__ import annotations

from dataclasses import replace

import pytest

from guardrail_vl.leakcheck.content import MARK, SAFE
from guardrail_vl.leakcheck.seen import FAILED, KEPT, PASSED, STOPPED, Expect, Seen, find

BLOCKED = Seen("blocked", error_type="BlockedError")
ARRIVED = Seen("passed", delivered=(SAFE,), text=SAFE, upstream_calls=1)


def test_a_block_without_a_leak_is_sealed() -> None:
    assert find(Expect(STOPPED, calls=0), BLOCKED).green


@pytest.mark.parametrize(
    "seen",
    [
        replace(BLOCKED, delivered=(f"so {MARK}",)),
        replace(BLOCKED, logged=(f"so {MARK}",)),
        replace(BLOCKED, tools_run=1),
        replace(BLOCKED, sent=(f"so {MARK}",)),
    ],
)
def test_a_leak_is_one_wherever_it_shows(seen: Seen) -> None:
    finding = find(Expect(STOPPED, unsent=(MARK,)), seen)
    assert (finding.status, finding.red, finding.green) == ("leaks", True, False)


def test_an_error_and_a_block_are_told_apart() -> None:
    failed = Seen("error", error_type="EngineUnavailableError")
    assert find(Expect(STOPPED), failed).status == "wrong"
    assert find(Expect(FAILED), BLOCKED).status == "wrong"
    assert find(Expect(FAILED), failed).green
    assert find(Expect(KEPT), failed).green


def test_who_refuses_everything_is_not_sealed() -> None:
    wanted = Expect(PASSED, text=SAFE, calls=1)
    assert find(wanted, ARRIVED).green
    assert find(wanted, BLOCKED).why == "blocked (BlockedError), should be passed; 0 upstream calls, should be 1"
    assert find(wanted, replace(ARRIVED, text=SAFE[:-1])).status == "wrong"
    assert find(replace(wanted, tools=1), ARRIVED).why == "the tool was not run"
    assert find(replace(wanted, own_client=True), ARRIVED).status == "wrong"
    assert find(replace(wanted, disconnected=True), ARRIVED).status == "wrong"


def test_what_is_unsupported_counts_neither_way() -> None:
    finding = find(Expect(STOPPED), Seen("passed", delivered=(MARK,), unsupported="no such thing"))
    assert (finding.status, finding.why, finding.green, finding.red) == ("unsupported", "no such thing", False, False)


def test_who_sends_first_is_not_blamed_for_sending_but_for_delivering() -> None:
    beside = replace(BLOCKED, sent=(MARK,), upstream_calls=1, sends_first=True)
    assert find(Expect(STOPPED, unsent=(MARK,), calls=0), beside).green
    assert find(Expect(STOPPED), replace(beside, delivered=(MARK,))).status == "leaks"


def test_no_text_shows_in_a_repr() -> None:
    assert MARK not in repr(replace(BLOCKED, delivered=(MARK,), text=MARK, logged=(MARK,), sent=(MARK,)))
