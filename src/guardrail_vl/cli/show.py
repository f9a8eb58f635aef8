"""Decisions on the screen: a panel for people, plain lines where nobody looks, JSON for programs. Decides nothing.

What a model wrote may hold escape sequences that a terminal obeys; they are shown, not sent.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any, Final

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from guardrail_vl.errors import GuardrailError
from guardrail_vl.verdict import Action, Decision, Judgement, Stage, Verdict

_COLOUR: Final = {Action.ALLOW: "green", Action.ANNOTATE: "yellow", Action.BLOCK: "red"}
_MARK: Final = {Action.ALLOW: "ALLOW", Action.ANNOTATE: "ANNOTATE (!)", Action.BLOCK: "BLOCK"}


class PipedConsole(Console):
    """A console that lets a closed pipe be handled at our door; rich's own way would exit with 1, our "blocked"."""

    def on_broken_pipe(self) -> None:
        """Pass the error on."""
        raise  # noqa: PLE0704 - called by rich while it handles the BrokenPipeError


def printable(text: str) -> str:
    """The text without what a terminal would obey or reorder: control and format characters become escapes."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else f"\\u{ord(c):04x}"
        for c in text
    )


# ---- JSON ---------------------------------------------------------------------------------------------------------


def as_value(decision: Decision) -> dict[str, Any]:
    """The decision as JSON values."""
    value: dict[str, Any] = json.loads(decision.to_json())
    return value


def error_value(error: GuardrailError) -> dict[str, Any]:
    """An error as JSON values, as a decision writes it."""
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint, "retryable": error.retryable}


def print_line(value: object) -> None:
    """One line of JSON in ASCII, so that neither the terminal nor its encoding matters."""
    sys.stdout.write(json.dumps(value) + "\n")


def print_json(decision: Decision) -> None:
    """The decision as one line of JSON."""
    print_line(as_value(decision))


# ---- for people ---------------------------------------------------------------------------------------------------


def show_decision(decision: Decision) -> None:
    """Print a decision: a panel on a terminal, else plain lines."""
    title = _MARK[decision.action] + (" · no verdict" if decision.failed else "")
    lines = [(name, printable(value)) for name, value in _lines(decision) if value]
    reasoning = printable((decision.reasoning or "").strip())
    console = PipedConsole(highlight=False)
    if not console.is_terminal:
        sys.stdout.write("".join(f"{line}\n" for line in (title, *(f"{n:<12}{v}" for n, v in lines))))
        if reasoning:
            sys.stdout.write(f"\n{reasoning}\n")
        return
    grid = Table.grid(padding=(0, 2))
    for name, value in lines:
        grid.add_row(Text(name, style="dim"), Text(value))
    if reasoning:
        grid.add_row(Text("reasoning", style="dim"), Text(reasoning))
    colour = _COLOUR[decision.action]
    console.print(
        Panel(grid, title=Text(title, style=f"bold {colour}"), title_align="left", border_style=colour, expand=False)
    )


def _lines(decision: Decision) -> list[tuple[str, str]]:
    lines = [("judged", _judged(decision)), ("reason", decision.reason)]
    if decision.error is not None:
        lines += [("error", type(decision.error).__name__), ("next step", decision.error.hint)]
    if decision.verdict is not None:
        lines += _verdict_lines(decision.verdict, decision.stage)
    return lines


def _judged(decision: Decision) -> str:
    what = "the prompt" if decision.stage is Stage.PROMPT else "the response"
    if len(decision.judgements) < 2:
        return what
    worst = _decisive(decision)
    span = f"message {worst.first}" if worst.first == worst.last else f"messages {worst.first} to {worst.last}"
    return f"{what}, and what came before it; decided by {span} (counted from 0)"


def _decisive(decision: Decision) -> Judgement:
    """The judgement that the decision follows; the newest, where several fit."""
    for judgement in reversed(decision.judgements):
        if judgement.verdict is decision.verdict and judgement.error is decision.error:
            return judgement
    return decision.judgements[-1]


def _verdict_lines(verdict: Verdict, stage: Stage) -> list[tuple[str, str]]:
    score = verdict.score_of(stage)
    how = ", ".join(part for part in (verdict.format, verdict.speed, f"{verdict.latency * 1000:.0f} ms") if part)
    return [
        ("labels", ", ".join(f"{s.value} {label.value}" for s in Stage if (label := verdict.label(s)) is not None)),
        ("score", "" if score is None else f"{score:.3f} (0 harmless, 1 harmful)"),
        ("categories", ", ".join(verdict.categories)),
        ("not judged", "; ".join(verdict.unjudged)),
        ("model", f"{verdict.model} ({how})" if verdict.model else ""),
    ]
