"""From a prompt to what a checkpoint's model takes: ids, pixels, and rows padded to one another. Serving and training.

Loads what a checkpoint has beside its weights: config, tokenizer, chat template, image processor. Needs no torchvision.
It knows no weights, no queue and no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from guardrail_vl.engines._chat import Chat
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.prompt_format.base import Prompt

try:
    import torch
    import transformers
except ImportError as error:  # pragma: no cover - the test environment has them
    raise MissingDependencyError(
        error.name or "transformers", extra="local", needed_for="TransformersEngine"
    ) from error

hf: Any = transformers
"""Only partly typed."""


class Shown(Protocol):
    """A row as `padded` takes it."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids; a picture takes as many placeholder ids as the model has visual tokens for it."""

    @property
    def pixels(self) -> Any:
        """Float tensor (patches, values of a patch), all pictures of the row one after another; None: no picture."""

    @property
    def grid(self) -> Any:
        """Int tensor (pictures, 3): patches in time, height and width; None: no picture."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A prompt as the model takes it; see `Shown`."""

    ids: list[int]
    pixels: Any = None
    grid: Any = None


@dataclass(frozen=True)
class Reader:
    """Reads prompts for one checkpoint. The same for every prompt."""

    config: Any
    tokenizer: Any
    chat: Chat
    pictures: Any
    """The checkpoint's image processor; None: its model takes no pictures."""
    image_token: int
    """Id of the placeholder; -1: the model takes no pictures."""
    max_positions: int

    def read(self, prompt: Prompt) -> Inputs:
        """The prompt as the model takes it.

        Raises:
            ContentError: It can't be read, or leaves the model no room to answer.
        """
        ids = self.chat.ids(prompt)
        pixels, grid = self._pixels(prompt)
        if grid is not None:
            ids = self._make_room(ids, grid.prod(-1).tolist())
        if len(ids) >= self.max_positions:
            raise ContentError(
                f"The prompt takes {len(ids)} tokens; the guard model reads at most {self.max_positions - 1}."
            )
        return Inputs(ids, pixels, grid)

    def _pixels(self, prompt: Prompt) -> tuple[Any, Any]:
        shown = prompt.images
        if not shown:
            return None, None
        try:
            read = self.pictures(images=[image.pixels() for image in shown], return_tensors="pt")
        except ValueError:
            raise ContentError("A picture can't be prepared for the guard model: its sides are too unequal.") from None
        return read["pixel_values"], read["image_grid_thw"]

    def _make_room(self, ids: list[int], patches: list[int]) -> list[int]:
        """The ids with each picture's one placeholder repeated for each of its visual tokens."""
        counts = iter(patches)
        out: list[int] = []
        for i in ids:
            out += [i] * (next(counts) // self.pictures.merge_size**2) if i == self.image_token else [i]
        return out


def load_reader(model: str, name: str, revision: str | None = None) -> Reader:
    """Load what reads prompts for a checkpoint, without its weights.

    Args:
        model: A checkpoint folder or hub id.
        name: What messages call it.
        revision: Commit, tag or branch of the hub id.

    Raises:
        ConfigurationError: The checkpoint is of a kind that can't be read.
        OSError: Something of it is missing.
        ValueError: Transformers can't make sense of it.
    """
    where = {"revision": revision} if revision else {}
    config = hf.AutoConfig.from_pretrained(model, **where)
    tokenizer = hf.AutoTokenizer.from_pretrained(model, **where)
    sees = hasattr(config, "vision_config")
    if sees and getattr(config, "image_token_id", None) is None:
        raise ConfigurationError(f"{name} shows pictures to its model in a way that this engine does not know.")
    # The same backend with and without torchvision, so that the same picture gives the same numbers.
    pictures = hf.AutoImageProcessor.from_pretrained(model, backend="pil", **where) if sees else None
    if sees and not hasattr(pictures, "merge_size"):
        raise ConfigurationError(f"{name} prepares pictures in a way that this engine does not know.")
    return Reader(
        config=config,
        tokenizer=tokenizer,
        chat=Chat(tokenizer, images=sees),
        pictures=pictures,
        image_token=config.image_token_id if sees else -1,
        max_positions=config.get_text_config().max_position_embeddings,
    )


def padded(
    rows: Sequence[Shown], *, pad: int, side: Literal["left", "right"], image_token: int, takes_token_types: bool
) -> dict[str, Any]:
    """The rows as one batch of the model's arguments.

    Args:
        rows: At least one.
        pad: Id that shorter rows are filled up with.
        side: Where: left to generate, so that every row's newest token is in the last column; right to train.
        image_token: Id of a picture's placeholder.
        takes_token_types: Whether the model takes `mm_token_type_ids`.

    Returns:
        Tensors by name; those of pictures only if there are any.
    """
    ids = filled([row.ids for row in rows], pad, side)
    inputs = {"input_ids": ids, "attention_mask": filled([[1] * len(row.ids) for row in rows], 0, side)}
    shown = [row for row in rows if row.pixels is not None]
    if shown:
        # Pictures of all rows follow each other; the placeholders in the ids say whose they are.
        inputs["pixel_values"] = torch.cat([row.pixels for row in shown])
        inputs["image_grid_thw"] = torch.cat([row.grid for row in shown])
        if takes_token_types:
            inputs["mm_token_type_ids"] = ids.eq(image_token).to(torch.int)
    return inputs


def filled(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> torch.Tensor:
    """Rows of unlike length as one tensor (rows, the longest), filled up with a value on one side."""
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        if row:
            out[i, slice(-len(row), None) if side == "left" else slice(len(row))] = torch.tensor(row)
    return out
