"""What the docs state of constants, is what the constants are."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import tomllib

import pytest

from tests.docs.fences import ALL, ROOT

LIMITS = (ROOT / "docs" / "reference" / "limits.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| ([\d,]+) \| `(.+?)` \|$", LIMITS, flags=re.MULTILINE)


def _value(dotted: str) -> object:
    module = dotted
    rest: list[str] = []
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            rest.insert(0, name)
    for name in rest:
        found = getattr(found, name)
    return found


def test_every_row_of_the_table_is_read() -> None:
    assert len(ROWS) == LIMITS.count("| `guardrail_vl.")
    assert len(ROWS) > 10


@pytest.mark.parametrize(("what", "value", "constant"), ROWS, ids=[row[2] for row in ROWS])
def test_limit_is_what_the_code_says(what: str, value: str, constant: str) -> None:
    assert _value(constant) == int(value.replace(",", "")), what


def test_the_error_tree_of_the_docs_is_that_of_the_code() -> None:
    from guardrail_vl import errors

    def names(text: str) -> list[str]:
        return re.findall(r"[├└]── (\w+Error)", text)

    shown = (ROOT / "docs" / "guides" / "failures.md").read_text(encoding="utf-8")
    assert names(shown) == names(errors.__doc__ or "") != []


def test_every_policy_key_is_described() -> None:
    from guardrail_vl import Policy

    text = (ROOT / "docs" / "guides" / "policies.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    assert [key for key in Policy.model_fields if f"`{key}`" not in table] == []


def test_the_policy_of_the_docs_is_that_of_the_examples() -> None:
    shown = next(fence.text for fence in ALL if fence.page.name == "policies.md" and fence.title == "policy.yaml")
    assert shown == (ROOT / "examples" / "policy.yaml").read_text(encoding="utf-8")


def test_every_figure_of_the_embedded_guard_is_the_measured_one() -> None:
    measured = (ROOT / "benchmarks" / "embedded" / "quality.md").read_text(encoding="utf-8").splitlines()
    page = (ROOT / "docs" / "embedded.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if re.match(r"\| [a-z_]+ \| (split|new) \|", line)]
    assert len(shown) > 10
    assert [line for line in shown if line not in measured] == []


@pytest.mark.parametrize(("name", "rows"), [("openai_client", 20), ("langchain", 20)])
def test_every_figure_of_a_benchmark_is_the_measured_one(name: str, rows: int) -> None:
    measured = (ROOT / "benchmarks" / name / "results.md").read_text(encoding="utf-8").splitlines()
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    section = page.partition(f"<!-- measured: {name} -->")[2].partition("<!-- measured:")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > rows
    assert [line for line in shown if line not in measured] == []


def test_the_comparison_in_the_readme_is_the_measured_one() -> None:
    measured = (ROOT / "benchmarks" / "leakcheck" / "results.md").read_text(encoding="utf-8").splitlines()
    shown = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line in measured and line
    ]
    assert sum(line.startswith("| ") for line in shown) > 8


def test_the_tested_versions_of_hosts_are_those_that_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (declared,) = project["optional-dependencies"]["openai"]
    folder = ROOT / "integrations" / "openai"
    pins = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in folder.glob("*.txt")}
    majors = sorted(int(name.split("-")[1]) for name in pins)
    oldest = pins["openai-1-oldest"][0].removeprefix("openai==").removesuffix(".0")
    assert declared == f"openai>={oldest},<{majors[-1] + 1}"
    assert majors == list(range(1, majors[-1] + 1))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in pins if f"`{name}.txt`" not in readme] == []


def test_the_tested_versions_of_langchain_are_those_that_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = ROOT / "integrations" / "langchain"
    pins = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in folder.glob("*.txt")}
    assert sorted(pins) == ["langchain-1-newest", "langchain-1-oldest"]
    newest = set(pins["langchain-1-newest"])
    declared = set(project["optional-dependencies"]["langchain"])
    assert declared <= newest
    assert {line.replace(">=1,<2", "==1.0.0") for line in newest} == set(pins["langchain-1-oldest"])
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert [name for name in pins if f"`{name}.txt`" not in readme] == []


def test_every_readme_of_integrations_begins_with_the_rule() -> None:
    paths = sorted((ROOT / "integrations").rglob("README.md"))
    assert len(paths) > 2
    for path in paths:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert re.sub(r"\[(.*?)\]\(.*?\)", r"\1", first).replace("`", "") == (
            "If it can be imported it is in src/; if it is run, it is here."
        )


def test_the_table_of_the_embedded_guard_is_that_of_its_results() -> None:
    pytest.importorskip("sklearn")
    folder = ROOT / "benchmarks" / "evaluation"
    spec = importlib.util.spec_from_file_location("table", folder / "table.py")
    assert spec
    assert spec.loader
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (folder / "results.md").read_text(encoding="utf-8") == table.as_markdown(results)
    assert len(results["sets"]) > 25
