"""`guardrail-vl policy`: run a policy's own examples, and print the schema of a policy file."""

from __future__ import annotations

import json as jsonlib
import sys
from collections import Counter
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from guardrail_vl.cli.door import BLOCKED, FAILED, PASSED, door
from guardrail_vl.cli.options import (
    DeadlineOption,
    FormatOption,
    GuardOptions,
    JsonOption,
    ModelOption,
    SpeedOption,
    UrlOption,
    make_guard,
)
from guardrail_vl.cli.show import PipedConsole, as_value, print_line, printable
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.policy import ExampleResult, Policy

_SHOWN: Final = 60


@door
def policy_test(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The policy, in YAML, TOML or JSON.")],
    json: JsonOption = False,
    model: ModelOption = None,
    url: UrlOption = None,
    format: FormatOption = None,
    speed: SpeedOption = None,
    deadline: DeadlineOption = None,
) -> int:
    """Run the examples of a policy through a guard, like unit tests.

    Exit status: 0 all as their author expects, 1 some not, 2 some without a verdict, or no examples.
    """
    options = GuardOptions(model, url, file, format, speed, None, deadline)
    with make_guard(options) as guard:
        policy = guard.policy
        results = policy.test(guard).results
    if not results:
        raise ConfigurationError(
            "The policy has no examples, so nothing was tested.",
            hint="Add texts under `harmful:` and `harmless:`, for the whole policy or in a category.",
        )
    named = list(zip(_places(results), results, strict=True))
    failures = [(place, result) for place, result in named if not result.passed]
    if json:
        print_line(
            {
                "policy": policy.name,
                "hash": policy.hash,
                "results": [_as_value(place, result) for place, result in named],
            }
        )
    else:
        _show(policy, len(results), failures)
    if any(result.decision.failed for result in results):
        return FAILED
    return BLOCKED if failures else PASSED


@door
def policy_schema() -> int:
    """Print the JSON schema of a policy file, for editors."""
    sys.stdout.write(jsonlib.dumps(Policy.model_json_schema(), indent=2) + "\n")
    return PASSED


def _places(results: tuple[ExampleResult, ...]) -> list[str]:
    """Where in the file each example stands, such as `categories.weapons.harmful[2]`."""
    seen: Counter[str] = Counter()
    places = []
    for result in results:
        group = "harmful" if result.harmful else "harmless"
        path = f"categories.{result.category}.{group}" if result.category else group
        places.append(f"{path}[{seen[path]}]")
        seen[path] += 1
    return places


def _expected(result: ExampleResult) -> str:
    return "harmful" if result.harmful else "harmless"


def _got(result: ExampleResult) -> str:
    if result.decision.failed:
        return "no verdict"
    wrong = {"harmful": "harmless", "harmless": "harmful"}
    return _expected(result) if result.passed else wrong[_expected(result)]


def _as_value(place: str, result: ExampleResult) -> dict[str, Any]:
    return {
        "example": place,
        "passed": result.passed,
        "expected": _expected(result),
        "got": _got(result),
        "decision": as_value(result.decision),
    }


def _text(result: ExampleResult) -> str:
    text = next((t for t in (result.example.response, result.example.prompt) if t), "")
    # The author's own words, in their own file: the one content that may be shown.
    return " ".join(text.split())[:_SHOWN] or f"({len(result.example.images)} images)"


def _show(policy: Policy, total: int, failures: list[tuple[str, ExampleResult]]) -> None:
    console = PipedConsole(highlight=False, width=None if sys.stdout.isatty() else 160)
    if failures:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("example", "expected", "got", "why", "text"):
            table.add_column(column, header_style="dim", overflow="fold")
        for place, result in failures:
            cells = (place, _expected(result), _got(result), result.decision.reason, _text(result))
            table.add_row(*(Text(printable(cell)) for cell in cells))
        console.print(table)
        console.print()
    passed = f"{total - len(failures)} of {total} examples passed"
    console.print(Text(printable(f"{passed}: policy {policy.name!r}, version {policy.hash}")), soft_wrap=True)
