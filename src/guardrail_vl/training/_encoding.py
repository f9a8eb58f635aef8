"""A turn as a model is trained on it: the ids and pixels that serving will send, then the target. Knows no trainer.

It renders, tokenises and prepares pictures with the serving engine's own code, so a model learns to continue exactly
the prompts that it will be given.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from guardrail_vl.engines._checkpoint import model_name
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.prompt_format import PromptFormat, get_format
from guardrail_vl.prompt_format.base import Prompt
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

try:
    import transformers

    from guardrail_vl.engines._inputs import Reader, filled, load_reader, padded
except ImportError as error:
    raise MissingDependencyError(
        error.name or "transformers", extra="train", needed_for="guardrail_vl.training"
    ) from error

_hf: Any = transformers

IGNORED: Final = -100
"""The label of a token that no loss is computed on."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One turn as tokens and pixels."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """As long as `ids`: `IGNORED` on the prompt, the ids themselves on the target and its end token."""
    pixels: Any = None
    """Float tensor (patches, values of a patch); None: no picture."""
    grid: Any = None
    """Int tensor (pictures, 3): patches in time, height and width; None: no picture."""
    weight: float = 1.0
    """See `LabeledTurn.weight`."""


class Encoder:
    """Turns into tokens, for one checkpoint and one prompt format. Loads no weights.

    Args:
        checkpoint: A folder or hub id, as for `Guard`.
        format: Id of the prompt format to train in.
        revision: Commit, tag or branch of the hub id.

    Raises:
        ConfigurationError: The checkpoint can't be read, has no end token, or the format has no such id.
    """

    def __init__(
        self, checkpoint: str | Path, format: str = "guardreasoner-vl/1", *, revision: str | None = None
    ) -> None:
        name = model_name(checkpoint, revision)
        self.format: PromptFormat = get_format(format)
        try:
            self.reader: Reader = load_reader(str(checkpoint), name, revision)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The checkpoint {name} can't be loaded: {error}", hint="Give a checkpoint folder or a hub id."
            ) from error
        tokenizer = self.reader.tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigurationError(f"The tokenizer of {name} has no end token, so no answer would ever end.")
        self.end: int = tokenizer.eos_token_id
        """Id of the token that a target ends with."""
        self.pad: int = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.takes = frozenset(inspect.signature(self.model_class.forward).parameters)
        """Names of what the model takes."""

    @property
    def config(self) -> Any:
        """The checkpoint's config."""
        return self.reader.config

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.reader.tokenizer

    @property
    def sees(self) -> bool:
        """Whether the model takes pictures."""
        return self.reader.pictures is not None

    @property
    def auto_class(self) -> Any:
        """The class of transformers that loads the weights."""
        return _hf.AutoModelForImageTextToText if self.sees else _hf.AutoModelForCausalLM

    @property
    def model_class(self) -> Any:
        """The class that the weights will be of.

        Raises:
            ConfigurationError: Transformers has none for this checkpoint.
        """
        mapping = _hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if self.sees else _hf.MODEL_FOR_CAUSAL_LM_MAPPING
        found = mapping.get(type(self.config), None)
        if found is None:
            raise ConfigurationError(f"Transformers has no model that writes text for {type(self.config).__name__}.")
        return found[0] if isinstance(found, tuple) else found

    def prompt(self, turn: LabeledTurn) -> Prompt:
        """What serving asks about the turn, with reasoning.

        Raises:
            ContentError: The turn can't be judged: an unreadable picture, for example.
        """
        (prompt,) = self.format.render(turn.exchange(), turn.stage, speed="reason")
        return prompt

    def target(self, turn: LabeledTurn, *, fast: bool = False) -> str:
        """What the model is to answer.

        Args:
            turn: With all its labels.
            fast: Without reasoning, as it has to answer at `speed="fast"`.

        Raises:
            ConfigurationError: The reasoning holds a tag of the format.
        """
        return self.format.target(replace(turn.verdict, reasoning=None) if fast else turn.verdict)

    def encode(self, turn: LabeledTurn, *, target: str | None) -> Encoded:
        """The turn's prompt, then the target and the end token.

        Args:
            turn: What is judged.
            target: See `target`. None: the prompt alone, to generate from.

        Raises:
            ContentError: The turn can't be judged, or the target holds control tokens.
        """
        read = self.reader.read(self.prompt(turn))
        # Tokenised apart: what serving sends is a prefix of it by construction, never merged with the target.
        answer = [] if target is None else [*self.reader.chat.continuation(target), self.end]
        return Encoded(
            ids=(*read.ids, *answer),
            labels=(*[IGNORED] * len(read.ids), *answer),
            pixels=read.pixels,
            grid=read.grid,
            weight=turn.weight,
        )

    def spare(self) -> Encoded:
        """A row with a small grey picture and no label: for batches that must hold a picture and have none."""
        data = io.BytesIO()
        Image.new("RGB", (56, 56), "grey").save(data, "PNG")
        return self.encode(LabeledTurn("spare", images=(data.getvalue(),), prompt_label=Label.UNHARMFUL), target=None)

    def collate(self, rows: Sequence[Encoded], *, side: Literal["left", "right"] = "right") -> dict[str, Any]:
        """The rows as one batch.

        Args:
            rows: At least one.
            side: Where shorter rows are filled up: right to train, left to generate.

        Returns:
            `input_ids`, `attention_mask` and `labels` (rows, tokens); where there is a picture, `pixel_values` and
            `image_grid_thw` of all rows one after another, and `mm_token_type_ids` if the model takes them.

        Raises:
            ContentError: There are no rows.
        """
        if not rows:
            raise ContentError("There is no row to put into a batch.")
        batch = padded(
            rows,
            pad=self.pad,
            side=side,
            image_token=self.reader.image_token,
            takes_token_types="mm_token_type_ids" in self.takes,
        )
        return {**batch, "labels": filled([row.labels for row in rows], IGNORED, side)}
