from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from guardrail_vl.cli import app
from guardrail_vl.cli.leakcheck import CLIENTS
from guardrail_vl.leakcheck import DRIVERS, PROBES

pytest.importorskip("openai")


def tried(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["leakcheck", *arguments])


def test_all_green_is_status_0() -> None:
    got = tried("--probe", "in-text", "--probe", "out-text", "--probe", "safe-chat")
    assert got.exit_code == 0, got.output
    assert "3 probes: 3 sealed, 0 leak, 0 wrong, 0 unsupported" in got.stdout
    assert "A harmful reply" in got.stdout


def test_a_leak_is_status_1_and_is_shown() -> None:
    got = tried("--client", "guardrail_vl.leakcheck:UNGUARDED", "--probe", "out-text")
    assert got.exit_code == 1
    assert "leaks" in got.stdout
    assert "Not sealed: chat.create (1)" in got.stdout


def test_the_json_says_the_same() -> None:
    got = tried("--client", "guardrail_vl.leakcheck:UNGUARDED", "--probe", "guard-*", "--json")
    value = json.loads(got.stdout)
    assert got.exit_code == 1
    assert (value["client"], value["green"]) == ("unguarded", False)
    assert {row["id"] for row in value["probes"]} == {p.id for p in PROBES if p.id.startswith("guard-")}


@pytest.mark.parametrize("arguments", [["--client", "nobody"], ["--probe", "nothing-such"], ["--client", "a:b"]])
def test_a_wrong_name_is_status_2(arguments: list[str]) -> None:
    got = tried(*arguments)
    assert got.exit_code == 2
    assert got.stderr.startswith("Error: ")


def test_the_probes_are_listed() -> None:
    got = tried("--list")
    assert got.exit_code == 0
    assert len(got.stdout.splitlines()) == len(PROBES)


def test_the_help_names_the_drivers_that_there_are() -> None:
    assert list(CLIENTS) == list(DRIVERS)
