"""The options that say which guard judges, and the guard they make. Knows nothing of what is judged."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard


class Speed(StrEnum):
    """See `Guard(speed=…)`."""

    REASON = "reason"
    FAST = "fast"
    AUTO = "auto"


class FailChoice(StrEnum):
    """See `Guard(fail=…)`."""

    CLOSED = "closed"
    OPEN = "open"


_GUARD = "Which guard"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ID",
        help="A checkpoint folder or hub id; with --url, the model's name there. Without either, the embedded model.",
        rich_help_panel=_GUARD,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="An OpenAI-compatible server, such as http://guard:8000/v1.",
        rich_help_panel=_GUARD,
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", metavar="FILE", help="A policy in YAML, TOML or JSON.", rich_help_panel=_GUARD),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="ID", help="The prompt format. Default: the engine's.", rich_help_panel=_GUARD),
]
SpeedOption = Annotated[
    Speed | None,
    typer.Option("--speed", help="Reason first, answer at once, or reason where unsure.", rich_help_panel=_GUARD),
]
FailOption = Annotated[
    FailChoice | None,
    typer.Option(
        "--fail",
        help="What a turn gets when the engine is down: block (closed), or a mark (open). The status is 2 either way.",
        rich_help_panel=_GUARD,
    ),
]
DeadlineOption = Annotated[
    float | None, typer.Option("--deadline", metavar="SECONDS", help="For one check.", rich_help_panel=_GUARD)
]
FetchOption = Annotated[
    bool, typer.Option("--fetch-images", help="Fetch http(s) pictures, under limits.", rich_help_panel=_GUARD)
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of words for people.")]


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What was asked for; None and False leave the guard's own default."""

    model: str | None = None
    url: str | None = None
    policy: str | None = None
    format: str | None = None
    speed: Speed | None = None
    fail: FailChoice | None = None
    deadline: float | None = None
    fetch_images: bool = False


def make_guard(options: GuardOptions) -> Guard:
    """The guard that these options ask for.

    Raises:
        ConfigurationError: A wrong option, or what it needs is not installed.
    """
    settings: dict[str, Any] = {
        "policy": options.policy,
        "format": options.format,
        "speed": options.speed and options.speed.value,
        "fail": options.fail and options.fail.value,
        "deadline": options.deadline,
        "fetch_images": options.fetch_images or None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    for name in ("model", "url"):
        if getattr(options, name) == "":
            raise ConfigurationError(f"--{name} is empty.")
    if options.url is not None:
        return Guard.remote(options.url, model=options.model, **settings)
    return Guard(options.model, **settings)
