"""The turns of a recipe: read or made, each content once, nothing held out that is trained on. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from guardrail_vl._value import Value
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training import dataset, synthetic
from guardrail_vl.training.recipe import Recipe
from guardrail_vl.training.turns import LabeledTurn

_NAMED: Final = 5
"""Ids named in a message."""


@dataclass(frozen=True, slots=True)
class DataResult(Value):
    """What there is to train on."""

    train: int
    held_out: int
    repeated: int
    """Training turns that were left out: their content was there before."""
    contradicting: int
    """Contents that were left out: the same one has turns with other labels."""
    leaked: int
    """Held-out turns that were left out: their request is trained on."""


Found = tuple[tuple[LabeledTurn, ...], tuple[LabeledTurn, ...], DataResult]


def gather(recipe: Recipe) -> Found:
    """The turns to train on and those that are held out, without repeats, contradictions and leaks.

    Raises:
        ConfigurationError: A file can't be read, a held-out turn is trained on, or nothing is left.
    """
    found = _synthetic(recipe) if recipe.data.synthetic is not None else _from_files(recipe)
    if not found[0]:
        raise ConfigurationError("There is no turn to train on.")
    if recipe.data.holds_out and not found[1]:
        raise ConfigurationError("There is no held-out turn left.")
    return found


def _synthetic(recipe: Recipe) -> Found:
    made = recipe.data.synthetic
    assert made is not None
    train = dataset.dedupe(synthetic.turns(made.train, seed=made.seed))
    # The task is small, so some requests come again: as many are made as it takes.
    others = synthetic.turns(2 * made.held_out, seed=made.seed + 1)
    leaked = {leak.test for leak in dataset.leaks(train.turns, others)}
    held_out = tuple(turn for turn in others if turn.id not in leaked)[: made.held_out]
    return train.turns, held_out, DataResult(len(train.turns), len(held_out), len(train.repeated), 0, 0)


def _from_files(recipe: Recipe) -> Found:
    data = recipe.data
    given = [turn for one in data.train for turn in dataset.read(recipe.path(one.file), one.layout)]
    found = dataset.dedupe(_one_id_each(given))
    train, held_out = found.turns, tuple(
        turn for one in data.held_out for turn in dataset.read(recipe.path(one.file), one.layout)
    )  # fmt: skip
    if data.share:
        sides = dataset.split(train, {"train": 1 - data.share, "held_out": data.share}, data.seed)
        train, held_out = sides["train"], sides["held_out"]
    held_out = _one_id_each(held_out)
    leaked = {leak.test for leak in dataset.leaks(train, held_out)}
    if leaked and data.leaks == "refuse":
        raise ConfigurationError(
            f"{len(leaked)} held-out turns are trained on, such as {', '.join(sorted(leaked)[:_NAMED])}.",
            hint="Take them out of one side, or say leaks: drop in the recipe's data to leave them out here.",
        )
    held_out = tuple(turn for turn in held_out if turn.id not in leaked)
    counts = DataResult(len(train), len(held_out), len(found.repeated), len(found.contradicting), len(leaked))
    return train, held_out, counts


def _one_id_each(turns: list[LabeledTurn] | tuple[LabeledTurn, ...]) -> tuple[LabeledTurn, ...]:
    """Several files may number their turns alike: what comes later gets a number after its id."""
    seen: dict[str, int] = {}
    out = []
    for turn in turns:
        count = seen[turn.id] = seen.get(turn.id, 0) + 1
        out.append(turn if count == 1 else replace(turn, id=f"{turn.id}~{count}"))
    return tuple(out)
