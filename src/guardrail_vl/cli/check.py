"""`guardrail-vl check`: one turn from the arguments, a file or standard input, or many as JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from guardrail_vl.bulk.rows import read_json
from guardrail_vl.cli.door import BLOCKED, FAILED, PASSED, door
from guardrail_vl.cli.many import check_rows
from guardrail_vl.cli.options import (
    DeadlineOption,
    FailOption,
    FetchOption,
    FormatOption,
    GuardOptions,
    JsonOption,
    ModelOption,
    PolicyOption,
    SpeedOption,
    UrlOption,
    make_guard,
)
from guardrail_vl.cli.show import print_json, show_decision
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.guard import Guard
from guardrail_vl.turn import MAX_TEXT
from guardrail_vl.verdict import Decision

_ROWS = "Many turns"
_MAX_STDIN = MAX_TEXT * 4  # no UTF-8 character is longer than 4 bytes


@door
def check(
    text: Annotated[
        str | None,
        typer.Argument(
            help="The prompt. `-` reads JSON lines from standard input. Without it, standard input is the prompt.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="FILE", help="A picture of the prompt. May be repeated.")
    ] = None,
    response: Annotated[str | None, typer.Option("--response", help="Judge this response to the prompt.")] = None,
    messages: Annotated[
        str | None,
        typer.Option("--messages", metavar="FILE", help="Judge a conversation: OpenAI-style messages, JSON."),
    ] = None,
    json: JsonOption = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows judged at a time.", rich_help_panel=_ROWS)] = 32,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="Default: if it is seen.", rich_help_panel=_ROWS),
    ] = None,
    model: ModelOption = None,
    url: UrlOption = None,
    policy: PolicyOption = None,
    format: FormatOption = None,
    speed: SpeedOption = None,
    fail: FailOption = None,
    deadline: DeadlineOption = None,
    fetch_images: FetchOption = False,
) -> int:
    """Judge a prompt, a response, a conversation, or a row of JSON for each turn.

    Exit status: 0 allow or annotate, 1 block, 2 error; with many rows the worst of them, an error being the worst.

    A row is a JSON string, or an object with "prompt", "images" (paths and data: URLs) and "response", or one with
    "messages"; it may have an "id". Out comes one line of JSON for each: its row and id, the decision, the error.
    """
    options = GuardOptions(model, url, policy, format, speed, fail, deadline, fetch_images)
    extras = bool(image) or response is not None
    if messages is not None and (text is not None or extras):
        raise ConfigurationError("--messages holds the whole conversation: give no text, image or response besides.")
    if text == "-":
        if extras:
            raise ConfigurationError("With - each row brings its own images and response.")
        with make_guard(options) as guard:
            return check_rows(guard, _stdin(), batch=batch, progress=progress)
    if text is None and messages is None and not extras:
        text = _prompt_from_stdin()
    conversation = None if messages is None else _read_messages(messages)
    with make_guard(options) as guard:
        decision = _decide(guard, text, image or [], response, conversation)
    if json:
        print_json(decision)
    else:
        show_decision(decision)
    return status(decision)


def status(decision: Decision) -> int:
    """The exit status for a decision: 2 without a verdict, else 1 for block and 0 for allow and annotate."""
    if decision.failed:
        return FAILED
    return BLOCKED if decision.blocked else PASSED


def _decide(guard: Guard, text: str | None, images: list[str], response: str | None, conversation: Any) -> Decision:
    if conversation is not None:
        return guard.check(conversation)
    if response is not None:
        return guard.check_response(response, prompt=text, images=images)
    return guard.check_prompt(text, images=images)


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigurationError("Standard input is closed, so there is nothing to judge.")
    return sys.stdin.buffer


def _prompt_from_stdin() -> str:
    if sys.stdin is not None and sys.stdin.isatty():
        raise ConfigurationError(
            "There is nothing to judge.", hint='Run: guardrail-vl check "…" (or see guardrail-vl check --help)'
        )
    raw = _stdin().read(_MAX_STDIN + 1)
    if len(raw) > _MAX_STDIN:
        raise ContentError(f"Standard input has over {_MAX_STDIN} bytes; one prompt has at most {MAX_TEXT} characters.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContentError(f"Standard input is not valid UTF-8 at byte {error.start}.") from None


def _read_messages(path: str) -> list[Any]:
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"Can't read the file of --messages: {error.strerror}.") from None
    value = read_json(raw.removeprefix(b"\xef\xbb\xbf"), "The file of --messages")
    if isinstance(value, dict) and value.keys() == {"messages"}:
        value = value["messages"]
    if not isinstance(value, list):
        raise ContentError("The file of --messages must hold a list of messages.")
    return value
