"""How far a training run is, as `run.json` in its folder says: `TrainingRun`. Reads it; knows no stage's work.

Needs no torch, so that a look at a run takes no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pydantic import JsonValue

from guardrail_vl import __version__
from guardrail_vl._lock import is_held
from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError, ContentError

RUN: Final = "run.json"
LAYOUT: Final = 1
"""Of the folder; another number is another way to write it."""

State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class StageRun(Value):
    """How far one stage came."""

    stage: str
    folder: str
    """Where its output is, in the run's folder."""
    state: State = "waiting"
    """`running` in the file without a process that holds the folder: it was killed, and `load` says `stopped`. The next
    run goes on with it."""
    started: str | None = None
    """First begun: UTC, ISO 8601."""
    seconds: float = 0.0
    """It worked so long, all tries together but those that were killed."""
    figures: Mapping[str, JsonValue] | None = None
    """What came out, in a few numbers; of a stage that is done."""
    error: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class TrainingRun(Value):
    """What `run.json` holds."""

    recipe: str
    """Its name."""
    conditions: Mapping[str, JsonValue]
    """See `Recipe.conditions`."""
    stages: tuple[StageRun, ...]
    """Those that the recipe has, in order."""
    version: str = __version__
    """Of guardrail-vl, when it was begun."""
    layout: int = LAYOUT

    @property
    def done(self) -> bool:
        """Whether every stage is."""
        return all(one.state == "done" for one in self.stages)

    @property
    def passed(self) -> bool | None:
        """What the gate said. None: there is none, or it isn't done."""
        figures = next((one.figures for one in self.stages if one.stage == "gate"), None)
        return None if figures is None else bool(figures.get("passed"))

    def stage(self, name: str) -> StageRun:
        """The stage of this name.

        Raises:
            ConfigurationError: The recipe has no such stage.
        """
        for one in self.stages:
            if one.stage == name:
                return one
        raise ConfigurationError(
            f"The recipe has no stage {name!r}.", hint=f"It has {', '.join(one.stage for one in self.stages)}."
        )

    def with_stage(self, changed: StageRun) -> TrainingRun:
        """The same with one stage in another state."""
        return replace(self, stages=tuple(changed if one.stage == changed.stage else one for one in self.stages))


def load(folder: str | Path) -> TrainingRun:
    """The state of a run; nothing is written. A stage whose process was killed is `stopped`.

    Raises:
        ConfigurationError: There is none, or its file is damaged.
    """
    folder = Path(folder)
    found = _there(folder)
    if all(one.state != "running" for one in found.stages) or is_held(folder):
        return found
    # Again: it may have ended between the two looks.
    found = _there(folder)
    return replace(
        found,
        stages=tuple(replace(one, state="stopped") if one.state == "running" else one for one in found.stages),
    )


def _there(folder: Path) -> TrainingRun:
    found = read_run(folder)
    if found is None:
        raise ConfigurationError(f"There is no training run in {folder.name!r}: it has no {RUN}.")
    return found


def read_run(folder: Path) -> TrainingRun | None:
    """What `run.json` says, whether its process lives or not. None: there is no such file.

    Raises:
        ConfigurationError: It is damaged, or of another version.
    """
    try:
        found = TrainingRun.from_json((folder / RUN).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{RUN} in {folder.name!r} can't be read: {error.strerror}.") from error
    except ContentError as error:
        raise ConfigurationError(f"{RUN} is damaged, or of another version. {error.message}") from None
    if found.layout != LAYOUT:
        raise ConfigurationError(f"{RUN} is of layout {found.layout}; this version reads {LAYOUT}.")
    return found
