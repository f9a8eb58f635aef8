"""Turns to batches, and the trainer that takes them: what `sft` runs, without its settings.

The Trainer of transformers with a collator and a loss of ours. It knows neither files nor checkpoints.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from guardrail_vl.engines._hardware import cpu_cores
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.training._encoding import IGNORED, Encoded, Encoder
from guardrail_vl.training.turns import LabeledTurn

try:
    import accelerate
    import torch
    import transformers
    from accelerate.utils import gather_object
except ImportError as error:
    raise MissingDependencyError(error.name or "torch", extra="train", needed_for="guardrail_vl.training") from error

hf: Any = transformers
"""Only partly typed."""

_PartialState: Any = accelerate.PartialState

HELPERS: Final = 4
"""Processes that prepare batches for one GPU, unless another number is asked for."""
CACHED_BYTES: Final = 512 * 1024**2
"""Encoded turns that are kept in memory; those beyond are encoded again each time."""


@dataclass(frozen=True, slots=True)
class Example:
    """A turn that can be trained on, and what it is to be answered."""

    turn: LabeledTurn
    target: str
    encoded: Encoded | None = None
    """Kept, where memory allows."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A set of turns, as far as it can be trained on."""

    examples: Sequence[Example]
    fast: int = 0
    """How many of the examples have an empty think."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """How many turns were left out, by the reason."""

    @property
    def mean_weight(self) -> float:
        """Of the examples."""
        return sum(example.turn.weight for example in self.examples) / len(self.examples)


def helpers(asked: int | None) -> int:
    """How many processes are to prepare batches beside this one: see `SFTConfig.workers`."""
    if asked is not None:
        return asked
    if not torch.cuda.is_available():
        return 0
    # Shared by the training processes of this machine, each of which needs a core of its own.
    return max(0, min(HELPERS, cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def prepare(
    encoder: Encoder,
    turns: Sequence[LabeledTurn],
    *,
    fast_share: float,
    seed: int,
    max_length: int,
    drop: bool,
    workers: int = 0,
) -> Prepared:
    """Encode each turn once, so that what is unfit is known before training begins.

    Several training processes share the work; each gets all of what was found.

    Args:
        encoder: Of the checkpoint.
        turns: At least one.
        fast_share: See `fast_ones`.
        seed: See `fast_ones`.
        max_length: Tokens of a turn with its target, at most.
        drop: Leave out what is unfit, instead of refusing it.
        workers: Processes that encode, beside each training process.

    Raises:
        ConfigurationError: Turns are unfit and are not to be dropped, or none is left.
    """
    fast = fast_ones(turns, fast_share, seed)
    longest = min(max_length, encoder.reader.max_positions)
    examples: list[Example] = []
    unfit: dict[str, list[str]] = {}
    room, used_fast = CACHED_BYTES, 0
    for place, tried in enumerate(_tried(_Trials(encoder, turns, fast, longest), workers)):
        if tried.reason:
            unfit.setdefault(tried.reason, []).append(turns[place].id)
            continue
        if tried.encoded is not None:
            room -= _bytes(tried.encoded)
        used_fast += place in fast
        examples.append(Example(turns[place], tried.target, tried.encoded if room > 0 else None))
    if unfit and not drop:
        told = "; ".join(_told(why, ids, longest) for why, ids in unfit.items())
        raise ConfigurationError(
            f"Some of the {len(turns)} turns can't be trained on. {told}.",
            hint="guardrail-vl data validate says what is wrong with a picture or a text. Mend them, or leave them out "
            "with unfit='drop' (in a recipe: sft: {unfit: drop}).",
        )
    if not examples:
        raise ConfigurationError("There is no turn to train on.")
    return Prepared(examples, used_fast, {why: len(ids) for why, ids in unfit.items()})


_REASONS: Final = {
    "labels": "A side that is there has no label",
    "reasoning": "No reasoning that can be trained on, and no fast share left for it",
    "length": "Longer than {} tokens",
    "content": "Can't be shown to the model: a picture that can't be read, too long a text, or control tokens",
}


def _told(why: str, ids: Sequence[str], longest: int) -> str:
    shown = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
    return f"{_REASONS[why].format(longest)}: {len(ids)} ({shown})"


def fast_ones(turns: Sequence[LabeledTurn], share: float, seed: int) -> frozenset[int]:
    """Places of the turns to train with an empty think: those without reasoning first, then drawn by the seed."""
    whole = [place for place, turn in enumerate(turns) if turn.whole]
    random.Random(seed).shuffle(whole)
    whole.sort(key=lambda place: turns[place].reasoning is not None)  # keeps the order within each
    return frozenset(whole[: round(share * len(whole))])


@dataclass(frozen=True, slots=True)
class _Trial:
    """What became of a turn."""

    reason: str = ""
    """Why it is unfit. Empty: it is fit."""
    target: str = ""
    encoded: Encoded | None = None
    """None: it has pictures, whose pixels are not worth handing from process to process."""


class _Trials(torch.utils.data.Dataset[_Trial]):
    """Each turn, tried when it is asked for."""

    alone = True
    """Whether no other process takes part."""

    def __init__(self, encoder: Encoder, turns: Sequence[LabeledTurn], fast: frozenset[int], longest: int) -> None:
        self._encoder, self._turns, self._fast, self._longest = encoder, turns, fast, longest

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, place: int) -> _Trial:
        turn, fast = self._turns[place], place in self._fast
        if not turn.whole:
            return _Trial("labels")
        if turn.reasoning is None and not fast:
            return _Trial("reasoning")
        try:
            target = self._encoder.target(turn, fast=fast)
        except ConfigurationError:  # it holds a tag of the format
            return _Trial("reasoning")
        try:
            encoded = self._encoder.encode(turn, target=target)
        except ContentError:
            return _Trial("content")
        if len(encoded.ids) > self._longest:
            return _Trial("length")
        return _Trial("", target, encoded if self.alone or encoded.pixels is None else None)


def _tried(trials: _Trials, workers: int) -> Sequence[_Trial]:
    """All of them, in order."""
    state = _PartialState()  # as whoever trains has made it
    trials.alone = workers == 0 and state.num_processes == 1
    mine = range(state.process_index, len(trials), state.num_processes)
    loader = torch.utils.data.DataLoader(trials, batch_size=None, sampler=mine, num_workers=workers)
    found = list(loader)
    if state.num_processes == 1:
        return found
    shares: list[list[_Trial]] = gather_object([found])
    return [shares[place % state.num_processes][place // state.num_processes] for place in range(len(trials))]


def _bytes(row: Encoded) -> int:
    # A Python integer with its place in a list, and one more for its label.
    return 2 * 44 * len(row.ids) + (0 if row.pixels is None else row.pixels.nbytes)


class Rows(torch.utils.data.Dataset[Encoded]):
    """Examples, encoded when they are asked for."""

    def __init__(self, encoder: Encoder, examples: Sequence[Example]) -> None:
        self._encoder = encoder
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: int) -> Encoded:
        example = self._examples[place]
        return example.encoded or self._encoder.encode(example.turn, target=example.target)


class Collator:
    """Rows to a batch for `Trainer`: beside the model's arguments, `weights` (rows), of mean 1 over the whole set.

    Args:
        encoder: Of the checkpoint.
        mean_weight: Of the set.
    """

    def __init__(self, encoder: Encoder, mean_weight: float = 1.0) -> None:
        self._encoder = encoder
        self._mean_weight = mean_weight
        self._cuts = "logits_to_keep" in encoder.takes
        self.spare: Encoded | None = None
        """A picture that a batch without one is given, with no loss on it."""

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """The batch."""
        if self.spare is not None and all(row.pixels is None for row in rows):
            rows = [*rows, self.spare]
        batch = self._encoder.collate(rows)
        batch["weights"] = torch.tensor([row.weight / self._mean_weight for row in rows])
        if "use_cache" in self._encoder.takes:
            batch["use_cache"] = False
        if self._cuts:
            # Logits from just before the first target on: those of the prompts would fill the memory for nothing.
            first = int((batch["labels"] != IGNORED).any(0).int().argmax())
            batch["logits_to_keep"] = batch["labels"].shape[1] - max(0, first - 1)
        return batch


class Trainer(hf.Trainer):  # type: ignore[misc]
    """The Trainer of transformers, with a loss on targets that weighs rows."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, compute_loss_func=self._loss)
        self._weights: Any = None

    def share_pictures(self, encoder: Encoder, *, trained: bool) -> None:
        """Let every batch pass the vision tower where a process that skips it would hang the others.

        Args:
            encoder: Of the checkpoint.
            trained: Whether some of the vision part is.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if encoder.sees and (sharded or (trained and self.args.world_size > 1)):
            self.data_collator.spare = encoder.spare()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The loss of a batch of `Collator`."""
        self._weights = inputs.pop("weights")
        return super().compute_loss(model, inputs, *args, **options)

    def _loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Weighted negative log-likelihood a token of the targets, over all batches of a step.

        Args:
            outputs: With `logits` (rows, the last so many tokens, vocabulary).
            labels: Int tensor (rows, tokens).
            num_items_in_batch: Target tokens of the whole step; None: of this batch.
        """
        logits = outputs.logits[:, :-1]
        wanted = labels[:, -logits.shape[1] :]
        scored = wanted != IGNORED
        each = torch.nn.functional.cross_entropy(logits[scored].float(), wanted[scored], reduction="none")
        weights = self._weights.to(each.device)[:, None].expand_as(wanted)[scored]
        return (each * weights).sum() / (scored.sum() if num_items_in_batch is None else num_items_in_batch)
