"""What SFT and reinforcement share around a trainer of transformers: figures, checkpoints, faults, and going on.

A checkpoint takes its name only when it is whole. A loss that is no number, a full disk, too little memory and ctrl-C
end a run with a clear error and leave its last checkpoint. It knows no loss and no reward.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from guardrail_vl._whole import remove_folder, whole_folder
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.training._faults import check_finite, explained, lost
from guardrail_vl.training._output import Output, R, Step, digest_of_model, digest_of_turns
from guardrail_vl.training._saving import save

try:
    import torch
    import transformers
    from accelerate import PartialState

    from guardrail_vl.engines import transformers as serving
    from guardrail_vl.engines._bars import without_bars
except ImportError as error:
    raise MissingDependencyError(
        error.name or "transformers", extra="train", needed_for="guardrail_vl.training"
    ) from error

__all__ = [
    "Output",
    "Recorder",
    "Step",
    "begin",
    "digest_of_model",
    "digest_of_turns",
    "explained",
    "save",
    "shared_arguments",
    "train",
]

hf: Any = transformers
"""Only partly typed."""

_PATIENCE: Final = timedelta(hours=3)
"""How long processes wait for one another: each reads all turns at its own pace, and one alone saves. NCCL's own limit
is 10 minutes."""
STAGED: Final = ".staged"
"""Where a trainer writes a checkpoint, hidden, before it is whole."""
_MUST_BE_NUMBERS: Final = ("loss", "grad_norm", "eval_loss")


class Recorder(hf.TrainerCallback):  # type: ignore[misc]
    """Logs, reports progress, makes checkpoints whole, and stops a run that has lost its way.

    Args:
        output: Where to.
        progress: Called with each logged step, in the main process.
    """

    def __init__(self, output: Output, progress: Callable[[Step], object] | None = None) -> None:
        self.output = output
        self.progress = progress
        self.interrupted = False
        """Set by ctrl-C: a checkpoint is kept at the end of the running step, and training ends."""

        self.restored: Path | None = None
        """The checkpoint whose weights the model is to have when training begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Load the weights of the checkpoint that the run goes on from, and make sure that all are there.

        The Trainer of transformers 5.23 does not: it saves Qwen2.5-VL under the names of older versions, looks for them
        under the newer ones, finds none, and goes on from the weights that it was made with.
        """
        if self.restored is not None:
            whole = type(model).from_pretrained(self.restored, dtype=model.dtype)
            model.load_state_dict(whole.state_dict())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for what has to happen at this step."""
        if state.global_step >= state.max_steps:
            # The model itself is saved next; and transformers takes a step too many from a checkpoint at the end.
            control.should_save = False
        elif self.interrupted:
            control.should_save = control.should_training_stop = True
        # Logged first, so that weights that a NaN has spoilt are never saved.
        control.should_log = control.should_log or control.should_save
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the figures down and look at them."""
        if not logs or "train_runtime" in logs:
            return
        values = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        if state.is_world_process_zero:
            step = Step(self.output.stage, state.global_step, state.max_steps, values)
            self.output.log(step)
            if self.progress is not None:
                self.progress(step)
        wrong = [name for name in _MUST_BE_NUMBERS if not math.isfinite(values.get(name, 0.0))]
        if wrong:
            raise lost(" and ".join(wrong), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Give the checkpoint its name, and drop the one before."""
        check_finite(model.named_parameters(), state.global_step)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its part
        if not state.is_world_process_zero:
            return
        name = f"checkpoint-{state.global_step}"
        staged, kept = Path(args.output_dir) / name, self.output.checkpoints / name
        if not kept.exists():
            with whole_folder(kept) as place:
                place.rmdir()
                os.replace(staged, place)
        for older in self.output.checkpoints.glob("checkpoint-*"):
            if older != kept:
                remove_folder(older)


def begin(output: Output, kind: type[R]) -> R | None:
    """`Output.begin` for a run of several processes: the first one begins, then the others look."""
    with first_alone() as first:
        return output.begin(kind, write=first)


@contextlib.contextmanager
def first_alone() -> Iterator[bool]:
    """Run this in the first process, then in the others. Gives whether this is the first one."""
    # Without cpu, processes on CPUs don't find each other.
    state = PartialState(cpu=serving.best_device() == "cpu", timeout=_PATIENCE)
    with state.main_process_first():
        yield state.is_main_process


@contextlib.contextmanager
def without_known_warnings() -> Iterator[None]:
    """Keep back that TRL and PEFT ask for a property by the name that transformers is about to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def shared_arguments(output: Output, *, save_steps: int) -> dict[str, Any]:
    """Arguments of every trainer: where it saves, and that it reports to us alone.

    Args:
        output: The stage's folder.
        save_steps: Steps from one checkpoint to the next; 0: none but on ctrl-C.
    """
    return {
        "output_dir": str(output.checkpoints / STAGED),
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 500,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        # It would replace a NaN by the mean of the steps before, and nobody would know.
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
    }


def activation_arguments(kind: Any, wanted: bool) -> dict[str, Any]:
    """Whether activations are computed twice instead of kept, by the name that this version of transformers has for it.

    Args:
        kind: The class of arguments.
        wanted: Whether.
    """
    prefix = "activation" if "activation_checkpointing" in kind.__dataclass_fields__ else "gradient"
    if not wanted:
        return {f"{prefix}_checkpointing": False}
    return {f"{prefix}_checkpointing": True, f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}}


def train(trainer: Any, recorder: Recorder) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Args:
        trainer: Made with `shared_arguments`.
        recorder: Of the same output.

    Raises:
        ConfigurationError: The loss is not a number, something can't be written, or the checkpoint is of a run of
            another number of processes.
        EngineUnavailableError: There is not enough memory.
        KeyboardInterrupt: Ctrl-C; says how to go on.
    """
    output = recorder.output
    trainer.remove_callback(hf.PrinterCallback)
    trainer.add_callback(recorder)
    newest = newest_checkpoint(output)
    if newest is not None:
        _check_processes(newest, trainer.args.world_size)
    if trainer.is_world_process_zero():
        output.rewind(0 if newest is None else int(newest.name.rpartition("-")[2]))
        remove_folder(output.checkpoints / STAGED)
    network = trainer.accelerator.unwrap_model(trainer.model)
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or hasattr(network, "peft_config")):
        recorder.restored = newest  # shards and adapters are saved and loaded under the same names
    with explained(f"go on with {output.stage}"), _watching(recorder), _quiet(), without_bars():
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if recorder.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt(
            f"{output.stage} was stopped at step {trainer.state.global_step} of {trainer.state.max_steps}. "
            "Its checkpoint is kept: the same command goes on from there."
        )


def last_logged(trainer: Any, name: str) -> float | None:
    """The newest figure of this name, from before the run went on too; None: there is none."""
    return next((float(logs[name]) for logs in reversed(trainer.state.log_history) if name in logs), None)


def newest_checkpoint(output: Output) -> Path | None:
    """The newest whole checkpoint of a stage that is not done; None: there is none."""
    kept = output.checkpoints.glob("checkpoint-*")
    return max(kept, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _check_processes(checkpoint: Path, now: int) -> None:
    """Refuse to go on with more or fewer processes: steps would take other turns, and SFT's more or fewer of them."""
    before = len(list(checkpoint.glob("rng_state*.pth")))  # each process leaves one
    if before != now:
        raise ConfigurationError(
            f"The run that is to go on was of {before} processes, and this one is of {now}.",
            hint="Start as many, or name another folder.",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what transformers says of the names that `Recorder.on_train_begin` makes good."""

    def keep(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(("There were missing keys", "There were unexpected keys"))

    logger = logging.getLogger("transformers.trainer")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextlib.contextmanager
def _watching(recorder: Recorder) -> Iterator[None]:
    """Ctrl-C ends training at the end of a step; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield  # several processes would stop at unlike steps, and wait for one another for ever
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        if recorder.interrupted:
            raise KeyboardInterrupt
        recorder.interrupted = True

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
