"""`guardrail-vl leakcheck`: the conformance suite against leaks, on a guarded client. Decides nothing by itself."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from guardrail_vl.cli.door import BLOCKED, PASSED, door
from guardrail_vl.cli.options import JsonOption
from guardrail_vl.cli.show import PipedConsole, printable

if TYPE_CHECKING:
    from guardrail_vl import leakcheck as suite

CLIENTS = (
    "openai", "openai-async", "openai-refuse", "openai-beside", "openai-full", "proxy", "proxy-async",
    "langchain", "langchain-async", "langchain-events", "langchain-v3", "langchain-v3-async",
    "langchain-agent", "langchain-agent-async", "langchain-agent-events", "langchain-agent-v3",
    "langchain-agent-v3-async",
)  # fmt: skip
_COLOUR = {"sealed": "green", "leaks": "bold red", "wrong": "yellow", "unsupported": "dim"}


@door
def leakcheck(
    client: Annotated[
        str,
        typer.Option(
            "--client",
            metavar="NAME",
            help=f"{', '.join(CLIENTS)}, or package.module:attribute for a driver of your own.",
        ),
    ] = "openai",
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", metavar="ID", help="Only this probe; may be given again, and may end in *."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the probes and stop.")] = False,
    json: JsonOption = False,
) -> int:
    """Try to get something harmful past a guarded client, on every surface it has.

    Everything happens on this machine: a scripted upstream on loopback answers, a scripted guard judges.

    Exit status: 0 if nothing leaked and nothing was wrong, 1 if something did, 2 on an error.
    """
    from guardrail_vl import leakcheck as suite  # building the probes would slow every other command

    sys.path.insert(0, os.getcwd())  # where a driver of one's own may lie
    driver = suite.load(client)
    probes = suite.probes_of(driver)
    if probe:
        probes = suite.pick(probe, probes)
    if list_:
        sys.stdout.write("".join(f"{one.id:<32}{one.title}\n" for one in probes))
        return PASSED
    report = _run(driver, probes)
    if json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        _show(report)
    return PASSED if report.green else BLOCKED


def _run(driver: suite.Driver, probes: tuple[suite.Probe, ...]) -> suite.Report:
    from guardrail_vl import leakcheck as suite

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, console=PipedConsole(stderr=True), transient=True) if sys.stderr.isatty() else None
    if progress is None:
        return suite.run(driver, probes)
    with progress:
        task = progress.add_task(driver.name, total=len(probes))
        return suite.run(driver, probes, progress=lambda row: progress.advance(task))


def _show(report: suite.Report) -> None:
    console = PipedConsole(highlight=False, width=None if sys.stdout.isatty() else 400)
    table = Table(title=f"{report.client} ({report.version})", title_justify="left", title_style="bold", box=None,
                  pad_edge=False, padding=(0, 3, 0, 0))  # fmt: skip
    for column in ("probe", "what is tried", "result", "why"):
        table.add_column(column, header_style="dim", overflow="fold")
    for row in report.rows:
        status = row.finding.status
        table.add_row(row.probe.id, row.probe.title, Text(status, style=_COLOUR[status]), printable(row.finding.why))
    console.print(table)
    console.print()
    console.print(Text(report.summary), soft_wrap=True)
    surfaces = Counter(row.probe.surface for row in report.red)
    if surfaces:
        where = ", ".join(f"{name} ({count})" for name, count in surfaces.most_common())
        console.print(Text(f"Not sealed: {where}"), soft_wrap=True)
