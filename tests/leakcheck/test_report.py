from __future__ import annotations

import json

import pytest

from guardrail_vl import leakcheck
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.leakcheck import Probe, Report, Seen
from guardrail_vl.leakcheck.content import found

pytest.importorskip("openai")


class Refuser:
    """Answers nothing, whatever it is asked."""

    name = "refuser"
    version = "1"

    def run(self, probe: Probe, base_url: str) -> Seen:
        return Seen("refused")


class Lacking:
    name = "lacking"
    version = "1"

    def run(self, probe: Probe, base_url: str) -> Seen:
        return Seen("passed", unsupported="nothing works here")


@pytest.fixture(scope="module")
def unguarded() -> Report:
    return leakcheck.run(leakcheck.UNGUARDED)


def test_without_a_guard_everything_leaks_but_what_is_harmless(unguarded: Report) -> None:
    assert not unguarded.green
    harmless = {"out-cut-short", "stream-malformed", "users-unmixed", "retry-good", "cancel", "closed-early", "types"}
    sealed = {row.probe.id for row in unguarded.sealed}
    assert {probe for probe in sealed if not probe.startswith("safe-")} == harmless
    controls = [row.finding for row in unguarded.rows if row.probe.id.startswith("safe-")]
    assert {finding.status for finding in controls} <= {"sealed", "unsupported"}  # an old openai has fewer surfaces
    assert sum(finding.green for finding in controls) > 20


def test_without_a_guard_every_known_leak_shows(unguarded: Report) -> None:
    red = {number for row in unguarded.red for number in row.probe.rows}
    assert red == set(leakcheck.ROWS)


def test_the_report_says_what_was_found_and_quotes_nothing(unguarded: Report) -> None:
    value = json.loads(unguarded.to_json())
    assert (value["client"], value["green"], len(value["probes"])) == ("unguarded", False, len(leakcheck.PROBES))
    row = next(probe for probe in value["probes"] if probe["id"] == "out-choice-second")
    assert row | {"seconds": 0} == {
        "id": "out-choice-second", "title": "The second of two choices is harmful", "rows": [2],
        "surface": "chat.create", "status": "leaks", "why": "delivered: ZZMARKZZ", "outcome": "passed", "error": "",
        "upstream_calls": 1, "seconds": 0,
    }  # fmt: skip
    assert unguarded.table().splitlines()[-1] == unguarded.summary
    assert len(unguarded.table().splitlines()) == len(leakcheck.PROBES) + 2
    assert found([repr(unguarded.rows[0].seen)]) == ""


def test_a_client_that_refuses_everything_is_not_green() -> None:
    report = leakcheck.run(Refuser(), leakcheck.pick(["out-text", "safe-chat", "safe-stream"]))
    assert [row.finding.status for row in report.rows] == ["sealed", "wrong", "wrong"]
    assert not report.green
    assert not report.leaks


def test_a_client_that_can_do_nothing_is_not_green() -> None:
    report = leakcheck.run(Lacking(), leakcheck.pick(["out-text", "safe-chat"]))
    assert len(report.unsupported) == 2
    assert not report.green
    assert not report.red
    assert report.summary == "2 probes: 0 sealed, 0 leak, 0 wrong, 2 unsupported"


def test_rows_are_told_as_they_come() -> None:
    told: list[str] = []
    probes = leakcheck.pick(["out-text", "safe-chat"])
    leakcheck.run(Refuser(), probes, progress=lambda row: told.append(row.probe.id))
    assert told == ["out-text", "safe-chat"]


def test_no_probes_are_no_pass() -> None:
    with pytest.raises(ConfigurationError, match="no probes"):
        leakcheck.run(Refuser(), ())
