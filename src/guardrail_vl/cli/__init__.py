"""The command line. Decides nothing.

Commands: `check`, `audit`, `calibrate`, `data`, `doctor`, `eval`, `leakcheck`, `moderate`, `policy`, `review`,
`serve`, `train`.

Exit status of every command: 0 passed (allow, and annotate with a visible mark), 1 blocked or a failed example, 2 an
error: no verdict, a wrong setting, wrong usage. 130 after Ctrl-C, 141 when the reader of our output went away.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from guardrail_vl import __version__
from guardrail_vl.cli.audit import audit_export, audit_purge, audit_stats
from guardrail_vl.cli.calibrate import calibrate
from guardrail_vl.cli.check import check
from guardrail_vl.cli.data import data_convert, data_split, data_stats, data_validate
from guardrail_vl.cli.doctor import doctor
from guardrail_vl.cli.door import QuietCommand, QuietGroup
from guardrail_vl.cli.evaluation import eval_compare, eval_list, eval_parity, eval_replay, eval_report, eval_run
from guardrail_vl.cli.gate import train_gate
from guardrail_vl.cli.leakcheck import leakcheck
from guardrail_vl.cli.moderate import moderate
from guardrail_vl.cli.policy import policy_schema, policy_test
from guardrail_vl.cli.review import review
from guardrail_vl.cli.serve import serve
from guardrail_vl.cli.train import train_check, train_run, train_stages

PROGRAM = "guardrail-vl"

# No pretty tracebacks: they print local variables, which hold the content.
app = typer.Typer(cls=QuietGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
audit = typer.Typer(no_args_is_help=True, help="What a guard decided: count it, export it for training, purge it.")
policy = typer.Typer(no_args_is_help=True, help="Try a policy file, and describe what one may hold.")
data = typer.Typer(no_args_is_help=True, help="Labelled turns to train on: check, count, convert, split.")
train = typer.Typer(no_args_is_help=True, help="Fine-tune a guard on a policy of your own.")
evaluation = typer.Typer(no_args_is_help=True, help="How well a guard judges: runs, replays, reports, comparisons.")

# Extra arguments are let in so that our own message names them without repeating them: they may be the text to judge.
app.command("check", cls=QuietCommand, context_settings={"allow_extra_args": True})(check)
app.command("calibrate")(calibrate)
app.command("doctor")(doctor)
app.command("leakcheck")(leakcheck)
app.command("moderate")(moderate)
app.command("serve")(serve)
app.command("review")(review)
app.add_typer(audit, name="audit")
audit.command("stats")(audit_stats)
audit.command("export")(audit_export)
audit.command("purge")(audit_purge)
app.add_typer(policy, name="policy")
policy.command("test")(policy_test)
policy.command("schema")(policy_schema)
app.add_typer(data, name="data")
data.command("validate")(data_validate)
data.command("stats")(data_stats)
data.command("convert")(data_convert)
data.command("split")(data_split)
app.add_typer(train, name="train")
train.command("run")(train_run)
train.command("status")(train_stages)
train.command("check")(train_check)
train.command("gate")(train_gate)
app.add_typer(evaluation, name="eval")
evaluation.command("run")(eval_run)
evaluation.command("list")(eval_list)
evaluation.command("replay")(eval_replay)
evaluation.command("report")(eval_report)
evaluation.command("compare")(eval_compare)
evaluation.command("parity")(eval_parity)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A guard model judges what goes into an LLM app and what comes out."""


def main() -> None:
    """Run the command line and exit."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us; the exit status still speaks
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character gets its escape, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name=PROGRAM)
