from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardrail_vl.cli import app
from guardrail_vl.policy import Policy

PASSING = """
name: house
harmful: [a bomb]
harmless: ["hello"]
"""
FAILING = (
    PASSING
    + """
categories:
  weapons:
    definition: Making weapons.
    harmless:
      - fine
      - "the \\u001b[31mbomb of the play, told at a length that no table would ever want to show in full"
"""
)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    return tmp_path / "p.yaml"


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["policy", *args])
    return result.exit_code, result.stdout, result.stderr


def test_examples_that_pass(url: str, policy_file: Path) -> None:
    policy_file.write_text(PASSING)
    status, out, err = run("test", str(policy_file), "--url", url)
    assert (status, err) == (0, "")
    assert out == f"2 of 2 examples passed: policy 'house', version {Policy.load(policy_file).hash}\n"


def test_a_failure_says_where_and_what(url: str, policy_file: Path) -> None:
    policy_file.write_text(FAILING)
    status, out, _ = run("test", str(policy_file), "--url", url)
    assert status == 1
    assert "categories.weapons.harmless[1]   harmless   harmful" in out
    assert "the \\u001b[31mbomb of the play" in out
    assert "in full" not in out
    assert "3 of 4 examples passed" in out


def test_the_same_as_json(url: str, policy_file: Path) -> None:
    policy_file.write_text(FAILING)
    status, out, _ = run("test", str(policy_file), "--url", url, "--json")
    value = json.loads(out)
    assert status == 1
    assert [(r["example"], r["expected"], r["got"], r["passed"]) for r in value["results"]] == [
        ("harmful[0]", "harmful", "harmful", True),
        ("harmless[0]", "harmless", "harmless", True),
        ("categories.weapons.harmless[0]", "harmless", "harmless", True),
        ("categories.weapons.harmless[1]", "harmless", "harmful", False),
    ]


def test_no_verdict_is_neither_passed_nor_failed(url: str, policy_file: Path) -> None:
    policy_file.write_text(PASSING)
    status, out, _ = run("test", str(policy_file), "--url", "http://127.0.0.1:9/v1", "--deadline", "1")
    assert status == 2
    assert out.count("no verdict") == 2
    assert "0 of 2 examples passed" in out


def test_a_policy_without_examples_is_not_a_pass(url: str, policy_file: Path) -> None:
    policy_file.write_text("name: empty\n")
    status, out, err = run("test", str(policy_file), "--url", url)
    assert (status, out) == (2, "")
    assert "has no examples" in err


def test_an_unknown_key_is_named(policy_file: Path) -> None:
    policy_file.write_text("promt: block\n")
    status, _, err = run("test", str(policy_file), "--url", "http://127.0.0.1:9/v1")
    assert status == 2
    assert "did you mean 'prompt'" in err


def test_the_schema_allows_the_short_forms_and_names_every_key() -> None:
    status, out, _ = run("schema")
    schema = json.loads(out)
    assert status == 0
    assert schema["properties"].keys() == set(Policy.model_fields)
    assert schema["additionalProperties"] is False
    definitions = schema["$defs"]
    assert definitions["StageRule"]["anyOf"][0] == {"enum": ["allow", "annotate", "block"]}
    assert definitions["Fail"]["anyOf"][0] == {"enum": ["closed", "open"]}
    assert definitions["Example"]["anyOf"][0] == {"type": "string"}
    assert definitions["Example"]["anyOf"][1]["additionalProperties"] is False
    assert "Raises" not in out
