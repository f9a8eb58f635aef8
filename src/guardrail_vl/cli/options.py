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
_VLLM = "vLLM, on this machine"

TensorParallelOption = Annotated[
    int | None,
    typer.Option("--tensor-parallel", min=1, metavar="N", help="GPUs that share the weights.", rich_help_panel=_VLLM),
]
DataParallelOption = Annotated[
    int | None,
    typer.Option("--data-parallel", min=1, metavar="N", help="Copies of the weights.", rich_help_panel=_VLLM),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=FOLDER",
        help="A LoRA adapter, for policies that name it; repeat for more.",
        rich_help_panel=_VLLM,
    ),
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
    tensor_parallel: int | None = None
    data_parallel: int | None = None
    adapters: tuple[str, ...] = ()
    """NAME=FOLDER each."""


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
    vllm = _vllm_options(options)
    if vllm:
        if options.url is not None or options.model is None:
            raise ConfigurationError(
                "--tensor-parallel, --data-parallel and --adapter are for vLLM on this machine: they need a --model.",
                hint="A server behind --url has such options of its own.",
            )
        from guardrail_vl.engines.vllm import VLLMEngine

        return Guard(engine=VLLMEngine(options.model, **vllm), **settings)
    if options.url is not None:
        return Guard.remote(options.url, model=options.model, **settings)
    return Guard(options.model, **settings)


def _vllm_options(options: GuardOptions) -> dict[str, Any]:
    given: dict[str, Any] = {
        "tensor_parallel_size": options.tensor_parallel,
        "data_parallel_size": options.data_parallel,
        "adapters": dict(map(_adapter, options.adapters)) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _adapter(given: str) -> tuple[str, str]:
    name, equals, folder = given.partition("=")
    if not equals:
        raise ConfigurationError("--adapter needs a name and a folder.", hint="Write --adapter NAME=FOLDER.")
    return name, folder
