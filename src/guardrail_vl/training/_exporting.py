"""What the exporters for EasyR1 and verl share: prompts as they are served, rows, the reward file, the run's settings.

The reward file is made of this package's own source: there is one parser and one reward. Knows neither framework.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, Field

from guardrail_vl._whole import written
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.media import encode
from guardrail_vl.prompt_format import guardreasoner_vl
from guardrail_vl.prompt_format.base import PromptImage, PromptMessage
from guardrail_vl.prompt_format.guardreasoner_vl import MAX_PIXELS, GuardReasonerVL
from guardrail_vl.training import rewards as _rewards
from guardrail_vl.training.clip import Clip, DynamicClip, FixedClip
from guardrail_vl.training.rewards import RewardConfig
from guardrail_vl.training.turns import LabeledTurn

IMAGE: Final = "<image>"
"""Where both frameworks put a picture. Content can't hold it: the prompt format neutralises tags."""
TRAIN, VALIDATION, REWARD, RUN = "train.parquet", "val.parquet", "reward.py", "run.sh"
_ROWS: Final = 64
"""Rows that are held in memory at a time."""
_DEMANDED: Final = 16
"""Training turns in the validation file where no others are given: both frameworks demand one."""


class LargeRunConfig(BaseModel, frozen=True, extra="forbid"):
    """Reinforcement on many GPUs. The defaults are the paper's (arXiv 2505.11049, A.5.2), or the release's where the
    paper is silent.
    """

    group: int = Field(default=16, ge=2)
    """Completions of a prompt."""
    temperature: float = Field(default=1.2, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=512, ge=1)
    """Prompts of a step. Fewer turns than this can't be trained on."""
    update: int = Field(default=256, ge=1)
    """Prompts of an optimiser update: 2 updates a step (paper). The release has 128."""
    epochs: int = Field(default=1, ge=1)
    """How often each turn is used. 12,000 turns, once, are 23 steps."""
    learning_rate: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    clip: Clip = DynamicClip()
    phases: int = Field(default=4, ge=1)
    """Parts that a dynamic clip is cut into: neither framework can change the clip while it runs, so each part is a run
    of its own, with the mean clip of its steps. As many as there are steps follow the paper exactly."""
    prompt_tokens: int = Field(default=3072, ge=1)
    """Longer prompts are left out."""
    completion_tokens: int = Field(default=3072, ge=1)
    min_pixels: int = Field(default=3136, ge=1)
    """Smaller pictures are scaled up to so many pixels (EasyR1). The release has 262,144; a served guard has this."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Larger ones are scaled down (EasyR1). The release has 4,194,304; pictures are written as a guard is served them,
    which is this at most."""
    freeze_vision: bool = False
    seed: int = 1
    gpus: int = Field(default=8, ge=1)
    """Of one machine."""
    machines: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=2, ge=1)
    """GPUs that share one model while it writes."""
    gpu_memory: float = Field(default=0.5, gt=0, lt=1)
    """Share of a GPU's memory for the model that writes."""


# ---- rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """A turn as the guard is asked it."""

    system: str
    user: str = field(repr=False)
    """With an `<image>` where each picture stands."""
    images: tuple[bytes, ...] = field(repr=False)
    """PNG files, as the engine is given them."""
    gold: str
    """JSON: the labels of `request` and `response`, null where one is not known."""


def served(turn: LabeledTurn) -> Served:
    """The turn as `speed="reason"` asks it.

    Raises:
        ContentError: It can't be judged; the message names it.
    """
    try:
        prompt = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")[0]
        images = tuple(encode(image.pixels())[0] for image in prompt.images)
    except ContentError as error:
        raise ContentError(f"The turn {turn.id!r} can't be exported: {error.message}", hint=error.hint) from error
    system, user = prompt.messages
    gold = json.dumps({"request": turn.prompt_label, "response": turn.response_label})
    return Served(system.text, _with_marks(user), images, gold)


def _with_marks(message: PromptMessage) -> str:
    return "".join(IMAGE if isinstance(part, PromptImage) else part.text for part in message.content)


def picture(data: bytes) -> dict[str, Any]:
    """As both frameworks, and `datasets`, store a picture in Parquet."""
    return {"bytes": data, "path": None}


def write_rows(path: Path, rows: Iterable[dict[str, Any]], columns: Mapping[str, Any]) -> None:
    """A Parquet file with these columns, whatever the rows hold: one of texts alone has the same schema.

    Args:
        path: The file.
        rows: One dict a row.
        columns: From name to `text`, `number`, `pictures`, `messages`, or a dict of columns.

    Raises:
        MissingDependencyError: There is no pyarrow.
        ConfigurationError: It can't be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError("pyarrow", extra="train", needed_for="A Parquet file") from error

    def kind(column: Any) -> Any:
        if isinstance(column, Mapping):
            return pa.struct([(name, kind(inner)) for name, inner in column.items()])
        return {
            "text": pa.string(),
            "number": pa.int64(),
            "pictures": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        }[column]

    schema = pa.schema([(name, kind(column)) for name, column in columns.items()])
    with written(path.name), pq.ParquetWriter(path, schema) as file:
        held: list[dict[str, Any]] = []
        for row in rows:
            held.append(row)
            if len(held) == _ROWS:
                file.write_table(pa.Table.from_pylist(held, schema=schema))
                held = []
        if held:
            file.write_table(pa.Table.from_pylist(held, schema=schema))


# ---- the run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phase:
    """Some steps with one clip."""

    name: str
    """Of its config file."""
    last: int
    """The step it ends with, counted from 1 over all phases."""
    clip: float


def check(turns: Sequence[LabeledTurn], format: str, config: LargeRunConfig) -> None:
    """Refuse what can't be exported.

    Raises:
        ConfigurationError: Another prompt format, too few turns, or updates that don't fit a step.
    """
    if format != GuardReasonerVL.id:
        raise ConfigurationError(
            f"The reward file reads the prompt format {GuardReasonerVL.id!r}, and {format!r} is asked for.",
            hint="Train other formats with guardrail_vl.training.rl.",
        )
    if len(turns) < config.batch:
        raise ConfigurationError(
            f"There are {len(turns)} turns, and one step takes {config.batch}.", hint="Give more, or a smaller batch."
        )
    if config.batch % config.update:
        raise ConfigurationError(f"A batch of {config.batch} can't be cut into updates of {config.update}.")


def phases(turns: Sequence[LabeledTurn], config: LargeRunConfig) -> tuple[Phase, ...]:
    """The runs that follow one another, so that the clip falls."""
    total = len(turns) // config.batch * config.epochs
    count = 1 if isinstance(config.clip, FixedClip) else min(config.phases, total)
    ends = [total * part // count for part in range(count + 1)]
    return tuple(
        Phase(
            name=f"config-{number:02}",
            last=last,
            clip=sum(config.clip.at(step, total) for step in range(first + 1, last + 1)) / (last - first),
        )
        for number, (first, last) in enumerate(pairwise(ends), start=1)
    )


def validation(turns: Sequence[LabeledTurn], held_out: Sequence[LabeledTurn]) -> Sequence[LabeledTurn]:
    """The held-out turns; where there are none, a few training turns, as the frameworks demand a file."""
    return held_out or turns[:_DEMANDED]


def settings(content: Mapping[str, Any], about: str) -> str:
    """A config file.

    Args:
        content: The settings.
        about: What it is, for the comment at its top.
    """
    return f"# {about}\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}"


# ---- the reward file ----------------------------------------------------------------------------------------------

_TAKEN: Final[tuple[tuple[Any, tuple[str, ...]], ...]] = (
    (guardreasoner_vl, ("MAX_ANSWER", "_BLOCK", "_LABELS", "_WORDS", "_OUR_TAG", "Result", "parse_text", "_label")),
    (
        _rewards,
        ("Reward", "_THOUGHT", "_FIRST_RESULT", "_SAID", "read", "_said", "safety", "normalised", "reward"),
    ),
)
"""From each module, what the file needs; all else that these use is in `_HEAD`."""
_HEAD: Final = '''\
"""The reward of a guard, to be used with {framework}. Made by guardrail-vl out of its own parser and reward.

It needs Python 3.9 and nothing of guardrail-vl. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import functools
import json
import re
from enum import Enum
from types import SimpleNamespace
from typing import NamedTuple

CONFIG = SimpleNamespace({config})


class Label(str, Enum):
    HARMFUL = "harmful"
    UNHARMFUL = "unharmful"


class ConfigurationError(ValueError):
    pass


class ParseError(Exception):
    def __init__(self, message, *, text):
        super().__init__(message)


'''
_TAIL: Final = '''


def score(text, gold, tokens):
    """What a completion earned, and why."""
    request, response = (label and Label(label) for label in map(json.loads(gold).get, ("request", "response")))
    earned = reward(text, request, response, tokens, CONFIG)
    return {"value": earned.value, "safety": earned.safety, "format": float(earned.format), "length": earned.l_norm}


'''


def reward_file(framework: str, config: RewardConfig, call: str) -> str:
    """The source of a Python file that gives the same numbers as `rewards.reward`.

    Args:
        framework: Its name, for the comment.
        config: The switches, which the file then holds.
        call: Source of the function that the framework calls; `score` is there.
    """
    fields = ", ".join(f"{name}={value!r}" for name, value in config.model_dump().items())
    parts = [part for module, names in _TAKEN for part in _source(module, names)]
    return _HEAD.format(framework=framework, config=fields) + "\n\n\n".join(parts) + _TAIL + call


def _source(module: Any, names: Sequence[str]) -> list[str]:
    """The source of these top-level names, in the order of `names`."""
    text = inspect.getsource(module)
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        name = node.target if isinstance(node, ast.AnnAssign) else node
        key = getattr(name, "name", None) or getattr(name, "id", None)
        if key in names:
            found[str(key)] = ast.get_source_segment(text, node) or ""
    return [found[name] for name in names]


__all__ = [
    "LargeRunConfig",
    "Phase",
    "Served",
    "check",
    "phases",
    "picture",
    "reward_file",
    "served",
    "settings",
    "validation",
    "write_rows",
]
