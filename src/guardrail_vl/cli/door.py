"""The one door through which a command ends: a status, or an error in one line. Repeats no user content.

An uncaught exception would end Python with status 1, which here means "blocked"; so none is left uncaught.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, ParamSpec

import typer
from typer.core import TyperCommand, TyperGroup

from guardrail_vl.errors import GuardrailError

PASSED: Final = 0
BLOCKED: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

_DEBUG: Final = "GUARDRAIL_VL_DEBUG"
_OPTION_NAME: Final = re.compile(r"--?[A-Za-z][A-Za-z-]{0,30}")

P = ParamSpec("P")


def door(command: Callable[P, int]) -> Callable[P, None]:
    """A command that returns its exit status, as one that exits with it and reports every error in one line."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            status = command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _leave_stdout()
            raise typer.Exit(PIPE_CLOSED) from None
        except GuardrailError as error:
            _fail(error.message, error.hint)
        except OSError as error:
            _fail(f"The operating system refused: {error.strerror or type(error).__name__}.", "")
        except Exception as error:
            # Its message may hold content, so only its type is named.
            _fail(f"{type(error).__name__} was raised, which is a bug.", f"Set {_DEBUG}=1 to see where.")
        raise typer.Exit(status)

    return run


def _fail(message: str, hint: str) -> NoReturn:
    if os.environ.get(_DEBUG) == "1":
        traceback.print_exc()
    _say(f"Error: {message}")
    if hint:
        _say(hint)
    raise typer.Exit(FAILED)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _leave_stdout() -> None:
    # The interpreter flushes stdout once more when it ends, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class QuietCommand(TyperCommand):
    """A command whose usage errors don't repeat arguments: they may be the text to judge, unquoted."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the base class."""
        try:
            rest = super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)
            if name is None or _OPTION_NAME.fullmatch(str(name)):
                raise
            raise typer.BadParameter("No such option. Text that begins with a dash goes after --", ctx) from None
        if ctx.args:
            raise typer.BadParameter("Too many arguments: put the text in quotes.", ctx)
        return rest


class QuietGroup(TyperGroup):
    """A group of commands that doesn't repeat a sentence given in place of a command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """See the base class."""
        if _is_sentence(args):
            raise typer.BadParameter('No such command. To judge a text: guardrail-vl check "…"', ctx)
        return super().resolve_command(ctx, args)


def _is_sentence(args: Sequence[str]) -> bool:
    return bool(args) and not re.fullmatch(r"[A-Za-z-]{1,20}", args[0])
