"""What the docs state of constants, is what the constants are."""

from __future__ import annotations

import importlib
import re

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
