"""The prompts of reinforcement as rows by number: ids and pixels exactly as they are served, and the right answers.

A row is encoded when it is needed, and the last ones are remembered, so that no batch holds the pixels of a whole
rollout. It knows no loss and no trainer.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.prompt_format.base import Prompt, PromptMessage, PromptText
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training.turns import LabeledTurn

try:
    import torch

    from guardrail_vl.engines._inputs import Inputs, Shown
except ImportError as error:
    raise MissingDependencyError("torch", extra="train", needed_for="guardrail_vl.training.rl") from error

MEMORY: Final = 4 << 30
"""Bytes of pixels that are remembered."""
NAMED: Final = 3
"""Turns that a message names at most."""


class Rows:
    """The turns to train on, by their number.

    Args:
        encoder: Makes ids and pixels of a turn, as the engine does.
        turns: The rows.
        release: Ask as the released code did: see `released`.
        memory: Bytes of pixels to remember.
    """

    def __init__(
        self, encoder: Encoder, turns: Sequence[LabeledTurn], *, release: bool = False, memory: int = MEMORY
    ) -> None:
        self.encoder = encoder
        self.turns = tuple(turns)
        self._mean_weight = sum(turn.weight for turn in self.turns) / len(self.turns)
        self._release = release
        self._room = memory
        self._kept: OrderedDict[int, Inputs] = OrderedDict()
        self._bytes = 0

    def prompt(self, row: int) -> Prompt:
        """What is asked.

        Raises:
            ContentError: The turn can't be judged: a picture that can't be read, for example.
        """
        prompt = self.encoder.prompt(self.turns[row])
        return released(prompt) if self._release else prompt

    def encoded(self, row: int) -> Inputs:
        """The row as the model takes it.

        Raises:
            ContentError: It can't be judged: a picture that can't be read, for example.
        """
        known = self._kept.get(row)
        if known is not None:
            self._kept.move_to_end(row)
            return known
        made = self.encoder.reader.read(self.prompt(row))
        self._kept[row] = made
        self._bytes += _bytes(made)
        while self._bytes > self._room and len(self._kept) > 1:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return made

    def check(self) -> None:
        """Read every row once: better now than in the middle of training.

        Raises:
            ConfigurationError: Some can't be judged; names the first of them.
        """
        wrong: list[str] = []
        for row, turn in enumerate(self.turns):
            try:
                self.encoded(row)
            except ContentError as error:
                wrong.append(f"{turn.id!r} ({error.message})")
        if wrong:
            raise ConfigurationError(
                f"{len(wrong)} of {len(self.turns)} turns can't be judged: {', '.join(wrong[:NAMED])}"
                f"{', …' if len(wrong) > NAMED else '.'}",
                hint="Leave them out.",
            )

    def ids(self, row: int) -> list[int]:
        """The token ids of the prompt, a picture's placeholder once for each of its visual tokens."""
        return list(self.encoded(row).ids)

    def asked(self, row: int) -> list[int]:
        """The same with one placeholder a picture, for an engine that makes room for the visual tokens itself."""
        return list(self.encoder.reader.chat.ids(self.prompt(row)))

    def weight(self, row: int) -> float:
        """How often it counts, of mean 1 over all rows."""
        return self.turns[row].weight / self._mean_weight

    def images(self, row: int) -> int:
        """How many pictures it has."""
        grid = self.encoded(row).grid
        return 0 if grid is None else len(grid)

    def pictures(self, row: int) -> list[Any] | None:
        """The pictures for an engine that prepares them itself. None: there is none."""
        shown = self.prompt(row).images
        return [image.pixels() for image in shown] or None

    def seen(self, rows: Sequence[int], ids: Any, *, dtype: Any) -> dict[str, Any]:
        """What the model takes beside the ids of these rows: nothing at all where none of them has a picture.

        Args:
            rows: Their numbers, in the order of `ids`.
            ids: Int tensor (rows, tokens), padded; a completion may follow the prompt.
            dtype: Of the pixels.
        """
        return self.shown([self.encoded(row) for row in rows], ids, dtype=dtype)

    def shown(self, rows: Sequence[Shown], ids: Any, *, dtype: Any) -> dict[str, Any]:
        """The same for rows that have no number."""
        shown = [row for row in rows if row.pixels is not None]
        if not shown:
            return {}
        # A group has one row many times over: its pixels are cast and moved once, and repeated where the model is.
        moved = {id(row): row.pixels.to(ids.device, dtype) for row in {id(row): row for row in shown}.values()}
        seen = {
            "pixel_values": torch.cat([moved[id(row)] for row in shown]),
            "image_grid_thw": torch.cat([row.grid for row in shown]).to(ids.device),
        }
        if "mm_token_type_ids" in self.encoder.takes:
            # Made from the ids themselves: whichever side they are padded on, they agree.
            seen["mm_token_type_ids"] = ids.eq(self.encoder.reader.image_token).int()
        return seen


def released(prompt: Prompt) -> Prompt:
    """The prompt as the released code lays it out for rollouts, and only there.

    The instruction stands in the user's turn, with commas after the tasks' numbers, and the chat template's own system
    line in its place.
    """
    instruction, user = prompt.messages
    words = instruction.text.strip().replace("Task 1:", "Task 1,").replace("Task 2:", "Task 2,")
    return replace(prompt, messages=(PromptMessage("user", (PromptText(f"{words} "), *user.content)),))


def order(count: int, *, passes: int, size: int, seed: int) -> list[int]:
    """The rows in the order of training: each pass in a new order, cut to whole rollouts.

    Args:
        count: Rows there are.
        passes: How often each is used.
        size: Prompts in a rollout.
        seed: Of the order.
    """
    chance = random.Random(seed)
    out: list[int] = []
    for _ in range(passes):
        rows = list(range(count))
        chance.shuffle(rows)
        out += rows
    return out[: len(out) // size * size]


def _bytes(row: Inputs) -> int:
    return 0 if row.pixels is None else row.pixels.numel() * row.pixels.element_size()
