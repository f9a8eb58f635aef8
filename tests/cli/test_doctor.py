from __future__ import annotations

import json

from typer.testing import CliRunner

from guardrail_vl.cli import app


def test_the_report_and_the_json_say_the_same() -> None:
    told = CliRunner().invoke(app, ["doctor", "--json"])
    value = json.loads(told.stdout)
    shown = CliRunner().invoke(app, ["doctor"])
    assert told.exit_code == shown.exit_code == (0 if value["works"] else 2)
    assert told.stderr == shown.stderr == ""
    assert shown.stdout.rstrip().endswith("Guard() works here." if value["works"] else "Guard() does not work here.")
    for choice in value["choices"]:
        assert choice["call"] in shown.stdout
        assert choice["why"] in shown.stdout
    for extra in value["missing"]:
        assert f"pip install 'guardrail-vl[{extra}]'" in shown.stdout
