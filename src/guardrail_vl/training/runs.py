"""A training run's folder: which stages are done, and the one that goes on. Knows no stage's work.

`run.json` holds the state of each stage and what decides the result; `recipe.yaml` is the recipe as it ran. A stage is
done when its folder says so, never because this file does: a process can die between the two.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import JsonValue

from guardrail_vl import __version__
from guardrail_vl._lock import LOCK_FILE, FolderLock
from guardrail_vl._whole import write_whole, written
from guardrail_vl.errors import ConfigurationError, GuardrailError, MissingDependencyError
from guardrail_vl.training import stages
from guardrail_vl.training._output import Step
from guardrail_vl.training._state import LAYOUT, RUN, StageRun, State, TrainingRun, load, read_run
from guardrail_vl.training._trainer import without_known_warnings
from guardrail_vl.training.recipe import STAGES, Recipe

try:
    import torch
    import transformers
except ImportError as error:
    raise MissingDependencyError(
        error.name or "torch", extra="train", needed_for="guardrail_vl.training.runs"
    ) from error

__all__ = [
    "LAYOUT", "RECIPE", "RUN", "SPREAD", "StageRun", "State", "TrainingRun", "Watch", "load", "run",
]  # fmt: skip

RECIPE: Final = "recipe.yaml"
SPREAD: Final = ("sft", "rl")
"""The stages that several processes do together, under `accelerate launch`."""
_OWNERS: Final = {"policy": "synthesize", "name": "export"}
"""The first stage that a key outside the stages' sections matters to; the others: `data`."""
_TOLD: Final = 8
"""Differences named at once."""

Watch = Callable[[StageRun], object]


def run(
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    until: str | None = None,
    samples: int = 0,
    progress: Callable[[Step], object] | None = None,
    watch: Watch | None = None,
) -> TrainingRun:
    """Run a recipe's stages that are not done yet, in order. Called again, it goes on where the last call ended.

    Under `accelerate launch` with several processes it does one stage, SFT or RL, and returns.

    Args:
        recipe: Or its file.
        output: The run's folder; made if it is not there.
        until: The last stage to run. None: all.
        samples: How many held-out turns to write into `samples.md` with what the new guard says of them; 0: no such
            file. It holds content.
        progress: Called as a stage goes on.
        watch: Called when a stage begins or ends.

    Raises:
        ConfigurationError: The folder holds another recipe's run (says what differs), is in use, or can't be written;
            or a stage refuses.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    folder = Path(output)
    if until is not None and until not in recipe.stages:
        raise ConfigurationError(f"The recipe has no stage {until!r}.", hint=f"It has {', '.join(recipe.stages)}.")
    recipe.check()
    room = stages.Room(recipe, folder, progress)
    if _processes() > 1:
        with _quiet():
            return _spread(room, until, watch)
    with _held(folder), _quiet():
        state = _begun(recipe, folder)
        for stage in _wanted(recipe, until):
            if not room.is_done(stage) or state.stage(stage).state != "done":
                state = _advanced(room, state, stage, watch)
        if samples and room.is_done("export"):
            stages.write_samples(room, samples)
    return state


def _advanced(room: stages.Room, state: TrainingRun, stage: str, watch: Watch | None) -> TrainingRun:
    """Do one stage, and keep its state."""
    begun = time.monotonic()
    first = state.stage(stage)
    now = replace(
        first, state="running", started=first.started or datetime.now(UTC).isoformat(timespec="seconds"), error=""
    )

    def told(**changes: Any) -> TrainingRun:
        nonlocal now
        now = replace(now, seconds=round(first.seconds + time.monotonic() - begun, 1), **changes)
        after = state.with_stage(now)
        write_whole(room.folder / RUN, after.to_json() + "\n")
        if watch is not None:
            watch(now)
        return after

    told()
    try:
        figures = stages.WORK[stage](room)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        # Only our own messages are sure to hold no content.
        why = error.message if isinstance(error, GuardrailError) else type(error).__name__
        with contextlib.suppress(ConfigurationError):  # a full disk: the error that matters is on its way
            told(state="stopped" if stopped else "failed", error="" if stopped else why)
        raise
    finally:
        _free()
    return told(state="done", figures=figures)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, as there is one already, and what TRL's calls make it warn of."""
    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with without_known_warnings():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _free() -> None:
    """Give back what a stage's model took on a device."""
    gc.collect()
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        cuda.empty_cache()


# ---- the folder ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    with written(folder.name):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def _begun(recipe: Recipe, folder: Path) -> TrainingRun:
    """See that the folder is this recipe's, or make it so."""
    room = stages.Room(recipe, folder)
    there = read_run(folder)
    waiting = tuple(StageRun(one, room.output(one).name) for one in recipe.stages)
    state = TrainingRun(recipe.name, recipe.conditions(), waiting)
    if there is None:
        if any(room.output(stage).exists() for stage in STAGES):
            raise ConfigurationError(f"The folder {folder.name!r} has stages and no {RUN}.", hint="Use another folder.")
        if any(path.name not in (LOCK_FILE, RECIPE) and not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigurationError(
                f"The folder {folder.name!r} is not empty, and not a training run.", hint="Name another one."
            )
    else:
        _check_same(there, state, room)
        known = {one.stage: one for one in there.stages}
        state = replace(state, version=there.version, stages=tuple(known.get(one.stage, one) for one in waiting))
    write_whole(folder / RECIPE, _as_run(recipe, state))
    write_whole(folder / RUN, state.to_json() + "\n")
    return state


def _check_same(there: TrainingRun, here: TrainingRun, room: stages.Room) -> None:
    """Refuse what would make a stage that is done untrue. A stage that hasn't ended may be given another config."""
    old, new = there.conditions, here.conditions
    last = max((STAGES.index(one) for one in STAGES if room.is_done(one)), default=-1)
    differs = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if refused := [key for key in differs if STAGES.index(_owner(key, here)) <= last]:
        told = [f"{key} ({_shown(old, key)} there, {_shown(new, key)} now)" for key in refused[:_TOLD]]
        if len(refused) > _TOLD:
            told.append(f"and {len(refused) - _TOLD} more")
        raise ConfigurationError(
            f"The folder holds the run of another recipe. It differs in {'; '.join(told)}.",
            hint=f"Use another folder, or delete the folders of the stages to do again (to {STAGES[last]}).",
        )
    undone = [one.stage for one in here.stages if not room.is_done(one.stage) and STAGES.index(one.stage) < last]
    if undone:
        raise ConfigurationError(
            f"The stage {undone[0]} is not done, and {STAGES[last]}, which comes after it, is.",
            hint=f"Delete the folders of all stages after {undone[0]} too, or use another folder.",
        )


def _owner(key: str, here: TrainingRun) -> str:
    """The stage that a condition belongs to."""
    top = key.partition(".")[0].partition("[")[0]
    if top in STAGES:
        return top
    owner = _OWNERS.get(top, "data")
    return owner if owner != "synthesize" or any(one.stage == owner for one in here.stages) else "export"


def _shown(conditions: Mapping[str, JsonValue], key: str) -> str:
    return repr(conditions[key])[:60] if key in conditions else "nothing"


def _as_run(recipe: Recipe, state: TrainingRun) -> str:
    hashes = [f"# {key}: {value}\n" for key, value in state.conditions.items() if key.endswith((".file", "policy"))]
    keys = yaml.safe_dump(recipe.with_whole_paths(), sort_keys=False, allow_unicode=True, width=120)
    return "".join([f"# As it ran, with every default, under guardrail-vl {__version__}.\n", *hashes, keys])


def _wanted(recipe: Recipe, until: str | None) -> Sequence[str]:
    return recipe.stages if until is None else recipe.stages[: recipe.stages.index(until) + 1]


# ---- several processes ----------------------------------------------------------------------------------------------


def _processes() -> int:
    """How many processes `accelerate launch` (or torchrun) started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _spread(room: stages.Room, until: str | None, watch: Watch | None) -> TrainingRun:
    """The next stage, done by all processes together; the first of them keeps the folder."""
    stage = next((one for one in _wanted(room.recipe, until) if not room.is_done(one)), None)
    if stage is None:
        return load(room.folder)
    if stage not in SPREAD:
        raise ConfigurationError(
            f"The stage {stage} runs in one process, and this is one of {_processes()}.",
            hint=f"Run the same command without accelerate launch and with --until {stage}, then this one again.",
        )
    if not stages.is_first():
        stages.WORK[stage](stages.Room(room.recipe, room.folder))
        return load(room.folder)
    with _held(room.folder):
        return _advanced(room, _begun(room.recipe, room.folder), stage, watch)
