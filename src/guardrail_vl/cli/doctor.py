"""`guardrail-vl doctor`: what is installed, which engine would judge and why, and whether it really judges."""

from __future__ import annotations

import sys
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from guardrail_vl.cli.door import FAILED, PASSED, door
from guardrail_vl.cli.options import JsonOption
from guardrail_vl.cli.probe import Probe, examine
from guardrail_vl.cli.show import PipedConsole, print_line, printable


@door
def doctor(json: JsonOption = False) -> int:
    """Say what is installed, which engine would judge and why, and try the guard that ships inside.

    Exit status: 0 if Guard() works here, 2 if it does not.
    """
    probe = examine()
    if json:
        print_line({**asdict(probe), "works": probe.works})
    else:
        _show(probe)
    return PASSED if probe.works else FAILED


def _show(probe: Probe) -> None:
    # Piped, the table is as wide as it needs to be.
    console = PipedConsole(highlight=False, width=None if sys.stdout.isatty() else 400)
    for table in (_machine(probe), _packages(probe), _engines(probe), _trial(probe)):
        console.print(table)
        console.print()
    for extra, packages in probe.missing.items():
        _say(console, f"Not installed: {extra} ({', '.join(packages)}). To add it: pip install 'guardrail-vl[{extra}]'")
    _say(console, "Guard() works here." if probe.works else "Guard() does not work here.")


def _say(console: PipedConsole, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, header_style="dim", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _machine(probe: Probe) -> Table:
    table = _table("This machine", "", "")
    table.show_header = False
    for name, value in (
        ("guardrail-vl", probe.version),
        ("Python", probe.python),
        ("platform", probe.platform),
        ("CPU", f"{probe.cores} cores for this process; {probe.cpu}"),
        ("GPU", probe.gpu),
    ):
        _add(table, name, value)
    return table


def _packages(probe: Probe) -> Table:
    table = _table("Optional packages", "package", "version", "extra")
    for package in probe.packages:
        _add(table, package.name, package.version or "not installed", ", ".join(package.extras))
    if not probe.packages:
        _add(table, "unknown: guardrail-vl runs from a folder and is not installed", "", "")
    return table


def _engines(probe: Probe) -> Table:
    table = _table("Which engine", "call", "engine", "why", "is it installed")
    for choice in probe.choices:
        _add(table, choice.call, choice.engine, choice.why, choice.problem or "yes")
    return table


def _trial(probe: Probe) -> Table:
    table = _table("Guard() tried", "what", "result", "score", "seconds")
    trial = probe.trial
    _add(table, "loading", trial.problem or f"ready: {trial.model}", "", f"{trial.load_seconds:.3f}")
    for canary in trial.canaries:
        result = canary.problem or f"judged {canary.label}" + (
            "" if canary.passed else f", should be {canary.expected}"
        )
        score = "" if canary.score is None else f"{canary.score:.3f}"
        _add(table, f"a request that is {canary.expected}", result, score, f"{canary.seconds:.3f}")
    return table
